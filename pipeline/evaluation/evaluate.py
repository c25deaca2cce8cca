"""AP of a checkpoint on shards, by COCO's, LVIS's or Cityscapes' protocol in original pixels, with files to explain it.

Into one directory: results_box.json, results_mask.json and results_keypoint.json (COCO's results format), ap.json,
evaluation.json (of what), per_class.csv, pr_curves.png (not by Cityscapes' protocol), pictures/*.png,
report/report.html. Of an RPN alone: its recall, and results_proposal.json. Beside it, where evaluate.submission is set,
a directory for Cityscapes' server; it would be too many files for MLflow.
"""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from model.config import ModelConfig
from pipeline.config import RunConfig, Scorer
from pipeline.data.images import decode
from pipeline.data.proposals import require_proposals
from pipeline.data.quarantine import DataError
from pipeline.data.shard_rows import read_rows
from pipeline.data.shards import Manifest, annotations, load_index, load_manifest, to_records
from pipeline.data.storage import Location, Storage
from pipeline.errors import UserError
from pipeline.evaluation.bootstrap import check_bootstrap
from pipeline.evaluation.cityscapes_shards import score_shards
from pipeline.evaluation.cityscapes_submission import check_submission, write_submission
from pipeline.evaluation.cityscapes_truth import check_cityscapes
from pipeline.evaluation.coco_ap import CocoAp, prepare
from pipeline.evaluation.coco_truth import check_truth
from pipeline.evaluation.curves import pr_curves
from pipeline.evaluation.evaluated import Evaluated, first_images
from pipeline.evaluation.instances import from_record, from_results
from pipeline.evaluation.pictures import draw_comparison, gallery
from pipeline.evaluation.predict import choose_rows, predict_shards
from pipeline.evaluation.protocols import CITYSCAPES, PROTOCOLS, Task
from pipeline.evaluation.tables import Ap, with_classes, write_ap_json, write_per_class_csv
from pipeline.report.picture_source import of_shards
from pipeline.report.report import Subject, main_task, remove_report, write_report
from pipeline.report.scoring import Scoring
from pipeline.report.speed import Prediction, Speed
from pipeline.training.checkpoint import Meta, read_meta
from pipeline.training.cluster import Layout

PICTURE_SCORE = 0.5  # detections below it are not drawn
_PROTOCOLS: dict[Scorer, str] = {"coco": "COCO", "lvis": "LVIS", "cityscapes": "Cityscapes"}


@dataclass(frozen=True)
class Evaluation:
    """What came out, and where it lies."""

    aps: dict[str, Ap]  # of tasks_of the model; by Cityscapes' protocol "mask" alone
    images: int
    undecodable: dict[int, str]  # sample id -> why; they count as images without detections
    directory: Path
    pictures: tuple[Path, ...]
    submission: Path | None = None  # a directory
    report: Path | None = None  # the page


def check_classes(meta: Meta, shards: Location) -> None:
    """Raises DataError where shards do not have the classes a checkpoint was trained on."""
    names = load_manifest(shards).class_names
    if names != meta.class_names:
        other = [n for n in names if n not in meta.class_names] + [n for n in meta.class_names if n not in names]
        raise DataError(
            f"{shards} has {len(names)} classes, the checkpoint was trained on {len(meta.class_names)}; they differ in "
            f"{', '.join(other[:5]) or 'order'}; evaluate on shards made from the same categories"
        )


def choose_protocol(config: RunConfig, shards: Location) -> Scorer:
    """By which protocol a model is scored on shards. Raises UserError where it cannot be."""
    wanted, masks = config.evaluate.protocol, config.model.mask is not None
    scoring = load_manifest(shards).scoring
    if config.evaluate.submission:
        check_submission(shards)
    if not masks and (wanted == "cityscapes" or config.evaluate.submission):
        key = "protocol=cityscapes" if wanted == "cityscapes" else "submission=true"
        raise UserError(f"evaluate.{key} needs masks, and the model finds none (model.mask is null); leave it out")
    if wanted is not None:
        chosen = wanted
    elif scoring == "lvis" or (scoring == "cityscapes" and masks):
        chosen = scoring
    else:
        chosen = "coco"
    if chosen == "cityscapes":
        check_cityscapes(shards)
        if config.evaluate.categories is not None:
            raise UserError(
                "evaluate.categories does not go with Cityscapes' protocol, which always has its 8 classes; "
                "set evaluate.protocol=coco, or leave it out"
            )
    elif chosen == "lvis" and scoring != "lvis":
        raise DataError(
            f"{shards} holds data that are scored by {scoring!r}, not as LVIS's; set evaluate.protocol=coco"
        )
    if config.evaluate.bootstrap:
        check_bootstrap(CITYSCAPES if chosen == "cityscapes" else PROTOCOLS[chosen][tasks_of(config.model)[0]])
    return chosen


def tasks_of(model: ModelConfig) -> tuple[Task, ...]:
    """What a model's detections are scored for."""
    if model.box is None:
        return ("proposal",)
    heads: dict[Task, object] = {"mask": model.mask, "keypoint": model.keypoint}
    return ("box", *(task for task, head in heads.items() if head is not None))


def evaluate(
    checkpoint: Path,
    shards: Location,
    config: RunConfig,
    layout: Layout,
    directory: Path,
    on_progress: Callable[[int], None],
    report_dir: Path | None = None,
) -> Evaluation:
    """Predict, score, draw. Ray must run.

    Args:
        checkpoint: directory.
        shards: directory, with the checkpoint's classes.
        config: its `evaluate` and `data` settings; the model is the checkpoint's.
        layout: workers that predict.
        directory: where files go.
        on_progress: told how many images are done.
        report_dir: where the report goes, if evaluate.report asks for one; None: directory/report.

    Raises:
        DataError: the shards have other classes, or no keypoints for a model that finds them, or no
            proposals for one without an RPN.
        UserError: the protocol, or a submission, does not go with the model or the shards.
    """
    check_classes(read_meta(checkpoint)[1], shards)
    protocol = choose_protocol(config, shards)
    manifest = load_manifest(shards)
    tasks = tasks_of(config.model)
    if "keypoint" in tasks and manifest.keypoints is None:
        raise DataError(f"{shards} has no keypoints to score; shard from annotations with keypoints")
    if config.model.rpn is None:
        require_proposals([shards])
    chosen = choose_rows(load_index(shards), config.evaluate.max_images)
    expected = set(chosen["sample_id"].to_pylist())
    truth: dict[str, Any] = {}
    engine, categories, resamples = config.evaluate.engine, config.evaluate.categories, config.evaluate.bootstrap
    if protocol == "cityscapes":
        tasks = ("mask",)
    else:
        truth = first_images(annotations(shards), [*expected])
        for task in tasks:  # what cannot be scored is not predicted first
            check_truth(truth, task, protocol, categories)
    found: dict[int, list[dict[str, Any]]] = {}
    undecodable: dict[int, str] = {}
    start, worker_seconds, devices = time.perf_counter(), 0.0, set()
    for predicted in predict_shards(checkpoint, shards, config, layout):
        if predicted.sample_id in found:
            raise RuntimeError(f"sample {predicted.sample_id} was predicted twice: a bug in reading the shards")
        found[predicted.sample_id] = predicted.results
        if predicted.error is not None:
            undecodable[predicted.sample_id] = predicted.error
        on_progress(len(found))
        worker_seconds += predicted.seconds
        devices.add(predicted.device)
    prediction = Prediction(time.perf_counter() - start, worker_seconds, str(layout), tuple(sorted(devices)))
    if found.keys() != expected:
        raise RuntimeError(f"{len(expected - found.keys())} images were not predicted: a bug in reading the shards")
    results = [result for sample_id in sorted(found) for result in found[sample_id]]
    scoring = Scoring(main_task(dict.fromkeys(tasks)) if config.evaluate.report else None)
    if protocol == "cityscapes":
        start = time.perf_counter()
        scoring.aps["mask"] = score_shards(shards, found)
        scoring.score_seconds = time.perf_counter() - start
        if config.evaluate.report:  # its matching is COCO's, and the page says so
            truth = first_images(annotations(shards), [*expected])
            scoring.explain(prepare(truth, results, "mask"))
    else:
        for task in tasks:
            scoring.score(truth, results, task, engine, protocol, categories, resamples)
    aps = scoring.aps
    directory.mkdir(parents=True, exist_ok=True)
    for task in tasks:  # one file a task: with boxes in it, pycocotools takes the boxes' areas for its sizes
        keys = ("image_id", "category_id", PROTOCOLS["coco"][task].geometry, "score")
        lines = [{key: result[key] for key in keys} for result in results]
        (directory / f"results_{task}.json").write_text(json.dumps(lines))
    write_ap_json(aps, directory / "ap.json")
    data = Evaluated(Storage.at(shards).uri, manifest.fingerprint, protocol, categories, config.evaluate.max_images)
    data.write(directory)
    if by_class := with_classes(aps):
        write_per_class_csv(by_class, directory / "per_class.csv")
    if curves := {task: ap for task, ap in aps.items() if isinstance(ap, CocoAp) and ap.per_class}:
        pr_curves(curves, directory / "pr_curves.png")
    else:
        (directory / "pr_curves.png").unlink(missing_ok=True)  # of an earlier evaluation
    submission = directory.with_name(f"{directory.name}-submission") if config.evaluate.submission else None
    if submission is not None:
        write_submission(shards, chosen, found, submission)
    pictures = _draw(chosen, shards, found, manifest, config.evaluate.pictures, directory / "pictures", config.model)
    report, own = None, directory / "report"
    if scoring.prepared is None or report_dir not in (None, own):
        remove_report(own)  # of an earlier evaluation
    if scoring.prepared is not None:
        lost = f" ({len(undecodable)} not decoded)" if undecodable else ""
        facts = (checkpoint.name, f"{len(found):,} images{lost}", f"{len(results):,} detections")
        report = write_report(
            Subject(
                title=f"{checkpoint.absolute().parent.name} on {Storage.at(shards).name}",
                facts=", ".join((*facts, f"{_PROTOCOLS[protocol]}'s protocol", date.today().isoformat())),
                aps=aps,
                analyses=scoring.analyses,
                prepared=scoring.prepared,
                speed=Speed(len(found), scoring.score_seconds, scoring.analysis_seconds, prediction),
                source=of_shards(shards, chosen, truth, manifest.keypoints.skeleton if manifest.keypoints else ()),
                pictures=config.evaluate.report_pictures,
            ),
            report_dir or own,
        )
    return Evaluation(aps, len(found), undecodable, directory, pictures, submission, report)


def _draw(
    chosen: pa.Table,
    shards: Location,
    found: Mapping[int, Sequence[Mapping[str, Any]]],
    manifest: Manifest,
    count: int,
    directory: Path,
    model: ModelConfig,
) -> tuple[Path, ...]:
    """Prediction beside ground truth for `count` images spread over what was predicted, and all in one overview."""
    directory.mkdir(exist_ok=True)
    for old in directory.glob("*.png"):
        old.unlink()
    skeleton = () if manifest.keypoints is None else manifest.keypoints.skeleton
    names = manifest.class_names if model.box is not None else ("object",) * len(manifest.class_names)
    spread = np.unique(np.linspace(0, chosen.num_rows - 1, min(count, chosen.num_rows)).round().astype(int))
    paths = []
    for record in to_records(read_rows(shards, chosen.take(spread))) if count else []:
        path = directory / f"{record['sample_id']:012d}.png"
        predicted = from_results(found[record["sample_id"]], manifest.category_ids, PICTURE_SCORE)
        draw_comparison(decode(record["image"]), from_record(record), predicted, names, path, skeleton)
        paths.append(path)
    if paths:
        overview = directory / "overview.png"
        gallery(paths, overview)
        paths.insert(0, overview)
    return tuple(paths)
