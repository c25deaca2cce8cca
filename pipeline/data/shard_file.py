"""One shard: samples -> the bytes of a Parquet file, and a row of the index for each sample.

Encoded pictures are stored as they are (no compression, no dictionary, plain values), so each lies in one piece in the
file, and the index says where: a reader takes single pictures by their range of bytes. Everything else is small and
compressed.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.manifest import COUNTS
from pipeline.data.records import FULL_SCHEMA, SCHEMA, Record
from pipeline.data.source import Sample

_STORED_AS_IS = ("semantic", "image")  # compressed by their own formats
_Row = dict[str, Any]


@dataclass(frozen=True)
class ShardFile:
    """A shard before it lies anywhere."""

    content: pa.Buffer
    index: list[_Row]  # of INDEX_SCHEMA
    counts: dict[str, int]  # COUNTS, and those of MORE_COUNTS that are not 0


def encode_shard(
    samples: Iterable[Sample], number: int, rows_per_group: int, proposals: bool = False
) -> ShardFile | None:
    """A shard of some samples, with or without their proposals; None where there are none. Holds the file in memory."""
    schema = FULL_SCHEMA if proposals else SCHEMA
    index: list[_Row] = []
    counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
    group: list[Record] = []
    groups = 0
    sink = pa.BufferOutputStream()
    compression = {_leaf(field): "none" if field.name in _STORED_AS_IS else "zstd" for field in schema}
    with pq.ParquetWriter(
        sink, schema, compression=compression, use_dictionary=False, write_statistics=False, data_page_version="1.0"
    ) as writer:
        for sample in samples:
            index.append(_index_row(sample.record, number, groups, len(group)))
            counts.update(count_row(sample.record, sample.grayscale))
            group.append(sample.record)
            if len(group) == rows_per_group:
                writer.write_table(pa.Table.from_pylist(group, schema=schema))
                groups, group = groups + 1, []
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
    if not index:
        return None
    content = sink.getvalue()
    for row, offset in zip(index, picture_offsets(content), strict=True):
        row["offset"] = offset
    return ShardFile(content, index, dict(counts))


def count_row(record: Record, grayscale: bool) -> dict[str, int]:
    """What a row adds to the counts of its manifest."""
    crowd = sum(record["crowd"])
    more = {
        "with_keypoints": sum(
            any(visibility > 0 for visibility in points[2::3])
            for points, is_crowd in zip(record["keypoints"], record["crowd"], strict=False)  # as long, in a sound row
            if not is_crowd
        ),
        "label_ids": int(bool(record["semantic"])),
        "negative_classes": len(record["negative_classes"]),
        "partial_classes": len(record["partial_classes"]),
        "proposals": len(record.get("proposals", ())),
    }
    return {
        "images": 1,
        "instances": len(record["crowd"]) - crowd,
        "crowd": crowd,
        "empty": int(not record["crowd"]),
        "grayscale": int(grayscale),
        **{name: count for name, count in more.items() if count},
    }


def picture_offsets(content: pa.Buffer) -> Iterator[int]:
    """Where each picture of a shard begins in its file.

    A value of a plain column is its length in 4 bytes, little-endian, then its bytes; between values there may be the
    header of a page. So each picture is looked for after the one before it, and compared as a whole.
    """
    column = SCHEMA.get_field_index("image")
    with pq.ParquetFile(pa.BufferReader(content)) as file:
        leaf = next(i for i in range(file.metadata.num_columns) if file.schema.column(i).path == SCHEMA.names[column])
        for group in range(file.num_row_groups):
            place = file.metadata.row_group(group).column(leaf)
            start = place.data_page_offset
            chunk = content.slice(start, place.total_compressed_size).to_pybytes()
            position = 0
            for value in file.read_row_group(group, columns=["image"], use_threads=False)["image"]:
                picture = value.as_py()
                begin = len(picture).to_bytes(4, "little") + picture[:16]
                at = chunk.find(begin, position)
                while at >= 0 and chunk[at + 4 : at + 4 + len(picture)] != picture:
                    at = chunk.find(begin, at + 1)
                assert at >= 0, "a picture does not lie in its shard as it is: Parquet has stored it otherwise"
                yield start + at + 4
                position = at + 4 + len(picture)


def _leaf(field: pa.Field) -> str:
    """Parquet's path of a column's values."""
    path, kind = field.name, field.type
    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        path, kind = f"{path}.list.element", kind.value_type
    return str(path)


def _index_row(record: Record, shard: int, row_group: int, row: int) -> _Row:
    crowd = sum(record["crowd"])
    return {
        "sample_id": record["sample_id"],
        "shard": shard,
        "row_group": row_group,
        "row": row,
        "height": record["height"],
        "width": record["width"],
        "instances": len(record["crowd"]) - crowd,
        "crowd": crowd,
        "keypoints": sum(
            visibility > 0
            for points, is_crowd in zip(record["keypoints"], record["crowd"], strict=True)
            if not is_crowd
            for visibility in points[2::3]
        ),
        "classes": sorted({c for c, is_crowd in zip(record["classes"], record["crowd"], strict=True) if not is_crowd}),
        "bytes": len(record["image"]),
    }
