"""Writing shards: the same bytes by anybody and after any interruption; what stops it is said, what is done kept."""

import errno
import itertools
import json
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from object_store import ObjectStore
from tiny_coco import TinyCoco, grow

from pipeline.data import shard_task, sharding, shards
from pipeline.data.coco import read_coco
from pipeline.data.quarantine import DataError, Quarantine
from pipeline.data.records import SCHEMA
from pipeline.data.shard_rows import COLUMNS, read_rows
from pipeline.data.sharding import shard_dataset
from pipeline.data.storage import Storage, StorageError


def files(directory: Path) -> dict[str, bytes]:
    return {str(p.relative_to(directory)): p.read_bytes() for p in directory.rglob("*") if p.is_file()}


@pytest.fixture
def big(tiny: TinyCoco) -> TinyCoco:
    """23 pictures, of which two are missing and one has a bad annotation."""
    grow(tiny, 23)
    (tiny.images / "9.jpg").unlink()
    (tiny.images / "17.jpg").unlink()
    tiny.content["annotations"].append(tiny.square(999, 4, bbox=[1, 1, 0, 0]))
    return tiny


def test_same_input_same_bytes_and_seed_matters(big: TinyCoco, tmp_path: Path) -> None:
    for name, seed, threads in (("a", 0, 1), ("b", 0, 4), ("c", 1, 1)):
        shard_dataset(big.read(), tmp_path / name, seed=seed, workers=threads)  # one shard: workers are threads
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert shards.load_manifest(tmp_path / "a").fingerprint != shards.load_manifest(tmp_path / "c").fingerprint
    order = shards.load_index(tmp_path / "a")["sample_id"].to_pylist()
    assert order == [int(i) + 1 for i in np.random.default_rng(0).permutation(23) if i + 1 not in (9, 17)]
    shard_dataset(big.read(), tmp_path / "d", seed=None)
    assert shards.load_index(tmp_path / "d")["sample_id"].to_pylist() == [i for i in range(1, 24) if i not in (9, 17)]
    assert shards.load_manifest(tmp_path / "d").options["seed"] is None


@pytest.mark.slow
def test_the_bytes_do_not_depend_on_who_writes_them(big: TinyCoco, tmp_path: Path, local_ray: None) -> None:
    options = {"rows_per_shard": 3, "rows_per_group": 2}
    shard_dataset(big.read(), tmp_path / "here", workers=1, **options)  # type: ignore[arg-type]
    calls: list[tuple[int, int]] = []
    for name, workers in (("two", 2), ("all", None), ("many", 5)):
        dataset = big.read()
        progress = lambda done, total: calls.append((done, total))  # noqa: E731
        shard_dataset(dataset, tmp_path / name, workers=workers, progress=progress, **options)  # type: ignore[arg-type]
        assert files(tmp_path / name) == files(tmp_path / "here")
        assert len(dataset.quarantine.samples) == 3  # what tasks found is merged
        assert calls[-1] == (23, 23) and [done for done, _ in calls] == sorted(done for done, _ in calls)
        calls.clear()
    with pytest.raises(DataError, match=r"^(image|annotation) \d+ \(\d+\.jpg\): .*; got .* without --strict"):
        shard_dataset(big.read(strict=True), tmp_path / "strict", workers=2, **options)  # type: ignore[arg-type]
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"in the way; .* are kept: the same command goes on"):
        shard_dataset(big.read(), tmp_path / "file/out", workers=2, **options)  # type: ignore[arg-type]


def test_any_order_of_the_tasks_gives_the_same_bytes(
    big: TinyCoco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard_dataset(big.read(), tmp_path / "a", rows_per_shard=3)
    original = sharding._here
    monkeypatch.setattr(sharding, "_here", lambda tasks, *rest: original(iter(list(tasks)[::-1]), *rest))
    shard_dataset(big.read(), tmp_path / "b", rows_per_shard=3)
    assert files(tmp_path / "a") == files(tmp_path / "b")


def stop_after(monkeypatch: pytest.MonkeyPatch, writes: int, error: Exception | None = None) -> None:
    """From so many files on, nothing can be written."""
    original, numbers = Storage.write, itertools.count()

    def write(self: Storage, name: str, content: bytes) -> None:
        if next(numbers) >= writes:
            raise error or KeyboardInterrupt
        original(self, name, content)

    monkeypatch.setattr(Storage, "write", write)


def written(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of shards as they are written from now on."""
    names: list[str] = []
    original = Storage.write

    def write(self: Storage, name: str, content: bytes) -> None:
        if name.startswith("shard-") and name.endswith(".parquet"):
            names.append(name)
        original(self, name, content)

    monkeypatch.setattr(Storage, "write", write)
    return names


@pytest.mark.parametrize("writes", range(20))  # 8 shards with their slips, quarantine, index, manifest
def test_it_goes_on_after_an_interruption_anywhere(
    big: TinyCoco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, writes: int
) -> None:
    shard_dataset(big.read(), tmp_path / "whole", rows_per_shard=3)
    stop_after(monkeypatch, writes)
    out = tmp_path / "out"
    if writes < 19:
        with pytest.raises(KeyboardInterrupt):
            shard_dataset(big.read(), out, rows_per_shard=3)
        with pytest.raises(DataError, match=r"did not finish there|holds no shards"):
            shards.load_manifest(out)
    else:
        shard_dataset(big.read(), out, rows_per_shard=3)
        out.joinpath("manifest.json").unlink()
    monkeypatch.undo()
    again = written(monkeypatch)
    calls: list[int] = []
    shard_dataset(big.read(), out, rows_per_shard=3, progress=lambda done, _total: calls.append(done))
    assert files(out) == files(tmp_path / "whole")
    assert calls == list(range(1, 24))
    assert not (out / ".progress").exists()
    if writes < 19:
        assert again == [shards.shard_name(n) for n in range(min(8, writes // 2), 8)]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda out: (out / shards.shard_name(1)).write_bytes(b"torn"),
        lambda out: (out / shards.shard_name(1)).unlink(),
        lambda out: (out / ".progress/shard-00001.json").write_text('{"made_from": '),
        lambda out: (out / ".progress/shard-00001.json").write_text("[]"),
        lambda out: (out / ".progress/shard-00001.json").write_bytes(b"\xff\xfe"),
        lambda out: (out / ".progress/shard-00001.json").write_text(
            json.dumps(json.loads((out / ".progress/shard-00001.json").read_text()) | {"made_from": "else"})
        ),
    ],
)
def test_what_is_torn_or_foreign_is_written_again(
    big: TinyCoco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[Path], None]
) -> None:
    shard_dataset(big.read(), tmp_path / "whole", rows_per_shard=3)
    out = tmp_path / "out"
    stop_after(monkeypatch, 8)  # four shards
    with pytest.raises(KeyboardInterrupt):
        shard_dataset(big.read(), out, rows_per_shard=3)
    monkeypatch.undo()
    spoil(out)
    (out / "shard-00042.parquet").write_bytes(b"of an older work")
    (out / ".shard-00004.parquet.1.x.tmp").write_bytes(b"torn")
    (out / "notes.txt").write_text("mine")
    again = written(monkeypatch)
    shard_dataset(big.read(), out, rows_per_shard=3)
    assert again == [shards.shard_name(n) for n in (1, 4, 5, 6, 7)]
    assert files(out) == files(tmp_path / "whole") | {"notes.txt": b"mine"}


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        (lambda big: None, 4),
        (lambda big: big.content["annotations"][0].update(area=1.0), 3),  # one image, so one shard
        (lambda big: big.content["categories"].append({"id": 1, "name": "new"}), 0),  # classes have other numbers
        (lambda big: big.content["images"].pop(), 0),  # another order
    ],
)
def test_other_input_is_other_work(
    big: TinyCoco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[TinyCoco], None], kept: int
) -> None:
    place = [int(i) for i in np.random.default_rng(0).permutation(23)].index(0)
    assert place // 3 < 6
    stop_after(monkeypatch, 12)
    with pytest.raises(KeyboardInterrupt):
        shard_dataset(big.read(), tmp_path / "out", rows_per_shard=3)
    monkeypatch.undo()
    change(big)
    again = written(monkeypatch)
    shard_dataset(big.read(), tmp_path / "out", rows_per_shard=3)
    monkeypatch.undo()
    total = len(shards.load_manifest(tmp_path / "out").shards)
    assert total - len(again) == kept + 2 * (kept > 0)
    shard_dataset(big.read(), tmp_path / "whole", rows_per_shard=3)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_complete_shards_are_not_overwritten_unless_asked(big: TinyCoco, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = shard_dataset(big.read(), out, rows_per_shard=3)
    before = files(out)
    with pytest.raises(
        DataError, match=r"already holds complete shards; choose another directory, or pass --overwrite"
    ):
        shard_dataset(big.read(), out, rows_per_shard=3)
    assert files(out) == before
    assert shard_dataset(big.read(), out, rows_per_shard=3, overwrite=True) == first
    few = shard_dataset(big.read(), out, rows_per_shard=16, overwrite=True)
    assert set(files(out)) == {"manifest.json", "index.parquet", "quarantine.jsonl", *(s.name for s in few.shards)}
    assert shards.verify(out) == few


def test_a_full_disk(big: TinyCoco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shard_dataset(big.read(), tmp_path / "whole", rows_per_shard=3)
    original = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == shards.shard_name(4):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return original(self, target)

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(
        StorageError,
        match=r"out/shard-00004\.parquet cannot be written: No space left on device; make room there, or choose "
        r"another place\. The shards that are finished are kept: the same command goes on",
    ):
        shard_dataset(big.read(), tmp_path / "out", rows_per_shard=3)
    monkeypatch.undo()
    assert len(list((tmp_path / "out").glob("shard-*.parquet"))) == 4
    again = written(monkeypatch)
    shard_dataset(big.read(), tmp_path / "out", rows_per_shard=3)
    assert len(again) == 4 and files(tmp_path / "out") == files(tmp_path / "whole")


def test_a_strict_run_stops_at_the_first_bad_sample_and_an_earlier_one_does_not_hide_it(
    big: TinyCoco, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DataError, match="without --strict"):
        shard_dataset(big.read(strict=True), tmp_path / "a", rows_per_shard=3)
    assert not (tmp_path / "a/manifest.json").exists()
    stop_after(monkeypatch, 18)
    with pytest.raises(KeyboardInterrupt):
        shard_dataset(big.read(), tmp_path / "b", rows_per_shard=3)
    monkeypatch.undo()
    with pytest.raises(DataError, match="without --strict"):
        shard_dataset(big.read(strict=True), tmp_path / "b", rows_per_shard=3)
    assert not (tmp_path / "b/manifest.json").exists()


def test_a_shard_without_a_usable_image_is_left_out(tiny: TinyCoco, tmp_path: Path) -> None:
    (tiny.images / "2.jpg").unlink()
    manifest = shard_dataset(tiny.read(), tmp_path, seed=None, rows_per_shard=1)
    assert [shard.name for shard in manifest.shards] == [shards.shard_name(0), shards.shard_name(2)]
    assert shards.verify(tmp_path).images == 2
    assert read_rows(tmp_path, shards.load_index(tmp_path))["sample_id"].to_pylist() == [1, 3]


def test_nothing_to_shard(tiny: TinyCoco, tmp_path: Path) -> None:
    tiny.content["annotations"] = []
    images, tiny.content["images"] = tiny.content["images"], []
    with pytest.raises(DataError, match=r"^instances\.json and images holds no images; check that it is the right one"):
        shard_dataset(tiny.read(), tmp_path / "empty")
    assert not (tmp_path / "empty").exists()
    tiny.content["images"] = [image | {"height": 0} for image in images]
    with pytest.raises(DataError, match=r"none of the 3 images .* 3 times: image: image has no height and width"):
        shard_dataset(tiny.read(), tmp_path / "refused")
    tiny.content["images"] = images
    for path in tiny.images.iterdir():
        path.rename(path.with_suffix(".away"))
    with pytest.raises(DataError, match=r"none of the 3 images .* 3 times: image: picture is missing\. See .*jsonl"):
        shard_dataset(tiny.read(), tmp_path / "out")
    assert len((tmp_path / "out/quarantine.jsonl").read_text().splitlines()) == 3
    for path in tiny.images.iterdir():
        path.rename(path.with_suffix(".jpg"))
    assert shard_dataset(tiny.read(), tmp_path / "out").images == 3  # what was not there is looked for again


def test_threads_are_those_of_the_task(big: TinyCoco, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dataset = big.read()
    seen: set[str] = set()

    class Watching:
        def read(self, entry: object, quarantine: Quarantine) -> object:
            seen.add(threading.current_thread().name)
            return dataset.reader.read(entry, quarantine)

    task = shard_task.ShardTask(0, dataset.entries)
    shard_task.write_shard(task, Watching(), Storage.at(tmp_path / "a"), 8, False, 1)  # type: ignore[arg-type]
    assert seen == {threading.current_thread().name}
    seen.clear()
    shard_task.write_shard(task, Watching(), Storage.at(tmp_path / "b"), 8, False, 3)  # type: ignore[arg-type]
    assert len(seen) <= 3
    assert files(tmp_path / "a")["shard-00000.parquet"] == files(tmp_path / "b")["shard-00000.parquet"]


@pytest.fixture
def faults(object_store: ObjectStore) -> Iterator[ObjectStore]:
    object_store.failed = 0
    yield object_store
    object_store.fail_every = None


@pytest.mark.slow
def test_from_and_to_an_object_store_that_fails_one_request_in_ten(
    big: TinyCoco, tmp_path: Path, faults: ObjectStore, local_ray: None
) -> None:
    local = shard_dataset(big.read(), tmp_path / "local", rows_per_shard=3, rows_per_group=2)
    pictures, out = faults.upload(big.images, f"{tmp_path.name}/images"), faults.uri(f"{tmp_path.name}/shards")
    faults.fail_every = 10
    dataset = read_coco(big.json, pictures, Quarantine())
    # In this process: the credentials of the workers of an older Ray are those of its start.
    manifest = shard_dataset(dataset, out, rows_per_shard=3, rows_per_group=2)
    assert replace(manifest, source=local.source) == local
    assert shards.verify(out) == manifest and faults.failed > 10
    index = shards.load_index(out)
    assert index.equals(shards.load_index(tmp_path / "local"))
    chosen = index.take(np.random.default_rng(0).permutation(index.num_rows))
    assert read_rows(out, chosen).equals(read_rows(tmp_path / "local", chosen))
    assert read_rows(out, chosen).column_names == list(COLUMNS)
    assert shards.read_groups(out, shards.shard_name(0), [0]).schema.equals(SCHEMA)
    rebuilt, expected = shards.annotations(out), shards.annotations(tmp_path / "local")
    assert rebuilt | {"info": 0} == expected | {"info": 0} and len(rebuilt["images"]) == 21
    assert not [name for name in Storage.at(out).list(recursive=True) if "progress" in name]
    with pytest.raises(DataError, match="already holds complete shards"):
        shard_dataset(dataset, out, rows_per_shard=3)
