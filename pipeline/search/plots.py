"""Pictures of a search: which settings go with a high AP, which matter, and what AP costs."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pipeline.search.results import describe, short_names, varied, word
from pipeline.search.trials import WORST, Trial

FEW = 4  # values that an axis names each
FEWEST = 4  # trials from which importance says anything
_BAD = "#c0392b"


class Axis(NamedTuple):
    """One setting as heights 0..1."""

    name: str
    heights: tuple[float | None, ...]  # a trial; None: the key did not count there
    ticks: tuple[tuple[float, str], ...]


def axis(name: str, values: Sequence[Any]) -> Axis:
    """Numbers on a scale, logarithmic over more than a decade; anything else side by side. `values` has "" for none."""
    given = [value for value in values if value != ""]
    if given and all(isinstance(v, int | float) and not isinstance(v, bool) for v in given):
        low, high = float(min(given)), float(max(given))
        log = low > 0 and high / low >= 10
        place = math.log if log else float
        span = place(high) - place(low) or 1.0
        heights = tuple(None if v == "" else (place(float(v)) - place(low)) / span for v in values)
        marks = sorted({float(value) for value in given})
        if len(marks) > FEW:
            marks = [low, math.sqrt(low * high) if log else (low + high) / 2, high]
        return Axis(name, heights, tuple(((place(mark) - place(low)) / span, f"{mark:.3g}") for mark in marks))
    words = list(dict.fromkeys(word(value) for value in given))
    places = {text: index / max(len(words) - 1, 1) for index, text in enumerate(words)}
    heights = tuple(None if value == "" else places[word(value)] for value in values)
    return Axis(name, heights, tuple((height, text) for text, height in places.items()))


def axes_of(trials: Sequence[Trial]) -> list[Axis]:
    """One for each setting that varies."""
    keys = varied(trials)
    names = short_names(keys)
    return [axis(names[key], [trial.candidate.settings.get(key, "") for trial in trials]) for key in keys]


def parallel_coordinates(trials: Sequence[Trial], metric: str, path: Path) -> None:
    """A line a trial through its settings to its AP; it has no point on a key that did not count.

    Trials with AP are coloured by it, the stopped ones thin; those that diverged are red.
    """
    shown = [trial for trial in trials if not math.isnan(trial.score)]
    columns = axes_of(shown) if shown else []
    figure, axes = new_figure(max(6.0, 1.5 * (len(columns) + 1)), 4.6)
    aps = [100 * trial.score for trial in shown]
    low, high = (min(aps), max(aps)) if aps else (0.0, 1.0)
    span = high - low or 1.0
    columns.append(
        Axis(f"{metric}, %", tuple((ap - low) / span for ap in aps), ((0.0, f"{low:.1f}"), (1.0, f"{low + span:.1f}")))
    )
    colours = _colours()
    for index in np.argsort(aps):  # the best on top
        trial = shown[index]
        points = [(place, c.heights[index]) for place, c in enumerate(columns) if c.heights[index] is not None]
        bad = _diverged(trial)
        stopped = trial.outcome is not None and trial.outcome.why == "stopped early"
        colour = _BAD if bad else colours((aps[index] - low) / span)
        style = {"linestyle": ":" if bad else "-", "linewidth": 1.0 if stopped else 2.0}
        axes.plot(*zip(*points, strict=True), color=colour, marker="o", markersize=4, **style)
    for place, column in enumerate(columns):
        axes.axvline(place, color="#999999", linewidth=0.8, zorder=0)
        for height, label in column.ticks:
            axes.annotate(label, (place, height), (5, 2), textcoords="offset points", fontsize=7, color="#333333")
    axes.set_xticks(range(len(columns)), [column.name for column in columns], rotation=20, ha="right", fontsize=8)
    axes.set(yticks=[], ylim=(-0.08, 1.1), xlim=(-0.2, len(columns) - 0.4), title=f"{len(shown)} trials")
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    figure.savefig(path)


def comparable(trials: Sequence[Trial]) -> tuple[int, list[tuple[Trial, float]]]:
    """The steps after which most trials were evaluated (the most of such steps), and those trials with their AP there.

    What a scheduler stopped early has had less training than the others: AP at its end says how long it trained. What
    diverged counts with its score at any steps. 0 and none: no trial was evaluated.
    """
    counts = Counter(report.steps for trial in trials if _counts(trial) for report in trial.progress.reports)
    if not counts:
        return 0, []
    step = max(counts, key=lambda steps: (counts[steps], steps))
    found = []
    for trial in trials:
        at = {report.steps: report.score for report in trial.progress.reports}
        if _diverged(trial):
            found.append((trial, WORST))
        elif _counts(trial) and step in at:
            found.append((trial, at[step]))
    return step, found


def importances(trials: Sequence[Trial]) -> dict[str, float]:
    """Share of the variance of AP, after equal steps, that each setting explains: fANOVA (Hutter et al. 2014).

    The largest first. Of keys that all trials have; where a `when` leaves a key out of some, nothing can be said of it.
    Empty for fewer than FEWEST trials, or where AP is the same in all.
    """
    scored = comparable(trials)[1]
    keys = [k for k in varied([t for t, _ in scored]) if all(k in t.candidate.settings for t, _ in scored)]
    if len(scored) < FEWEST or not keys or len({score for _, score in scored}) == 1:
        return {}
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    coded, distributions = {}, {}
    for key in keys:
        coded[key], distributions[key] = _coded([trial.candidate.settings[key] for trial, _ in scored])
    study = optuna.create_study(direction="maximize")
    for index, (_, score) in enumerate(scored):
        settings = {key: coded[key][index] for key in keys}
        study.add_trial(optuna.trial.create_trial(params=settings, distributions=distributions, value=score))
    evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    return {key: float(share) for key, share in found.items()}


def importance_plot(trials: Sequence[Trial], path: Path) -> bool:
    """Bars of `importances`. False: there are none, and no file."""
    found = importances(trials)
    if not found:
        return False
    names = short_names(list(found))
    figure, axes = new_figure(6.4, 1.2 + 0.32 * len(found))
    keys = list(found)[::-1]
    axes.barh([names[key] for key in keys], [found[key] for key in keys], color="#3b528b")
    for place, key in enumerate(keys):
        axes.annotate(f"{found[key]:.2f}", (found[key], place), (3, -3), textcoords="offset points", fontsize=8)
    step, scored = comparable(trials)
    axes.set(xlabel="share of the variance of AP (fANOVA)", xlim=(0, max(found.values()) * 1.15))
    axes.set_title(f"{len(scored)} trials after {step} steps", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path)
    return True


def cost_plot(trials: Sequence[Trial], metric: str, path: Path) -> None:
    """AP over the seconds of each trial, an evaluation a point; what no other trial reached in less time is named."""
    figure, axes = new_figure(7.2, 4.6)
    colours = _colours()
    ran = [trial for trial in trials if trial.progress.reports]
    best = {trial.candidate.number for trial in pareto(ran)}
    keys = varied(trials)
    for index, trial in enumerate(ran):
        seconds = [report.seconds for report in trial.progress.reports]
        aps = [100 * report.score for report in trial.progress.reports]
        named = trial.candidate.number in best
        bad = trial.outcome is not None and trial.outcome.why in ("diverged", "failed")
        colour = _BAD if bad else colours(index / max(len(ran) - 1, 1))
        label = f"{trial.candidate.number}: {describe(trial, keys)}"[:90] if named else None
        axes.plot(seconds, aps, color=colour, linewidth=2.2 if named else 0.9, marker="o", markersize=3.5, label=label)
        axes.annotate(
            str(trial.candidate.number), (seconds[-1], aps[-1]), (4, 2), textcoords="offset points", fontsize=8
        )
    axes.set(xlabel="seconds of the trial", ylabel=f"{metric}, %", title="AP against cost")
    axes.set_ylim(bottom=0)
    axes.grid(color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    if best:
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), frameon=False, fontsize=7)
    figure.savefig(path)


def pareto(trials: Sequence[Trial]) -> list[Trial]:
    """Those than which no other is both cheaper (seconds) and better (AP), the cheapest first."""
    scored = [trial for trial in trials if not math.isnan(trial.score)]
    front: list[Trial] = []
    for trial in sorted(scored, key=lambda t: (t.progress.seconds, -t.score)):
        if not front or trial.score > front[-1].score:
            front.append(trial)
    return front


def _counts(trial: Trial) -> bool:
    return not math.isnan(trial.score) and not _diverged(trial)


def _diverged(trial: Trial) -> bool:
    return trial.outcome is not None and trial.outcome.why == "diverged"


def _coded(values: Sequence[Any]) -> tuple[list[Any], Any]:
    """As Optuna takes them."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution

    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        numbers = [float(value) for value in values]
        low, high = min(numbers), max(numbers)
        return numbers, FloatDistribution(low, high, log=low > 0 and high / low >= 10)
    words = [word(value) for value in values]
    return words, CategoricalDistribution(tuple(dict.fromkeys(words)))


def new_figure(width: float, height: float, columns: int = 1) -> tuple[Any, Any]:
    """A figure of inches, and its axes: one, or an array of them."""
    # Imported here: importing matplotlib makes its config directory. No pyplot: it keeps global state.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(1, columns)


def _colours() -> Any:
    import matplotlib

    return matplotlib.colormaps["viridis"]
