"""`maskrcnn evaluate CHECKPOINT --data SHARDS`: AP of all that the model finds, and the pictures that explain it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from jobs.console import err, out, progress
from jobs.score import show_ap
from pipeline.config import ClusterConfig, RunConfig
from pipeline.configure import apply_overrides
from pipeline.data.shards import load_index
from pipeline.data.storage import Storage
from pipeline.evaluation.evaluate import Evaluation, check_classes, choose_protocol, evaluate
from pipeline.evaluation.predict import choose_rows
from pipeline.evaluation.tables import read_ap_json
from pipeline.ray_cluster import start_ray
from pipeline.tracking.mlflow_run import Tracker
from pipeline.training.checkpoint import read_meta
from pipeline.training.cluster import Layout
from pipeline.training.placement import plan_workers


def evaluate_checkpoint(
    checkpoint: Path, data: str, overrides: Sequence[str], out_dir: Path | None, report_dir: Path | None
) -> None:
    """Evaluate with the checkpoint's own configuration, changed by `overrides`."""
    config, meta = read_meta(checkpoint)
    config = replace(config, cluster=ClusterConfig())  # that of the training may be far away
    config = apply_overrides(config, overrides)
    shards = Storage.at(data)
    check_classes(meta, shards)
    choose_protocol(config, shards)
    with err.status("starting Ray"):
        start_ray(config.cluster)
    layout = plan_workers(config.cluster)
    directory = out_dir or checkpoint.parent / f"evaluation-{checkpoint.name}-{shards.name}"
    report = None if report_dir is None else report_dir.absolute()
    evaluate_and_show(checkpoint.absolute(), shards.uri, config, layout, directory.absolute(), report_dir=report)


def evaluate_and_show(
    checkpoint: Path,
    data: str,
    config: RunConfig,
    layout: Layout,
    directory: Path,
    tracker: Tracker | None = None,
    report_dir: Path | None = None,
) -> Evaluation:
    """Evaluate, print the tables and paths, and log them if there is a tracker."""
    total = choose_rows(load_index(data), config.evaluate.max_images).num_rows
    with progress("evaluating", total) as meter:
        evaluation = evaluate(checkpoint, data, config, layout, directory, meter.reach, report_dir)
    for sample_id, reason in evaluation.undecodable.items():
        err.print(f"sample {sample_id} could not be decoded: {reason}", highlight=False, soft_wrap=True)
    if tracker is not None:
        tracker.log_ap(read_meta(checkpoint)[1].step, read_ap_json(directory / "ap.json"))
        tracker.log_artifact(directory, None)
    show_ap(evaluation.aps, all_predicted=True)
    if evaluation.pictures:
        out.print(f"pictures    {evaluation.pictures[0]}", soft_wrap=True, highlight=False)
    if evaluation.report is not None:
        out.print(f"report      {evaluation.report}", soft_wrap=True, highlight=False)
    out.print(f"results     {directory}", soft_wrap=True, highlight=False)
    if evaluation.submission is not None:
        out.print(f"submission  {evaluation.submission}", soft_wrap=True, highlight=False)
    return evaluation
