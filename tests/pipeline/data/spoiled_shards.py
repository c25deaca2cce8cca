"""Shards that a test spoils: rows, index and manifest are rewritten by hand, with hashes that fit."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.records import INDEX_SCHEMA, SCHEMA

Rows = list[dict[str, Any]]
ROWS_A_GROUP = 4


def spoil_rows(directory: Path, change: Callable[[Rows], Any], shard: int = 0) -> None:
    """Rewrite the rows of a shard after `change`; the index keeps what it says, but for the pictures' places."""
    path = directory / f"shard-{shard:05d}.parquet"
    rows = pq.read_table(path).to_pylist()
    change(rows)
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(table, path, row_group_size=ROWS_A_GROUP, compression="none", use_dictionary=False)
    content, start = path.read_bytes(), 0

    def place(index: Rows) -> None:
        nonlocal start
        for row, listed in zip(rows, (listed for listed in index if listed["shard"] == shard), strict=False):
            listed["offset"] = start = content.index(row["image"], start)

    spoil_index(directory, place)

    def accept(manifest: dict[str, Any]) -> None:
        manifest["shards"][shard] |= {"sha256": sha256(path), "bytes": path.stat().st_size, "rows": len(rows)}

    spoil_manifest(directory, accept)


def spoil_index(directory: Path, change: Callable[[Rows], Any]) -> None:
    path = directory / "index.parquet"
    rows = pq.read_table(path).to_pylist()
    change(rows)
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), path)
    spoil_manifest(directory, lambda manifest: manifest.update(index_sha256=sha256(path)))


def spoil_manifest(directory: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = directory / "manifest.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
