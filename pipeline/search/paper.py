"""A table of the paper as a list of trainings: its rows under a budget.

Budgets: `full` is the table's own schedule; `short` a twentieth of it on the same data; `tiny` scales pictures, widths
and schedule down until a laptop can train every row on generated scenes. What a row changes it changes in all of them.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from model.config import BodyName
from pipeline.config import RunConfig
from pipeline.configure import apply_overrides
from pipeline.variants import Row, Table, row_config

Budget = Literal["tiny", "short", "full"]
SEEDS: Mapping[Budget, int] = {"tiny": 2, "short": 1, "full": 1}
TINY_STEPS, TINY_BATCH, TINY_PX, TINY_WIDTH = 600, 4, 128, 32
TINY_EVALUATOR_CPUS = 0.25  # it waits for the end of a training
SHORT_SHARE = 0.05
_REFERENCE_PX = 800  # shorter side of the paper's pictures
_PX = TINY_PX / _REFERENCE_PX
_OBJECT = 0.25  # of COCO's anchors: the scenes' objects fill more of their pictures
_SMALL: Mapping[BodyName, BodyName] = {
    "resnet50": "resnet18",
    "resnet101": "resnet34",
    "resnext101_32x8d": "resnext50_32x4d",
    "resnext152_32x8d": "resnext101_32x8d",
}


def runnable(table: Table) -> tuple[list[Row], dict[str, str]]:
    """Rows that can be trained from one kind of weights, and why the others cannot (name -> reason)."""
    rows, left = [], {}
    for row in table.rows:
        if row.overrides is None:
            left[row.name] = row.note or "the numbers are another system's"
        elif row.start not in (None, table.start):
            left[row.name] = f"starts from {row.start} weights, the others from {table.start}"
        else:
            rows.append(row)
    return rows, left


def budget_config(table: Table, row: Row, budget: Budget, seed: int, overrides: Sequence[str]) -> RunConfig:
    """A row's configuration under a budget. `overrides` come last; a seed there is that of the first training.

    Raises:
        UserError: they are not valid.
    """
    config = row_config(table, row)
    if budget == "tiny":
        config = apply_overrides(config, [*_tiny(config, row_config(table, runnable(table)[0][0])), *_evaluated_once()])
    elif budget == "short":
        config = apply_overrides(config, list(_schedule(config, SHORT_SHARE)))
    config = apply_overrides(config, overrides)
    config = apply_overrides(config, [f"train.seed={config.train.seed + seed}"])
    steps = config.train.steps
    during = {"every_steps": steps, "cpus_per_worker": TINY_EVALUATOR_CPUS if budget == "tiny" else 1.0}
    if config.evaluate.during_training is None:  # the end of each training is all that a table shows
        ends = [f"train.checkpoint_every_steps={steps}", f"evaluate.during_training={json.dumps(during)}"]
        config = apply_overrides(config, ends)
    return config


def _evaluated_once() -> Iterator[str]:
    yield from ("evaluate.pictures=0", "evaluate.max_images=100", "evaluate.batch_images=4")


def _schedule(config: RunConfig, share: float) -> Iterator[str]:
    milestones = [max(1, round(step * share)) for step in config.optim.milestones]
    yield f"train.steps={max(1, round(config.train.steps * share))}"
    yield f"optim.milestones={sorted(set(milestones))}"
    yield f"optim.warmup_steps={round(config.optim.warmup_steps * share)}"


def _tiny(config: RunConfig, first: RunConfig) -> Iterator[str]:
    """Everything scaled, so that what differs between rows still does; `first` is the table's first row."""
    model, data = config.model, config.data
    yield from _schedule(config, TINY_STEPS / first.train.steps)
    yield f"optim.warmup_steps={TINY_STEPS // 8}"  # from random weights
    yield f"train.batch_images={max(1, TINY_BATCH * config.train.batch_images // first.train.batch_images)}"
    yield from ("optim.lr=0.02", f"optim.lr_batch_images={TINY_BATCH}", "optim.clip_norm=10.0")
    yield from ("init.weights=null", "model.trunk.freeze_stages=0")
    if model.trunk.norm == "frozen_bn":
        yield "model.trunk.norm=bn"
    yield f"model.trunk.body={_SMALL.get(model.trunk.body, model.trunk.body)}"
    yield f"model.trunk.width={TINY_WIDTH}"
    yield f"model.trunk.fpn_channels={model.trunk.fpn_channels // 4}"
    if model.rpn is not None:
        yield f"model.rpn.anchors.sizes_px={[round(size * _OBJECT, 1) for size in model.rpn.anchors.sizes_px]}"
        yield f"model.rpn.batch_per_image={model.rpn.batch_per_image // 4}"
        for name in ("pre_nms_train", "pre_nms_test", "post_nms_train", "post_nms_test"):
            yield f"model.rpn.{name}={min(max(getattr(model.rpn, name) // 10, 100), 600)}"
    yield f"model.roi.batch_per_image={max(model.roi.batch_per_image // 8, 32)}"
    yield f"model.roi.canonical_size_px={model.roi.canonical_size_px * _OBJECT:.1f}"
    if model.box is not None:
        yield f"model.box.hidden={model.box.hidden // 8}"
    if model.mask is not None:
        yield from (f"model.mask.channels={model.mask.channels // 8}", f"model.mask.hidden={model.mask.hidden // 8}")
    if model.keypoint is not None:
        yield from (f"model.keypoint.channels={model.keypoint.channels // 8}", "model.keypoint.convs=4")
    yield f"data.train_sizes_px={[round(size * _PX) for size in data.train_sizes_px]}"
    yield f"data.train_max_size_px={round(data.train_max_size_px * _PX)}"
    yield f"data.test_size_px={round(data.test_size_px * _PX)}"
    yield f"data.test_max_size_px={round(data.test_max_size_px * _PX)}"
    if config.evaluate.tta is not None:
        yield f"evaluate.tta.sizes_px={[round(size * _PX) for size in config.evaluate.tta.sizes_px]}"
