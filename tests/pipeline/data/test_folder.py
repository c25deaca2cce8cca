"""A directory of pictures without annotations."""

import os
import pickle
from pathlib import Path

import pytest
from tiny_coco import jpeg

from pipeline.data.folder import read_folder
from pipeline.data.quarantine import DataError, Quarantine
from pipeline.data.records import Record
from pipeline.data.source import Dataset


def records(dataset: Dataset) -> list[Record]:
    return [s.record for e in dataset.entries if (s := dataset.reader.read(e, dataset.quarantine)) is not None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "my pictures"
    for number, name in enumerate(["b.JPG", "a/z.jpeg", "ünï cödé/日本 1.jpg", "a b.jpg", "B.jpg"]):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(20 + number, 30))
    for name in ("notes.txt", "a/.hidden.jpg", ".cache/x.jpg", "a/._z.jpeg", "jpg"):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"?")
    return root


def test_pictures_in_the_order_of_their_names(folder: Path) -> None:
    dataset = read_folder(folder, Quarantine(strict=True))
    found = records(dataset)
    assert [r["file_name"] for r in found] == ["B.jpg", "a b.jpg", "a/z.jpeg", "b.JPG", "ünï cödé/日本 1.jpg"]
    assert [r["sample_id"] for r in found] == [1, 2, 3, 4, 5]
    assert [(r["height"], r["width"]) for r in found] == [(24, 30), (23, 30), (21, 30), (20, 30), (22, 30)]
    assert all(r["image"] == (folder / r["file_name"]).read_bytes() for r in found)
    assert all(r["boxes"] == r["keypoints"] == r["classes"] == [] for r in found)
    assert (dataset.scoring, dataset.class_names, dataset.category_ids) == ("none", (), ())
    assert dataset.source == {"images": "my pictures", "other_files": "5"}
    assert read_folder(str(folder), Quarantine()).entries == dataset.entries
    assert pickle.loads(pickle.dumps((dataset.entries, dataset.reader))) == (dataset.entries, dataset.reader)


def test_bad_pictures_leave_alone(folder: Path) -> None:
    (folder / "b.JPG").write_bytes(b"")
    (folder / "a/z.jpeg").write_bytes(b"<html>not found</html>")
    (folder / "a b.jpg").write_bytes(jpeg(100, 100)[:-30])
    dataset = read_folder(folder, Quarantine())
    assert [r["sample_id"] for r in records(dataset)] == [1, 5]
    found = [(bad.sample_id, bad.file_name, bad.reason) for bad in dataset.quarantine.samples]
    reason = "picture does not decode"
    assert found == [(2, "a b.jpg", reason), (3, "a/z.jpeg", reason), (4, "b.JPG", reason)]


def test_links(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_bytes(jpeg(9, 9))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/y.jpg").write_bytes(jpeg(9, 9))
    (folder / "c_inside.jpg").symlink_to(folder / "b.JPG")
    (folder / "c_leaves.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "c_dangles.jpg").symlink_to("nowhere.jpg")
    (folder / "c_circle.jpg").symlink_to("c_circle.jpg")
    (folder / "a/up").symlink_to(folder)
    (folder / "out").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "root").symlink_to(folder)
    for root in (folder, tmp_path / "root"):
        dataset = read_folder(root, Quarantine())
        assert [r["file_name"] for r in records(dataset)][4:5] == ["c_inside.jpg"] and len(dataset.entries) == 9
        assert {(bad.file_name, bad.reason) for bad in dataset.quarantine.samples} == {
            ("c_leaves.jpg", "file_name leaves the picture directory"),
            ("c_dangles.jpg", "picture is missing"),
            ("c_circle.jpg", "picture cannot be read"),
        }


def test_a_pipe_is_not_waited_for(folder: Path) -> None:
    os.mkfifo(folder / "pipe.jpg")
    dataset = read_folder(folder, Quarantine())
    assert len(records(dataset)) == 5
    (bad,) = dataset.quarantine.samples
    assert bad.reason == "picture cannot be read" and "not a file" in bad.got


def test_a_name_that_is_not_utf8(folder: Path, tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/bad\xff.jpg")).write_bytes(jpeg(9, 9))
    dataset = read_folder(folder, Quarantine())
    assert [r["sample_id"] for r in records(dataset)] == [1, 2, 3, 4, 6]
    (bad,) = dataset.quarantine.samples
    assert (bad.sample_id, bad.file_name, bad.reason) == (5, "bad\\udcff.jpg", "file name is not UTF-8")
    (tmp_path / "quarantine.jsonl").write_text(dataset.quarantine.to_jsonl(), encoding="utf-8")


def test_no_pictures(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds no pictures \(\.jpg, .*\), but 0 other files; give a directory"):
        read_folder(tmp_path, Quarantine())
    with pytest.raises(DataError, match=r"no directory of pictures at .*nowhere; give a directory"):
        read_folder(tmp_path / "nowhere", Quarantine())


def test_an_object_store(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a store lists is read the same way; it stands on the disk here."""
    from pipeline.data.storage import Storage

    expected = read_folder(folder, Quarantine())
    monkeypatch.setattr(Storage, "local", None)
    dataset = read_folder(folder, Quarantine(strict=True))
    assert dataset.entries == expected.entries and dataset.source["other_files"] == "5"
    assert len(records(dataset)) == 5
