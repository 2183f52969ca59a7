"""Ray's job submission: one job per id, however often and by whomever it is submitted.

In: the environment names the cluster, as for `ray job submit`: RAY_ADDRESS, RAY_AUTH_MODE and the token. Out: whether
this call submitted the job, its status, its exit status.
"""

import logging
import time

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline.errors import JobError
from pipeline.redact import redact

log = logging.getLogger(__name__)

POLL_S = 2.0
"""Seconds between two questions to the cluster."""
HEAD_START_S = 90.0
"""Seconds until a head that has just started must accept jobs."""
NO_AGENT = "No available agent"
"""Answer of Ray's dashboard until then."""
LOG_LINES = 30
"""Last lines of a failed job's log that are logged: cron mails them."""


def submission_client() -> JobSubmissionClient:
    """Connect to the cluster that the environment names.

    Raises:
        JobError: no cluster answers there, or it refuses the token.
    """
    try:
        return JobSubmissionClient()
    except AuthenticationError as error:
        hint = "set RAY_AUTH_MODE=token, and have the cluster's token in ~/.ray/auth_token or at RAY_AUTH_TOKEN_PATH"
        raise JobError("the cluster does not accept the token, or got none", hint=hint) from error
    except ConnectionError as error:
        hint = "RAY_ADDRESS=http://HEAD:8265; `ray dashboard ray_cluster.yaml` makes a tunnel to it"
        raise JobError(redact(str(error)), hint=hint) from error


def submit_once(client: JobSubmissionClient, job: str, entrypoint: str) -> bool:
    """Submit `entrypoint` under the id `job`; False when that id is taken, by this command or another.

    Ray's control store decides which of two calls was first.

    Raises:
        JobError: the cluster accepts no job.
    """
    deadline = time.monotonic() + HEAD_START_S
    while True:
        try:
            client.submit_job(entrypoint=entrypoint, submission_id=job)
        except RuntimeError as refusal:
            if is_taken(client, job):
                return False
            if NO_AGENT not in str(refusal) or time.monotonic() > deadline:
                raise JobError(f"{job} was not taken: {refusal}", hint="the same command tries again") from refusal
            time.sleep(POLL_S)
        else:
            return True


def is_taken(client: JobSubmissionClient, job: str) -> bool:
    """Whether the cluster has a job of this id."""
    return any(known.submission_id == job for known in client.list_jobs())


def warn_if_other(client: JobSubmissionClient, job: str, entrypoint: str) -> None:
    """Warn when the id was taken by another command: that is rarely intended."""
    first = client.get_job_info(job).entrypoint
    if first != entrypoint:
        log.warning("%s was submitted as another command, and that one counts today: %s", job, first)


def wait_for(client: JobSubmissionClient, job: str) -> JobStatus:
    """Wait until the job has ended; returns its last status."""
    while not (status := client.get_job_status(job)).is_terminal():
        time.sleep(POLL_S)
    return status


def job_exit_status(client: JobSubmissionClient, job: str, status: JobStatus) -> int:
    """The exit status of a job that has ended; logs the end of a failed job's log."""
    if status == JobStatus.SUCCEEDED:
        return 0
    tail = "\n".join(client.get_job_logs(job).splitlines()[-LOG_LINES:])
    log.error("%s: %s, its log ends with\n%s", job, status, tail)
    log.info("`ray job delete %s` lets the same command run it again", job)
    return client.get_job_info(job).driver_exit_code or 1
