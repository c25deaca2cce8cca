"""What COCO AP costs: ours against pycocotools, in one run, on the same files of invented results.

Each measurement is of a process of its own, without torch in it: it loads the files (which is timed apart), forgets
its peak memory so far, and scores. CPU time is the process's.
"""

import contextlib
import io
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.benchmarks.coco_scene import invent_detections, invent_objects, results_json, truth_json
from pipeline.data import coco_json
from pipeline.data.results_json import load_results
from pipeline.evaluation.coco_ap import evaluate_coco

Entrant = Literal["ours", "pycocotools"]
Kind = Literal["box", "mask"]
_TRUTH = "annotations.json"


@dataclass(frozen=True)
class Cost:
    """Of one evaluation."""

    loading_s: float  # CPU, of the two files
    cpu_s: float  # from lists in memory to the numbers
    wall_s: float
    peak_mb: float  # of the whole process, the loaded files included
    own_mb: float  # of it, what came on top of the loaded files
    stats: tuple[float, ...]  # the official numbers, in their order


@dataclass(frozen=True)
class Bootstrap:
    """An evaluation with intervals, by us."""

    cpu_s: float
    peak_mb: float


def write_scene(directory: Path, *, images: int, detections: int, classes: int, seed: int = 0) -> int:
    """Write the files that are scored; returns how many objects there are."""
    rng = np.random.default_rng(seed)
    objects = invent_objects(rng, images, classes)
    found = invent_detections(rng, objects, images, classes, detections)
    (directory / _TRUTH).write_text(json.dumps(truth_json(objects, images, classes)))
    for kind in ("box", "mask"):
        (directory / f"results_{kind}.json").write_text(json.dumps(list(results_json(found, kind == "mask"))))
    return len(objects.images)


def measure(directory: Path, kind: Kind, entrant: Entrant) -> Cost:
    """Score the files of `write_scene` in a process of its own. Linux only."""
    return Cost(*_in_process(_score, directory, kind, entrant))


def measure_bootstrap(directory: Path, kind: Kind, resamples: int) -> Bootstrap:
    """Our evaluation with so many resamples, in a process of its own."""
    return Bootstrap(*_in_process(_resample, directory, kind, resamples))


def _in_process(run: Callable[..., Any], *arguments: Any) -> Any:
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, run, *arguments))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    finally:
        process.join()


def _send(pipe: Connection, run: Callable[..., Any], *arguments: Any) -> None:
    pipe.send(run(*arguments))


def _score(directory: Path, kind: Kind, entrant: Entrant) -> tuple[Any, ...]:
    began = time.process_time()
    if entrant == "ours":
        truth, results = _load(directory, kind)
        loaded = time.process_time() - began
        cost = _timed(lambda: list(evaluate_coco(truth, results, kind).stats.values()))
    else:
        with contextlib.redirect_stdout(io.StringIO()):
            source = json.loads((directory / _TRUTH).read_bytes())
            found = json.loads((directory / f"results_{kind}.json").read_bytes())
            loaded = time.process_time() - began
            cost = _timed(lambda: _official(source, found, "bbox" if kind == "box" else "segm"))
    *numbers, stats = cost
    return (loaded, *numbers, tuple(np.nan_to_num(np.array(stats, np.float64), nan=-1.0).tolist()))


def _resample(directory: Path, kind: Kind, resamples: int) -> tuple[float, float]:
    truth, results = _load(directory, kind)
    cpu, _, peak, _, _ = _timed(lambda: evaluate_coco(truth, results, kind, resamples=resamples).spread)
    return cpu, peak


def _load(directory: Path, kind: Kind) -> tuple[Any, list[Any]]:
    return coco_json.load(directory / _TRUTH), load_results(directory / f"results_{kind}.json")


def _official(source: Any, results: list[Any], iou_type: str) -> list[float]:
    truth = COCO()
    truth.dataset = source
    truth.createIndex()
    evaluator = COCOeval(truth, truth.loadRes(results), iou_type)
    evaluator.evaluate()
    evaluator.accumulate()
    evaluator.summarize()
    return [float(value) for value in evaluator.stats]


def _timed(run: Callable[[], Any]) -> tuple[float, float, float, float, Any]:
    """CPU and wall seconds, peak and added MB, what came out."""
    before = _status_mb("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    wall, cpu = time.perf_counter(), time.process_time()
    found = run()
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    peak = _status_mb("VmHWM")
    return cpu, wall, peak, peak - before, found


def _status_mb(key: str) -> float:
    """Not getrusage's: a process is born with the peak of the one that started it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) / 1024
