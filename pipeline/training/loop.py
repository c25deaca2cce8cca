"""What each worker does: stream its share of every batch, step, check that all is finite, checkpoint.

Runs inside Ray Train. A step depends on (config, step) alone: the plan says which samples, (seed, step, rank) what is
sampled of them; so a run that was killed and resumed gives the losses of one that never was.
"""

import inspect
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode
from ray.util.queue import Queue
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from model.build import build_model
from model.mask_rcnn import MaskRCNN
from model.types import Batch
from pipeline.config import RunConfig
from pipeline.configure import from_yaml_text
from pipeline.data.augment import draw_geometry
from pipeline.data.collate import Collator, Work
from pipeline.data.plan import Plan
from pipeline.data.shards import load_index
from pipeline.data.stream import stream_records
from pipeline.training.checkpoint import (
    Meta,
    checkpoint_name,
    initialise,
    load_optimiser,
    load_weights,
    read_meta,
    save_checkpoint,
)
from pipeline.training.optim import lr_at, make_sgd, set_lr


@dataclass(frozen=True)
class Job:
    """What a worker is told."""

    config_yaml: str  # resolved
    run_dir: str
    meta: Meta  # of the checkpoints to come; `step` is filled in
    threads: int
    events: Queue  # to the driver


def train_worker(arguments: dict[str, Job]) -> None:
    """Train from the last checkpoint, or from the start, to train.steps. `arguments` holds one job."""
    job = arguments["job"]
    try:
        _train(job)
    except BaseException:  # told at once: Ray Train restarts the workers, and would say why only if it gave up
        rank = ray.train.get_context().get_world_rank()
        job.events.put({"kind": "failure", "rank": rank, "error": traceback.format_exc(limit=-4)})
        raise


def _train(job: Job) -> None:
    config = from_yaml_text(job.config_yaml)
    context = ray.train.get_context()
    rank, world = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    torch.set_num_threads(job.threads)
    torch.manual_seed(config.train.seed)
    model = build_model(config.model)
    start = 0
    resumed = ray.train.get_checkpoint()
    if resumed is not None:
        start = read_meta(Path(resumed.path))[1].step
        load_weights(model, Path(resumed.path))
    elif config.init.weights is not None:
        report = initialise(model, Path(config.init.weights), config.model.classes or 0)
        if rank == 0:
            job.events.put({"kind": "init", "report": str(report), "mismatched": list(report.mismatched)})
    model.to(device).to(memory_format=torch.channels_last).train()
    optimiser = make_sgd(model, config.optim)
    if resumed is not None:
        load_optimiser(optimiser, Path(resumed.path))
    if rank == 0:
        job.events.put({"kind": "start", "step": start, "world": world, "device": str(device)})
    batches = _batches(config, job, start, rank, world)
    _Loop(config, job, model, optimiser, device, rank, world).run(start, batches)


def _batches(config: RunConfig, job: Job, start: int, rank: int, world: int) -> Iterator[Batch]:
    """This worker's batches from `start` to the end, decoded ahead."""
    data, train = config.data, config.train
    assert data.train is not None
    index = load_index(data.train)
    if data.drop_empty:
        index = index.filter(pc.greater(index["instances"], 0))
    plan = Plan(index, train.seed, train.batch_images, data.train_sizes_px, data.window_groups, data.aspect_buckets)
    shares = (plan.batch(step).share(rank, world) for step in range(start, train.steps))

    def work() -> Iterator[Work]:
        streamed = stream_records(shares, index, data.train or "", data.task_rows, data.prefetch_batches)
        for batch, records in streamed:
            geometries = [
                draw_geometry(
                    record["height"],
                    record["width"],
                    batch.size_px,
                    data.train_max_size_px,
                    data.flip_probability,
                    train.seed,
                    int(epoch),
                    record["sample_id"],
                )
                for record, epoch in zip(records, batch.epochs, strict=True)
            ]
            yield records, geometries

    def report_bad(sample_id: int, reason: str) -> None:
        job.events.put({"kind": "bad_sample", "sample_id": sample_id, "reason": reason})

    mask = config.model.mask
    target = mask.target if mask is not None else "crop"
    threads = data.decode_threads or job.threads
    return Collator(threads, data.prefetch_batches, config.model.input.divisor, target, report_bad)(work())


class _Loop:
    """The steps. Losses stay on the device between logs: a step waits for it once, for the finite check."""

    def __init__(
        self,
        config: RunConfig,
        job: Job,
        model: MaskRCNN,
        optimiser: torch.optim.Optimizer,
        device: torch.device,
        rank: int,
        world: int,
    ) -> None:
        self.config, self.job, self.model, self.optimiser = config, job, model, optimiser
        self.device, self.rank, self.world = device, rank, world
        ids = [device] if device.type == "cuda" else None
        self.wrapped: torch.nn.Module = model
        if world > 1:
            # Batch norm's running statistics are each worker's own; the checkpoint has those of rank 0.
            new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # torch 2.13
            no_sync: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
            self.wrapped = DistributedDataParallel(model, device_ids=ids, gradient_as_bucket_view=True, **no_sync)
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.bad_steps = 0  # in a row

    def run(self, start: int, batches: Iterator[Batch]) -> None:
        """Steps start..train.steps - 1."""
        train = self.config.train
        window: list[dict[str, Tensor]] = []
        steps, waited, since = 0, 0.0, time.perf_counter()
        for step in range(start, train.steps):
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            losses = self.step(step, batch)
            if losses is not None:
                window.append(losses)
            done, steps = step + 1, steps + 1
            if done % train.log_every_steps == 0 or done == train.steps:
                seconds = time.perf_counter() - since
                self._log(done, window, steps * train.batch_images / seconds, waited / seconds)
                window, steps, waited, since = [], 0, 0.0, time.perf_counter()
            if done % train.checkpoint_every_steps == 0 or done == train.steps:
                paused = time.perf_counter()
                self._checkpoint(done)
                since += time.perf_counter() - paused

    def step(self, step: int, batch: Batch) -> dict[str, Tensor] | None:
        """One step; None where the gradient was not finite on some worker and the step was skipped on all."""
        train, optim = self.config.train, self.config.optim
        lr = lr_at(optim, train.batch_images, step)
        set_lr(self.optimiser, lr)
        torch.manual_seed(int(np.random.SeedSequence((train.seed, 3, step, self.rank)).generate_state(1)[0]))
        batch = batch.to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=train.precision == "bf16"):
            losses = self.wrapped(batch)
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        # DDP has averaged the gradients: this norm is the same on all ranks, and not finite if any rank's loss was not.
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(norm)):
            self._bad_step(step, batch, losses)
            return None
        self.bad_steps = 0
        if optim.clip_norm is not None:
            torch.nn.utils.clip_grads_with_norm_(self.parameters, optim.clip_norm, norm)
        self.optimiser.step()
        return {name: loss.detach() for name, loss in losses.items()} | {"gradient_norm": norm}

    def _bad_step(self, step: int, batch: Batch, losses: dict[str, Tensor]) -> None:
        self.bad_steps += 1
        values = {name: float(loss.detach()) for name, loss in losses.items()}
        self.job.events.put(
            {
                "kind": "bad_step",
                "step": step,
                "rank": self.rank,
                "losses": values,
                "sample_ids": batch.sample_ids.tolist(),
            }
        )
        if self.bad_steps >= self.config.train.max_bad_steps:
            raise FloatingPointError(
                f"the gradient was not finite for {self.bad_steps} steps in a row (to step {step}); losses of rank "
                f"{self.rank}: {values}; lower optim.lr, lengthen optim.warmup_steps, or set optim.clip_norm"
            )

    def _log(self, done: int, window: list[dict[str, Tensor]], images_a_second: float, waited: float) -> None:
        """Means over the window and all workers; every worker takes part."""
        if not window:
            return
        names = list(window[0])
        means = torch.stack([torch.stack([losses[name].float() for name in names]) for losses in window]).mean(0)
        if self.world > 1:
            dist.all_reduce(means)
            means /= self.world
        if self.rank != 0:
            return
        train = self.config.train
        metrics = {f"train/{name}": value for name, value in zip(names, means.tolist(), strict=True)}
        metrics["train/loss"] = sum(v for name, v in metrics.items() if name != "train/gradient_norm")
        metrics["train/lr"] = lr_at(self.config.optim, train.batch_images, done - 1)
        metrics["train/images_per_second"] = images_a_second
        metrics["train/data_wait"] = waited
        self.job.events.put({"kind": "metrics", "step": done, "metrics": metrics})

    def _checkpoint(self, done: int) -> None:
        """Rank 0 writes, all ranks report (Ray Train waits for all of them)."""
        checkpoint = None
        if self.rank == 0:
            directory = Path(self.job.run_dir) / checkpoint_name(done)
            save_checkpoint(directory, self.model, self.optimiser, self.config, replace(self.job.meta, step=done))
            checkpoint = Checkpoint.from_directory(str(directory))
            self.job.events.put({"kind": "checkpoint", "step": done, "path": str(directory)})
        # It lies in the run's storage already: nothing to upload.
        ray.train.report({"step": done}, checkpoint, checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD)
