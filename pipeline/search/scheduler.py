"""What stops trials early: successive halving (ASHA, arXiv:1810.05934; Hyperband's brackets) by Ray Tune's rules.

A report is judged once, at the rung of its own steps, and against what was known when it was first told. Trials have
the search's names here, not Tune's, so that a search which goes on is as if it had never stopped.
"""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, TrialScheduler

from pipeline.search.settings import TuneConfig
from pipeline.search.trial import SCORE, STEPS
from pipeline.search.trials import Trial, trial_name

HYPERBAND_BRACKETS = 3


def scheduler(settings: TuneConfig, steps: int, every: int, earlier: Sequence[Trial]) -> TrialScheduler:
    """What stops trials, as if it had seen all earlier ones.

    Args:
        settings: which, and how strict.
        steps: of a trial that is not stopped.
        every: so many steps a trial is evaluated.
        earlier: trials of the search.
    """
    if settings.scheduler == "fifo":
        return FIFOScheduler()
    return Halving(settings, steps, every, earlier)


class Halving(AsyncHyperBandScheduler):  # type: ignore[misc]  # Ray has no types here
    """Ray Tune's rungs and cutoffs."""

    def __init__(self, settings: TuneConfig, steps: int, every: int, earlier: Sequence[Trial]) -> None:
        super().__init__(
            time_attr=STEPS,
            metric=SCORE,
            mode="max",
            max_t=steps + 1,  # at the last step a trial ends by itself
            grace_period=min(settings.grace_steps or every, steps),
            reduction_factor=settings.reduction_factor,
            brackets=HYPERBAND_BRACKETS if settings.scheduler == "hyperband" else 1,
        )
        self._every = every
        self._heard: dict[str, int] = {}  # name -> steps of its last report
        # As they came, as far as that is known: what was first told of few steps was mostly told first.
        reports = sorted(
            (report.steps, trial.candidate.number, report.score)
            for trial in earlier
            for report in trial.progress.reports
        )
        for trial in earlier:
            self.on_trial_add(None, _tune_trial(trial.candidate.number))
        for after, number, score in reports:
            self.on_trial_result(None, _tune_trial(number), {STEPS: after, SCORE: score})

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Into a bracket; one that goes on stays in its own."""
        known = _named(trial)
        if known.trial_id not in self._trial_info:
            super().on_trial_add(tune_controller, known)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Whether it goes on. Not again judged is what an earlier life or try told, which a trial tells once more."""
        known = _named(trial)
        if result[STEPS] <= self._heard.get(known.trial_id, 0):
            return str(TrialScheduler.CONTINUE)
        self._heard[known.trial_id] = result[STEPS]
        # The AP of later steps is no measure for a rung whose own evaluation was left out, nor may it fail there.
        rungs = [rung for rung, _ in self._trial_info[known.trial_id]._rungs if rung <= result[STEPS]]
        if not rungs or result[STEPS] - max(rungs) >= self._every:
            return str(TrialScheduler.CONTINUE)
        return str(super().on_trial_result(tune_controller, known, result))

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Its last result was heard before."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """What it told stays."""


def _named(trial: Any) -> Any:
    return SimpleNamespace(trial_id=trial_name(trial.config["number"]))


def _tune_trial(number: int) -> Any:
    return SimpleNamespace(config={"number": number})
