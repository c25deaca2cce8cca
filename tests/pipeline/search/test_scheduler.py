"""What stops trials, in a search that was never stopped and in one that goes on."""

from types import SimpleNamespace
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config import RunConfig
from pipeline.configure import load_config
from pipeline.search.scheduler import scheduler
from pipeline.search.settings import TuneConfig
from pipeline.search.trials import Outcome, Progress, Report, Trial, Why, candidate

EVERY = 50
CONFIG = load_config(None)


def trial(number: int, scores: list[float], why: Why | None, first: int = EVERY, config: RunConfig = CONFIG) -> Trial:
    """Evaluated every 50 steps from `first` on."""
    reports = tuple(Report(first + EVERY * i, 1.0, score) for i, score in enumerate(scores))
    return Trial(candidate(number, {}, config), Progress(reports, 1.0, 1), None if why is None else Outcome(why))


class Told:
    """A scheduler as Tune talks to it: with ids of its own, new ones in each life."""

    def __init__(self, earlier: list[Trial], tune: TuneConfig | None = None, steps: int = 300) -> None:
        self.scheduler: Any = scheduler(tune or TuneConfig(), steps, EVERY, earlier)
        self._trials: dict[int, Any] = {}

    def __call__(self, number: int, steps: int, score: float) -> str:
        if number not in self._trials:
            self._trials[number] = SimpleNamespace(trial_id=f"life2_{number}", config={"number": number})
            self.scheduler.on_trial_add(None, self._trials[number])
        return str(self.scheduler.on_trial_result(None, self._trials[number], {"steps": steps, "score": score}))


def test_a_scheduler_that_was_started_anew_knows_what_earlier_trials_reached() -> None:
    half = TuneConfig(reduction_factor=2.0)
    tell = Told([trial(0, [0.5, 0.6, 0.7], "finished"), trial(1, [0.3], "stopped early"), trial(2, [0.4], None)], half)
    assert tell(3, 50, 0.2) == "STOP"  # half of 0.5, 0.4, 0.3 is 0.4
    assert tell(4, 50, 0.45) == "CONTINUE"
    assert Told([], half)(3, 50, 0.2) == "CONTINUE"
    assert type(scheduler(TuneConfig(scheduler="fifo"), 6, 2, [])).__name__ == "FIFOScheduler"
    assert len(Told([], TuneConfig(scheduler="hyperband"), 6000).scheduler._brackets) == 3


def test_a_trial_that_goes_on_is_not_judged_again_by_what_it_had_passed() -> None:
    """It was the first at step 50; others were better there afterwards, and it is the best by far now."""
    best = trial(0, [0.10, 0.15, 0.25, 0.35], None)
    others = [trial(1, [0.20, 0.21, 0.22, 0.23, 0.24, 0.25], "finished"), trial(2, [0.30], "stopped early")]
    tell = Told([best, *others])
    for report in best.progress.reports:
        assert tell(0, report.steps, report.score) == "CONTINUE"
    assert tell(0, 250, 0.01) == "CONTINUE"  # no rung: they are at 50 and 150
    assert tell(3, 50, 0.15) == "STOP" and tell(3, 150, 0.9) == "CONTINUE"


def test_what_comes_after_a_kill_is_judged() -> None:
    tell = Told([trial(0, [0.1], None), trial(1, [0.3, 0.3, 0.3], "finished")])
    assert tell(0, 50, 0.1) == "CONTINUE"
    assert tell(0, 100, 0.1) == "CONTINUE"
    assert tell(0, 150, 0.1) == "STOP"


def test_a_rung_compares_ap_after_its_own_steps() -> None:
    """An evaluation that was left out is not replaced by a later one, which is better for its steps alone."""
    tell = Told([])
    assert tell(0, 50, 0.20) == "CONTINUE"
    assert tell(1, 100, 0.25) == "CONTINUE"  # it was not evaluated at 50
    assert tell(2, 50, 0.22) == "CONTINUE"
    assert tell(3, 100, 0.01) == "CONTINUE"
    assert tell(0, 150, 0.30) == "CONTINUE" and tell(1, 150, 0.1) == "STOP"


def test_a_trial_that_fails_and_is_tried_again_tells_it_all_again() -> None:
    tell = Told([])
    assert tell(0, 50, 0.1) == "CONTINUE" and tell(1, 50, 0.3) == "CONTINUE"
    assert tell(0, 50, 0.1) == "CONTINUE"
    tell.scheduler.on_trial_complete(None, tell._trials[1], {"steps": 50, "score": 0.3, "why": "failed"})
    assert tell(2, 50, 0.2) == "STOP"  # what it told stays


SCORES = st.lists(st.floats(0, 1), min_size=6, max_size=6)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(SCORES, min_size=2, max_size=6),
    st.permutations(range(36)),
    st.integers(0, 36),
    st.sampled_from([2.0, 3.0]),
)
def test_what_was_let_through_is_never_stopped_by_a_resume(
    scores: list[list[float]], order: list[int], killed: int, factor: float
) -> None:
    """Trials report in any order; the search is killed and goes on: each hears CONTINUE for all it had told."""
    tune = TuneConfig(reduction_factor=factor)
    tell, stopped, told = Told([], tune), set(), dict.fromkeys(range(len(scores)), 0)
    for turn in order[:killed]:
        number = turn % len(scores)
        if number in stopped or told[number] == 6:
            continue
        told[number] += 1
        if tell(number, EVERY * told[number], scores[number][told[number] - 1]) == "STOP":
            stopped.add(number)
    earlier = [
        trial(number, mine[: told[number]], "stopped early" if number in stopped else None)
        for number, mine in enumerate(scores)
    ]
    again = Told(earlier, tune)
    for number, mine in enumerate(scores):
        if number not in stopped:
            assert {again(number, EVERY * (i + 1), mine[i]) for i in range(told[number])} <= {"CONTINUE"}
