"""Shards of some classes against the whole ones."""

from pathlib import Path

import pytest

from pipeline.data.class_subset import only_classes
from pipeline.data.coco import read_coco
from pipeline.data.quarantine import DataError, Quarantine
from pipeline.data.shard_rows import read_rows
from pipeline.data.sharding import shard_dataset
from pipeline.data.shards import Manifest, load_index, load_manifest, to_records
from pipeline.data.source import Dataset


def shapes_val(shapes: Path) -> Dataset:
    return read_coco(shapes / "coco/annotations/instances_val.json", shapes / "coco/val", Quarantine(strict=True))


def test_instances_of_others_are_gone_and_all_else_is_as_before(shapes: Path, tmp_path: Path) -> None:
    names = load_manifest(shapes / "val").class_names
    wanted = (names[4], names[0], names[7])
    manifest: Manifest = shard_dataset(only_classes(shapes_val(shapes), wanted), tmp_path / "some")
    assert manifest.class_names == wanted
    ids = load_manifest(shapes / "val").category_ids
    assert manifest.category_ids == (ids[4], ids[0], ids[7])
    whole = {r["sample_id"]: r for r in to_records(read_rows(shapes / "val", load_index(shapes / "val")))}
    some = to_records(read_rows(tmp_path / "some", load_index(tmp_path / "some")))
    assert {record["sample_id"] for record in some} == whole.keys()
    kept = 0
    for record in some:
        old = whole[record["sample_id"]]
        assert record["image"] == old["image"]
        by_id = {number: row for row, number in enumerate(old["annotation_ids"])}
        expected = [n for n, c in zip(old["annotation_ids"], old["classes"], strict=True) if names[c - 1] in wanted]
        assert record["annotation_ids"] == expected
        for row, number in enumerate(record["annotation_ids"]):
            before = by_id[number]
            assert wanted[record["classes"][row] - 1] == names[old["classes"][before] - 1]
            for column in ("boxes", "crowd", "areas", "rles", "crops", "keypoints"):
                assert record[column][row] == old[column][before]  # type: ignore[literal-required]
        kept += len(expected)
    assert 0 < kept == manifest.counts["instances"] < load_manifest(shapes / "val").counts["instances"]


@pytest.mark.parametrize(
    ("names", "got"),
    [(["circle", "hole"], "hole among them"), ([], "0 names"), (["circle", "circle"], "2 names, 1 different")],
)
def test_names_that_are_not_there(shapes: Path, names: list[str], got: str) -> None:
    with pytest.raises(DataError, match=rf"--classes must hold different names .* got {got}.* it has circle, square"):
        only_classes(shapes_val(shapes), names)
