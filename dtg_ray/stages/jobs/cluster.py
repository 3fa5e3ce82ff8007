"""A Ray cluster elsewhere, as the jobs API of its dashboard shows it. Its errors are told in words."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
import re
import ssl
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import ray
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobDetails, JobSubmissionClient

from dtg_ray.errors import DTGError, UsageError
from dtg_ray.remote import WITH_CREDENTIALS
from dtg_ray.stages.runtime import duration

Answer = TypeVar("Answer")
CONNECT_SECONDS, ANSWER_SECONDS = 10, 60
SILENT_SECONDS = 15
"""After so much silence of a log somebody asks whether the cluster is still there."""
LONGEST_WAIT = 15.0
"""Between two tries to reach a cluster, seconds."""
ADDRESS = "RAY_API_SERVER_ADDRESS"
OVERRIDES = (ADDRESS, "RAY_ADDRESS")
"""Variables that Ray's client puts before the address it is given."""
TUNNEL = (
    "is the cluster up, and the tunnel to it: ssh -L 8265:127.0.0.1:8265 HEAD, or "
    "kubectl port-forward service/NAME-head-svc 8265:8265"
)
TRUST = "set REQUESTS_CA_BUNDLE=FILE with the certificate of whoever signed the cluster's"
CHATTY = (
    "ray.dashboard.modules.job.sdk",
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.authentication.http_token_authentication",
)
"""Loggers that announce every upload and tell of a missing token in their own words."""
AWAY = {429, 502, 503, 504}
REASON = re.compile(
    r"certificate verify failed|timed out|refused|reset|aborted|unreachable|Name or service not known|HTTP status \d+"
)
LOOPBACK = re.compile(r"localhost|127\.\d+\.\d+\.\d+|::1")


class UnreachableError(DTGError):
    """Nobody answers just now, which may pass."""


class UnknownJobError(UsageError):
    """The cluster has no such job."""


class _Client(JobSubmissionClient):
    """Ray's client, but it waits for no answer for ever."""

    def _do_request(self, method: str, endpoint: str, **rest: Any) -> requests.Response:
        response = super()._do_request(method, endpoint, timeout=(CONNECT_SECONDS, ANSWER_SECONDS), **rest)
        if response.status_code in AWAY:
            raise requests.ConnectionError(f"HTTP status {response.status_code}")
        return response


def dashboard(address: str | None) -> str:
    """The URL of a dashboard as it was given, or as RAY_API_SERVER_ADDRESS says.

    Raises
    ------
    UsageError
        When there is none, or it is no URL of a dashboard, or has a password in it.
    """
    url = address or os.environ.get(ADDRESS, "")
    if not url:
        raise UsageError(
            f"got no --address and no {ADDRESS}, expected the cluster's dashboard",
            hint="such as --address http://127.0.0.1:8265",
        )
    if WITH_CREDENTIALS.match(url):
        raise UsageError("got an address with credentials in it, expected one such as http://HEAD:8265")
    url = url if "://" in url else f"http://{url}"
    if not url.startswith(("http://", "https://")) or not urlsplit(url).hostname:
        raise UsageError(f"got --address {url}, expected the cluster's dashboard, such as http://HEAD:8265")
    return url.rstrip("/")


def is_loopback(url: str) -> bool:
    """Whether an address is on this machine, or the end of a tunnel that is."""
    return bool(LOOPBACK.fullmatch(urlsplit(url).hostname or ""))


def refuse_unprotected(url: str) -> None:
    """Refuse to talk to a cluster over the network that asks nobody who they are.

    Raises
    ------
    UsageError
        When it is not on this machine, and no token is set up.
    """
    if not is_loopback(url) and os.environ.get("RAY_AUTH_MODE") != "token":
        raise UsageError(
            f"got {url} without a token, expected RAY_AUTH_MODE=token for a cluster that others can reach",
            hint="set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE, or say --allow-unauthenticated",
        )


class Patience:
    """How long a cluster may be away. Says once that it is, and once that it is back.

    Parameters
    ----------
    seconds : float
    say : callable
        Takes a line of text.
    """

    def __init__(self, seconds: float, say: Callable[[str], None]) -> None:
        self.seconds, self.say = seconds, say
        self._since: float | None = None
        self._tries = 0

    def lost(self, error: UnreachableError) -> None:
        """Wait before the next try.

        Raises
        ------
        UnreachableError
            The error, when this has lasted for too long.
        """
        now = time.monotonic()
        if self._since is None:
            self._since, self._tries = now, 0
            self.say(f"{error}; trying again for {duration(self.seconds)}")
        left = self._since + self.seconds - now
        if left <= 0:
            raise error
        wait = min(0.5 * 2**self._tries, LONGEST_WAIT) * random.uniform(0.5, 1)  # noqa: S311 - no secret
        self._tries += 1
        time.sleep(min(wait, left))

    def back(self) -> None:
        """It answers."""
        if self._since is not None:
            self.say("connected again")
        self._since = None

    def insist(self, ask: Callable[[], Answer]) -> Answer:
        """Ask until there is an answer."""
        while True:
            try:
                answer = ask()
            except UnreachableError as error:
                self.lost(error)
            else:
                self.back()
                return answer


class Cluster:
    """What a cluster is asked for; every question is asked once.

    Parameters
    ----------
    url : str
        Of its dashboard.

    Raises
    ------
    UnreachableError
        By all methods, when there is no answer.
    DTGError
        By all methods, when the answer is a refusal.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        for name in CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)
        with self._in_words(), _without(OVERRIDES):
            self._client = _Client(url)

    def ray_versions(self) -> tuple[str, str]:
        """Of Ray here, and there."""
        return ray.__version__, str(self._client._server_ray_version)  # noqa: SLF001 - asked for when it connected

    def submit(self, **job: Any) -> None:
        """Hand in a job, as `JobSubmissionClient.submit_job` takes it; one that is there already is accepted."""
        with self._in_words():
            try:
                self._client.submit_job(**job)
            except RuntimeError as error:
                if f"{job['submission_id']} already exists" not in str(error):
                    raise

    def info(self, job: str) -> JobDetails:
        """All about one job.

        Raises
        ------
        UnknownJobError
            When there is none of this name.
        """
        with self._in_words(job):
            return self._client.get_job_info(job)

    def jobs(self) -> list[JobDetails]:
        """All jobs of dtg, the oldest first."""
        with self._in_words():
            found = self._client.list_jobs()
        ours = [job for job in found if "stage" in (job.metadata or {}) and str(job.submission_id).startswith("dtg-")]
        return sorted(ours, key=lambda job: job.start_time or 0)

    def stop(self, job: str) -> None:
        """Ask a job to stop."""
        with self._in_words(job):
            self._client.stop_job(job)

    def hosts(self) -> set[str]:
        """Names of the machines that are nodes now."""
        with self._in_words():
            answer = self._client._do_request("GET", "/nodes?view=hostNameList")  # noqa: SLF001 - ours, see _Client
            return set(answer.json()["data"]["hostNameList"])

    def tail(self, job: str) -> Iterator[str]:
        """The log of a job from its beginning, as it grows, to its end; "" when connected, and in silence."""
        with self._in_words(job), asyncio.Runner() as runner:
            pieces = self._tail(job)
            while (text := runner.run(_next(pieces))) is not None:
                if not text:
                    self.info(job)  # a connection can be dead without anybody saying so
                yield text

    async def _tail(self, job: str) -> AsyncIterator[str]:
        url, headers = f"{self.url}/api/jobs/{job}/logs/tail", self._client._headers  # noqa: SLF001 - its token
        async with (
            aiohttp.ClientSession(headers=headers) as session,
            session.ws_connect(url, max_msg_size=0, ssl=_certificates()) as socket,
        ):
            yield ""
            while True:
                try:
                    message = await socket.receive(timeout=SILENT_SECONDS)
                except TimeoutError:
                    yield ""
                    continue
                if message.type is aiohttp.WSMsgType.TEXT:
                    yield message.data
                elif message.type is aiohttp.WSMsgType.CLOSE or socket.close_code == aiohttp.WSCloseCode.OK:
                    return
                else:
                    raise ConnectionResetError("the connection was cut")

    @contextlib.contextmanager
    def _in_words(self, job: str = "") -> Iterator[None]:
        """Say what went wrong, and whether it may pass."""
        try:
            yield
        except AuthenticationError as error:
            raise _refused(self.url, str(error)) from None
        except (OSError, aiohttp.ClientError) as error:
            reason = _reason(error)
            raise UnreachableError(
                f"{self.url}: no answer ({reason})", hint=TRUST if "certificate" in reason else TUNNEL
            ) from error
        except RuntimeError as error:
            if job and "status code 404" in str(error):
                raise UnknownJobError(f"got {job}, expected a job of {self.url}") from None
            if "No available agent" in str(error) or "Failed to get head node agent" in str(error):
                raise UnreachableError(f"{self.url}: its head is not ready") from error
            raise DTGError(f"{self.url}: {_last_line(str(error))}") from error


def _certificates() -> ssl.SSLContext:
    """Whom to believe: as `requests`, which asks everything but the log, is told."""
    return ssl.create_default_context(cafile=os.environ.get("REQUESTS_CA_BUNDLE") or None)


async def _next(pieces: AsyncIterator[str]) -> str | None:
    return await anext(pieces, None)


@contextlib.contextmanager
def _without(names: tuple[str, ...]) -> Iterator[None]:
    """No such variables for the time of the block."""
    held = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(held)


def _refused(url: str, answer: str) -> DTGError:
    """What Ray says of tokens, in one line; when it did not get as far as the cluster, its first sentence."""
    known = {"Authentication required": "no token", "Authentication failed": "a token that the cluster does not know"}
    got = known.get(answer.split(":", 1)[0], answer.split(". ", 1)[0])
    return DTGError(
        f"{url}: got {got}, expected the token of the cluster",
        hint="set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH=FILE with the token of the head",
    )


def _reason(error: BaseException) -> str:
    """The cause of an exception of `requests`, whose own text is mostly pointers."""
    text = f"{error.__context__} {error}"
    named = REASON.search(text)
    return named[0] if named else type(error).__name__


def _last_line(text: str) -> str:
    """What a traceback says in the end."""
    lines = [line.strip() for line in text.replace("\\n", "\n").splitlines() if line.strip(" '\".")]
    return lines[-1] if lines else text
