"""Detections of every image of some shards, by Ray actors that hold the model; one JSON row an image comes back."""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
from ray.data import ActorPoolStrategy

from model.config import MaskConfig
from model.mask_rcnn import MaskRCNN
from model.types import Detections
from model.views import View, predict_views
from pipeline.config import RunConfig
from pipeline.data.augment import Recipe, plain_recipe
from pipeline.data.collate import Collator, Work
from pipeline.data.loader import make_reading
from pipeline.data.mixture import load_mixture
from pipeline.data.records import Record
from pipeline.data.shards import to_records
from pipeline.data.storage import Location, Storage
from pipeline.data.stream import rows_dataset
from pipeline.errors import UserError
from pipeline.evaluation.attempts import LostError, start_counting
from pipeline.evaluation.coco_rle import detections_to_results
from pipeline.training.checkpoint import Meta, load_model, read_meta
from pipeline.training.cluster import Layout

RETRIES = 3  # workers that may take over a batch, one after the other


@dataclass(frozen=True)
class Predicted:
    """What came out for one image."""

    sample_id: int
    results: list[dict[str, Any]]  # COCO's results format
    error: str | None  # why the image could not be decoded
    seconds: float = 0.0  # of its worker: its share of a batch, from encoded picture to results
    device: str = ""  # that computed


class Predictor:
    """A model ready to detect: used by Ray actors for shards, and directly for files."""

    def __init__(
        self,
        checkpoint: str,
        threads: int,
        device: str,
        config: RunConfig | None = None,
        attempts: Any = None,
    ) -> None:
        """`config` is the checkpoint's own where it is None; weights must fit its model.

        `attempts`: handle of what counts deaths (see attempts.py), where workers may be started again.
        """
        self.attempts = attempts
        if attempts is not None and (told := ray.get(attempts.start.remote())) is not None:
            raise LostError(told)
        torch.set_num_threads(threads)
        model, self.config, self.meta = load_model(Path(checkpoint), config)
        check_views(self.config, self.meta)
        self.device = torch.device(device)
        self.model: MaskRCNN = model.to(self.device).to(memory_format=torch.channels_last).eval()
        self.threads = threads
        self.errors: dict[int, str] = {}

    def detect(self, records: list[Record]) -> list[Detections]:
        """Detections of a few images, in their own pixels; what cannot be decoded is in `errors` by sample id."""
        config, self.errors = self.config, {}
        plans = list(zip(*(view_recipes(r["height"], r["width"], config) for r in records), strict=True))  # a view each
        given = config.data.proposals_test if config.model.rpn is None else None
        collate = Collator(self.threads, 0, config.model.input.divisor, None, self.errors.__setitem__, proposals=given)
        batches = collate([list(map(Work, records, plan)) for plan in plans])
        views = [View(batch.to(self.device), plan[0].geometry.flip) for plan, batch in zip(plans, batches, strict=True)]
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
            if config.evaluate.tta is None:
                return self.model.predict(views[0].batch)
            return predict_views(self.model, views, self.meta.keypoint_flip)

    def results(self, records: list[Record]) -> list[Predicted]:
        """COCO results of a few images."""
        paste = self.config.model.mask or MaskConfig()
        predicted = []
        for record, found in zip(records, self.detect(records), strict=True):
            sample_id, error = record["sample_id"], self.errors.get(record["sample_id"])
            results = []
            if error is None:  # else the network saw black, and what it found there is in no picture
                results = detections_to_results(found, sample_id, self.meta.category_ids, paste.paste, paste.threshold)
            predicted.append(Predicted(sample_id, results, error))
        return predicted

    def __call__(self, table: pa.Table) -> pa.Table:
        """Rows of shards -> rows of (sample_id, results as JSON, error, seconds, device)."""
        batch = tuple(table["sample_id"].to_pylist())
        if self.attempts is not None and ray.get(self.attempts.begin.remote(batch)) is not None:
            ray.actor.exit_actor()  # Ray takes that for meant; after an error it would keep the process and its CPU
        start = time.perf_counter()
        predicted = self.results(to_records(table))
        share = (time.perf_counter() - start) / max(1, len(predicted))
        if self.attempts is not None:
            self.attempts.end.remote(batch)
        device = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else "CPU"
        return pa.table(
            {
                "sample_id": [p.sample_id for p in predicted],
                "results": [json.dumps(p.results) for p in predicted],
                "error": pa.array([p.error for p in predicted], pa.string()),
                "seconds": [share] * len(predicted),
                "device": [device] * len(predicted),
            }
        )


def view_recipes(height: int, width: int, config: RunConfig) -> list[Recipe]:
    """What becomes of a picture in each of its views; the first one is not mirrored."""
    data, tta = config.data, config.evaluate.tta
    if tta is None:
        return [plain_recipe(height, width, data.test_size_px, data.test_max_size_px)]
    plain = [plain_recipe(height, width, size, tta.max_size_px) for size in tta.sizes_px]
    mirrored = [replace(recipe, geometry=replace(recipe.geometry, flip=True)) for recipe in plain]
    return [*plain, *mirrored] if tta.flip else plain


def check_views(config: RunConfig, meta: Meta) -> None:
    """Raises UserError where keypoints of mirrored pictures could not be told left from right."""
    tta = config.evaluate.tta
    if tta is not None and tta.flip and config.model.keypoint is not None and meta.keypoint_flip is None:
        raise UserError(
            "evaluate.tta.flip needs to know which keypoints are left and which right, and the checkpoint, an older "
            "one, does not say; set evaluate.tta.flip=false"
        )


def choose_rows(index: pa.Table, max_images: int | None) -> pa.Table:
    """The rows to predict, sorted by aspect so that a batch has little padding."""
    count = index.num_rows if max_images is None else min(max_images, index.num_rows)
    chosen = index.slice(0, count)  # shards are shuffled: the first rows are a random sample
    aspect = chosen["width"].to_numpy() / chosen["height"].to_numpy()
    return chosen.take(np.argsort(aspect, kind="stable"))


def predict_shards(
    checkpoint: Path, shards: Location, config: RunConfig, layout: Layout, retries: int = RETRIES
) -> Iterator[Predicted]:
    """Detections of the images of `shards` (evaluate.max_images of them), each exactly once, as they come.

    Where a worker dies, another one takes over what it had not finished.

    Args:
        checkpoint: directory.
        shards: where the images are.
        config: the checkpoint's own, or one that differs in what its weights do not depend on.
        layout: of the workers.
        retries: how many workers may take over a batch that killed the one before.

    Raises:
        UserError: the views do not go with the model.
        LostError: a batch killed every worker that took it, or workers died before they took any.
    """
    check_views(config, read_meta(checkpoint)[1])
    place, data, size = Storage.at(shards).uri, config.data, config.evaluate.batch_images
    rows = choose_rows(load_mixture(place), config.evaluate.max_images)
    per_task = -(-data.task_rows // size) * size
    tasks = [rows.slice(start, per_task) for start in range(0, rows.num_rows, per_task)]
    workers = min(layout.workers, len(tasks))
    attempts = start_counting(workers, retries)
    predicted = rows_dataset(tasks, [place], make_reading(config)).map_batches(
        Predictor,
        fn_constructor_kwargs={
            "checkpoint": str(checkpoint),
            "threads": layout.threads,
            "device": "cuda" if layout.gpus else "cpu",
            "config": config,
            "attempts": attempts,
        },
        batch_size=size,
        batch_format="pyarrow",
        num_cpus=layout.cpus,
        num_gpus=layout.gpus,
        compute=ActorPoolStrategy(size=workers),  # what dies is started again, without end
    )
    rows_found = iter(predicted.iter_rows())
    while True:
        try:
            row = next(rows_found)
        except StopIteration:
            return
        except Exception as error:  # Ray has several for what a worker raises
            told = ray.get(attempts.verdict.remote())
            if told is not None:
                raise LostError(told) from error
            raise
        results = json.loads(row["results"])
        yield Predicted(row["sample_id"], results, row["error"], row["seconds"], row["device"])
