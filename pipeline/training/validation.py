"""Ray Train's validation hook: a checkpoint is evaluated by workers of its own, while training goes on."""

import shutil
import traceback
from dataclasses import dataclass, replace
from pathlib import Path

import ray.train
from ray.train import ValidationConfig
from ray.util.queue import Queue

from pipeline.config import RunConfig
from pipeline.configure import from_yaml_text
from pipeline.evaluation.evaluate import evaluate
from pipeline.evaluation.tables import read_ap_json
from pipeline.training.checkpoint import read_meta
from pipeline.training.cluster import SCORE, Layout
from pipeline.training.evaluations import evaluation_directory, failure_file, score


@dataclass(frozen=True)
class Validator:
    """What the hook is told, and the hook itself."""

    config_yaml: str  # resolved
    run_dir: str
    layout: Layout  # of the workers that evaluate
    events: Queue  # to the driver

    def __call__(self, checkpoint: ray.train.Checkpoint) -> dict[str, float]:
        """What Ray Train adds to the checkpoint's metrics. Runs in a task, for one checkpoint at a time."""
        try:
            return self._evaluate(Path(checkpoint.path))
        except BaseException:  # told at once: Ray Train says it only in the log of its controller
            error, step = traceback.format_exc(limit=-4), read_meta(Path(checkpoint.path))[1].step
            failure = failure_file(Path(self.run_dir), step)
            failure.parent.mkdir(exist_ok=True)
            failure.write_text(error, encoding="utf-8")
            self.events.put({"kind": "evaluation_failure", "path": checkpoint.path, "error": error})
            raise

    def _evaluate(self, checkpoint: Path) -> dict[str, float]:
        value = evaluate_checkpoint(from_yaml_text(self.config_yaml), Path(self.run_dir), checkpoint, self.layout)
        self.events.put({"kind": "evaluated", "step": read_meta(checkpoint)[1].step})
        return {SCORE: value}


def evaluate_checkpoint(config: RunConfig, run_dir: Path, checkpoint: Path, layout: Layout) -> float:
    """Evaluate a run's checkpoint as evaluate.during_training says, into the run's directory; returns its score."""
    during, val = config.evaluate.during_training, config.data.val
    assert during is not None and val is not None
    images = config.evaluate.max_images if during.max_images is None else during.max_images
    # A report is written once, at the end of the run: an evaluation beside training is to be light.
    config = replace(config, evaluate=replace(config.evaluate, max_images=images, report=False))
    place = evaluation_directory(run_dir, read_meta(checkpoint)[1].step)
    beside = place.with_name(f".{place.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)  # of a try that was killed
    evaluate(checkpoint, val, config, layout, beside, lambda _: None)
    shutil.rmtree(place, ignore_errors=True)
    beside.rename(place)
    return score(read_ap_json(place / "ap.json"), during)


def validation_config(validator: Validator) -> ValidationConfig:
    """For TorchTrainer. The hook claims no CPU: its workers do."""
    return ValidationConfig(fn=validator, ray_remote_kwargs={"num_cpus": 0})
