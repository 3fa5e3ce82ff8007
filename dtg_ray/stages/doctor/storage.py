"""Checks of the place of a study: what may be done there, whether all see the same, and what time it is there."""

from __future__ import annotations

import contextlib
import functools
import time
import uuid
from collections.abc import Callable, Iterator
from email.utils import parsedate_to_datetime
from pathlib import Path

from dtg_ray.errors import StudyError
from dtg_ray.stages.doctor.findings import FAIL, OK, WARN, Finding, checked
from dtg_ray.stages.doctor.machine import existing
from dtg_ray.store.files import Storage, is_remote

FOLDER = "dtg-doctor"
"""Below the root; nothing of a study is called so, and nothing stays there."""
RIGHTS = {
    "put": ("s3:PutObject", "write"),
    "get": ("s3:GetObject", "read"),
    "list": ("s3:ListBucket", "list"),
    "delete": ("s3:DeleteObject", "delete"),
}
"""What a study needs: in a policy of S3, and of a folder."""
REFUSED_FROM, TOLD_FROM = 15 * 60, 5
"""Seconds by which a clock may differ from that of S3, and by which people should know."""


def examine(storage: Storage, mark: str, content: bytes) -> list[Finding]:
    """Every check of a place, by this process.

    Parameters
    ----------
    storage : Storage
    mark, content
        Name and bytes of a file that another process has put there.
    """
    findings = rights(storage)
    if mark:
        findings += checked("same place", functools.partial(same_place, storage, mark, content))
    if is_remote(storage.root):
        findings += checked("clock of S3", functools.partial(server_clock, storage), "set the clock by NTP (chrony)")
        findings += checked("lifecycle", functools.partial(lifecycle, storage))
    return findings


def rights(storage: Storage) -> list[Finding]:
    """Put an object, get it, list it and delete it, each told by its name. Nothing of it stays."""
    name, content = f"{FOLDER}/{uuid.uuid4().hex}", uuid.uuid4().bytes
    with cleaned(storage):
        put = _tried(storage, "put", lambda: storage.write(name, content))
        if put.state != OK:
            without = (_not_tried("get"), _not_tried("delete"))
            return [put, without[0], _tried(storage, "list", lambda: storage.names(FOLDER)), without[1]]
        found = [put, _tried(storage, "get", lambda: _expect(storage.read(name), content))]
        found.append(_tried(storage, "list", lambda: _expect(name in storage.names(FOLDER), True)))
        return [*found, _tried(storage, "delete", lambda: storage.delete(name))]


def _expect(got: object, wanted: object) -> None:
    if got != wanted:
        raise StudyError("got something else than what was put there a moment ago", hint="who else writes there?")


def _not_tried(right: str) -> Finding:
    return Finding(f"storage: {right}", WARN, "not tried: nothing could be put", "see `put`")


def _tried(storage: Storage, right: str, action: Callable[[], object]) -> Finding:
    """Whether something may be done."""
    policy, verb = RIGHTS[right]
    where = f"allow {policy} on it" if is_remote(storage.root) else f"let this user {verb} there"

    def check() -> Finding:
        action()
        return Finding(f"storage: {right}", OK, storage.root)

    advice = f"{where}; credentials come from the environment or the role" if is_remote(storage.root) else where
    return checked(f"storage: {right}", check, advice)[0]


@contextlib.contextmanager
def cleaned(storage: Storage) -> Iterator[None]:
    """Take away folders that were made inside; in a bucket there are none."""
    if is_remote(storage.root):
        yield
        return
    folder = Path(storage.root) / FOLDER
    there = existing(folder)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # somebody else has put something there
            for one in (folder, *folder.parents):
                if one == there:
                    break
                one.rmdir()


@contextlib.contextmanager
def marked(storage: Storage) -> Iterator[tuple[str, bytes]]:
    """A file for others to read, for the time of the block: its name and bytes; no name where it cannot be put."""
    name, content = f"{FOLDER}/{uuid.uuid4().hex}", uuid.uuid4().bytes
    with cleaned(storage):
        try:
            storage.write(name, content)
        except Exception:  # noqa: BLE001 - `rights` says why
            name = ""
        try:
            yield name, content
        finally:
            if name:
                with contextlib.suppress(Exception):
                    storage.delete(name)


def same_place(storage: Storage, mark: str, content: bytes) -> Finding:
    """Whether this process sees what another one has written."""
    name = "same place"
    try:
        _expect(storage.read(mark), content)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is not the same place
        advice = "the root of a study has to be the same for all nodes: a bucket, or a folder that all have mounted"
        return Finding(name, FAIL, f"does not see what the driver has put there: {type(error).__name__}", advice)
    return Finding(name, OK, "all see what the driver has put there")


def server_clock(storage: Storage) -> Finding:
    """How far this clock is from that of the object store."""
    bucket, _, prefix = storage.root.split("://", 1)[1].partition("/")
    begin = time.time()
    answer = storage.fs.call_s3("list_objects_v2", Bucket=bucket, Prefix=prefix, MaxKeys=1)
    end = time.time()
    there = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"]).timestamp()
    return clock("clock of S3", (begin + end) / 2 - there - 0.5, 0.5 + (end - begin) / 2)  # a date is cut to seconds


def clock(name: str, offset: float, uncertain: float = 0.0) -> Finding:
    """A clock that is fast by some seconds, give or take; S3 refuses requests of one that is far off."""
    off = max(abs(offset) - uncertain, 0.0)
    words = f"{off:.0f} s {'fast' if offset > 0 else 'slow'}" if off >= 1 else "less than a second off"
    if off >= REFUSED_FROM:
        return Finding(name, FAIL, words, "S3 refuses requests that are 15 minutes off: set the clock by NTP (chrony)")
    return Finding(name, WARN if off > TOLD_FROM else OK, words, "set it by NTP (chrony)" if off > TOLD_FROM else "")


def lifecycle(storage: Storage) -> Finding | None:
    """Whether the bucket drops parts of uploads that were never finished; nothing where that may not be read."""
    bucket = storage.root.split("://", 1)[1].partition("/")[0]
    try:
        rules = storage.fs.call_s3("get_bucket_lifecycle_configuration", Bucket=bucket)["Rules"]
    except Exception as error:  # noqa: BLE001 - it is one's good right not to be told
        if "lifecycle" not in str(error).lower() or "denied" in str(error).lower():
            return None
        rules = []
    if any(rule.get("Status") == "Enabled" and "AbortIncompleteMultipartUpload" in rule for rule in rules):
        return Finding("lifecycle", OK, "parts of unfinished uploads are dropped")
    advice = "add a rule AbortIncompleteMultipartUpload: other tools leave parts that cost and that no listing shows"
    return Finding("lifecycle", WARN, "no rule drops parts of unfinished uploads", advice)
