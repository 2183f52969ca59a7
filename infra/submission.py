"""Job submission to Ray, at most once per id, however often a schedule repeats it.

In: the environment names the cluster, as for `ray job submit`: RAY_ADDRESS, RAY_AUTH_MODE and the token. Out: one
submitted job, its status and exit status.
"""

import logging
import time

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline.errors import JobError
from pipeline.redact import redact

log = logging.getLogger(__name__)

POLL_S = 2.0
"""Seconds between two polls of a job's status."""
HEAD_START_S = 90.0
"""Seconds within which a head that has just started must accept jobs."""
NO_AGENT = "No available agent"
"""Answer of Ray's dashboard before it accepts jobs."""
LOG_LINES = 30
"""Last lines of a failed job's log to repeat in ours, since cron mails them."""


def submission_client() -> JobSubmissionClient:
    """Connect to the cluster that the environment names.

    Raises:
        JobError: the cluster does not answer, or it refuses the token.
    """
    try:
        return JobSubmissionClient()
    except AuthenticationError as error:
        hint = "set RAY_AUTH_MODE=token, and have the cluster's token in ~/.ray/auth_token or at RAY_AUTH_TOKEN_PATH"
        raise JobError("the cluster refuses the token, or none was sent", hint=hint) from error
    except ConnectionError as error:
        hint = "RAY_ADDRESS=http://HEAD:8265; `ray dashboard ray_cluster.yaml` opens a tunnel to it"
        raise JobError(redact(str(error)), hint=hint) from error


def submit_once(client: JobSubmissionClient, job: str, entrypoint: str) -> bool:
    """Submit `entrypoint` under the id `job`; False when a job has this id already.

    Ray's control store decides which of two calls was first.

    Raises:
        JobError: the cluster refuses the job.
    """
    deadline = time.monotonic() + HEAD_START_S
    while True:
        try:
            client.submit_job(entrypoint=entrypoint, submission_id=job)
        except RuntimeError as refusal:
            if is_taken(client, job):
                return False
            if NO_AGENT not in str(refusal) or time.monotonic() > deadline:
                raise JobError(
                    f"{job} was not accepted: {refusal}", hint="run the same command to try again"
                ) from refusal
            time.sleep(POLL_S)
        else:
            return True


def is_taken(client: JobSubmissionClient, job: str) -> bool:
    """True when the cluster has a job of this id."""
    return any(known.submission_id == job for known in client.list_jobs())


def warn_if_other(client: JobSubmissionClient, job: str, entrypoint: str) -> None:
    """Warn when the job of this id runs another command, which is rarely intended."""
    first = client.get_job_info(job).entrypoint
    if first != entrypoint:
        log.warning("%s was submitted before with another command, which is the one that runs: %s", job, first)


def wait_for(client: JobSubmissionClient, job: str) -> JobStatus:
    """Wait until the job has ended; returns its last status."""
    while not (status := client.get_job_status(job)).is_terminal():
        time.sleep(POLL_S)
    return status


def job_exit_status(client: JobSubmissionClient, job: str, status: JobStatus) -> int:
    """Exit status of a job that has ended; logs the end of a failed job's log."""
    if status == JobStatus.SUCCEEDED:
        return 0
    tail = "\n".join(client.get_job_logs(job).splitlines()[-LOG_LINES:])
    log.error("%s: %s, its log ends with\n%s", job, status, tail)
    log.info("`ray job delete %s` lets the same command run it again", job)
    return client.get_job_info(job).driver_exit_code or 1
