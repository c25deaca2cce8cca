"""Records <-> a directory of shards: shard-00000.parquet ..., index.parquet, quarantine.jsonl, manifest.json.

Every file is written under a temporary name and renamed, the manifest last: a directory without one is incomplete.
Rows lie in a seeded shuffled order, so that a run of neighbouring row groups is a random sample of the data set. The
same input gives the same bytes.
"""

import hashlib
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.quarantine import DataError
from pipeline.data.records import FORMAT_VERSION, INDEX_SCHEMA, SCHEMA, Record
from pipeline.data.source import Dataset, Entry, Sample

MANIFEST, INDEX, QUARANTINE = "manifest.json", "index.parquet", "quarantine.jsonl"
_ANNOTATION_COLUMNS = [name for name in SCHEMA.names if name not in ("image", "crops", "semantic")]
Progress = Callable[[int, int], None]  # (images done, images in all)


@dataclass(frozen=True)
class Shard:
    """One file of rows."""

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a directory of shards holds."""

    format_version: int
    class_names: tuple[str, ...]  # of classes 1..K
    category_ids: tuple[int, ...]  # of the source, of classes 1..K
    counts: dict[str, int]  # images, instances, crowd, empty, grayscale, quarantined_images, quarantined_annotations
    quarantined: dict[str, int]  # by reason
    shards: tuple[Shard, ...]
    index_sha256: str
    fingerprint: str  # of all rows and the classes
    source: dict[str, str]  # names (not paths) of the annotation file and the picture directory
    options: dict[str, int]  # seed, rows_per_shard, rows_per_group
    generator: dict[str, Any] | None  # settings of a generated data set

    @property
    def images(self) -> int:
        """Rows in all."""
        return self.counts["images"]


def shard_name(shard: int) -> str:
    """The file name of a shard of the index."""
    return f"shard-{shard:05d}.parquet"


def write_shards(
    dataset: Dataset,
    out: Path,
    *,
    seed: int = 0,
    rows_per_shard: int = 512,
    rows_per_group: int = 8,
    threads: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Manifest:
    """Write a data set into the directory `out`. Holds a few row groups in memory. Raises DataError."""
    _make_room(out, overwrite)
    order = np.random.default_rng(seed).permutation(len(dataset.entries))
    entries = [dataset.entries[position] for position in order]
    counts = dict.fromkeys(("images", "instances", "crowd", "empty", "grayscale"), 0)
    shards: list[Shard] = []
    index: list[dict[str, Any]] = []
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        # A shard is a fixed range of the order, whatever goes to quarantine: ranges can be written independently.
        for number, first in enumerate(range(0, len(entries), rows_per_shard)):
            part = entries[first : first + rows_per_shard]
            samples = _samples(dataset, part, pool)
            if progress is not None:
                samples = _counted(samples, first, len(entries), progress)
            shard = _write_shard(out, number, samples, rows_per_group, index, counts)
            if shard is not None:
                shards.append(shard)
    dataset.quarantine.write(out / QUARANTINE)
    if dataset.entries and not shards:
        reason, times = next(iter(dataset.quarantine.reasons().items()))
        raise DataError(
            f"none of the {len(dataset.entries)} images of {' and '.join(dataset.source.values())} can be used; "
            f"{times} times: {reason}. See {out / QUARANTINE}, and check the directory that file_names are relative to"
        )
    _write_table(pa.Table.from_pylist(index, schema=INDEX_SCHEMA), out / INDEX)
    counts["quarantined_images"] = dataset.quarantine.count("image")
    counts["quarantined_annotations"] = dataset.quarantine.count("annotation")
    manifest = Manifest(
        format_version=FORMAT_VERSION,
        class_names=dataset.class_names,
        category_ids=dataset.category_ids,
        counts=counts,
        quarantined=dataset.quarantine.reasons(),
        shards=tuple(shards),
        index_sha256=_sha256(out / INDEX),
        fingerprint=_fingerprint(shards, dataset.class_names, dataset.category_ids),
        source=dataset.source,
        options={"seed": seed, "rows_per_shard": rows_per_shard, "rows_per_group": rows_per_group},
        generator=dataset.generator,
    )
    _rename_into(out / MANIFEST, lambda path: path.write_text(json.dumps(asdict(manifest), indent=2) + "\n"))
    return manifest


def load_manifest(directory: Path) -> Manifest:
    """The manifest of a complete directory of shards. Raises DataError."""
    path = directory / MANIFEST
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        state = "sharding did not finish there" if any(directory.glob("*.parquet")) else "it holds no shards"
        raise DataError(f"{directory} has no {MANIFEST}: {state}; run `maskrcnn shard` into it") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read ({error}); write the shards again") from error
    version = content.get("format_version") if isinstance(content, dict) else None
    if version != FORMAT_VERSION:
        raise DataError(
            f"{directory} holds shards of format {version}, this version reads format {FORMAT_VERSION}; "
            "write them again with `maskrcnn shard`"
        )
    try:
        content["shards"] = tuple(Shard(**shard) for shard in content["shards"])
        content["class_names"], content["category_ids"] = tuple(content["class_names"]), tuple(content["category_ids"])
        return Manifest(**content)
    except (KeyError, TypeError) as error:
        raise DataError(f"{path} lacks or adds a field ({error}); write the shards again") from error


def load_index(directory: Path) -> pa.Table:
    """One small row a sample, in the order of the shards (INDEX_SCHEMA). Raises DataError."""
    load_manifest(directory)
    with pq.ParquetFile(directory / INDEX) as file:
        return file.read()


def verify(directory: Path) -> Manifest:
    """Read every file and compare its hash with the manifest's. Raises DataError."""
    manifest = load_manifest(directory)
    for name, expected in [(INDEX, manifest.index_sha256), *((s.name, s.sha256) for s in manifest.shards)]:
        path = directory / name
        if not path.is_file():
            raise DataError(f"{path} is missing; copy it again, or write the shards again")
        if (got := _sha256(path)) != expected:
            raise DataError(f"{path} is damaged: sha256 {got}, the manifest says {expected}; copy or write it again")
    return manifest


def read_groups(path: Path, groups: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
    """Row groups of one shard, in the order asked for."""
    with pq.ParquetFile(path) as file:
        return file.read_row_groups(list(groups), columns=None if columns is None else list(columns), use_threads=False)


def pick_rows(path: Path, groups: npt.NDArray[np.int64], rows: npt.NDArray[np.int64]) -> pa.Table:
    """Row rows[i] of row group groups[i] for every i; equal groups lie together, and each is read once."""
    starts = np.flatnonzero(np.diff(groups, prepend=groups[0] - 1))
    with pq.ParquetFile(path) as file:
        parts = [
            file.read_row_group(int(groups[start]), use_threads=False).take(rows[start:end])
            for start, end in zip(starts, [*starts[1:], len(groups)], strict=True)
        ]
    return pa.concat_tables(parts)


def read_rows(path: Path, row_group: int, rows: Sequence[int]) -> list[Record]:
    """Some rows of one row group, in the order asked for."""
    return to_records(read_groups(path, [row_group]).take(list(rows)))


def to_records(table: pa.Table) -> list[Record]:
    """The rows of a table in SCHEMA."""
    records: list[Record] = table.to_pylist()
    return records


def annotations(directory: Path) -> dict[str, Any]:
    """COCO's ground-truth dict rebuilt from the shards, without reading a picture.

    Category and annotation ids are the source's, boxes are clipped to the image, masks are RLE with `str` counts.
    """
    manifest = load_manifest(directory)
    images: list[dict[str, Any]] = []
    found: dict[int, list[dict[str, Any]]] = {}
    for shard in manifest.shards:
        with pq.ParquetFile(directory / shard.name) as file:
            rows = file.read(columns=_ANNOTATION_COLUMNS).to_pylist()
        for row in rows:
            number, size = row["sample_id"], [row["height"], row["width"]]
            images.append({"id": number, "file_name": row["file_name"], "height": size[0], "width": size[1]})
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
    images.sort(key=lambda image: image["id"])
    pairs = zip(manifest.category_ids, manifest.class_names, strict=True)
    return {
        "info": {"description": f"rebuilt from {directory.name}"},
        "images": images,
        "annotations": [annotation for image in images for annotation in found[image["id"]]],
        "categories": [{"id": number, "name": name} for number, name in pairs],
    }


def _make_room(out: Path, overwrite: bool) -> None:
    """An `out` without shards; what an interrupted run left there is removed."""
    if (out / MANIFEST).exists() and not overwrite:
        raise DataError(f"{out} already holds complete shards; choose another directory, or pass overwrite")
    out.mkdir(parents=True, exist_ok=True)
    (out / MANIFEST).unlink(missing_ok=True)  # first: from here on the directory is incomplete
    for pattern in ("shard-*.parquet", INDEX, QUARANTINE, ".*.tmp"):
        for path in out.glob(pattern):
            path.unlink()


def _samples(dataset: Dataset, entries: Iterable[Entry], pool: ThreadPoolExecutor) -> Iterator[Sample | None]:
    """Samples in the order of `entries`, read by the pool a little ahead."""
    ahead = 4 * (os.cpu_count() or 1)
    waiting: deque[Future[Sample | None]] = deque()
    try:
        for entry in entries:
            waiting.append(pool.submit(dataset.reader.read, entry, dataset.quarantine))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def _counted(samples: Iterator[Sample | None], first: int, total: int, progress: Progress) -> Iterator[Sample | None]:
    for done, sample in enumerate(samples, start=first + 1):
        yield sample
        progress(done, total)


def _write_shard(
    out: Path,
    number: int,
    samples: Iterator[Sample | None],
    rows_per_group: int,
    index: list[dict[str, Any]],
    counts: dict[str, int],
) -> Shard | None:
    """Write one shard and add its rows to the index and the counts; None when no sample of it is usable."""
    path = out / shard_name(number)
    group: list[Record] = []
    rows = groups = 0
    with _writer(path) as writer:
        for sample in samples:
            if sample is None:
                continue
            index.append(_index_row(sample.record, number, groups, len(group)))
            _count(sample, counts)
            group.append(sample.record)
            if len(group) == rows_per_group:
                writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
                rows, groups, group = rows + len(group), groups + 1, []
        if group:
            writer.write_table(pa.Table.from_pylist(group, schema=SCHEMA))
            rows += len(group)
    temporary = _temporary(path)
    if not rows:
        temporary.unlink()
        return None
    shard = Shard(path.name, rows, temporary.stat().st_size, _sha256(temporary))
    temporary.replace(path)
    return shard


def _writer(path: Path) -> pq.ParquetWriter:
    """A Parquet file under the temporary name of `path`: encoded pictures as they are, everything else in zstd."""
    compression = {_leaf(field): "none" if field.name == "image" else "zstd" for field in SCHEMA}
    return pq.ParquetWriter(
        _temporary(path), SCHEMA, compression=compression, use_dictionary=False, write_statistics=False
    )


def _leaf(field: pa.Field) -> str:
    """Parquet's path of a column's values."""
    path, kind = field.name, field.type
    while pa.types.is_list(kind) or pa.types.is_fixed_size_list(kind):
        path, kind = f"{path}.list.element", kind.value_type
    return str(path)


def _index_row(record: Record, shard: int, row_group: int, row: int) -> dict[str, Any]:
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
        "offset": 0,
    }


def _count(sample: Sample, counts: dict[str, int]) -> None:
    crowd = sum(sample.record["crowd"])
    counts["images"] += 1
    counts["instances"] += len(sample.record["crowd"]) - crowd
    counts["crowd"] += crowd
    counts["empty"] += not sample.record["crowd"]
    counts["grayscale"] += sample.grayscale


def _fingerprint(shards: Sequence[Shard], class_names: Sequence[str], category_ids: Sequence[int]) -> str:
    content = [FORMAT_VERSION, [shard.sha256 for shard in shards], list(class_names), list(category_ids)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.tmp")


def _rename_into(path: Path, write: Callable[[Path], object]) -> None:
    """Write under a temporary name in the same directory, then rename: the file is whole or absent."""
    temporary = _temporary(path)
    write(temporary)
    temporary.replace(path)


def _write_table(table: pa.Table, path: Path) -> None:
    _rename_into(path, lambda temporary: pq.write_table(table, temporary, compression="zstd"))
