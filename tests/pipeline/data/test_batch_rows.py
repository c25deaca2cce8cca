"""A batch that travelled is the batch that was sent."""

from dataclasses import fields, replace

import pyarrow as pa
import pytest
import torch

from model.types import Batch, Proposals, Targets
from pipeline.data.batch_rows import from_row, to_row

NESTED = ("targets", "proposals")


def make_batch(images: int, slots: int, joints: int | None, proposals: int | None = None) -> Batch:
    generator = torch.Generator().manual_seed(images)
    targets = Targets(
        torch.rand(images, slots, 4, generator=generator),
        torch.randint(0, 9, (images, slots), generator=generator),
        torch.rand(images, slots, generator=generator) < 0.5,
        torch.randint(0, 2, (images, slots, 112, 112), dtype=torch.uint8, generator=generator),
        None if joints is None else torch.rand(images, slots, joints, 3, generator=generator),
    )
    sizes = torch.randint(1, 32, (images, 2), generator=generator)
    pixels = torch.randint(0, 256, (images, 32, 64, 3), dtype=torch.uint8, generator=generator)
    given = None
    if proposals is not None:
        scores = torch.rand(images, proposals, generator=generator)
        given = Proposals(torch.rand(images, proposals, 4, generator=generator), scores, scores < 0.5)
    return Batch(pixels, sizes, sizes * 2, torch.tensor([2**62 + i for i in range(images)]), targets, given)


@pytest.mark.parametrize("joints", [None, 17])
@pytest.mark.parametrize(("slots", "proposals"), [(8, None), (304, None), (8, 128)])
def test_nothing_changes_on_the_way(slots: int, joints: int | None, proposals: int | None) -> None:
    batch = make_batch(2, slots, joints, proposals)
    bad = [(2**62, "not a picture: ü"), (3, "")]
    table = to_row(batch, bad)
    assert table.num_rows == 1
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    arrived, told = from_row(pa.ipc.open_stream(sink.getvalue()).read_all())
    assert told == bad
    assert batch.targets is not None and arrived.targets is not None
    pairs = [(getattr(batch, f.name), getattr(arrived, f.name)) for f in fields(Batch) if f.name not in NESTED]
    pairs += [(getattr(batch.targets, f.name), getattr(arrived.targets, f.name)) for f in fields(Targets)]
    assert (batch.proposals is None) == (arrived.proposals is None) == (proposals is None)
    pairs += zip(batch.proposals or (), arrived.proposals or (), strict=True)
    for sent, got in pairs:
        assert (sent is None) == (got is None)
        if sent is not None:
            assert sent.dtype == got.dtype and torch.equal(sent, got)
            got.zero_()  # it is the receiver's own


def test_a_slice_of_several_rows_is_read_at_its_place() -> None:
    batches = [make_batch(n, 8, None) for n in (1, 3, 2)]
    tables = pa.concat_tables([to_row(batch, []) for batch in batches])
    for row, batch in enumerate(batches):
        assert torch.equal(from_row(tables.slice(row, 1))[0].images, batch.images)


def test_a_batch_without_ground_truth_does_not_travel() -> None:
    with pytest.raises(AssertionError, match="ground truth"):
        to_row(replace(make_batch(1, 8, None), targets=None), [])
