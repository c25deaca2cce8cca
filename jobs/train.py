"""`maskrcnn train CONFIG [key=value ...]`: train, evaluate, log, and say where everything is."""

from collections.abc import Sequence
from pathlib import Path

from jobs.console import Meter, err, out, progress
from jobs.evaluate import evaluate_and_show
from jobs.transfer_table import show_transfer
from pipeline.config import RunConfig
from pipeline.configure import load_config, to_dict, to_yaml
from pipeline.data.manifest import load_manifest
from pipeline.data.mixture import locations
from pipeline.evaluation.evaluate import choose_protocol
from pipeline.evaluation.tables import percent
from pipeline.ray_cluster import start_ray
from pipeline.tracking.mlflow_run import Tracker
from pipeline.tracking.mlflow_store import store_uri
from pipeline.training.cluster import Layout
from pipeline.training.evaluations import best_checkpoint
from pipeline.training.freezing import describe, outputs_of
from pipeline.training.optim import peak_lr
from pipeline.training.placement import plan_evaluation, plan_workers
from pipeline.training.run import Event, Run, fit, prepare, tags


def train(config_path: Path, overrides: Sequence[str]) -> None:
    """Run it."""
    train_config(load_config(config_path, overrides), config_path.stem)


def train_config(wanted: RunConfig, default_name: str) -> None:
    """Run a configuration that is read already; `default_name` and the time name it where train.name does not."""
    run = prepare(wanted, default_name)
    config = run.config
    choose_protocol(config, config.data.val or "")  # what cannot be scored is refused now, not after the training
    uri = store_uri(config.track.uri, run.directory.parent)
    tracker = Tracker.start(uri, config.track.experiment, run.name, run.directory)
    status = "FAILED"
    try:
        with err.status("starting Ray"):
            start_ray(config.cluster)
        during = config.evaluate.during_training
        evaluators = None if during is None else plan_evaluation(during)
        layout = plan_workers(config.cluster, config.train.batch_images, config.data.decode, evaluators)
        _introduce(run, layout, evaluators)
        changed = tracker.log_config(to_dict(config), to_yaml(config))
        for key, (before, now) in changed.items():
            out.print(f"  {key}: {before} before, {now} from here on", highlight=False)
        tracker.log_tags(tags(run, layout))
        with progress("training", config.train.steps, start=run.done) as meter:
            last = fit(run, layout, tracker.run_id, _Watcher(meter, tracker), evaluators)
        checkpoint = (None if during is None else best_checkpoint(run.directory, during)) or last
        if checkpoint != last:
            out.print(f"best        {checkpoint.name}; the last is {last.name}", highlight=False)
        evaluate_and_show(checkpoint, config.data.val or "", config, layout, run.directory / "evaluation", tracker)
        tracker.log_artifact(checkpoint, "checkpoint")
        status = "FINISHED"
    except KeyboardInterrupt:
        status = "KILLED"
        raise
    finally:
        tracker.finish(status)
    out.print(f"checkpoint  {checkpoint}", soft_wrap=True, highlight=False)
    out.print(f"MLflow      {tracker.where()}", soft_wrap=True, highlight=False)
    out.print(
        f"next        maskrcnn predict {checkpoint} IMAGE_OR_DIR --out predictions", soft_wrap=True, highlight=False
    )


def _introduce(run: Run, layout: Layout, evaluators: Layout | None = None) -> None:
    config, counts, during = run.config, run.manifest.counts, run.config.evaluate.during_training
    resumed = f", continues at step {run.done}" if run.done else ""
    lines = (
        f"run         {run.name} in {run.directory}{resumed}",
        f"data        {counts['images']} images, {counts['instances']} instances, "
        f"{len(run.manifest.class_names)} classes ({counts['empty']} images without annotations, "
        f"{counts['crowd']} crowd regions, {counts['quarantined_images']} images and "
        f"{counts['quarantined_annotations']} annotations in quarantine)",
        f"model       Mask R-CNN, {config.model.trunk.body}-{config.model.trunk.neck.upper()}",
        f"workers     {layout}, {config.train.batch_images // layout.workers} images each, "
        f"{config.train.precision}, peak lr {peak_lr(config.optim, config.train.batch_images):g}",
    )
    frozen = describe(config.optim, outputs_of(config.model))
    lines += tuple(f"{'frozen' if number == 0 else '':<12}{line}" for number, line in enumerate(frozen))
    if during is not None:
        lines += (f"evaluation  every {during.every_steps} steps, beside training: {evaluators}",)
    for line in lines:
        out.print(line, soft_wrap=True, highlight=False)
    if run.transfer is not None:
        show_transfer(run.transfer)
    if config.model.mask is not None:
        for place in locations(config.data.train or ()):
            rectangles = load_manifest(place).source.get("masks")
            if rectangles is not None:
                err.print(
                    f"warning: {place}: {rectangles}; the mask head will learn rectangles from them: "
                    "set model.mask=null to train boxes alone",
                    soft_wrap=True,
                    highlight=False,
                )
    trunk = config.model.trunk
    if config.init.weights is None and not run.done and (trunk.norm == "frozen_bn" or trunk.freeze_stages):
        err.print(
            "warning: the trunk starts from random weights, but model.trunk.norm=frozen_bn or freeze_stages keeps "
            "parts of it as they are; give init.weights, or set model.trunk.norm=gn and model.trunk.freeze_stages=0",
            soft_wrap=True,
            highlight=False,
        )


class _Watcher:
    """Hands what workers send to MLflow and to the progress line."""

    def __init__(self, meter: Meter, tracker: Tracker) -> None:
        self.meter, self.tracker = meter, tracker
        self.started = False

    def __call__(self, event: Event) -> None:
        match event["kind"]:
            case "metrics":
                values, step = event["metrics"], event["step"]
                self.tracker.log_metrics(step, values)
                note = f"loss {values['train/loss']:.3f}, {values['train/images_per_second']:.1f} images/s"
                self.meter.reach(step, note)
            case "checkpoint":  # is being written; a run that is killed goes on there: what came before must be logged
                self.tracker.try_to_flush()
            case "init":
                out.print(f"weights     {event['report']}", soft_wrap=True, highlight=False)
                for line in event["mismatched"][:5]:
                    out.print(f"            not loaded: {line}", soft_wrap=True, highlight=False)
            case "start":
                if self.started:
                    err.print(f"training goes on from step {event['step']} with {event['world']} workers")
                self.started = True
                self.meter.reach(event["step"])
            case "evaluated":
                step, aps = event["step"], event["aps"]
                self.tracker.log_ap(step, aps)
                self.tracker.try_to_flush()
                self.tracker.try_to_log_artifact(event["directory"], "evaluations")
                heads = ((task, *next(iter(numbers.stats.items()))) for task, numbers in aps.items())  # AP, or AR_100
                shown = ", ".join(f"{task} {name} {percent(value)}" for task, name, value in heads)
                out.print(f"step {step} evaluated: {shown}", highlight=False)
            case "evaluation_failure":
                err.print(
                    f"evaluating {event['path']} failed, training goes on:\n{event['error']}",
                    soft_wrap=True,
                    highlight=False,
                    markup=False,
                )
            case "not_evaluated":
                err.print(
                    f"step {event['step']} is not evaluated: that of step {event['evaluating']} is not done; raise "
                    "evaluate.during_training.every_steps, or its workers",
                    soft_wrap=True,
                    highlight=False,
                )
            case "stopped_early":
                out.print(
                    f"stopped before step {event['step']}: the last {event['patience']} evaluations were no better "
                    "than one before (evaluate.during_training.patience)",
                    soft_wrap=True,
                    highlight=False,
                )
            case "failure":
                err.print(
                    f"worker {event['rank']} failed:\n{event['error']}", soft_wrap=True, highlight=False, markup=False
                )
            case "bad_step":
                err.print(
                    f"step {event['step']}: the gradient was not finite, the step was skipped; losses of worker "
                    f"{event['rank']}: {event['losses']}, samples {event['sample_ids']}",
                    soft_wrap=True,
                    highlight=False,
                )
            case "bad_sample":
                err.print(
                    f"sample {event['sample_id']} could not be decoded and did not train: {event['reason']}",
                    soft_wrap=True,
                    highlight=False,
                )
