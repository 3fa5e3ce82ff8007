"""Object stores: how they are asked, the same for files, arrays and images. Only `dtg_ray.s3` knows S3 itself."""

from __future__ import annotations

import os
import re
from collections import Counter
from typing import Any

import fsspec

from dtg_ray.errors import UsageError

CONCURRENCY = 32
"""Requests at the same time, per process."""
ATTEMPTS = 10
"""How often a request is tried; with its waits about half a minute of a store that answers with errors at once."""
CONNECT_SECONDS, READ_SECONDS = 10, 30
"""How long a connection may take, and how long nothing may come over it."""
RETRIES: Counter[str] = Counter()
"""Requests of this process that were made again, by the reason."""
SECRETS = (re.compile(r"(?<=://)[^/@\s\"]+@"), re.compile(r"(?<=://)([^?\s\"]*)\?[^\s\"]*"))
"""Users with passwords in URIs, and the signatures after the question mark."""
WITH_CREDENTIALS = re.compile(r"s3a?://(?!arn:)[^/]*[:@]|[a-z0-9+.-]+://[^/@]*:[^/]*@", re.IGNORECASE)
"""Buckets have neither colon nor at sign; a secret key may have slashes before the at sign that ends it."""

# a name of its own: everybody else's s3:// stays what it is
fsspec.register_implementation("dtg-s3", "dtg_ray.s3.S3")


def options(
    uri: str, *, concurrency: int = CONCURRENCY, encryption: str | None = None, kms_key: str | None = None
) -> dict[str, Any]:
    """What fsspec's `url_to_fs`, `open` and Zarr's `FsspecStore.from_url` have to be told about a URI.

    Parameters
    ----------
    uri : str
        Of anything; only S3 has options.
    concurrency : int
        Requests at the same time, per process.
    encryption : "AES256" or "aws:kms", optional
        How the server encrypts every object that is written; by default as the bucket says.
    kms_key : str, optional
        Which key of KMS; by default the account's.

    Raises
    ------
    UsageError
        When AWS_MAX_ATTEMPTS is not a number.
    """
    if not uri.startswith(("s3://", "s3a://")):
        return {}
    encrypted = {"ServerSideEncryption": encryption, "SSEKMSKeyId": kms_key}
    return {
        "protocol": "dtg-s3",
        "attempts": _attempts(),
        "use_listings_cache": False,  # other writers of the same study would not be seen
        "max_concurrency": 1,  # s3fs would ask for the size before each read, to read large objects in pieces
        "s3_additional_kwargs": {name: value for name, value in encrypted.items() if value},
        "config_kwargs": {
            "max_pool_connections": concurrency,
            "connect_timeout": CONNECT_SECONDS,
            "read_timeout": READ_SECONDS,
            # its quota of 100 tries per process is used up within seconds of throttling
            "retries": {"mode": "standard", "total_max_attempts": 1},
        },
    }


def _attempts() -> int:
    """The limit, as AWS's own tools are told it."""
    given = os.environ.get("AWS_MAX_ATTEMPTS") or str(ATTEMPTS)
    if not given.isdecimal() or not int(given):
        raise UsageError(f"AWS_MAX_ATTEMPTS: got {given!r}, expected a number of attempts, at least 1")
    return int(given)


def refuse_credentials(uri: str) -> None:
    """Refuse a URI with a password or secret key in it, which would end up in tables and messages.

    Raises
    ------
    UsageError
        Without repeating it.
    """
    if WITH_CREDENTIALS.match(uri):
        raise UsageError(
            "got a URI with credentials in it, expected one such as s3://bucket/prefix",
            hint="credentials come from the environment or the role: AWS_PROFILE, AWS_ACCESS_KEY_ID and so on",
        )


def without_credentials(text: str) -> str:
    """A text whose URIs tell no user, password or signature."""
    users, signatures = SECRETS
    return signatures.sub(r"\1", users.sub("", text))
