"""Where a step's time goes, by stage: torch's profiler, with a range around each part of the network.

A backward operator has the sequence number of the forward one that recorded it, which lies in a stage's range: so the
backward pass is split over the same stages. On a CPU the time is that of the operators, on a GPU that of the kernels.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any

from torch.autograd import DeviceType  # type: ignore[attr-defined]
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, record_function

import model.mask_rcnn
from model.mask_rcnn import MaskRCNN

_NODE = "autograd::engine::evaluate_function: "
_PREFIX = "stage/"
STAGES = (
    "normalise",
    "body",
    "FPN",
    "RPN head",
    "proposals + NMS",
    "RPN loss",
    "RoI sampling",
    "RoIAlign",
    "box head",
    "box loss",
    "mask targets",
    "mask head",
    "mask loss",
    "detections + NMS",
    "optimiser",
    "rest",
)


@dataclass(frozen=True)
class StageTime:
    """Seconds of a step in one stage."""

    stage: str
    forward: float
    backward: float


@contextmanager
def ranges(network: MaskRCNN) -> Iterator[None]:
    """Name the stages of `network` to the profiler."""
    body: Any = network.trunk.body  # type: ignore[attr-defined]
    parts: list[tuple[str, Any, str]] = [
        ("normalise", network, "normalise"),
        ("body", body, "forward"),
        ("FPN", network.trunk, "forward"),
        ("RPN head", network.rpn, "forward"),
        ("proposals + NMS", network.rpn, "propose"),
        ("RPN loss", network.rpn, "losses"),
        ("RoI sampling", model.mask_rcnn, "sample_rois"),
        ("RoIAlign", network.trunk, "crop"),
        ("box head", network.box, "forward"),
        ("box loss", network.box, "losses"),
        ("detections + NMS", network.box, "candidates"),
        ("detections + NMS", network.box, "suppress"),
        ("mask targets", model.mask_rcnn, "mask_targets"),
        ("mask head", network.mask, "forward"),
        ("mask loss", network.mask, "losses"),
        ("mask loss", network.mask, "probabilities"),
    ]
    parts = [part for part in parts if part[1] is not None]
    for stage, owner, name in parts:
        setattr(owner, name, _ranged(stage, getattr(owner, name)))
    try:
        yield
    finally:
        for _, owner, name in parts:
            if owner is model.mask_rcnn:
                setattr(owner, name, getattr(owner, name).__wrapped__)
            else:
                delattr(owner, name)  # the class's own shows again


def _ranged(stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(function)
    def inside(*arguments: Any, **named: Any) -> Any:
        with record_function(_PREFIX + stage):
            return function(*arguments, **named)

    return inside


def profile_stages(network: MaskRCNN, run: Callable[[], object], device: str, steps: int = 1) -> list[StageTime]:
    """Stages in the order of `STAGES`, means over `steps` runs after one that is not counted."""
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device != "cpu" else [])]
    with ranges(network):
        run()
        with profile(activities=activities) as found:
            for _ in range(steps):
                run()
    total = partial(_device_seconds if device != "cpu" else _cpu_seconds)
    forward, backward = _by_stage(list(found.events() or ()), total)
    return [
        StageTime(stage, forward[stage] / steps, backward[stage] / steps)
        for stage in STAGES
        if forward[stage] or backward[stage]
    ]


def _cpu_seconds(event: FunctionEvent) -> float:
    return float(event.self_cpu_time_total) / 1e6


def _device_seconds(event: FunctionEvent) -> float:
    return float(event.self_device_time_total) / 1e6


def _by_stage(
    events: list[FunctionEvent], seconds: Callable[[FunctionEvent], float]
) -> tuple[dict[str, float], dict[str, float]]:
    forward: dict[str, float] = defaultdict(float)
    backward: dict[str, float] = defaultdict(float)
    stage_of: dict[int, str] = {}  # sequence number -> stage
    later: list[tuple[int, float]] = []

    def walk(event: FunctionEvent, stage: str) -> None:
        if event.name.startswith(_PREFIX):
            stage = event.name.removeprefix(_PREFIX)
        elif event.name.startswith("Optimizer.step"):
            stage = "optimiser"
        elif event.name.startswith(_NODE):
            took = _whole(event, seconds)
            if "roi_align" in event.name:  # an operator of our own: its number is no forward operator's
                backward["RoIAlign"] += took
            else:
                later.append((event.sequence_nr, took))
            return
        if event.sequence_nr >= 0:
            stage_of[event.sequence_nr] = stage  # the last one with a number is the one that used it up
        forward[stage] += seconds(event)
        for child in event.cpu_children:
            walk(child, stage)

    for event in events:
        if event.cpu_parent is None and event.device_type == DeviceType.CPU:
            walk(event, "rest")
    for number, took in later:
        backward[stage_of.get(number, "rest")] += took
    return forward, backward


def _whole(event: FunctionEvent, seconds: Callable[[FunctionEvent], float]) -> float:
    return seconds(event) + sum(_whole(child, seconds) for child in event.cpu_children)
