"""Runs as jobs on a Ray cluster: submit, list, follow and stop them through its Jobs API.

A job is ``python run.py train ...``, ``sweep ...`` or ``compare ...`` in a copy of the files that git
tracks here, so data, results and secrets stay behind. The cluster requires its token, which clients
read from RAY_AUTH_TOKEN, the file that RAY_AUTH_TOKEN_PATH names, or ~/.ray/auth_token.
"""

from __future__ import annotations

import asyncio
import math
import os
import re
import shlex
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.cluster.submission import job_command, job_environment, staged, submission_id, with_study
from orchestrator.settings.errors import UserError

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

JOB_ID = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")
CONNECT_SECONDS, ANSWER_SECONDS = 5, 60  # Ray's own client waits for ever
STOP_SECONDS = 60
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Job:
    """One submitted job, as the cluster's Jobs API lists it."""

    id: str
    status: str
    command: str
    started: datetime | None
    message: str


def submit(address: str, command: list[str], *, project: Path, study: Path | None = None) -> str:
    """Start ``python run.py <command>`` on the cluster and return its submission id; a ``study``'s file goes along.

    A job runs once; the cluster never repeats it. Submitting the same command again starts a new
    job that resumes the run where it stood, because the run's name is the same.
    """
    settings = with_study(command, study, project) if study else job_command(command)
    environment = job_environment()
    with staged(project, study if study and study.exists() else None) as folder, cluster(address) as client:
        job: str = client.submit_job(
            entrypoint=shlex.join(["python", "run.py", *settings]),
            submission_id=submission_id(settings),
            runtime_env={"working_dir": str(folder), "env_vars": environment},
        )
    return job


def wait(address: str, job: str) -> None:
    """Return when the job has succeeded; UserError if it ends in another way."""
    with cluster(address, job) as client:
        status = ended(client, job)
    if status != "SUCCEEDED":
        raise UserError(f"job {job}: {status}; read its log, then submit again to resume")


def listing(address: str) -> list[Job]:
    """All jobs that were submitted to the cluster, oldest first."""
    with cluster(address) as client:
        details = client.list_jobs()
    jobs = [
        Job(
            id=detail.submission_id,
            status=detail.status.value,
            command=detail.entrypoint,
            started=moment(detail.start_time),
            # The message of a failed job carries up to 20,000 characters of its log.
            message=(detail.message or "").partition("\n")[0],
        )
        for detail in details
        if detail.submission_id  # interactive drivers are listed too, without one
    ]
    # A job without a start time is still pending, so that it is the newest.
    return sorted(jobs, key=lambda job: job.started or datetime.max.replace(tzinfo=UTC))


def follow(address: str, job: str, *, tail: bool) -> Iterator[str]:
    """The log so far, or with ``tail`` the log as it grows until the job ends."""
    with cluster(address, job) as client:
        client.get_job_info(job)  # an unknown job is refused here; the stream would just fail
        if tail:
            yield from growing_log(client, job)
        else:
            yield client.get_job_logs(job)


def stop(address: str, job: str) -> str:
    """End a job and return its final status: STOPPED, or another if it had ended before."""
    with cluster(address, job) as client:
        # stop_job returns once the signal is sent; the job itself may take seconds to end.
        client.stop_job(job)
        return ended(client, job, STOP_SECONDS)


@contextmanager
def cluster(address: str, job: str | None = None) -> Iterator[JobSubmissionClient]:
    """A client for this address; what it raises becomes one line, without a request's headers."""
    if not re.fullmatch(r"https?://[^\s@?#/][^\s@?#]*", address):
        shown = address.rpartition("@")[2]
        raise UserError(f"{shown}: a cluster's address is written http://HOST:8265 or https://HOST")
    if job is not None and not JOB_ID.fullmatch(job):
        raise unknown(address, job)
    os.environ.setdefault("RAY_AUTH_MODE", "token")  # Ray reads it while it is being imported
    from aiohttp import ClientError
    from ray.exceptions import AuthenticationError

    try:
        yield connect(address)
    except AuthenticationError:
        raise UserError(
            f"{address}: no valid token; put the cluster's own into ~/.ray/auth_token, or name its "
            "file in RAY_AUTH_TOKEN_PATH, or set RAY_AUTH_TOKEN (all with RAY_AUTH_MODE=token)"
        ) from None
    except (OSError, KeyError, ClientError) as error:
        raise UserError(
            f"{address}: no answer from a Ray dashboard ({type(error).__name__}); "
            "check the host, the port (usually 8265) and the tunnel"
        ) from None
    except RuntimeError as error:
        if job and "status code 404" in str(error):
            raise unknown(address, job) from None
        reason = str(error).strip().rpartition("\n")[2]
        raise UserError(f"{address}: the cluster did not do it: {reason}") from None


def connect(address: str) -> JobSubmissionClient:
    """Ray's client with limits in time: it has none, and an unreachable host would hang it."""
    from ray._private.authentication.authentication_token_setup import _enable_token_auth
    from ray._private.authentication.authentication_utils import is_token_auth_enabled
    from ray.job_submission import JobSubmissionClient

    class PatientClient(JobSubmissionClient):
        def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
            # The first limit also holds for all of an upload, which may well take longer.
            timeout = None if method == "PUT" else (CONNECT_SECONDS, ANSWER_SECONDS)
            return super()._do_request(method, endpoint, timeout=timeout, **options)

    if os.environ["RAY_AUTH_MODE"].lower() == "token" and not is_token_auth_enabled():
        _enable_token_auth()  # Ray had been imported before the mode was set
    with without("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # they would win over the argument
        return PatientClient(address)


@contextmanager
def without(*names: str) -> Iterator[None]:
    """Hide variables of the environment for a moment."""
    hidden = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def unknown(address: str, job: str) -> UserError:
    return UserError(f"{job}: no such job at {address}; the list of jobs shows their ids")


def growing_log(client: JobSubmissionClient, job: str) -> Iterator[str]:
    """Ray's asynchronous stream of a log as a plain iterator."""
    stream = client.tail_job_logs(job)

    async def next_part() -> str | None:
        return await anext(stream, None)

    with asyncio.Runner() as runner:
        while (part := runner.run(next_part())) is not None:
            yield part


def ended(client: JobSubmissionClient, job: str, seconds: float = math.inf) -> str:
    """Wait until a job has ended, or for some seconds, and return its status."""
    limit = time.monotonic() + seconds
    while not (status := client.get_job_status(job)).is_terminal() and time.monotonic() < limit:
        time.sleep(POLL_SECONDS)
    return status.value


def moment(milliseconds: int | None) -> datetime | None:
    return None if milliseconds is None else datetime.fromtimestamp(milliseconds / 1000, UTC)
