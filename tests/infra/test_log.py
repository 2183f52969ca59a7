import json
import logging
import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from infra import log
from tests.support.examples import examples

CANARY = "c4n4ry-s3cret"
SIGNED = f"https://bucket.s3.amazonaws.com/a.jpg?X-Amz-Signature={CANARY}&X-Amz-Expires=60"


@pytest.fixture(autouse=True)
def logging_as_it_was():
    """Give the other tests back the process-wide state that `configure` changes."""
    loggers = [logging.getLogger(name) for name in (None, "ray", "ray.data", *log.OURS)]
    before = [(one.level, one.propagate, list(one.handlers)) for one in loggers]
    factory, hook = logging.getLogRecordFactory(), sys.excepthook
    yield
    logging.setLogRecordFactory(factory)
    sys.excepthook = hook
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate, logger.handlers = propagate, handlers


def boom():
    raise RuntimeError(f"GET {SIGNED} failed")


def log_everywhere_a_secret_can_hide(logger):
    logger.warning(SIGNED)
    logger.warning("reading %s", SIGNED)
    logger.warning("bucket.s3.amazonaws.com/a.jpg?X-Amz-Signature=%s", CANARY)
    logger.warning("%(where)s", {"where": SIGNED})
    logger.warning("%d images from", SIGNED)
    try:
        boom()
    except RuntimeError as error:
        logger.exception("gave up")
        logger.warning("gave up: %s", error)


@pytest.mark.parametrize("log_format", ["human", "json"])
@pytest.mark.parametrize("name", ["pipeline.store.objects", "jobs", "botocore.auth", "ray.data._internal"])
def test_no_line_holds_a_secret(capsys, name, log_format):
    log.configure(log_format)
    log_everywhere_a_secret_can_hide(logging.getLogger(name))
    written = capsys.readouterr()
    assert CANARY not in written.err + written.out
    assert written.err.count("bucket.s3.amazonaws.com/a.jpg") >= 6


def test_handlers_of_others_get_redacted_records_too(tmp_path):
    log.configure()
    other = logging.getLogger("ray.data.test_log")
    handler = logging.FileHandler(tmp_path / "ray-data.log")
    other.addHandler(handler)
    log_everywhere_a_secret_can_hide(other)
    handler.close()
    other.removeHandler(handler)
    written = (tmp_path / "ray-data.log").read_text()
    assert "RuntimeError" in written
    assert CANARY not in written


@examples(50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(message=st.text(), level=st.sampled_from(["INFO", "WARNING", "ERROR"]))
def test_every_json_line_is_one_object(capsys, message, level):
    log.configure("json")
    capsys.readouterr()
    logging.getLogger("pipeline.run.parts").log(getattr(logging, level), "%s", message)
    (line,) = capsys.readouterr().err.splitlines()
    said = json.loads(line)
    assert (said["level"], said["logger"]) == (level, "pipeline.run.parts")
    assert said["message"] == log.redact(message)
    assert said["time"].endswith("Z")


def test_a_traceback_stays_inside_its_json_line(capsys):
    log.configure("json")
    try:
        boom()
    except RuntimeError:
        logging.getLogger("jobs").exception("gave up")
    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["exception"].startswith("Traceback")


def test_configuring_twice_writes_each_line_once(capsys):
    log.configure("human")
    log.configure("json")
    log.configure("human")
    logging.getLogger("pipeline").info("one shard done")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("INFO     one shard done")


def test_we_are_heard_from_info_and_everybody_else_from_warning(capsys):
    log.configure()
    for name in ("pipeline.run.flow", "ray.data", "fsspec"):
        logging.getLogger(name).info("quiet %s", name)
        logging.getLogger(name).warning("loud %s", name)
    logging.getLogger("ray.data").warning("shown in the progress bar", extra={"hide": True})
    said = [line.split(maxsplit=2)[2] for line in capsys.readouterr().err.splitlines()]
    assert said == ["quiet pipeline.run.flow", "loud pipeline.run.flow", "loud ray.data", "loud fsspec"]


def test_an_error_that_ends_the_process_is_redacted():
    script = f"from infra import log; log.configure(); raise RuntimeError({SIGNED!r})"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "RuntimeError: https://bucket" in done.stderr
    # The traceback shows file and line; with -c there is no source line to show.
    assert CANARY not in done.stderr
    assert "\x1b[" not in done.stderr
