"""Training steps and predictions of our model and torchvision's, in turns in one process.

On a CPU the measure is the process's CPU time, on a GPU the time until the device is done. The first step of each
entrant is not counted: it compiles, tunes and allocates.
"""

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pycocotools import mask as coco_mask
from torch import Tensor, nn

from model.mask_rcnn import MaskRCNN
from pipeline.benchmarks.step_peer import build_pair, set_threshold
from pipeline.benchmarks.step_scene import Scene, make_scene, plant
from pipeline.config import RunConfig
from pipeline.evaluation.coco_rle import detections_to_results
from pipeline.training.optim import make_sgd, peak_lr, set_lr

Task = Literal["train", "infer"]
Model = Literal["torchvision", "ours"]
Precision = Literal["float32", "bf16"]
ENTRANTS: tuple[tuple[Model, Precision], ...] = (
    ("torchvision", "float32"),
    ("torchvision", "bf16"),
    ("ours", "float32"),
    ("ours", "bf16"),
)
CANDIDATES = 1000  # class scores an image above the threshold in inference: as many as NMS sees of a trained model


@dataclass(frozen=True)
class Setting:
    """What is measured."""

    task: Task
    config: RunConfig
    images: int
    size: tuple[int, int]  # height, width in pixels
    objects: int  # an image
    positives: int  # RoIs an image that train the mask head
    device: str
    threads: int


@dataclass(frozen=True)
class Entrant:
    """One way to do the work. `run` does it once and says what came out, to show that it is the same work."""

    name: str  # one of ENTRANTS, joined
    network: nn.Module
    run: Callable[[], str]


@dataclass(frozen=True)
class Figure:
    """An entrant's measurements."""

    name: str
    seconds: list[float]  # a round
    did: str  # what came out
    peak_megabytes: float | None  # of a process of its own that does nothing else; None where not asked for


def build_entrants(setting: Setting, only: tuple[Model, Precision] | None = None) -> list[Entrant]:
    """torchvision's and ours in float32 and bf16; or one of them."""
    device = torch.device(setting.device)
    torch.backends.cudnn.benchmark = True  # both: shapes do not change
    classes = setting.config.model.classes
    assert classes is not None
    scene = make_scene(setting.images, setting.size, classes, setting.objects, setting.positives, device)
    ours, peer = build_pair(setting.config, device)
    plant(ours, peer, scene.planted)
    if setting.task == "infer":
        ours.eval(), peer.eval()
        set_threshold(ours, peer, _threshold(ours, peer, scene))
    networks: dict[Model, MaskRCNN | nn.Module] = {"torchvision": peer, "ours": ours}
    optimisers = {}
    if only is not None:
        networks = {only[0]: networks[only[0]]}
    del ours, peer  # what is not asked for takes no memory
    found = []
    for name, precision in ENTRANTS if only is None else (only,):
        network = networks[name]
        if setting.task == "train":
            if name not in optimisers:
                optimisers[name] = make_sgd(network, setting.config.optim)
                # So small a rate that random weights stay what they are: every round does the same work.
                set_lr(optimisers[name], 1e-6 * peak_lr(setting.config.optim, setting.images))
            run = _training(network, scene, setting, precision, optimisers[name])
        else:
            run = _prediction(network, scene, setting, precision)
        found.append(Entrant(f"{name}, {precision}", network, run))
    return found


def measure(setting: Setting, rounds: int, memory: bool, on_step: Callable[[int], None]) -> list[Figure]:
    """Every entrant once to warm up and then `rounds` times, in turns; then the memory of each."""
    torch.set_num_threads(setting.threads)
    running = build_entrants(setting)
    seconds: dict[str, list[float]] = {entrant.name: [] for entrant in running}
    did: dict[str, str] = {}
    for number in range(rounds + 1):
        for index, entrant in enumerate(running):
            gc.collect()
            took, did[entrant.name] = _timed(entrant.run, setting.device)
            if number > 0:
                seconds[entrant.name].append(took)
            on_step(number * len(running) + index + 1)
    del running, entrant
    gc.collect()
    peaks = [peak_memory(setting, *key) if memory else None for key in ENTRANTS]
    return [Figure(name, times, did[name], peak) for (name, times), peak in zip(seconds.items(), peaks, strict=True)]


def ratio(figures: list[Figure], name: str, reference: str) -> float:
    """How many times faster `name` is than `reference`: the median over rounds."""
    times = {figure.name: figure.seconds for figure in figures}
    return statistics.median(b / a for a, b in zip(times[name], times[reference], strict=True))


def _timed(run: Callable[[], str], device: str) -> tuple[float, str]:
    if device == "cpu":
        started = time.process_time()
        result = run()
        return time.process_time() - started, result
    torch.cuda.synchronize()
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    before.record()
    result = run()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1000, result


def peak_memory(setting: Setting, model: Model, precision: Precision) -> float:
    """MB at most that two steps take, in a process of their own: resident on a CPU, allocated on a GPU."""
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send_peak, args=(theirs, setting, model, precision))
    process.start()
    theirs.close()
    try:
        megabytes: float = ours.recv()
    finally:
        process.join()
    return megabytes


def _send_peak(pipe: Connection, setting: Setting, model: Model, precision: Precision) -> None:
    torch.set_num_threads(setting.threads)
    (entrant,) = build_entrants(setting, (model, precision))
    gc.collect()
    # Not getrusage's: a process is born with the peak of the one that started it. Linux only.
    if setting.device == "cpu":
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten: both models were built
    else:
        torch.cuda.reset_peak_memory_stats()
    for _ in range(2):
        entrant.run()
    if setting.device == "cpu":
        (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:"))
        pipe.send(int(line.split()[1]) / 1024)
    else:
        pipe.send(torch.cuda.max_memory_allocated() / 2**20)


def _training(
    network: nn.Module, scene: Scene, setting: Setting, precision: Precision, optimiser: torch.optim.Optimizer
) -> Callable[[], str]:
    def run() -> str:
        with torch.autocast(setting.device, torch.bfloat16, enabled=precision == "bf16"):
            losses: dict[str, Tensor] = (
                network(scene.batch) if isinstance(network, MaskRCNN) else network(scene.images, scene.targets)
            )
        loss = torch.stack([loss.float() for loss in losses.values()]).sum()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        return "" if setting.device != "cpu" else f"loss {loss.item():.3f}"  # a GPU would be waited for

    return run


def _prediction(network: nn.Module, scene: Scene, setting: Setting, precision: Precision) -> Callable[[], str]:
    autocast = partial(torch.autocast, setting.device, torch.bfloat16, enabled=precision == "bf16")

    @torch.no_grad()
    def ours() -> str:
        mask = setting.config.model.mask
        assert isinstance(network, MaskRCNN) and mask is not None and setting.config.model.classes is not None
        with autocast():
            found = network.predict(scene.batch)
        categories = range(1, setting.config.model.classes + 1)
        counts = [len(detections_to_results(one, 0, categories, mask.paste, mask.threshold)) for one in found]
        return f"{sum(counts)} detections"

    @torch.no_grad()
    def theirs() -> str:
        with autocast():
            found = network(scene.images)
        count = 0
        for one in found:
            masks = (one["masks"][:, 0] > 0.5).byte().cpu().permute(1, 2, 0).numpy()
            count += len(coco_mask.encode(np.asfortranarray(masks)))
        return f"{count} detections"

    return ours if isinstance(network, MaskRCNN) else theirs


@torch.no_grad()
def _threshold(ours: MaskRCNN, peer: nn.Module, scene: Scene) -> float:
    """The score above which `CANDIDATES` classes of proposals an image lie."""
    set_threshold(ours, peer, 0.0)
    found = ours.candidates(ours.look(scene.batch), scene.batch.sizes)
    scores = torch.cat([one.scores for one in found])
    count = min(CANDIDATES * len(found), len(scores) // 2)  # of a small model there are not so many
    return float(scores.topk(count).values[-1])
