"""A directory on a disk or in an object store, by URI: read, read ranges, write whole or not at all, list.

    Storage.at("data/shapes/train")            a local directory, relative to where the command was started
    Storage.at("s3://bucket/coco/train")       also gs://, and s3://bucket/prefix?endpoint_override=http://127.0.0.1:9000
    storage.read("manifest.json")              names are relative to it, with forward slashes

Credentials come from where the store's own tools find them (environment, ~/.aws, instance roles). A Storage is
picklable: what travels is the URI. Transient failures of an object store are tried again.
"""

import errno
import os
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TypeAlias, TypeVar
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from pipeline.errors import UnavailableError, UserError

TRIES = 6  # of a request to an object store, on top of what its client tries
FIRST_WAIT_SECONDS = 0.1  # before the second; twice as long before each further one
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://")
_FINAL = re.compile("ACCESS_DENIED|NO_SUCH_BUCKET|INVALID_ACCESS_KEY_ID|SIGNATURE_DOES_NOT_MATCH|HTTP status 40[13]")
_T = TypeVar("_T")


class StorageError(UserError):
    """A place that cannot be read or written."""


class StorageAwayError(StorageError, UnavailableError):
    """An object store that does not answer now."""


Location: TypeAlias = "Path | str | Storage"


@dataclass(frozen=True)
class Storage:
    """A directory. `uri` is an absolute local path, or scheme://bucket/path?options."""

    uri: str

    @staticmethod
    def at(location: Location) -> "Storage":
        """The directory at a local path or a URI. Raises StorageError for a scheme that nothing serves."""
        if isinstance(location, Storage):
            return location
        text = str(location)
        if text.startswith("file://"):
            text = urlsplit(text).path
        if not _SCHEME.match(text):
            return Storage(str(Path(text).absolute()))
        _filesystem(text)
        return Storage(text)

    @property
    def local(self) -> Path | None:
        """Where it lies on this machine; None for an object store."""
        return None if _SCHEME.match(self.uri) else Path(self.uri)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return PurePosixPath(urlsplit(self.uri).path if self.local is None else self.uri).name

    def __str__(self) -> str:
        """For people: without a key that somebody wrote into the URI."""
        if self.local is not None:
            return self.uri
        parts = urlsplit(self.uri)
        return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))

    def child(self, name: str) -> "Storage":
        """A directory below this one."""
        if self.local is not None:
            return Storage(str(self.local / name))
        parts = urlsplit(self.uri)
        return Storage(urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}")))

    def read(self, name: str) -> bytes:
        """All bytes of a file. Raises FileNotFoundError, OSError."""

        def read() -> bytes:
            with self._fs.open_input_file(self._path(name)) as file:
                content: bytes = file.read()
                return content

        return self._try(read)

    def open(self, name: str) -> pa.NativeFile:
        """A file to read ranges of, by several threads if need be. Raises FileNotFoundError, OSError."""
        return self._try(lambda: self._fs.open_input_file(self._path(name)))

    def read_at(self, file: pa.NativeFile, offset: int, count: int) -> bytes:
        """`count` bytes of an open file from `offset`; fewer where the file ends. Raises OSError."""
        content: bytes = self._try(lambda: file.read_at(count, offset))
        return content

    def write(self, name: str, content: bytes | pa.Buffer) -> None:
        """Write a file, whole or not at all: beside and renamed on a disk, one upload to an object store.

        Raises StorageError, which says why and what to do.
        """
        try:
            if self.local is None:
                self._try(lambda: self._upload(name, content))
            else:
                _write_beside(self.local / name, content)
        except OSError as error:
            raise self.refusal(f"{self.child(name)} cannot be written", error) from error

    def _upload(self, name: str, content: bytes | pa.Buffer) -> None:
        # All of the content is here before the upload begins: a stream that is closed, or only dropped, half-way would
        # complete the object with what it has got.
        whole = pa.py_buffer(content)
        with self._fs.open_output_stream(self._path(name)) as stream:
            stream.write(whole)

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is no such file."""
        info = self._info(name)
        return info.size if info.type == fs.FileType.File else None

    def identity(self, name: str) -> tuple[int, object] | None:
        """Bytes and time of change of a file: equal as long as it is the same; None where there is no such file."""
        info = self._info(name)
        return (info.size, info.mtime_ns) if info.type == fs.FileType.File else None

    def list(self, recursive: bool = False) -> list[str]:
        """Names of the files in it, relative, sorted. Hidden files are listed too. Raises StorageError."""
        selector = fs.FileSelector(self._path(""), recursive=recursive, allow_not_found=True)
        base = self._path("").rstrip("/") + "/"
        try:
            infos = self._try(lambda: self._fs.get_file_info(selector))
        except OSError as error:
            raise self.refusal(f"{self} cannot be listed", error) from error
        return sorted(info.path.removeprefix(base) for info in infos if info.type == fs.FileType.File)

    def delete(self, name: str) -> None:
        """Remove a file, if it is there. Raises StorageError."""
        if self.exists(name):
            self._remove(lambda: self._fs.delete_file(self._path(name)), str(self.child(name)))

    def delete_all(self) -> None:
        """Remove the directory with all that is in it, if it is there. Raises StorageError."""
        if self._info("").type == fs.FileType.Directory:
            self._remove(lambda: self._fs.delete_dir(self._path("")), str(self))

    def _info(self, name: str) -> fs.FileInfo:
        try:
            (info,) = self._try(lambda: self._fs.get_file_info([self._path(name)]))
        except OSError as error:
            raise self.refusal(f"{self.child(name)} cannot be looked up", error) from error
        return info

    def _remove(self, request: Callable[[], None], what: str) -> None:
        try:
            self._try(request)
        except FileNotFoundError:
            return  # the request before this one did it, though its answer was lost
        except OSError as error:
            raise self.refusal(f"{what} cannot be removed", error) from error

    def refusal(self, what: str, error: OSError) -> StorageError:
        """What to raise of an error that is left after all tries: one of another kind where it may pass."""
        kind = StorageAwayError if self._may_pass(error) else StorageError
        return kind(f"{what}: {_cause(error)}")

    def _may_pass(self, error: OSError) -> bool:
        return self.local is None and not isinstance(error, FileNotFoundError) and not _FINAL.search(str(error))

    @property
    def _fs(self) -> fs.FileSystem:
        return _filesystem(self.uri)[0]

    def _path(self, name: str) -> str:
        base: str = _filesystem(self.uri)[1]
        return f"{base.rstrip('/')}/{name}" if name else base

    def _try(self, request: Callable[[], _T]) -> _T:
        """Object stores fail now and then: try again, waiting longer each time."""
        for attempt in range(TRIES):
            try:
                return request()
            except OSError as error:
                if attempt == TRIES - 1 or not self._may_pass(error):
                    raise
                time.sleep(FIRST_WAIT_SECONDS * 2**attempt)
        raise AssertionError


def _write_beside(path: Path, content: bytes | pa.Buffer) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with beside.open("wb") as file:
            file.write(content)
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _cause(error: OSError) -> str:
    """Why a place refuses, and what helps."""
    what = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{what}; make room there, or choose another place"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{what}; choose a directory that you may write to"
    if error.errno in (errno.ENOTDIR, errno.EEXIST):
        return f"{what}: a file is in the way; choose another directory"
    return f"{what}; check the place, and your rights there"


@lru_cache(maxsize=64)
def _filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system that serves a URI, and the path in it."""
    try:
        filesystem, path = fs.FileSystem.from_uri(uri) if _SCHEME.match(uri) else (fs.LocalFileSystem(), uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise StorageError(
            f"{Storage(uri)} cannot be opened ({error}); give a local path, s3://BUCKET/PATH or gs://BUCKET/PATH"
        ) from error
    return filesystem, path
