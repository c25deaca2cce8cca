"""A batch as one Arrow row, and back: how it travels from the task that decoded it to the worker that trains on it."""

import json
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from model.types import Batch, Proposals, Targets

_OF_BATCH = tuple(f.name for f in fields(Batch) if f.name not in ("targets", "proposals"))
_OF_TARGETS = tuple(f.name for f in fields(Targets))
_OF_PROPOSALS = tuple(f"proposal_{name}" for name in Proposals._fields)  # both have boxes
Bad = Sequence[tuple[int, str]]  # (sample_id, reason) of pictures that could not be decoded


def to_row(batch: Batch, bad: Bad) -> pa.Table:
    """Every tensor as its bytes, with its type and shape beside them."""
    targets = batch.targets
    assert targets is not None, "batches that travel have ground truth"
    tensors = {name: getattr(batch, name) for name in _OF_BATCH} | {
        name: value for name in _OF_TARGETS if (value := getattr(targets, name)) is not None
    }
    if batch.proposals is not None:
        tensors |= dict(zip(_OF_PROPOSALS, batch.proposals, strict=True))
    columns: dict[str, pa.Array] = {"bad": pa.array([json.dumps(list(bad))])}
    for name, tensor in tensors.items():
        array = tensor.contiguous().numpy()
        offsets = pa.py_buffer(np.array([0, array.nbytes], np.int64))
        columns[name] = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(array)])
        columns[f"{name}_is"] = pa.array([json.dumps([array.dtype.str, array.shape])])
    return pa.table(columns)


def from_row(table: pa.Table) -> tuple[Batch, list[tuple[int, str]]]:
    """The batch of a table with one row. Its tensors are copies: a row lies in shared memory that must not change."""
    names = (*_OF_BATCH, *_OF_TARGETS, *_OF_PROPOSALS)
    found = {name: _tensor(table, name) for name in names if name in table.column_names}
    targets = Targets(**{name: found.get(name) for name in _OF_TARGETS})  # type: ignore[arg-type]
    given = [found[name] for name in _OF_PROPOSALS if name in found]
    parts: dict[str, Any] = {name: found[name] for name in _OF_BATCH}
    batch = Batch(**parts, targets=targets, proposals=Proposals(*given) if given else None)
    return batch, [(sample_id, reason) for sample_id, reason in json.loads(table["bad"][0].as_py())]


def _tensor(table: pa.Table, name: str) -> Tensor:
    kind, shape = json.loads(table[f"{name}_is"][0].as_py())
    content = np.frombuffer(table[name][0].as_buffer(), dtype=kind).reshape(shape)
    return torch.from_numpy(content.copy())
