"""Where the pictures of a report come from: shards, or a directory with the files that annotations name."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.data.coco import picture_root
from pipeline.data.images import ImageError, decode
from pipeline.data.pictures import read_inside
from pipeline.data.quarantine import BadError
from pipeline.data.shard_rows import read_rows
from pipeline.data.shards import to_records
from pipeline.data.storage import Location
from pipeline.evaluation.instances import Pixels
from pipeline.report.galleries import Source

Bones = Sequence[tuple[int, int]]  # pairs of keypoints (from 0) to join


def of_shards(
    shards: Location, rows: pa.Table, truth: Mapping[str, Any], skeleton: Sequence[tuple[int, int]]
) -> Source:
    """Pictures of some rows of the index; `truth` is what `annotations` says of the shards."""

    def read(image_ids: Sequence[int]) -> Iterator[tuple[int, Pixels | str]]:
        chosen = rows.filter(pc.is_in(rows["sample_id"], pa.array(image_ids, rows["sample_id"].type)))
        for record in to_records(read_rows(shards, chosen, ["sample_id", "image"])):
            yield record["sample_id"], _decoded(record["image"])

    return Source(read, file_names(truth), skeleton)


def of_directory(images: Path | str, truth: Mapping[str, Any]) -> Source:
    """The files below `images` that a COCO file names; none outside. Raises DataError where there is no `images`."""
    root, names = picture_root(images), file_names(truth)

    def read(image_ids: Sequence[int]) -> Iterator[tuple[int, Pixels | str]]:
        for image_id in image_ids:
            if image_id not in names:
                yield image_id, "the annotations name no file"
                continue
            try:
                yield image_id, _decoded(read_inside(root, names[image_id]))
            except BadError as bad:
                yield image_id, f"{bad.reason}: {bad.got}"

    return Source(read, names, _skeleton(truth["categories"]))


def file_names(truth: Mapping[str, Any]) -> dict[int, str]:
    """Image id -> file name, where there is one; LVIS has it at the end of `coco_url`."""
    names = {}
    for image in truth["images"]:
        name = image.get("file_name")
        if name is None and isinstance(image.get("coco_url"), str):
            name = "/".join(image["coco_url"].split("/")[-2:])  # train2017/000000123.jpg
        if isinstance(name, str):
            names[image["id"]] = name
    return names


def _decoded(data: bytes) -> Pixels | str:
    try:
        return decode(data)
    except ImageError as error:
        return str(error)


def _skeleton(categories: Sequence[Mapping[str, Any]]) -> tuple[tuple[int, int], ...]:
    """Of the first class that has one; COCO counts keypoints from 1."""
    for category in categories:
        bones, count = category.get("skeleton"), len(category.get("keypoints") or ())
        if isinstance(bones, list):
            return tuple((a - 1, b - 1) for a, b in bones if 1 <= a <= count and 1 <= b <= count)
    return ()
