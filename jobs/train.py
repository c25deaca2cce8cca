"""`maskrcnn train CONFIG [key=value ...]`: train, evaluate, log, and say where everything is."""

from collections.abc import Sequence
from pathlib import Path

from jobs.console import Meter, err, out, progress
from jobs.evaluate import evaluate_and_show
from pipeline.configure import load_config, to_dict, to_yaml
from pipeline.data.manifest import load_manifest
from pipeline.data.mixture import locations
from pipeline.evaluation.evaluate import choose_protocol
from pipeline.ray_cluster import start_ray
from pipeline.tracking.mlflow_run import Tracker
from pipeline.tracking.mlflow_store import default_uri
from pipeline.training.cluster import Layout, plan_workers
from pipeline.training.optim import peak_lr
from pipeline.training.run import Event, Run, fit, prepare, tags


def train(config_path: Path, overrides: Sequence[str]) -> None:
    """Run it."""
    run = prepare(load_config(config_path, overrides), default_name=config_path.stem)
    config = run.config
    choose_protocol(config, config.data.val or "")  # what cannot be scored is refused now, not after the training
    tracker = Tracker.start(config.track.uri or default_uri(run.directory.parent), config.track.experiment, run.name)
    status = "FAILED"
    try:
        with err.status("starting Ray"):
            start_ray(config.cluster)
        layout = plan_workers(config.cluster, config.train.batch_images, config.data.decode)
        _introduce(run, layout)
        changed = tracker.log_config(to_dict(config), to_yaml(config))
        for key, (before, now) in changed.items():
            out.print(f"  {key}: {before} before, {now} from here on", highlight=False)
        tracker.log_tags(tags(run, layout))
        with progress("training", config.train.steps, start=run.done) as meter:
            checkpoint = fit(run, layout, tracker.run_id, _Watcher(meter, tracker))
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


def _introduce(run: Run, layout: Layout) -> None:
    config, counts = run.config, run.manifest.counts
    where = f"{layout.gpus:g} GPU" if layout.gpus else f"{layout.cpus:g} CPU"
    resumed = f", continues at step {run.done}" if run.done else ""
    lines = (
        f"run         {run.name} in {run.directory}{resumed}",
        f"data        {counts['images']} images, {counts['instances']} instances, "
        f"{len(run.manifest.class_names)} classes ({counts['empty']} images without annotations, "
        f"{counts['crowd']} crowd regions, {counts['quarantined_images']} images and "
        f"{counts['quarantined_annotations']} annotations in quarantine)",
        f"model       Mask R-CNN, {config.model.trunk.body}-{config.model.trunk.neck.upper()}",
        f"workers     {layout.workers} x {where}, {config.train.batch_images // layout.workers} images each, "
        f"{config.train.precision}, peak lr {peak_lr(config.optim, config.train.batch_images):g}",
    )
    for line in lines:
        out.print(line, soft_wrap=True, highlight=False)
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
