"""Small files under one root URI, local or on S3: whole or absent, never half-written."""

from __future__ import annotations

import contextlib
import errno
import functools
import mimetypes
import os
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
import zarr
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore

from dtg_ray.config import StorageConfig
from dtg_ray.errors import DamagedError, MissingFileError, StorageError, StudyError
from dtg_ray.remote import options, refuse_credentials

PLAIN = StorageConfig()
"""What is read, and what is no part of a study."""


def is_remote(uri: str) -> bool:
    """Whether a URI names an object store rather than a local path."""
    return "://" in uri and not uri.startswith("file://")


def _content_type(uri: str) -> dict[str, str]:
    """What S3 shall say that a file is: browsers show a page that is called one, and save what is not."""
    kind = mimetypes.guess_type(uri)[0] if uri.startswith("s3://") else None
    return {"ContentType": kind} if kind else {}


def local_path(uri: str) -> Path:
    """The absolute local path of a URI without a scheme, or with file://."""
    return Path(uri.removeprefix("file://")).expanduser().absolute()


def normalize(uri: str) -> str:
    """One way of writing each URI: absolute local paths, no slash at the end.

    Raises
    ------
    UsageError
        When a URI holds a password or a secret key.
    """
    refuse_credentials(uri)
    return uri.rstrip("/") if is_remote(uri) else str(local_path(uri))


def filesystem(uri: str, config: StorageConfig = PLAIN) -> Any:
    """The fsspec filesystem of a URI."""
    if not is_remote(uri):
        return fsspec.filesystem("file")
    return fsspec.url_to_fs(uri, **options(uri, **config.model_dump()))[0]


def read(uri: str) -> bytes:
    """All bytes of one file anywhere.

    Raises
    ------
    MissingFileError
        When it is not there.
    """
    try:
        return bytes(filesystem(uri).cat_file(uri if is_remote(uri) else str(local_path(uri))))
    except FileNotFoundError as error:
        raise MissingFileError("got no such file, expected one to read", path=uri) from error


def listed_bytes(entry: Mapping[str, Any]) -> int:
    """Bytes of a file by its entry in a listing; -1 for a link that leads nowhere, as git-annex leaves them."""
    size = int(entry.get("size") or 0)
    return -1 if entry.get("islink") and not size and not Path(entry["name"]).exists() else size


def stamp(entry: Mapping[str, Any]) -> str:
    """What tells one content of a file from another, by its entry in a listing: the store's tag, or inode and time."""
    tag = entry.get("ETag")
    return str(tag) if tag else f"{entry.get('ino')}-{entry.get('mtime')}-{entry.get('size')}"


def is_trouble(error: Exception) -> bool:
    """Whether an error is the disk's, the bucket's or the network's, and not a defect of ours."""
    return isinstance(error, (OSError, StorageError)) or type(error).__module__.startswith(
        ("botocore.", "aiobotocore.")
    )


@contextlib.contextmanager
def written(uri: str) -> Iterator[None]:
    """Say in words what could not be written inside.

    Raises
    ------
    StudyError
        For a full disk, no permission, no such bucket; what else goes wrong comes through as it is.
    """
    try:
        yield
    except Exception as error:
        if not is_trouble(error):
            raise
        hint = "free some space or choose another root; nothing half-written was kept"
        raise StudyError(
            f"{uri}: could not be written: {getattr(error, 'strerror', None) or error}",
            hint=error.hint if isinstance(error, StorageError) else hint,
        ) from error


@contextlib.contextmanager
def understood(uri: str) -> Iterator[None]:
    """Say in words that what a Zarr group or array says of itself cannot be understood.

    Raises
    ------
    DamagedError
    """
    try:
        yield
    except FileNotFoundError:  # which zarr's is a ValueError as well
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedError(
            f"{uri}: got a zarr.json that cannot be understood ({error}), expected an array's description",
            hint="put it back as it was, or remove that .zarr folder and the receipts of its stage: it is made again",
        ) from error


def _replace(target: Path, data: bytes) -> None:
    """Write aside and rename; what could not be finished is removed."""
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(target)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise


@dataclass(frozen=True)
class Storage:
    """All files under one root.

    Parameters
    ----------
    root : str
        A local folder or `s3://bucket/prefix`.
    config : StorageConfig
        How objects are written to a bucket; the `storage` of study.yaml.
    """

    root: str
    config: StorageConfig = PLAIN

    def __post_init__(self) -> None:
        """Write the root in one way."""
        object.__setattr__(self, "root", normalize(self.root))

    @functools.cached_property
    def fs(self) -> Any:
        """The filesystem, made in the process that uses it (s3fs is not fork-safe)."""
        return filesystem(self.root, self.config)

    def __getstate__(self) -> dict[str, Any]:
        """Travel between processes without the open filesystem."""
        return {"root": self.root, "config": self.config}

    def uri(self, name: str) -> str:
        """Where a file of this root is."""
        return f"{self.root}/{name}"

    def exists(self, name: str) -> bool:
        """Whether a file or folder is there now."""
        return bool(self.fs.exists(self.uri(name)))

    def read(self, name: str) -> bytes:
        """All bytes of a file; MissingFileError when it is not there."""
        return read(self.uri(name))

    def read_many(self, names: list[str]) -> dict[str, bytes]:
        """Several files at once; those that are not there are left out."""
        # not `cat`, which takes brackets in a name for a pattern and leaves out whatever could not be read
        answers = self.fs.cat_ranges([self.uri(name) for name in names], None, None, on_error="return")
        found = {}
        for name, answer in zip(names, answers, strict=True):
            if isinstance(answer, FileNotFoundError):
                continue
            if isinstance(answer, BaseException):
                raise answer
            found[name] = bytes(answer)
        return found

    def write(self, name: str, data: bytes) -> None:
        """Put a file in place as a whole: readers see the old one, or none, or all of the new one.

        Raises
        ------
        StudyError
            When it cannot be written: a full disk, no permission, no such bucket.
        """
        uri = self.uri(name)
        with written(uri):
            if is_remote(uri):
                self.fs.pipe_file(uri, data, **_content_type(uri))
            else:
                _replace(Path(uri), data)

    def delete(self, name: str) -> None:
        """Remove a file; nothing happens when it is not there."""
        with written(self.uri(name)), contextlib.suppress(FileNotFoundError):
            self.fs.rm_file(self.uri(name))

    def delete_folder(self, name: str) -> None:
        """Remove all files below a folder at once, but for those that somebody writes at that moment."""
        with written(self.uri(name)), contextlib.suppress(FileNotFoundError):
            try:
                self.fs.rm(self.uri(name), recursive=True)
            except OSError as error:
                if error.errno != errno.ENOTEMPTY:
                    raise

    def names(self, folder: str) -> list[str]:
        """Files below a folder, as names relative to the root, sorted; unfinished ones are left out."""
        return list(self.sizes(folder))

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of the files of `names`, in the same order, all from one listing; -1 for a link that leads nowhere."""
        return {name: listed_bytes(entry) for name, entry in self._listing(folder).items()}

    def stamps(self, folder: str) -> dict[str, str]:
        """What changes whenever one of the files of `names` is written, all from one listing."""
        return {name: stamp(entry) for name, entry in self._listing(folder).items()}

    def _listing(self, folder: str) -> dict[str, dict[str, Any]]:
        base = str(self.fs._strip_protocol(self.root))  # noqa: SLF001 - fsspec's own name for it
        try:
            found = self.fs.find(self.uri(folder), detail=True)
        except FileNotFoundError:
            return {}
        kept = sorted(path for path in found if not path.endswith(".partial"))
        return {path[len(base) + 1 :]: found[path] for path in kept}

    def zarr_store(self, name: str, *, read_only: bool = False) -> Store:
        """A Zarr store below this root."""
        uri = self.uri(name)
        if not is_remote(uri):
            return LocalStore(uri, read_only=read_only)
        chosen = options(uri, **self.config.model_dump())
        return FsspecStore.from_url(uri, storage_options=chosen, read_only=read_only)

    def open_zarr(self, name: str, *, writable: bool = False) -> zarr.Group:
        """Open a Zarr group that is there.

        Raises
        ------
        StudyError
            When it is not there.
        DamagedError
            When its description is damaged.
        """
        store, mode = self.zarr_store(name, read_only=not writable), "r+" if writable else "r"
        try:
            with understood(self.uri(name)):
                return zarr.open_group(store, mode=mode, zarr_format=3)
        except FileNotFoundError as error:
            raise StudyError(
                f"{self.uri(name)}: not there",
                hint="`dtg status` shows what is done; rois.zarr is made by `dtg init`, all others by their stages",
            ) from error

    def open_array(self, name: str, key: str, *, writable: bool = False) -> zarr.Array:
        """Open an array of a Zarr group that is there; raises as `open_zarr`."""
        group = self.open_zarr(name, writable=writable)
        with understood(self.uri(f"{name}/{key}")):
            array = group[key]
            if not isinstance(array, zarr.Array):
                raise TypeError(f"it is a {type(array).__name__}")
        return array
