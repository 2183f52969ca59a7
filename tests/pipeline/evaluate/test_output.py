from dataclasses import replace

import pytest

from pipeline.evaluate import output
from tests.support.evaluations import evaluation

FAILURES = [("a.jpg", "label_format", "the label a.png is RGB"), ("b.jpg", "label_format", "the label b.png is RGB")]


def test_images_without_a_score_are_logged_by_code_with_an_example_of_each(caplog: pytest.LogCaptureFixture) -> None:
    failures = [*FAILURES, ("c.jpg", "label_missing", "no label")]
    output.log_failures(replace(evaluation(7), failures=failures), limit=0.3)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert "2 image(s) without a score, label_format: for example a.jpg: the label a.png is RGB" in caplog.text
    assert "1 image(s) without a score, label_missing: for example c.jpg: no label" in caplog.text


@pytest.mark.parametrize(("limit", "levels"), [(0.2, ["WARNING"]), (0.19, ["WARNING", "ERROR"])])
def test_a_share_above_the_limit_is_an_error_that_names_the_option(
    limit: float, levels: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    output.log_failures(replace(evaluation(8), failures=FAILURES), limit=limit)
    assert [record.levelname for record in caplog.records] == levels
    if len(levels) > 1:
        assert "20.0% of the images have no score, limit 19.0% (--runtime.max-failed-fraction)" in caplog.text
