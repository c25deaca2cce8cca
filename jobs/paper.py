"""`maskrcnn paper TABLE [--budget tiny|short|full]`: rows of a table of the paper, trained and compared."""

import json
from collections.abc import Sequence
from pathlib import Path

from jobs.console import out
from jobs.shard import shard_shapes, shard_streets
from jobs.tune import continue_plan, plan_on_cluster, run_plan
from pipeline.errors import UserError
from pipeline.search.candidates import Listed
from pipeline.search.paper import SEEDS, TINY_EVALUATOR_CPUS, TINY_PX, Budget, budget_config, runnable
from pipeline.search.paper_table import cells, shown, write_files
from pipeline.search.plan import Plan, alone, begin, new_plan, read_plan, trial_config
from pipeline.search.settings import read_tune, split_overrides
from pipeline.search.trials import Trial, candidate, trials_directory
from pipeline.tracking.mlflow_run import Tracker
from pipeline.variants import Table, load_table

TABLES = Path(__file__).parents[1] / "configs/paper"
_IMAGES = {"train": 400, "val": 100}  # of generated data


def paper(
    name: str, budget: Budget, data: Path | None, runs: Path, seeds: int | None, overrides: Sequence[str]
) -> None:
    """Run it."""
    table = _load(name)
    rows, left = runnable(table)
    seeds = seeds or SEEDS[budget]
    if data is None:
        if budget != "tiny":
            raise UserError(
                f"--budget {budget} trains on {table.data}; give --data DIR with its shards in train/ and val/"
            )
        data = _generate(table, runs)
    ours, rest = split_overrides(overrides)
    tune = read_tune({"search": "grid", "scheduler": "fifo", "trials": len(rows) * seeds} | ours)
    where = {"data.train": data / "train", "data.val": data / "val", "cluster.runs_dir": runs}
    places = [f"{key}={json.dumps(str(path))}" for key, path in where.items()]  # 2024 and "a #1" are paths too
    if budget == "tiny":
        places += ["cluster.workers=1", f"cluster.cpus_per_worker={1 - TINY_EVALUATOR_CPUS}"]  # a row a core
    configs = [budget_config(table, row, budget, seed, [*places, *rest]) for seed in range(seeds) for row in rows]
    if budget != "tiny" and configs[0].init.weights is None and table.start != "random":
        raise UserError(f"the table's networks start from {table.start} weights; give them: init.weights=FILE")
    about = {"verb": "paper", "table": name, "budget": budget}
    tried = {row.name: config for row, config in zip(rows, configs, strict=False)}
    plan = new_plan(tune, configs[0], f"paper-{name}-{budget}", {}, about, tried)
    chosen = [
        candidate(number, {"row": rows[number % len(rows)].name, "seed": number // len(rows)}, trial)
        for number, trial in enumerate(trial_config(one, plan.directory, plan.metric) for one in configs)
    ]
    resources = plan_on_cluster(plan, [config.train.batch_images for config in configs], len(chosen))
    begin(plan, chosen)
    for row, reason in left.items():
        out.print(f"not run     {row}: {reason}", soft_wrap=True, highlight=False)
    with alone(plan.directory):
        trials = run_plan(plan, Listed(chosen), resources, len(chosen))
        _show(plan, table, trials)


def resume_paper(runs: Path, name: str, retry_failed: bool = False) -> None:
    """Go on with the table of a search that was stopped or killed, and with `retry_failed` run what failed again."""
    plan = read_plan(runs, name)
    if plan.about["verb"] != "paper":
        raise UserError(f"{name} is no table of the paper; go on with `{plan.go_on}`")
    with alone(plan.directory):
        _show(plan, _load(plan.about["table"]), continue_plan(plan, retry_failed))


def _load(name: str) -> Table:
    path = TABLES / f"table_{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(file.stem.removeprefix("table_") for file in TABLES.glob("table_*.yaml")))
        raise UserError(f"there is no table {name!r} of the paper; there are {known or f'none in {TABLES}'}")
    return load_table(path)


def _generate(table: Table, runs: Path) -> Path:
    """Scenes in place of the table's data, kept for the next time."""
    if table.data == "cityscapes":
        place = runs / "generated/streets"
        shard_streets(place, train_images=_IMAGES["train"], val_images=_IMAGES["val"], seed=0, height_px=2 * TINY_PX)
    else:
        keypoints = table.data == "coco_persons"
        place = runs / ("generated/shapes-keypoints" if keypoints else "generated/shapes")
        shard_shapes(place, train_images=_IMAGES["train"], val_images=_IMAGES["val"], seed=0, keypoints=keypoints)
    return place


def _show(plan: Plan, table: Table, trials: Sequence[Trial]) -> None:
    """Rows beside the paper's, printed, as files and in MLflow."""
    found = cells(table, trials, trials_directory(plan.directory))
    seeds = 1 + max(trial.candidate.settings["seed"] for trial in trials)
    of = "generated scenes" if plan.about["budget"] == "tiny" else str(plan.original.data.val)
    many = f"{seeds} seeds" if seeds > 1 else "one seed"
    title = f"table {table.table}, {table.title}: {plan.about['budget']} budget on {of}, {many}"
    out.print(shown(found, title, out.width))
    config = plan.config
    tracker = Tracker.start(config.track.uri or "", config.track.experiment, plan.name, plan.directory)
    for path in write_files(found, plan.directory):
        tracker.log_artifact(path)
    tracker.log_metrics(0, {f"{cell.metric}/{cell.row}": cell.mean for cell in found if cell.values})
    tracker.finish()
    out.print(f"table       {plan.directory / 'table.csv'}, table.json, table.png", soft_wrap=True, highlight=False)
