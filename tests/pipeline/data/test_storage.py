"""Directories on a disk and in an S3-compatible store behave alike; failures are tried again or say what to do."""

import errno
import os
import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from object_store import ObjectStore
from pyarrow import fs

from pipeline.data import storage as module
from pipeline.data.manifest import load_manifest
from pipeline.data.storage import TRIES, Storage, StorageError
from pipeline.errors import UnavailableError


@pytest.fixture(params=["disk", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "disk":
        return Storage.at(tmp_path / "deep/er")
    store: ObjectStore = request.getfixturevalue("object_store")
    return Storage.at(store.uri(f"{tmp_path.name}/deep/er"))


def test_what_is_written_is_there_and_what_is_removed_is_not(place: Storage) -> None:
    assert place.list() == [] and place.size("a.bin") is None and place.identity("a.bin") is None
    place.write("a.bin", b"one")
    place.write("a.bin", pa.py_buffer(b"12345"))
    place.write("b.bin", b"")
    place.child("in").write(".hidden", b"x")
    assert place.read("a.bin") == b"12345" and place.read("b.bin") == b""
    assert (place.size("a.bin"), place.size("b.bin")) == (5, 0)
    assert place.exists("a.bin") and not place.exists("in") and not place.exists("a")
    assert place.list() == ["a.bin", "b.bin"]
    assert place.list(recursive=True) == ["a.bin", "b.bin", "in/.hidden"]
    file = place.open("a.bin")
    assert (place.read_at(file, 1, 3), place.read_at(file, 3, 100)) == (b"234", b"45")
    before = place.identity("a.bin")
    assert before == place.identity("a.bin") and before is not None and before[0] == 5
    place.delete("a.bin")
    place.delete("a.bin")
    assert place.list() == ["b.bin"]
    place.child("in").delete_all()
    place.child("in").delete_all()
    assert place.list(recursive=True) == ["b.bin"]


def test_missing_files(place: Storage) -> None:
    for read in (place.read, place.open):
        with pytest.raises(FileNotFoundError):
            read("nothing")  # type: ignore[operator]


def test_a_storage_travels(place: Storage) -> None:
    place.write("a.bin", b"1")
    travelled = pickle.loads(pickle.dumps(place))
    assert travelled == place and travelled.read("a.bin") == b"1"
    assert Storage.at(place) is place and Storage.at(place.uri) == place


def test_names() -> None:
    here = Storage.at("data/x")
    assert here.local == Path("data/x").absolute() and here.name == "x" and str(here) == here.uri
    assert Storage.at("file:///data/x").local == Path("/data/x")
    store = Storage.at("s3://key:secret@bucket/coco/train?endpoint_override=http://127.0.0.1:1&region=x")
    assert (store.local, store.name, store.child("a").name) == (None, "train", "a")
    assert str(store.child("a")) == "s3://bucket/coco/train/a?endpoint_override=http://127.0.0.1:1&region=x"
    with pytest.raises(StorageError, match=r"nope://x/y cannot be opened .* give a local path, s3://BUCKET/PATH or gs"):
        Storage.at("nope://x/y")


def test_a_write_that_fails_leaves_what_was_there(place: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    place.write("a.bin", b"before")
    if place.local is not None:

        def full(self: Path, target: Path) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(StorageError, match=r"a\.bin cannot be written: No space left on device; make room there"):
            place.write("a.bin", b"after")
        assert os.listdir(place.local) == ["a.bin"]  # noqa: PTH208 - nothing beside it
    else:
        with pytest.raises(TypeError):
            place.write("a.bin", 7)  # type: ignore[arg-type]
    monkeypatch.undo()
    assert place.read("a.bin") == b"before"


def test_a_place_that_refuses_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file is in the way; choose another directory"):
        Storage.at(tmp_path / "file/below").write("a", b"1")
    with pytest.raises(StorageError, match=r"/proc/nothing/a cannot be written: "):
        Storage.at("/proc/nothing").write("a", b"1")


def test_a_read_only_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: Path, *args: Any, **kwargs: Any) -> None:
        raise PermissionError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "open", refuse)  # tests may run as root, whom no mode stops
    with pytest.raises(StorageError, match="Read-only file system; choose a directory that you may write to"):
        Storage.at(tmp_path).write("a", b"1")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_of_somebody_else(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError, match="Permission denied; choose a directory that you may write to"):
        Storage.at(tmp_path).write("a", b"1")


def test_a_bucket_that_is_not_there_is_an_error_at_once(object_store: ObjectStore) -> None:
    place = Storage.at(object_store.uri("x").replace("bucket", "nobucket"))
    before = len(object_store.requests)
    with pytest.raises(StorageError, match=r"x/a.* cannot be written: .*NO_SUCH_BUCKET"):
        place.write("a", b"1")
    assert len(object_store.requests) - before < TRIES  # it will not be there a second later


class Flaky:
    """A file system whose requests fail so many times before they succeed."""

    def __init__(self, failures: int) -> None:
        self.left, self.asked = failures, 0
        self.inner = fs._MockFileSystem()
        self.inner.create_dir("bucket")

    def __getattr__(self, name: str) -> Any:
        def request(*args: Any) -> Any:
            self.asked += 1
            if self.left:
                self.left -= 1
                raise OSError("AWS Error SLOW_DOWN: please reduce your request rate")
            return getattr(self.inner, name)(*args)

        return request


@pytest.mark.parametrize(("failures", "works"), [(0, True), (TRIES - 1, True), (TRIES, False)])
def test_requests_are_tried_again(monkeypatch: pytest.MonkeyPatch, failures: int, works: bool) -> None:
    flaky = Flaky(failures)
    waits: list[float] = []
    monkeypatch.setattr(module, "_filesystem", lambda uri: (flaky, "bucket"))
    monkeypatch.setattr(module.time, "sleep", waits.append)
    place = Storage("s3://bucket")
    if works:
        place.write("a", b"1")
        assert flaky.asked == failures + 1 and place.read("a") == b"1"
    else:
        with pytest.raises(StorageError, match="SLOW_DOWN"):
            place.write("a", b"1")
        assert flaky.asked == TRIES
    assert len(waits) == min(failures, TRIES - 1) and waits == sorted(waits)


@pytest.mark.parametrize("place", ["s3"], indirect=True)
def test_one_request_in_ten_fails(place: Storage, object_store: ObjectStore) -> None:
    object_store.fail_every, object_store.failed = 10, 0
    try:
        for number in range(30):
            place.write(f"{number}", bytes([number]) * 100)
        assert len(place.list()) == 30
        for number in range(30):
            assert place.read(f"{number}") == bytes([number]) * 100
    finally:
        object_store.fail_every = None
    assert object_store.failed >= 10


def test_an_object_store_that_is_away_may_answer_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unlike what it refuses, and unlike a disk."""
    remote, local = Storage("s3://bucket/shards?region=eu"), Storage("/data/shards")
    away = OSError("When reading information for key 'x': AWS Error NETWORK_CONNECTION during HeadObject operation")
    final = OSError("When getting information for key 'x': AWS Error ACCESS_DENIED during HeadObject operation")
    assert isinstance(remote.refusal("x cannot be read", away), UnavailableError)
    for storage, error in ((remote, final), (local, away)):
        assert not isinstance(storage.refusal("x cannot be read", error), UnavailableError)

    def read(*_: object) -> bytes:
        raise away

    monkeypatch.setattr(Storage, "read", read)
    with pytest.raises(UnavailableError, match=r"s3://.*manifest\.json.* cannot be read: .*NETWORK_CONNECTION"):
        load_manifest(remote)
