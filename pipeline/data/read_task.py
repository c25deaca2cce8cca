"""What a Ray task that reads runs. A module of its own, without torch: such a process stays small and starts fast."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from pipeline.data.shard_rows import COLUMNS, ROW_KEYS, read_rows

KEYS = ("dataset", *ROW_KEYS)  # what names a row of a mixture


def read_task(task: pa.Table, locations: Sequence[str], columns: Sequence[str] = COLUMNS) -> pa.Table:
    """The rows of shards that `task` names in its lists of KEYS, in that order. `dataset` counts in `locations`."""
    keys = pa.table({key: task[key].combine_chunks().flatten() for key in KEYS})
    return read_keys(keys, locations, columns)


def read_keys(keys: pa.Table, locations: Sequence[str], columns: Sequence[str] = COLUMNS) -> pa.Table:
    """The rows of shards that `keys` (KEYS) names, in that order."""
    dataset = keys["dataset"].to_numpy()
    parts, positions = [], np.empty(len(keys), dtype=np.int64)
    base = 0
    for number in np.unique(dataset):
        member = np.flatnonzero(dataset == number)
        parts.append(read_rows(locations[number], keys.take(member), columns))
        positions[member] = base + np.arange(len(member))
        base += len(member)
    return parts[0] if len(parts) == 1 else pa.concat_tables(parts).take(positions)
