"""S3 by s3fs, with one way of trying again for every request: of a file, a listing, a chunk, a range of an image."""

from __future__ import annotations

import asyncio
import logging
import random
import re
from dataclasses import dataclass
from typing import Any

import aiohttp
from botocore import exceptions as boto
from botocore.exceptions import ClientError
from botocore.parsers import ResponseParserError
from fsspec.asyn import sync_wrapper
from s3fs import S3FileSystem
from s3fs.errors import translate_boto_error

from dtg_ray.errors import StorageError
from dtg_ray.remote import ATTEMPTS, RETRIES

log = logging.getLogger(__name__)
FIRST_WAIT, LONGEST_WAIT = 0.2, 20.0
"""Seconds; a wait is drawn between none and a longest one, which doubles."""
JITTER = random.SystemRandom()
"""Without a state that could be seeded or forked: those who failed together must not come back together."""
ONE_REQUEST = 5 * 2**30
"""The largest object that S3 takes in one request, bytes."""
NETWORK = (
    boto.HTTPClientError,
    boto.ConnectionError,
    boto.IncompleteReadError,
    boto.FlexibleChecksumError,
    ResponseParserError,  # half an answer
    aiohttp.ClientError,
    ConnectionError,
    TimeoutError,
)
"""What is raised where no answer came, or not the whole of it."""
BUSY = {429, 500, 502, 503, 504}
BUSY_CODES = {
    "SlowDown",
    "InternalError",
    "ServiceUnavailable",
    "RequestTimeout",  # the body did not arrive in time
    "IncompleteBody",
    "XAmzContentSHA256Mismatch",
    "RequestLimitExceeded",
    "BandwidthLimitExceeded",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}
"""Errors that go away, some of which come inside answers whose status says nothing."""
RANGE = re.compile(r"bytes[= ](\d+)-(\d+)(?:/(\d+))?")
NO_CREDENTIALS = (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)
REFUSED_CODES = {
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
    "400",  # all that S3 says of an expired token where an answer has no body
}
"""Errors of whoever asks, not of what was asked for."""


@dataclass(frozen=True)
class Body:
    """The body of an answer, read already.

    Parameters
    ----------
    data : bytes
    """

    data: bytes

    async def read(self) -> bytes:
        """All of it."""
        return self.data

    def close(self) -> None:
        """Nothing is open."""


class S3(S3FileSystem):
    """S3 whose requests are whole or errors, and are tried again when that can help.

    Parameters
    ----------
    attempts : int
        How often a request is tried at most.
    **options
        As of s3fs.

    Raises
    ------
    StorageError
        By every method, when the store or the network answers none of the attempts, or the credentials are no good.
    """

    retries = 1  # s3fs's own have no jitter, are for SlowDown but not for 500 or 504, and multiply

    def __init__(self, *args: Any, attempts: int = ATTEMPTS, **options: Any) -> None:
        super().__init__(*args, **options)
        self.attempts = attempts

    async def _call_s3(self, method: str, *parts: Any, **request: Any) -> Any:
        """Every request to S3 goes through here: all that are made here can be made twice."""
        for attempt in range(1, self.attempts + 1):
            try:
                answer = await super()._call_s3(method, *parts, **request)
                return await _whole(method, answer, request.get("Range", ""))
            except Exception as error:
                if not goes_away(error) or attempt == self.attempts:
                    self._tell(error, request)
                    raise
                reason = _code(error) or type(error).__name__
            RETRIES[reason] += 1
            log.info("%s: attempt %d of %d: %s; trying again", method, attempt, self.attempts, reason)
            await asyncio.sleep(wait_after(attempt))
        raise AssertionError("unreachable")

    call_s3 = sync_wrapper(_call_s3)

    def _tell(self, trouble: Exception, request: dict[str, Any]) -> None:
        """Raise an error in words where it is the network's, the store's or the credentials'."""
        where = "s3://" + "/".join(str(request[name]) for name in ("Bucket", "Key", "Prefix") if request.get(name))
        cause = trouble.__cause__ if isinstance(trouble.__cause__, ClientError) else trouble
        reason = f"{type(cause).__name__}: {cause}"
        if goes_away(trouble):
            raise StorageError(
                f"{where}: got no good answer in {self.attempts} attempts, the last one: {reason}",
                hint="once the network and the store work, the same command goes on; AWS_MAX_ATTEMPTS sets the limit",
            ) from trouble
        if isinstance(trouble, NO_CREDENTIALS) or _code(trouble) in REFUSED_CODES:
            raise StorageError(
                f"{where}: got credentials that S3 does not take ({reason})",
                hint="check AWS_PROFILE, AWS_ACCESS_KEY_ID or the role, and the clock; the same command goes on then",
            ) from trouble
        if isinstance(trouble, PermissionError):  # S3 does not say to what
            raise PermissionError(f"{where}: {trouble}") from trouble

    async def _pipe_file(self, path: str, data: bytes, chunksize: int = ONE_REQUEST, **more: Any) -> Any:
        """Write an object by one request: who is killed leaves no parts of it behind, and it can be made twice."""
        return await super()._pipe_file(path, data, chunksize=chunksize, **more)


async def _whole(method: str, answer: dict[str, Any], asked: str) -> dict[str, Any]:
    """An answer with its whole body; an error when part of what was asked for was not done."""
    if method == "delete_objects" and answer.get("Errors"):  # its status is 200 all the same
        raise translate_boto_error(ClientError({"Error": answer["Errors"][0]}, "DeleteObjects"))
    if "Body" in answer:
        try:
            answer["Body"] = Body(await answer["Body"].read())
        except BaseException:
            answer["Body"].close()
            raise
        _check_range(len(answer["Body"].data), answer.get("ContentRange", ""), asked)
    return answer


def _check_range(n_bytes: int, given: str, asked: str) -> None:
    """Refuse a part that is shorter than what was asked for, though the server says that this is all."""
    answer, question = RANGE.fullmatch(given), RANGE.fullmatch(asked)
    if answer is None or question is None or answer[3] is None:
        return
    first, last, size = (int(number) for number in answer.groups())
    expected = min(int(question[2]), size - 1) + 1 - int(question[1])
    if n_bytes != expected or last + 1 - first != expected:
        raise boto.IncompleteReadError(actual_bytes=n_bytes, expected_bytes=expected)


def wait_after(attempt: int) -> float:
    """Seconds to wait after an attempt, the first of which is 1: anything up to a limit that doubles."""
    return JITTER.uniform(0, min(FIRST_WAIT * 2 ** (attempt - 1), LONGEST_WAIT))


def goes_away(error: Exception) -> bool:
    """Whether an error is of the network or of a busy store, and the same request may succeed a moment later."""
    answer = _answer(error)
    if answer is None:
        return isinstance(error, NETWORK)
    return _code(error) in BUSY_CODES or answer.get("ResponseMetadata", {}).get("HTTPStatusCode") in BUSY


def _answer(error: Exception) -> dict[str, Any] | None:
    """What the server said; s3fs hides it behind an exception of Python's."""
    cause = error if isinstance(error, ClientError) else error.__cause__
    return dict(cause.response) if isinstance(cause, ClientError) else None


def _code(error: Exception) -> str:
    """The server's code of an error, if it said one."""
    return str(((_answer(error) or {}).get("Error") or {}).get("Code", ""))
