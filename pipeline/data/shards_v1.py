"""Shards of format 1 as a data set, so that they can be written again in today's format."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.data import images
from pipeline.data.manifest import INDEX, QUARANTINE, read_json, shard_name
from pipeline.data.quarantine import BadSample, DataError, Quarantine
from pipeline.data.records import empty_record
from pipeline.data.source import Dataset, Sample
from pipeline.data.storage import Location, Storage

_KEPT_GROUPS = 16  # row groups that a process keeps, for the entries that follow


@dataclass(frozen=True)
class OldRow:
    """One row of the old shards, not read yet."""

    sample_id: int
    file_name: str
    shard: int
    row_group: int
    row: int


@dataclass(frozen=True)
class OldReader:
    """Reads rows of shards of format 1, which lack keypoints, federated classes and label ids."""

    shards: Storage

    def read(self, entry: OldRow, quarantine: Quarantine) -> Sample | None:
        """The row as a record; None when its picture, which has spoiled since, went to quarantine."""
        old = _rows(self.shards, entry.shard, entry.row_group)[entry.row]
        record = empty_record(old["sample_id"], old["file_name"], old["height"], old["width"], old["image"])
        record.update(old)  # type: ignore[typeddict-item]  # all its columns are still ours
        record["keypoints"] = [[] for _ in old["classes"]]
        try:
            return Sample(record, images.check(old["image"]).grayscale)
        except images.ImageError as error:
            quarantine.add(
                BadSample("image", entry.sample_id, None, entry.file_name, "picture does not decode", str(error))
            )
            return None


def read_shards_v1(location: Location, quarantine: Quarantine) -> tuple[Dataset, dict[str, int]]:
    """The rows of a directory of format 1 in their order, and the options it was written with. Raises DataError."""
    storage = Storage.at(location)
    _, manifest = read_json(storage)
    version = manifest.get("format_version")
    if version != 1:
        raise DataError(f"{storage} holds shards of format {version}; only those of format 1 are converted")
    try:
        index = pq.read_table(pa.BufferReader(storage.read(INDEX)))
        lines = storage.read(QUARANTINE).decode().splitlines()
        names = {shard["name"] for shard in manifest["shards"]}
        entries = tuple(_entries(storage, index, names))
        for line in lines:
            quarantine.add(BadSample(**json.loads(line)))
        dataset = Dataset(
            class_names=tuple(manifest["class_names"]),
            category_ids=tuple(manifest["category_ids"]),
            scoring="coco",
            keypoints=None,
            frequencies=(),
            entries=entries,
            reader=OldReader(storage),
            source=manifest["source"],
            generator=manifest["generator"],
            quarantine=quarantine,
        )
        options = {key: int(manifest["options"][key]) for key in ("seed", "rows_per_shard", "rows_per_group")}
    except DataError:
        raise
    except (OSError, KeyError, TypeError, ValueError, pa.ArrowException) as error:
        raise DataError(f"{storage} is no whole directory of shards of format 1 ({error}); copy it again") from error
    return dataset, options


def _entries(storage: Storage, index: pa.Table, names: set[str]) -> Iterable[OldRow]:
    for shard in index["shard"].unique().to_pylist():
        name = shard_name(shard)
        if name not in names:
            raise DataError(f"{storage}: the manifest does not list {name}; copy the directory again")
        rows = index.filter(pc.equal(index["shard"], shard))
        with storage.open(name) as source, pq.ParquetFile(source) as file:
            files = file.read(columns=["sample_id", "file_name"])
        if not files["sample_id"].equals(rows["sample_id"]):
            raise DataError(f"{storage.child(name)} has other rows than the index; copy the directory again")
        places = (rows[key].to_pylist() for key in ("sample_id", "row_group", "row"))
        for sample_id, group, row, file_name in zip(*places, files["file_name"].to_pylist(), strict=True):
            yield OldRow(sample_id, file_name, shard, group, row)


@lru_cache(maxsize=_KEPT_GROUPS)
def _rows(storage: Storage, shard: int, group: int) -> list[dict[str, Any]]:
    with storage.open(shard_name(shard)) as source, pq.ParquetFile(source) as file:
        rows: list[dict[str, Any]] = file.read_row_group(group, use_threads=False).to_pylist()
    return rows
