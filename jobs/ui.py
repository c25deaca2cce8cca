"""`maskrcnn ui`: the MLflow page of the runs."""

from pathlib import Path

from jobs.console import out
from pipeline.tracking.mlflow_store import open_ui


def ui(runs: Path, *, host: str, port: int) -> None:
    """Serve until stopped."""
    out.print(f"MLflow on http://{host}:{port} (stop with ctrl-c)", highlight=False)
    open_ui(runs.absolute(), host, port)
