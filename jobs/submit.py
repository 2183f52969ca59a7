"""Submit a job to a running cluster, once a day: its id is a name and a date, and Ray accepts an id only once.

    python -m jobs.submit --name eval -- python -m jobs.evaluate --source s3://labelled/val \
        --checkpoint s3://bucket/model --history s3://bucket/evaluations --baseline last-good

The same command on the same day (UTC) prints the status of the first one and ends with status 0. With `--wait` it ends
with the job's own status, whoever submitted it, so a killed submitter is simply started again.

In: the environment names the cluster and has the token, as for `ray job submit`: RAY_ADDRESS=http://head:8265,
RAY_AUTH_MODE=token, and the token in ~/.ray/auth_token or the file that RAY_AUTH_TOKEN_PATH names. Out: one JSON line.
Nothing is uploaded: the command runs in the cluster's image.
"""

import argparse
import json
import logging
import re
import shlex
from datetime import UTC, date, datetime

from infra import log as logs
from jobs import command_line
from pipeline.errors import ConfigError

log = logging.getLogger(__name__)

ID_PREFIX = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
"""Pattern of `--name`; such a name is also valid for a Kubernetes object."""


def submission_id(name: str, day: date) -> str:
    """Submission id of a name on a day: `eval-2026-11-20`.

    Raises:
        ConfigError: the name is invalid in a URL or as the name of a Kubernetes object.
    """
    if not ID_PREFIX.fullmatch(name):
        raise ConfigError(
            f"--name {name!r} cannot begin a submission id", hint="at most 40 lower-case letters, digits and hyphens"
        )
    return f"{name}-{day.isoformat()}"


def submit(args: argparse.Namespace) -> int:
    """Submit, print the status, and wait with `--wait`; returns the exit status."""
    from infra import submission

    job, entrypoint = submission_id(args.name, args.date), shlex.join(args.command)
    client = submission.submission_client()
    submitted = submission.submit_once(client, job, entrypoint)
    status = client.get_job_status(job)
    if not submitted:
        log.info("%s: already submitted, status %s", job, status)
        submission.warn_if_other(client, job, entrypoint)
    if args.wait:
        status = submission.wait_for(client, job)
    print(json.dumps({"submission_id": job, "submitted": submitted, "status": str(status)}))
    return submission.job_exit_status(client, job, status) if args.wait else 0


def parse_submission(argv: list[str] | None) -> argparse.Namespace:
    """Parse flags, then `--`, then the command."""
    today, date_help = datetime.now(UTC).date(), "YYYY-MM-DD, for a day that was missed; default: today, UTC"
    flags = command_line.argument_parser(__doc__ or "")
    flags.add_argument("--name", required=True, help="beginning of the submission id; the date follows")
    flags.add_argument("--date", type=date.fromisoformat, default=today, help=date_help)
    flags.add_argument("--wait", action="store_true", help="wait until the job has ended; end with its status")
    flags.add_argument("command", nargs="+", metavar="-- COMMAND", help="command that the cluster runs")
    return flags.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Parse, submit, and turn errors into a message and an exit status."""
    logs.configure()
    args = parse_submission(argv)
    return command_line.exit_status(lambda: submit(args))


if __name__ == "__main__":
    command_line.leave(main())
