import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import summary
from jobs.run import RunOutcome
from pipeline.run.ledger import RunProgress
from pipeline.run.manifest import Manifest

STAGES = st.sampled_from(["read", "decode", "infer", "refine", "encode"])


@given(st.dictionaries(STAGES, st.floats(0.01, 1e6), min_size=1))
def test_shares_of_the_stages_add_up_to_the_whole(seconds: dict[str, float]) -> None:
    shares = summary.busy_shares(seconds)
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)


def test_a_run_that_did_nothing_has_no_shares(caplog: pytest.LogCaptureFixture) -> None:
    assert summary.busy_shares({}) == summary.busy_shares({"read": 0.0}) == {}
    caplog.set_level("INFO")
    summary.log_shares(RunOutcome(Manifest("f", 1, seconds={"read": 1.0}), RunProgress(), 2.0))
    assert not caplog.text


def test_the_end_of_a_run_says_what_was_decoding_and_what_was_overhead(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    manifest = Manifest("f", 1, seconds={"decode": 1.0, "infer": 3.0, "refine": 5.0, "encode": 1.0})
    summary.log_shares(RunOutcome(manifest, RunProgress(working_s=15.0), 20.0))
    assert "start and end: 5.0 of 20.0 s, 25%" in caplog.text
    assert "decode 10.0%, infer 30.0%, refine 50.0%, encode 10.0%" in caplog.text
