"""What a search shows while it runs: a live table in a terminal, elsewhere a line for each thing that happens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock

from rich.live import Live
from rich.table import Table

from jobs.console import err
from pipeline.evaluation.tables import percent
from pipeline.search.results import describe, live_table, varied
from pipeline.search.trials import Trial, best, read_trials


@contextmanager
def search_display(search: Path, metric: str, total: int) -> Iterator[Callable[[Trial, str], None]]:
    """Show a search; gives what to call with each news of a trial. `total`: trials that there will be."""
    if err.is_terminal:
        lock = Lock()

        def table() -> Table:
            with lock:
                trials = read_trials(search)
            ended = sum(trial.outcome is not None for trial in trials)
            title = f"{search.name}: {ended}/{total} trials have ended"
            return live_table(trials, metric, title, err.size.height)

        with Live(get_renderable=table, console=err, refresh_per_second=1, transient=True):
            yield lambda _trial, _news: None
        return

    def line(trial: Trial, news: str) -> None:
        text = f"{trial.name} {news}"
        trials = read_trials(search)
        if news == "starts":
            text += f": {describe(trial, varied(trials))}"
        elif trial.outcome is not None:
            leader = best(trials)
            ended = sum(one.outcome is not None for one in trials)
            text += f"; {ended}/{total} trials have ended"
            if leader is not None:
                text += f", best {metric} {percent(leader.score)} ({leader.name})"
        err.print(text, soft_wrap=True, highlight=False, markup=False)

    yield line
