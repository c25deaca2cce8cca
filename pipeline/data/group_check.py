"""Check some row groups of a shard, or the hash of a file: what one process does at a time for verify.py."""

import hashlib
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data import problems
from pipeline.data.problems import Findings, Problem
from pipeline.data.records import Record
from pipeline.data.row_check import Finding, check_row
from pipeline.data.shards import to_records
from pipeline.data.statistics import Statistics, gather
from pipeline.data.storage import Storage


class Task(NamedTuple):
    """Some row groups of a shard, or (groups None) the hash of a file."""

    uri: str
    file: str
    shard: int  # its place in the manifest
    groups: tuple[int, ...] | None
    expected_sha256: str
    index_rows: pa.Table | None  # INDEX_SCHEMA, the rows of these groups
    classes: int
    keypoints: int | None


@dataclass
class Part:
    """What one task found."""

    task: Task
    faults: Findings = field(default_factory=Findings)
    notes: Findings = field(default_factory=Findings)
    counts: Counter[str] = field(default_factory=Counter)
    places: list[tuple[int, int, int, int]] = field(default_factory=list)  # sample id, shard, row group, row
    annotations: list[tuple[int, int]] = field(default_factory=list)  # annotation id, sample id
    statistics: list[Statistics] = field(default_factory=list)


def run_task(task: Task) -> Part:
    """Check what the task names. Holds one row group in memory."""
    part = Part(task)
    storage = Storage.at(task.uri)
    try:
        if task.groups is None:
            with storage.open(task.file) as file:
                got = hashlib.file_digest(file, "sha256").hexdigest()
            if got != task.expected_sha256:
                got = f"sha256 {got}, the manifest says {task.expected_sha256}"
                part.faults.add(Problem("the file is damaged", got, problems.COPY, task.file))
            return part
        with storage.open(task.file) as file, pq.ParquetFile(file) as parquet:
            for group in task.groups:
                _check_group(part, storage, file, parquet, group)
    except FileNotFoundError:
        part.faults.add(Problem("the file is missing", "nothing", problems.COPY, task.file))
    return part


def _check_group(part: Part, storage: Storage, file: pa.NativeFile, parquet: pq.ParquetFile, group: int) -> None:
    """Check the rows of one row group."""
    task = part.task
    column = parquet.metadata.row_group(group).column(parquet.metadata.num_columns - 1)  # of the pictures
    assert task.index_rows is not None
    listed = [row for row in task.index_rows.to_pylist() if row["row_group"] == group]
    expected = {row["row"]: row for row in listed}
    try:
        table = parquet.read_row_group(group, use_threads=False)
        records = to_records(table)
        encoded = storage.read_at(file, column.data_page_offset, column.total_compressed_size)
    except FileNotFoundError:
        raise
    except (OSError, pa.ArrowException, ValueError) as error:
        part.faults.add(Problem("the row group cannot be read", str(error), problems.COPY, task.file, group))
        return
    holes = [name for name in table.column_names if _has_null(table[name].combine_chunks())]
    if holes:
        got = f"a null in {', '.join(holes)}"
        part.faults.add(Problem("values are missing", got, problems.WRITE, task.file, group))
        return
    if len(expected) < len(listed):
        got = f"{len(listed)} rows for {len(expected)}"
        part.faults.add(Problem("the index names a row twice", got, problems.INDEX, task.file, group))
    sound = []
    for row, record in enumerate(records):
        checked = check_row(record, task.classes, task.keypoints)
        findings = checked.faults + _against_index(record, expected.pop(row, None), encoded, column.data_page_offset)
        where = Problem("", "", "", task.file, group, row, record["sample_id"], record["file_name"])
        for what, got in findings:
            fix = problems.INDEX if what.startswith("the index") else problems.WRITE
            part.faults.add(replace(where, what=what, got=got, fix=fix))
        for what, got in checked.notes:
            part.notes.add(replace(where, what=what, got=got, fix=problems.SOURCE))
        if not checked.faults:
            sound.append(record)
        crowd = sum(record["crowd"])
        part.counts.update(
            images=1,
            instances=len(record["crowd"]) - crowd,
            crowd=crowd,
            empty=int(not record["crowd"]),
            grayscale=int(checked.grayscale),
        )
        part.places.append((record["sample_id"], task.shard, group, row))
        part.annotations += ((number, record["sample_id"]) for number in record["annotation_ids"])
    for row in expected:
        problem = Problem(
            "the index names rows that are not there", f"row {row}", problems.INDEX, task.file, group, row
        )
        part.faults.add(problem)
    part.statistics.append(gather(sound, task.classes))


def _has_null(values: pa.Array) -> bool:
    """Whether a value is missing, at any depth of lists."""
    nested = pa.types.is_list(values.type) or pa.types.is_fixed_size_list(values.type)
    return bool(values.null_count) or (nested and _has_null(values.flatten()))


def _against_index(record: Record, row: dict[str, Any] | None, encoded: bytes, start: int) -> list[Finding]:
    """Where a row's own numbers differ from its index row; `encoded` are the file's bytes from `start`."""
    if row is None:
        return [Finding("the index has no row for it", "nothing")]
    crowd = record["crowd"]  # lists of another length are a fault of the row, and no concern here
    numbers = {
        "sample_id": record["sample_id"],
        "height": record["height"],
        "width": record["width"],
        "instances": crowd.count(False),
        "crowd": crowd.count(True),
        "keypoints": sum(
            v > 0 for points, c in zip(record["keypoints"], crowd, strict=False) if not c for v in points[2::3]
        ),
        "classes": sorted({class_ for class_, c in zip(record["classes"], crowd, strict=False) if not c}),
        "bytes": len(record["image"]),
    }
    wrong = [f"{name} {row[name]}, the row's is {value}" for name, value in numbers.items() if row[name] != value]
    found = [Finding("the index disagrees with the row", "; ".join(wrong))] if wrong else []
    at = row["offset"] - start
    if at < 0 or encoded[at : at + len(record["image"])] != record["image"]:
        found.append(Finding("the index places the picture elsewhere", f"offset {row['offset']}"))
    return found
