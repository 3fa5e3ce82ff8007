"""Files as streams of unpacked bytes, wherever they are: on disk, behind a URI, in a zip; plain, gzip or zstd.

Nothing is ever unpacked to disk.
"""

from __future__ import annotations

import contextlib
import gzip
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

import fsspec
from backports import zstd
from isal import igzip, isal_zlib

from dtg_ray.errors import CorruptFileError, MissingFileError, TooLargeError, UnsafePathError
from dtg_ray.remote import options

ZIP = "zip://"
GZIP_MAGIC, ZSTD_MAGIC = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
DEFLATE_RATIO = 1032
"""No deflate stream unpacks to more than this many times its size (zlib's technical notes)."""
ISAL_ERROR: type[Exception] = isal_zlib.error  # type: ignore[assignment]  # its stub calls the class an instance
DAMAGE = (EOFError, gzip.BadGzipFile, ISAL_ERROR, zlib.error, zstd.ZstdError, zipfile.BadZipFile)
"""What damage inside a file raises; trouble on the way to it, such as a lost connection, is told as what it is."""
BAD_ARCHIVE = (NotImplementedError, RuntimeError, ValueError, struct.error)
"""What zipfile raises for encrypted members, unknown methods, and nonsense in its directory."""
ABSENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
REMOTE_BLOCK, BLOCKS_KEPT = 32 * 2**20, 3
"""Bytes per request to an object store, and how many are in memory; the next comes while this one is unpacked."""
PIECE = 64 * 2**20
"""Bytes asked for at once: memory is taken for what a file holds, not for what it promises."""


@dataclass(frozen=True)
class Stream:
    """Unpacked bytes, read from front to back.

    Parameters
    ----------
    file : binary file
    most : int or None
        The file cannot hold more bytes than this; None where nothing is known.
    """

    file: IO[bytes]
    most: int | None

    def read(self, n_bytes: int) -> bytes:
        """Up to `n_bytes`, fewer only at the end."""
        data = self.file.read(min(n_bytes, PIECE))
        if len(data) == n_bytes or not data:
            return data
        parts, missing = [data], n_bytes - len(data)
        while missing and (data := self.file.read(min(missing, PIECE))):
            parts.append(data)
            missing -= len(data)
        return b"".join(parts)

    def skip(self, n_bytes: int) -> None:
        """Go on by `n_bytes`, or to the end."""
        while n_bytes > 0 and (data := self.file.read(min(n_bytes, PIECE))):
            n_bytes -= len(data)


def member(archive: str, name: str) -> str:
    """URI of a member of a zip, as fsspec writes it."""
    return f"{ZIP}{name}::{archive}"


@contextlib.contextmanager
def open_stream(uri: str, maximum: int, block: int = REMOTE_BLOCK) -> Iterator[Stream]:
    """Open a file anywhere and unpack it on the way.

    Parameters
    ----------
    uri : str
        Local path, any URI fsspec knows, or `zip://MEMBER::ARCHIVE`. How it is packed is told by its first bytes.
    maximum : int
        A member of a zip that unpacks to more bytes than this is refused.
    block : int
        Bytes per request to an object store.

    Raises
    ------
    MissingFileError
        When the file, the archive or the member is not there or may not be read.
    CorruptFileError
        When the archive is none, or the member is encrypted.
    TooLargeError
        When a member promises more than `maximum`.
    UnsafePathError
        When the name of a member leads out of its archive.
    """
    with contextlib.ExitStack() as stack:
        if uri.startswith(ZIP):
            yield _unpacked(*_open_member(stack, split_member(uri), uri, maximum, block), uri)
        else:
            yield _unpacked(*_open_file(stack, uri, block), uri)


def read_all(uri: str, maximum: int) -> bytes:
    """All unpacked bytes of a small file anywhere.

    Raises
    ------
    MissingFileError, CorruptFileError, UnsafePathError
        As `open_stream`; also when the file is damaged.
    TooLargeError
        When it holds more than `maximum` bytes.
    """
    with open_stream(uri, maximum) as stream:
        try:
            data = stream.read(maximum + 1)
        except DAMAGE as error:
            raise CorruptFileError(f"got a damaged file ({error}), expected one that can be read", path=uri) from error
    if len(data) > maximum:
        raise TooLargeError(f"got more than {maximum} bytes, expected fewer", path=uri)
    return data


def split_member(uri: str) -> tuple[str, str]:
    """Name of the member and URI of the archive: `zip://a/b.nii::s3://bucket/c.zip` -> (`a/b.nii`, `s3://bucket/c.zip`).

    Raises
    ------
    UnsafePathError
        When the name leads out of the archive.
    """
    name, separator, archive = uri.removeprefix(ZIP).partition("::")
    if not separator or name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise UnsafePathError(f"got member {name!r} of {archive!r}, expected a name inside an archive", path=uri)
    return name, archive


def archive_of(uri: str) -> str:
    """The file a URI leads to: the archive of a member, otherwise itself."""
    return uri.partition("::")[2] if uri.startswith(ZIP) else uri


def _open_file(stack: contextlib.ExitStack, uri: str, block: int) -> tuple[IO[bytes], int | None]:
    """A file as it is, and its size."""
    try:
        if "://" not in uri:
            path = Path(uri)
            return stack.enter_context(path.open("rb")), path.stat().st_size
        fs, name = fsspec.url_to_fs(uri, **options(uri))
        kept = {"maxblocks": BLOCKS_KEPT}
        file = fs.open(name, "rb", block_size=block, cache_type="background", cache_options=kept)
    except ABSENT as error:
        message = f"got no file that can be read ({type(error).__name__}), expected one"
        raise MissingFileError(message, path=uri) from error
    return stack.enter_context(contextlib.closing(file)), getattr(file, "size", None)


def _open_member(
    stack: contextlib.ExitStack, names: tuple[str, str], uri: str, maximum: int, block: int
) -> tuple[IO[bytes], int]:
    """A member of an archive as it is, and its size."""
    name, archive = names
    file, size = _open_file(stack, archive, block)
    try:
        members = stack.enter_context(zipfile.ZipFile(file))
        info = members.getinfo(name)
        if info.header_offset < 0 or (size is not None and info.header_offset + info.compress_size > size):
            raise zipfile.BadZipFile(f"its directory leads to byte {info.header_offset}")
        if info.file_size > maximum:
            raise TooLargeError(
                f"got a member that unpacks to {info.file_size} bytes, expected at most {maximum}", path=uri
            )
        return stack.enter_context(members.open(info)), info.file_size
    except KeyError as error:
        raise MissingFileError(f"got an archive without {name}, expected it there", path=uri) from error
    except (*DAMAGE, *BAD_ARCHIVE) as error:
        raise CorruptFileError(f"got an archive that cannot be read ({error}), expected a zip", path=uri) from error


def _unpacked(file: IO[bytes], size: int | None, uri: str) -> Stream:
    """What is in a file that may be packed with gzip or zstd."""
    try:
        start = file.read(4)
    except DAMAGE as error:  # of a member of an archive
        raise CorruptFileError(f"got a file that cannot be unpacked ({error}), expected one", path=uri) from error
    file.seek(0)
    if start[:2] == GZIP_MAGIC:
        most = None if size is None else size * DEFLATE_RATIO
        return Stream(igzip.IGzipFile(fileobj=file, mode="rb"), most)
    if start == ZSTD_MAGIC:
        return Stream(zstd.ZstdFile(file), None)  # type: ignore[arg-type]
    return Stream(file, size)
