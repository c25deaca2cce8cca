"""Single rows of shards, anywhere, for little more than their own bytes.

Of each row group that is needed the small columns are read, which lie together, and of the pictures exactly those asked
for, whose place in the file the index knows. Ranges that nearly touch are one request; requests to an object store go
out together.
"""

import mmap
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.data.manifest import shard_name
from pipeline.data.quarantine import DataError
from pipeline.data.records import FULL_SCHEMA, PROPOSAL_COLUMNS, SCHEMA
from pipeline.data.storage import Location, Storage

ROW_KEYS = ("shard", "row_group", "row", "bytes", "offset")  # what names a row: columns of the index
COLUMNS = tuple(name for name in SCHEMA.names if name != "semantic")  # what is read unless asked otherwise
GAP_BYTES = 4096  # what lies between two ranges is read too where that spares a request
OPEN_SHARDS = 64  # a process keeps the metadata (0.2 % of a shard) and the handle of so many
FOOTER_BYTES = 128 << 10  # read at once at the end of a shard; more where that does not hold its metadata
REQUESTS = 16  # at once to an object store, a call; and in each shard of it
_T = TypeVar("_T")
_R = TypeVar("_R")


@dataclass
class Traffic:
    """Adds up what reading costs; pass one object to many calls. Not for several threads."""

    rows: int = 0
    picture_bytes: int = 0  # of the encoded pictures asked for: the least that could be read
    read_bytes: int = 0  # of all ranges requested: small columns, pictures, gaps; not the metadata
    metadata_bytes: int = 0  # of the shards' footers, once a shard and process
    requests: int = 0

    def add(self, other: "Traffic") -> None:
        """Count what `other` has counted too."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


class _Range(NamedTuple):
    start: int
    end: int


class _Opened(NamedTuple):
    """What a process keeps of a shard."""

    identity: tuple[int, object]  # size, time of change
    file: pa.NativeFile
    metadata: pq.FileMetaData
    leaves: list[str]  # C columns of Parquet: the name of our column that each belongs to
    starts: npt.NDArray[np.int64]  # [groups, C], first byte of each column of each row group
    ends: npt.NDArray[np.int64]


def read_rows(
    location: Location,
    rows: pa.Table,
    columns: Sequence[str] = COLUMNS,
    traffic: Traffic | None = None,
) -> pa.Table:
    """Some rows of shards, in the order asked for.

    Args:
        location: of the shards.
        rows: ROW_KEYS of each, as the index has them; other columns are ignored.
        columns: which; they come in the order of FULL_SCHEMA. All but "semantic" and the proposals by default.
        traffic: counts what was read.

    Raises:
        DataError: a shard is missing, is not the one that the index was made for, or has no proposals.
    """
    storage = Storage.at(location)
    traffic = traffic or Traffic()
    keys = {key: rows[key].to_numpy() for key in ROW_KEYS}
    names = [name for name in FULL_SCHEMA.names if name in columns]
    small = [name for name in names if name != "image"]
    pictures: list[memoryview] = [memoryview(b"")] * rows.num_rows
    members = [np.flatnonzero(keys["shard"] == shard) for shard in np.unique(keys["shard"])]

    def read(member: npt.NDArray[np.int64]) -> tuple[pa.Table, list[memoryview], Traffic]:
        wanted, own = {key: column[member] for key, column in keys.items()}, Traffic()
        name = shard_name(int(wanted["shard"][0]))
        return *_read_shard(storage, name, wanted, small, "image" in names, own), own

    parts, places = [], np.empty(rows.num_rows, dtype=np.int64)
    base = 0
    for member, (part, images, own) in zip(members, _map(storage, read, members), strict=True):
        traffic.add(own)
        for place, picture in zip(member, images, strict=bool(images)):
            pictures[place] = picture
        parts.append(part)
        places[member] = base + np.arange(len(member))
        base += len(member)
    traffic.rows += rows.num_rows
    table = pa.concat_tables(parts).take(places) if parts else FULL_SCHEMA.empty_table().select(small)
    found = list(table.columns)
    if "image" in names:
        traffic.picture_bytes += int(keys["bytes"].sum())
        found.append(pa.array(pictures, pa.large_binary()))
    return pa.table(found, schema=pa.schema([FULL_SCHEMA.field(name) for name in names]))


def _read_shard(
    storage: Storage,
    name: str,
    wanted: dict[str, npt.NDArray[np.int64]],
    small: Sequence[str],
    images: bool,
    traffic: Traffic,
) -> tuple[pa.Table, list[memoryview]]:
    """Small columns and pictures of some rows of one shard, in the order asked for."""
    opened = _open(storage, name, traffic)
    size, metadata = opened.identity[0], opened.metadata
    if not set(PROPOSAL_COLUMNS).intersection(small) <= set(opened.leaves):
        raise DataError(f"{storage.child(name)} has no proposals; write the shards again with --proposals FILE")
    groups, group_of = np.unique(wanted["row_group"], return_inverse=True)
    if groups[-1] >= metadata.num_row_groups:
        raise _foreign(storage, name)
    leaves = [i for i, column in enumerate(opened.leaves) if column in small]
    ranges = [
        _Range(int(opened.starts[group, leaf]), int(opened.ends[group, leaf])) for group in groups for leaf in leaves
    ]
    pictures = [  # with the 4 bytes before each, which hold its length
        _Range(int(offset) - 4, int(offset) + int(count))
        for offset, count in zip(wanted["offset"], wanted["bytes"], strict=True)
        if images
    ]
    if any(picture.start < 0 or picture.end > size for picture in pictures):
        raise _foreign(storage, name)
    parts = _fetch(storage, opened.file, _joined([*ranges, *pictures]), traffic)
    # A copy of the file in which only the small columns are filled: Parquet reads them from it, and pages that nothing
    # is written to take no memory.
    sparse = mmap.mmap(-1, size)
    for wanted_range in ranges:
        sparse[wanted_range.start : wanted_range.end] = _cut(parts, wanted_range)
    with pq.ParquetFile(pa.BufferReader(sparse), metadata=metadata) as file:
        table = file.read_row_groups(groups.tolist(), columns=list(small), use_threads=False)
    found = []
    for picture in pictures:
        content = _cut(parts, picture)
        if int.from_bytes(content[:4], "little") != len(content) - 4:
            raise _foreign(storage, name)
        found.append(content[4:])
    firsts = np.cumsum([0, *(metadata.row_group(int(group)).num_rows for group in groups)])
    rows = firsts[group_of] + wanted["row"]
    if (rows >= firsts[group_of + 1]).any():
        raise _foreign(storage, name)
    return table.take(rows), found


def _joined(ranges: Sequence[_Range]) -> list[_Range]:
    """Ranges that cover all of `ranges`; what is closer than GAP_BYTES is one."""
    joined: list[_Range] = []
    for start, end in sorted(ranges):
        if joined and start - joined[-1].end <= GAP_BYTES:
            joined[-1] = _Range(joined[-1].start, max(joined[-1].end, end))
        else:
            joined.append(_Range(start, end))
    return joined


def _fetch(
    storage: Storage, file: pa.NativeFile, ranges: Sequence[_Range], traffic: Traffic
) -> tuple[list[int], list[memoryview]]:
    """The starts of `ranges`, which ascend, and what lies in each."""

    def fetch(part: _Range) -> memoryview:
        return memoryview(storage.read_at(file, part.start, part.end - part.start))

    traffic.requests += len(ranges)
    traffic.read_bytes += sum(part.end - part.start for part in ranges)
    return [part.start for part in ranges], list(_map(storage, fetch, ranges))


def _cut(parts: tuple[list[int], list[memoryview]], wanted: _Range) -> memoryview:
    """A range out of those fetched, without a copy."""
    starts, contents = parts
    number = bisect_right(starts, wanted.start) - 1
    return contents[number][wanted.start - starts[number] : wanted.end - starts[number]]


def _map(storage: Storage, do: Callable[[_T], _R], items: Sequence[_T]) -> Iterable[_R]:
    """`do` of each of `items`; on an object store, where each waits for answers, at once."""
    if storage.local is not None or len(items) < 2:
        return map(do, items)
    with ThreadPoolExecutor(min(REQUESTS, len(items))) as pool:
        return list(pool.map(do, items))


_cache: OrderedDict[tuple[Storage, str], _Opened] = OrderedDict()  # most recently used last
_lock = threading.Lock()


def _open(storage: Storage, name: str, traffic: Traffic) -> _Opened:
    """A shard's handle and metadata, from the process's cache if the file is still the same."""
    identity = storage.identity(name)
    if identity is None:
        raise DataError(f"{storage.child(name)} is missing; copy it again, or write the shards again")
    with _lock:
        opened = _cache.get((storage, name))
    if opened is None or opened.identity != identity:
        opened = _read_metadata(storage, name, identity, traffic)
    with _lock:
        _cache[storage, name] = opened
        _cache.move_to_end((storage, name))
        while len(_cache) > OPEN_SHARDS:
            _cache.popitem(last=False)  # closed when the last reader lets go of it
    return opened


def _read_metadata(storage: Storage, name: str, identity: tuple[int, object], traffic: Traffic) -> _Opened:
    size = identity[0]
    file = storage.open(name)
    count = min(size, FOOTER_BYTES)
    tail = storage.read_at(file, size - count, count)
    needed = int.from_bytes(tail[-8:-4], "little") + 8
    traffic.metadata_bytes += count
    if count < needed <= size:
        tail = storage.read_at(file, size - needed, needed)
        traffic.metadata_bytes += needed
    try:
        metadata = pq.read_metadata(pa.BufferReader(tail))  # the end of a file is enough
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{storage.child(name)} is damaged ({error}); copy it again") from error
    groups = [metadata.row_group(group) for group in range(metadata.num_row_groups)]
    columns = [[group.column(i) for i in range(metadata.num_columns)] for group in groups]
    starts = np.array([[column.data_page_offset for column in row] for row in columns], dtype=np.int64)
    sizes = np.array([[column.total_compressed_size for column in row] for row in columns], dtype=np.int64)
    leaves = [metadata.schema.column(i).path.split(".")[0] for i in range(metadata.num_columns)]
    return _Opened(identity, file, metadata, leaves, starts, starts + sizes)


def _foreign(storage: Storage, name: str) -> DataError:
    return DataError(
        f"{storage.child(name)} does not have the rows that the index names: it is damaged, or of other shards than "
        "the index; copy the whole directory again, or write the shards again"
    )
