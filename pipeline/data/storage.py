"""A directory on a disk or in an object store, by URI: read, read ranges, write whole or not at all, list.

    Storage.at("data/shapes/train")            a local directory, relative to where the command was started
    Storage.at("s3://bucket/coco/train")       also gs://, and s3://bucket/prefix?endpoint_override=http://127.0.0.1:9000
    storage.read("manifest.json")              names are relative to it, with forward slashes

Credentials come from where the store's own tools find them (environment, ~/.aws, instance roles). A Storage is
picklable: what travels is the URI. Transient failures of an object store are tried again.
"""

import os
import re
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import urlsplit, urlunsplit

import pyarrow as pa
from pyarrow import fs

from pipeline.errors import UserError

TRIES = 6  # of a request to an object store
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://")
_T = TypeVar("_T")


class StorageError(UserError):
    """A place that cannot be read or written."""


@dataclass(frozen=True)
class Storage:
    """A directory. `uri` is an absolute local path, or scheme://bucket/path?options."""

    uri: str

    @staticmethod
    def at(location: "str | Path | Storage") -> "Storage":
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
        return self.uri

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
        """A file to read ranges of. Raises FileNotFoundError, OSError."""
        return self._try(lambda: self._fs.open_input_file(self._path(name)))

    def read_at(self, file: pa.NativeFile, offset: int, count: int) -> bytes:
        """`count` bytes of an open file from `offset`."""
        content: bytes = self._try(lambda: file.read_at(count, offset))
        return content

    def write(self, name: str, content: bytes) -> None:
        """Write a file, whole or not at all."""

        def write() -> None:
            with self.writer(name) as file:
                file.write(content)

        self._try(write)

    @contextmanager
    def writer(self, name: str) -> Iterator[pa.NativeFile]:
        """A file to write, which appears under its name when the block ends without an error.

        On a disk it is written beside and renamed; an object store shows an object when its upload is complete.
        """
        local = self.local
        if local is None:
            # Closing completes the upload, so what failed half-way is aborted by leaving the stream behind unclosed.
            stream = self._fs.open_output_stream(self._path(name))
            yield stream
            stream.close()
            return
        path = local / name
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f".{path.name}.{os.getpid()}.{uuid.uuid4().hex[:8]}.tmp")
        try:
            with pa.OSFile(str(beside), "wb") as file:
                yield file
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise

    def exists(self, name: str) -> bool:
        """Whether there is such a file."""
        return self.size(name) is not None

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is no such file."""
        (info,) = self._try(lambda: self._fs.get_file_info([self._path(name)]))
        return info.size if info.type == fs.FileType.File else None

    def list(self, recursive: bool = False) -> list[str]:
        """Names of the files in it, relative, sorted. Hidden files are listed too."""
        selector = fs.FileSelector(self._path(""), recursive=recursive, allow_not_found=True)
        base = self._path("").rstrip("/") + "/"
        infos = self._try(lambda: self._fs.get_file_info(selector))
        return sorted(info.path.removeprefix(base) for info in infos if info.type == fs.FileType.File)

    def delete(self, name: str) -> None:
        """Remove a file, if it is there."""
        if self.exists(name):
            self._try(lambda: self._fs.delete_file(self._path(name)))

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
            except FileNotFoundError:
                raise
            except OSError:
                if self.local is not None or attempt == TRIES - 1:
                    raise
                time.sleep(0.1 * 2**attempt)
        raise AssertionError


@lru_cache(maxsize=64)
def _filesystem(uri: str) -> tuple[fs.FileSystem, str]:
    """The file system that serves a URI, and the path in it."""
    try:
        filesystem, path = fs.FileSystem.from_uri(uri) if _SCHEME.match(uri) else (fs.LocalFileSystem(), uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise StorageError(
            f"{uri} cannot be opened ({error}); give a local path, s3://BUCKET/PATH or gs://BUCKET/PATH"
        ) from error
    return filesystem, path
