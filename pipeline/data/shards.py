"""A directory of shards as readers see it: shard-00000.parquet ..., index.parquet, quarantine.jsonl, manifest.json.

It lies on a disk or in an object store (storage.py); sharding.py writes it, shard_rows.py reads single rows of it. Rows
lie in a seeded shuffled order, so that a run of neighbouring row groups is a random sample of the data set.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.manifest import (
    INDEX,
    MANIFEST,
    QUARANTINE,
    Manifest,
    Shard,
    load_manifest,
    once,
    shard_name,
)
from pipeline.data.quarantine import DataError
from pipeline.data.records import INDEX_SCHEMA, SCHEMA, Record
from pipeline.data.storage import Location, Storage

__all__ = [
    "INDEX",
    "MANIFEST",
    "QUARANTINE",
    "Manifest",
    "Shard",
    "annotations",
    "load_index",
    "load_manifest",
    "read_groups",
    "shard_name",
    "to_records",
    "verify",
]
_FEDERATED = {"neg_category_ids": "negative_classes", "not_exhaustive_category_ids": "partial_classes"}
_ANNOTATION_COLUMNS = [name for name in SCHEMA.names if name not in ("image", "crops", "semantic")]


def load_index(location: Location) -> pa.Table:
    """One small row a sample, in the order of the shards (INDEX_SCHEMA). Raises DataError."""
    return once(INDEX, Storage.at(location), _load_index)


def _load_index(storage: Storage) -> pa.Table:
    load_manifest(storage)
    try:
        table = pq.read_table(pa.BufferReader(_read(storage, INDEX)))
    except pa.ArrowException as error:
        raise DataError(f"{storage.child(INDEX)} is damaged ({error}); copy it again") from error
    if not table.schema.equals(INDEX_SCHEMA):
        raise DataError(f"{storage.child(INDEX)} has other columns than an index; copy it again")
    return table


def verify(location: Location) -> Manifest:
    """Read every file and compare its hash with the manifest's. Raises DataError."""
    storage = Storage.at(location)
    manifest = load_manifest(storage)
    for name, expected in [(INDEX, manifest.index_sha256), *((s.name, s.sha256) for s in manifest.shards)]:
        got = hashlib.sha256(_read(storage, name)).hexdigest()
        if got != expected:
            raise DataError(
                f"{storage.child(name)} is damaged: sha256 {got}, the manifest says {expected}; copy or write it again"
            )
    return manifest


def read_groups(location: Location, name: str, groups: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
    """Row groups of the shard with this file name, in the order asked for. Raises DataError."""
    storage = Storage.at(location)
    try:
        with storage.open(name) as source, pq.ParquetFile(source) as file:
            names = None if columns is None else list(columns)
            return file.read_row_groups(list(groups), columns=names, use_threads=False)
    except FileNotFoundError as error:
        raise _missing(storage, name) from error


def to_records(table: pa.Table) -> list[Record]:
    """The rows of a table in SCHEMA, or of some of its columns."""
    records: list[Record] = table.to_pylist()
    return records


def annotations(location: Location) -> dict[str, Any]:
    """COCO's ground-truth dict rebuilt from the shards, without reading a picture. Raises DataError.

    Category and annotation ids are the source's, boxes are clipped to the image, masks are RLE with `str` counts. With
    keypoints where the data has them, and what LVIS says of images and categories.
    """
    storage = Storage.at(location)
    manifest = load_manifest(storage)
    images: list[dict[str, Any]] = []
    found: dict[int, list[dict[str, Any]]] = {}
    for shard in manifest.shards:
        try:
            with storage.open(shard.name) as source, pq.ParquetFile(source, pre_buffer=True) as file:
                rows = file.read(columns=_ANNOTATION_COLUMNS).to_pylist()
        except FileNotFoundError as error:
            raise _missing(storage, shard.name) from error
        for row in rows:
            number, size = row["sample_id"], [row["height"], row["width"]]
            image = {"id": number, "file_name": row["file_name"], "height": size[0], "width": size[1]}
            if manifest.scoring == "lvis":
                for key, name in _FEDERATED.items():
                    image[key] = [manifest.category_ids[class_ - 1] for class_ in row[name]]
            images.append(image)
            columns = (row[key] for key in ("annotation_ids", "boxes", "classes", "crowd", "areas", "rles"))
            found[number] = [
                {
                    "id": annotation_id,
                    "image_id": number,
                    "category_id": manifest.category_ids[class_ - 1],
                    "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
                    "area": area,
                    "iscrowd": int(crowd),
                    "segmentation": {"size": size, "counts": counts.decode("ascii")},
                }
                for annotation_id, box, class_, crowd, area, counts in zip(*columns, strict=True)
            ]
            for annotation, points in zip(found[number], row["keypoints"], strict=True):
                if points:
                    annotation["keypoints"] = points
                    annotation["num_keypoints"] = sum(visibility > 0 for visibility in points[2::3])
    images.sort(key=lambda image: image["id"])
    categories: list[dict[str, Any]] = [
        {"id": number, "name": name} for number, name in zip(manifest.category_ids, manifest.class_names, strict=True)
    ]
    for category, frequency in zip(categories, manifest.frequencies, strict=False):  # none but LVIS's
        category["frequency"] = frequency
    if manifest.keypoints is not None:
        for category in categories:
            category["keypoints"] = list(manifest.keypoints.names)
            if manifest.keypoints.sigmas is not None:
                category["sigmas"] = list(manifest.keypoints.sigmas)
    return {
        "info": {"description": f"rebuilt from {storage.name}"},
        "images": images,
        "annotations": [annotation for image in images for annotation in found[image["id"]]],
        "categories": categories,
    }


def _read(storage: Storage, name: str) -> bytes:
    try:
        return storage.read(name)
    except FileNotFoundError as error:
        raise _missing(storage, name) from error
    except OSError as error:
        raise storage.refusal(f"{storage.child(name)} cannot be read", error) from error


def _missing(storage: Storage, name: str) -> DataError:
    return DataError(f"{storage.child(name)} is missing; copy it again, or write the shards again")
