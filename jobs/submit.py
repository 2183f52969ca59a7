"""Submit a job to a cluster that is already there, once a day: its id is a name and a date, and Ray takes no id twice.

    python -m jobs.submit --name eval -- python -m jobs.evaluate --source s3://labelled/val \
        --checkpoint s3://bucket/model --history s3://bucket/evaluations --baseline last-good

The same command on the same day (UTC) says how far the first one is and ends with status 0. With `--wait` it ends with
the job's own status, whoever submitted it, so that a killed submitter is simply started again.

In: the environment says which cluster and who asks, as for `ray job submit`: RAY_ADDRESS=http://head:8265,
RAY_AUTH_MODE=token, and the token in ~/.ray/auth_token or the file that RAY_AUTH_TOKEN_PATH names. Out: one JSON line.
Nothing is uploaded: the command runs in the cluster's image.
"""

import argparse
import json
import logging
import re
import shlex
import time
from datetime import UTC, date, datetime

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from infra import log as logs
from jobs import command_line
from pipeline.errors import ConfigError, JobError
from pipeline.redact import redact

log = logging.getLogger(__name__)

POLL_S = 2.0
START_S = 90.0
"""How long a head that has only just started is given until it takes jobs."""
NOT_YET = "No available agent"
"""What Ray's dashboard answers until then."""
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
"""Also good as the name of a Kubernetes object."""
LOG_LINES = 30
"""Of a job that failed: what cron mails."""


def submission_id(name: str, day: date) -> str:
    """`eval-2026-11-20`.

    Raises:
        ConfigError: when the name would not do in a URL or as the name of a Kubernetes object.
    """
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"--name {name!r} cannot begin a submission id", hint="at most 40 lower-case letters, digits and hyphens"
        )
    return f"{name}-{day.isoformat()}"


def connect() -> JobSubmissionClient:
    """The cluster that the environment names.

    Raises:
        JobError: when nobody answers there, or the token is not the cluster's.
    """
    try:
        return JobSubmissionClient()
    except AuthenticationError as error:
        hint = "set RAY_AUTH_MODE=token, and have the cluster's token in ~/.ray/auth_token or at RAY_AUTH_TOKEN_PATH"
        raise JobError("the cluster does not accept the token, or got none", hint=hint) from error
    except ConnectionError as error:
        hint = "RAY_ADDRESS=http://HEAD:8265; `ray dashboard ray_cluster.yaml` makes a tunnel to it"
        raise JobError(redact(str(error)), hint=hint) from error


def submit(client: JobSubmissionClient, job: str, entrypoint: str) -> bool:
    """Submit `entrypoint` under the id `job`; False when that id is taken, by this command or another.

    Ray's control store decides which of two calls was first.

    Raises:
        JobError: when the cluster takes no job at all.
    """
    until = time.monotonic() + START_S
    while True:
        try:
            client.submit_job(entrypoint=entrypoint, submission_id=job)
        except RuntimeError as refusal:
            if is_taken(client, job):
                return False
            if NOT_YET not in str(refusal) or time.monotonic() > until:
                raise JobError(f"{job} was not taken: {refusal}", hint="the same command tries again") from refusal
            time.sleep(POLL_S)
        else:
            return True


def is_taken(client: JobSubmissionClient, job: str) -> bool:
    """Whether the cluster knows the id."""
    return any(one.submission_id == job for one in client.list_jobs())


def follow(client: JobSubmissionClient, job: str) -> JobStatus:
    """Wait until the job has ended."""
    while not (status := client.get_job_status(job)).is_terminal():
        time.sleep(POLL_S)
    return status


def run(args: argparse.Namespace) -> int:
    """Submit, say what was found, and wait if asked; returns the exit status."""
    job, entrypoint = submission_id(args.name, args.date), shlex.join(args.command)
    client = connect()
    submitted = submit(client, job, entrypoint)
    status = client.get_job_status(job)
    if not submitted:
        log.info("%s: already submitted, status %s", job, status)
        warn_if_other(client, job, entrypoint)
    if args.wait:
        status = follow(client, job)
    print(json.dumps({"submission_id": job, "submitted": submitted, "status": str(status)}))
    return outcome(client, job, status) if args.wait else 0


def outcome(client: JobSubmissionClient, job: str, status: JobStatus) -> int:
    """The exit status of a job that has ended; of one that failed, also the end of its log."""
    if status == JobStatus.SUCCEEDED:
        return 0
    log.error("%s: %s, its log ends with\n%s", job, status, last_lines(client.get_job_logs(job)))
    log.info("`ray job delete %s` lets the same command run it again", job)
    return client.get_job_info(job).driver_exit_code or 1


def warn_if_other(client: JobSubmissionClient, job: str, entrypoint: str) -> None:
    """An id that is taken by another command is rarely meant."""
    first = client.get_job_info(job).entrypoint
    if first != entrypoint:
        log.warning("%s was submitted as another command, and that one counts today: %s", job, first)


def last_lines(text: str) -> str:
    """The end of a log."""
    return "\n".join(text.splitlines()[-LOG_LINES:])


def parser() -> argparse.ArgumentParser:
    """Flags, then `--`, then the command."""
    today, a_day = datetime.now(UTC).date(), "YYYY-MM-DD, for a day that was missed; default: today, UTC"
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--name", required=True, help="what the submission id begins with; the date follows")
    flags.add_argument("--date", type=date.fromisoformat, default=today, help=a_day)
    flags.add_argument("--wait", action="store_true", help="until the job has ended; end with its status")
    flags.add_argument("command", nargs="+", metavar="-- COMMAND", help="what the cluster runs")
    return flags


def main(argv: list[str] | None = None) -> int:
    """Parse, submit, and turn errors into a message and an exit status."""
    logs.configure()
    args = parser().parse_args(argv)
    return command_line.exit_status(lambda: run(args))


if __name__ == "__main__":
    command_line.leave(main())
