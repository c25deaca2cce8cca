"""`maskrcnn ledger RUN`: which attempt made each step, and proof that each epoch held each sample as planned."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from jobs.console import out, progress
from pipeline.data.ledger import LedgerError, read_ledger
from pipeline.data.lineage import Lineage, check_lineage
from pipeline.data.mixture import join_manifests
from pipeline.data.plan import plan_of
from pipeline.training.checkpoint import latest_checkpoint, read_meta


def ledger(run_dir: Path, as_json: bool) -> bool:
    """Compare a run's ledger with its plan and show both; whether they agree."""
    newest = latest_checkpoint(run_dir)
    if newest is None:
        raise LedgerError(
            f"{run_dir} has no checkpoint, whose configuration says the plan; give a run such as runs/NAME"
        )
    config, meta = read_meta(newest)
    assert config.data.train is not None
    if join_manifests(config.data.train).fingerprint != meta.dataset_fingerprint:
        raise LedgerError(f"the shards of {config.data.train} are not those that the run was trained on; restore them")
    attempts = read_ledger(run_dir)
    if not attempts:
        raise LedgerError(f"{run_dir} has no ledger: it was trained by an earlier version")
    plan = plan_of(config)
    end = max(attempt.end for attempt in attempts)
    try:
        with progress("comparing with the plan", end) as meter:
            lineage = check_lineage(attempts, plan, meter.reach)
        if lineage.done < meta.step:
            raise LedgerError(f"{newest} has {meta.step} steps, the ledger ends after {lineage.done}")
    except LedgerError as error:
        if as_json:
            out.print_json(json.dumps({"agrees": False, "difference": str(error)}))
        else:
            out.print(f"differs     {error}", soft_wrap=True, highlight=False, markup=False)
        return False
    if as_json:
        out.print_json(json.dumps(_plain(lineage)))
    else:
        _show(lineage)
    return True


def _plain(lineage: Lineage) -> dict[str, Any]:
    attempts = [
        {
            "attempt": part.attempt.number,
            "start": part.first,
            "end": part.attempt.end,
            "workers": part.attempt.world,
            "superseded": part.superseded,
        }
        for part in lineage.attempts
    ]
    epochs = [asdict(epoch) | {"complete": epoch.complete} for epoch in lineage.epochs]
    return {"agrees": True, "steps": lineage.done, "attempts": attempts, "epochs": epochs}


def _show(lineage: Lineage) -> None:
    plain = _plain(lineage)
    for title, key in (("attempts", "attempts"), ("samples of the epochs", "epochs")):
        rows = plain[key]
        if not rows:
            continue
        table = Table(title=title, box=None, pad_edge=False, title_justify="left")
        for column in rows[0]:
            table.add_column(column, justify="right")
        for row in rows:
            table.add_row(*(("no", "yes")[value] if isinstance(value, bool) else str(value) for value in row.values()))
        out.print(table)
    out.print(f"agrees      all {lineage.done} steps are as planned, on every worker", highlight=False)
