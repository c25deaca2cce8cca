"""The ledger of a run compared with its plan: which attempt made each step, and was it as planned?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.data.ledger import Attempt, LedgerError
from pipeline.data.plan import Plan, PlannedBatch
from pipeline.data.rates import Int64


@dataclass(frozen=True)
class Made:
    """The part of an attempt that counts."""

    attempt: Attempt
    first: int  # step
    last: int  # the step after the last that counts; `first` where nothing does

    @property
    def superseded(self) -> int:
        """Steps it recorded that a later attempt made again."""
        return self.attempt.end - self.last


@dataclass(frozen=True)
class EpochCount:
    """The samples of an epoch that the steps made so far hold."""

    epoch: int
    trained: int  # positions of the epoch in those steps
    planned: int  # positions of the whole epoch
    skipped: int  # of the trained: in steps that were not finite and changed nothing

    @property
    def complete(self) -> bool:
        """Whether each sample came as often as planned."""
        return self.trained == self.planned


@dataclass(frozen=True)
class Lineage:
    """What a run has trained, proved against its plan."""

    done: int  # steps that count: 0..done - 1
    attempts: tuple[Made, ...]
    epochs: tuple[EpochCount, ...]


def trace(attempts: Sequence[Attempt]) -> tuple[Made, ...]:
    """What of each attempt counts: the steps before the first of any later one, or all of the last.

    The last attempt counts as far as all of its workers recorded. Raises LedgerError where a step is missing.
    """
    made: list[Made] = []
    bound: int | None = None  # the least start of the later attempts
    for attempt in reversed(attempts):
        whole = min(max((step + 1 for step in lines), default=attempt.start) for lines in attempt.lines)
        last = max(whole if bound is None else min(bound, attempt.end), attempt.start)
        made.append(Made(attempt, attempt.start, last))
        bound = attempt.start if bound is None else min(bound, attempt.start)
    made.reverse()
    reached = 0
    for part in made:
        if part.first == part.last:
            continue
        if part.first != reached:
            raise LedgerError(
                f"step {reached} is missing: no attempt that counts recorded it, the next one (attempt "
                f"{part.attempt.number}) begins at step {part.first}"
            )
        reached = part.last
    return tuple(made)


def check_lineage(attempts: Sequence[Attempt], plan: Plan, on_step: Callable[[int], None]) -> Lineage:
    """Compare every step that counts with the plan, sample by sample, and count the samples of each epoch.

    `on_step` is told how many steps are compared. Raises LedgerError, which names the first step, worker and sample
    that is not as planned.
    """
    made = trace(attempts)
    sample_ids = plan.index["sample_id"].to_numpy()
    open_epochs: dict[int, _Tally] = {}
    epochs: list[EpochCount] = []
    done = 0
    for part in made:
        for step in range(part.first, part.last):
            planned = plan.batch(step)
            skipped = _check_step(part.attempt, planned, sample_ids)
            for epoch in [number for number in open_epochs if number < planned.epochs[0]]:
                epochs.append(_close(plan, epoch, open_epochs.pop(epoch), True))
            for epoch in np.unique(planned.epochs).tolist():
                rows = planned.rows[planned.epochs == epoch]
                tally = open_epochs.setdefault(epoch, _Tally(np.zeros(plan.samples, dtype=np.int64)))
                np.add.at(tally.seen, rows, 1)
                tally.skipped += len(rows) if skipped else 0
            done = step + 1
            on_step(done)
    for epoch, tally in open_epochs.items():
        ended = plan.rates.length_before(epoch + 1) <= done * plan.batch_images
        epochs.append(_close(plan, epoch, tally, ended))
    return Lineage(done, made, tuple(epochs))


@dataclass
class _Tally:
    seen: Int64  # [N], how often each row of the index was trained in an epoch
    skipped: int = 0


def _check_step(attempt: Attempt, planned: PlannedBatch, sample_ids: Int64) -> bool:
    """Whether the workers agree that the step was skipped, after comparing what they trained."""
    world = attempt.world
    step = f"step {planned.step}, attempt {attempt.number}"
    if len(planned.rows) % world:
        raise LedgerError(f"{step}: {len(planned.rows)} images do not divide over {world} workers")
    skipped = set()
    for rank in range(world):
        line = attempt.lines[rank].get(planned.step)
        if line is None:
            raise LedgerError(f"{step}: worker {rank} of {world} recorded nothing")
        wanted = tuple(sample_ids[planned.share(rank, world).rows].tolist())
        if line.samples != wanted:
            raise LedgerError(f"{step}: worker {rank} of {world} {_first_difference(line.samples, wanted)}")
        skipped.add(line.skipped)
    if len(skipped) > 1:
        raise LedgerError(f"{step}: some workers skipped it as not finite, others did not")
    return skipped.pop()


def _close(plan: Plan, epoch: int, tally: _Tally, ended: bool) -> EpochCount:
    due = plan.rates.visits_before(epoch + 1) - plan.rates.visits_before(epoch)
    wrong = np.flatnonzero(tally.seen != due if ended else tally.seen > due)
    if len(wrong):
        row = int(wrong[0])
        sample = plan.index["sample_id"][row].as_py()
        raise LedgerError(
            f"epoch {epoch}: sample {sample} was trained {tally.seen[row]} times, {due[row]} were planned"
        )
    return EpochCount(epoch, int(tally.seen.sum()), int(due.sum()), tally.skipped)


def _first_difference(got: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if len(got) != len(wanted):
        return f"trained {len(got)} samples, {len(wanted)} were planned"
    place = next(place for place, (a, b) in enumerate(zip(got, wanted, strict=True)) if a != b)
    return f"trained sample {got[place]} at place {place}, sample {wanted[place]} was planned"
