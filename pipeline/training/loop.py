"""What each worker does: stream its share of every batch, step, check that all is finite, checkpoint.

Runs inside Ray Train. A step depends on (config, step) alone: the plan says which samples, (seed, step, rank) what is
sampled of them; so a run that was killed and resumed gives the losses of one that never was.
"""

import gc
import inspect
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray.train
import ray.train.collective
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointUploadMode
from ray.util.queue import Queue
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from model.build import build_model
from model.mask_rcnn import MaskRCNN
from model.types import Batch
from pipeline.config import RunConfig
from pipeline.configure import from_yaml_text
from pipeline.data.ledger import LedgerWriter, next_attempt
from pipeline.data.loader import training_batches
from pipeline.data.plan import plan_of
from pipeline.training.checkpoint import (
    Meta,
    checkpoint_name,
    furthest,
    initialise,
    load_optimiser,
    load_weights,
    read_meta,
    save_checkpoint,
)
from pipeline.training.cluster import SCORE
from pipeline.training.evaluations import NO_SCORE, evaluations, has_ended, is_due, out_of_patience
from pipeline.training.freezing import Freezing, outputs_of
from pipeline.training.optim import lr_at, make_sgd, set_lr
from pipeline.training.transfer import transfer_weights


@dataclass(frozen=True)
class Job:
    """What a worker is told."""

    config_yaml: str  # resolved
    run_dir: str
    meta: Meta  # of the checkpoints to come; `step` is filled in
    threads: int
    decode_cpus: float  # of the cluster, for the tasks that decode for a worker (data.decode: cluster)
    events: Queue  # to the driver
    resume: str | None  # the run's newest checkpoint when the driver looked; null: it has none


class NotFiniteError(FloatingPointError):
    """Too many steps in a row were not finite, on all workers alike; trying again would give the same."""


def train_worker(arguments: dict[str, Job]) -> None:
    """Train from the last checkpoint, or from the start, to train.steps. `arguments` holds one job."""
    job = arguments["job"]
    try:
        _train(job)
    except NotFiniteError as error:  # an orderly end, or Ray Train would try again: the driver makes it an error
        job.events.put({"kind": "not_finite", "rank": ray.train.get_context().get_world_rank(), "error": str(error)})
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
    resumed, attempt = _agree_on_start(job, rank)
    if resumed is not None:
        start = read_meta(resumed)[1].step
        load_weights(model, resumed)
    elif config.init.transfer is not None:
        transferred = transfer_weights(model, config, job.meta.class_names)
        if rank == 0:
            new = [f"{name}: {why}" for name, why in transferred.tensors.new.items()]
            job.events.put({"kind": "init", "report": str(transferred), "mismatched": new})
    elif config.init.weights is not None:
        report = initialise(model, Path(config.init.weights), config.model.classes or 0)
        if rank == 0:
            job.events.put({"kind": "init", "report": str(report), "mismatched": list(report.mismatched)})
    model.to(device).to(memory_format=torch.channels_last).train()
    optimiser = make_sgd(model, config.optim)
    if resumed is not None:
        load_optimiser(optimiser, resumed)
    if rank == 0:
        job.events.put({"kind": "start", "step": start, "world": world, "device": str(device)})

    def report_bad(sample_id: int, reason: str) -> None:
        job.events.put({"kind": "bad_sample", "sample_id": sample_id, "reason": reason})

    batches = training_batches(
        config,
        plan_of(config),
        range(start, config.train.steps),
        rank,
        world,
        config.data.decode_threads or job.threads,
        job.decode_cpus,
        report_bad,
    )
    with LedgerWriter(Path(job.run_dir), attempt, start, rank, world) as ledger:
        _Loop(config, job, model, optimiser, device, rank, world, ledger).run(start, batches)


def _agree_on_start(job: Job, rank: int) -> tuple[Path | None, int]:
    """The checkpoint to go on from and the number of this attempt, the same on all workers: rank 0 decides.

    Ray Train knows the checkpoints that were reported. One that was written just before all was killed is whole too,
    and the driver said that the run continues there; after a failure of workers, Ray Train's is further.
    """
    reported = ray.train.get_checkpoint()
    known = None if reported is None else Path(reported.path)
    resumed = furthest(known, None if job.resume is None else Path(job.resume))
    decided = (None if resumed is None else str(resumed), next_attempt(Path(job.run_dir))) if rank == 0 else None
    path, attempt = ray.train.collective.broadcast_from_rank_zero(decided)
    if path is None:
        return None, attempt
    if known is None or Path(path) != known:  # now Ray Train knows it, and deletes it when it is old
        checkpoint = Checkpoint.from_directory(path) if rank == 0 else None
        step = read_meta(Path(path))[1].step
        due = is_due(from_yaml_text(job.config_yaml), step) and not has_ended(Path(job.run_dir), step)
        _report(step, checkpoint, due)
    return Path(path), attempt


def _report(step: int, checkpoint: Checkpoint | None, evaluate: bool) -> None:
    """Tell Ray Train of a checkpoint that lies in the run's storage: nothing to upload, perhaps to be evaluated."""
    ray.train.report(
        {"step": step, SCORE: NO_SCORE},
        checkpoint,
        checkpoint_upload_mode=CheckpointUploadMode.NO_UPLOAD,
        validation=evaluate,
    )


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
        ledger: LedgerWriter,
    ) -> None:
        self.config, self.job, self.model, self.optimiser = config, job, model, optimiser
        self.device, self.rank, self.world, self.ledger = device, rank, world, ledger
        self.freezing = Freezing(model, config.optim, outputs_of(config.model))
        self.wrapped: torch.nn.Module = model
        if not self.freezing.active:
            self._wrap()
        self.parameters = [p for p in model.parameters() if p.requires_grad]  # that are ever to train
        self.statistics = [  # running ones: a forward pass moves them before it is known to be finite
            buffer for module in model.modules() if isinstance(module, _BatchNorm) for buffer in module.buffers()
        ]
        self.bad_steps = 0  # in a row
        self.evaluating: int | None = None  # step of the checkpoint that Ray Train was last asked to evaluate

    def _wrap(self) -> None:
        """Average the gradients of what trains over all workers. DDP keeps to what trained when it was made."""
        if self.world == 1:
            return
        self.wrapped = self.model
        gc.collect()  # the hooks of the phase before go with its reducer
        ids = [self.device] if self.device.type == "cuda" else None
        # Batch norm's running statistics are each worker's own; the checkpoint has those of rank 0.
        new = "forward_sync_buffers" in inspect.signature(DistributedDataParallel).parameters  # torch 2.13
        no_sync: dict[str, Any] = {"forward_sync_buffers" if new else "broadcast_buffers": False}
        self.wrapped = DistributedDataParallel(self.model, device_ids=ids, gradient_as_bucket_view=True, **no_sync)

    def run(self, start: int, batches: Iterator[Batch]) -> None:
        """Steps start..train.steps - 1."""
        train = self.config.train
        window: list[dict[str, Tensor]] = []
        steps, waited, since = 0, 0.0, time.perf_counter()
        for step in range(start, train.steps):
            if (step == start or step % train.checkpoint_every_steps == 0) and self._out_of_patience(step):
                return
            asked = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - asked
            losses = self.step(step, batch)
            self.ledger.write(step, batch.sample_ids.tolist(), skipped=losses is None)
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
        if self.freezing.at(step, self.optimiser):
            self.optimiser.zero_grad(set_to_none=True)
            self._wrap()
        torch.manual_seed(int(np.random.SeedSequence((train.seed, 3, step, self.rank)).generate_state(1)[0]))
        batch = batch.to(self.device)
        kept = [buffer.clone() for buffer in self.statistics]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=train.precision == "bf16"):
            losses = self.wrapped(batch)
        self.optimiser.zero_grad(set_to_none=True)
        torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
        # DDP has averaged the gradients: this norm is the same on all ranks, and not finite if any rank's loss was not.
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if not bool(torch.isfinite(norm)):
            for buffer, value in zip(self.statistics, kept, strict=True):
                buffer.copy_(value)
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
            raise NotFiniteError(
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
        if self.world > 1:
            dist.barrier()  # a checkpoint that lies there means that the ledger has all lines before it
        checkpoint = None
        if self.rank == 0:
            directory = Path(self.job.run_dir) / checkpoint_name(done)
            # Told before it is written: what the driver has not logged when all is killed is not made again.
            self.job.events.put({"kind": "checkpoint", "step": done, "path": str(directory)})
            save_checkpoint(directory, self.model, self.optimiser, self.config, replace(self.job.meta, step=done))
            checkpoint = Checkpoint.from_directory(str(directory))
        _report(done, checkpoint, self._evaluates(done))

    def _evaluates(self, step: int) -> bool:
        """Whether the checkpoint of this step is evaluated: not while an earlier one is, or they would pile up."""
        if self.rank != 0 or not is_due(self.config, step):
            return False
        waits = self.evaluating is not None and not has_ended(Path(self.job.run_dir), self.evaluating)
        if waits and step != self.config.train.steps:
            self.job.events.put({"kind": "not_evaluated", "step": step, "evaluating": self.evaluating})
            return False
        self.evaluating = step
        return True

    def _out_of_patience(self, step: int) -> bool:
        """Whether training is to stop before this step; all workers do as rank 0 sees the evaluations."""
        during = self.config.evaluate.during_training
        if during is None or during.patience is None:
            return False
        stop = out_of_patience(evaluations(Path(self.job.run_dir)), during) if self.rank == 0 else None
        stop = bool(ray.train.collective.broadcast_from_rank_zero(stop))
        if stop and self.rank == 0:
            self.job.events.put({"kind": "stopped_early", "step": step, "patience": during.patience})
        return stop
