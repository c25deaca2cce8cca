"""Where the next trial comes from: a list that is made before anything starts, or Optuna's TPE, which learns from AP.

Both begin with the trials of an earlier life of the search that have not ended.
"""

import json
import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.config import RunConfig
from pipeline.configure import ConfigError
from pipeline.search.dimension import LISTED, Dimension, SpaceError
from pipeline.search.settings import Search
from pipeline.search.space import Settings, Space, apply, require_buildable
from pipeline.search.trials import Candidate, Trial, candidate

_CHECKED = 64  # random settings that are tried before TPE starts, which makes its own
_TRIES = 100  # for settings that go together, of which TPE is told that they failed

_log = logging.getLogger(__name__)


class Source(Protocol):
    """Gives trials one at a time."""

    def next(self) -> Candidate | None:
        """None: that was all."""

    def tell(self, number: int, score: float) -> None:
        """How a trial ended; NaN: it failed."""


class Listed:
    """Trials that are all known."""

    def __init__(self, candidates: Sequence[Candidate]) -> None:
        self._left = list(candidates)

    def next(self) -> Candidate | None:
        """The next one of the list."""
        return self._left.pop(0) if self._left else None

    def tell(self, number: int, score: float) -> None:
        """Nothing follows from it."""


class Tpe:
    """Tree-structured Parzen estimator (Bergstra et al. 2011) by Optuna; conditional keys are its branches."""

    def __init__(self, search: Search, earlier: Sequence[Trial] = ()) -> None:
        import optuna  # here: it takes a second

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._search = search
        self._study = optuna.create_study(
            direction="maximize", sampler=optuna.samplers.TPESampler(seed=search.tune.seed + len(earlier))
        )
        self._asked: dict[int, Any] = {}  # number -> Optuna's trial
        self._unfinished = [trial.candidate for trial in earlier if trial.outcome is None]
        self._next = 1 + max((trial.candidate.number for trial in earlier), default=-1)
        for trial in earlier:
            if trial.outcome is not None:
                self._remember(trial)

    def next(self) -> Candidate | None:
        """An unfinished one, or what the estimator thinks best."""
        if self._unfinished:
            found = self._unfinished.pop(0)
            self._study.enqueue_trial(_encode(self._search.space, found.settings))
            self._asked[found.number] = trial = self._study.ask()
            self._suggest(trial)
            return found
        if self._next >= self._search.tune.trials:
            return None
        problem: SpaceError | None = None
        for _ in range(_TRIES):
            trial = self._study.ask()
            settings = self._suggest(trial)
            try:
                config = _checked(self._search.config, settings)
            except SpaceError as error:
                self._fail(trial)
                problem = error
                continue
            number, self._next = self._next, self._next + 1
            self._asked[number] = trial
            return candidate(number, settings, config)
        _log.warning("the search ends: of %d settings that TPE chose in a row none goes together: %s", _TRIES, problem)
        return None

    def tell(self, number: int, score: float) -> None:
        """The estimator learns."""
        trial = self._asked.pop(number)
        if math.isnan(score):
            self._fail(trial)
        else:
            self._study.tell(trial, score)

    def _fail(self, trial: Any) -> None:
        from optuna.trial import TrialState

        self._study.tell(trial, state=TrialState.FAIL)

    def _suggest(self, trial: Any) -> Settings:
        return self._search.space.draw(lambda dimension: _suggest(trial, dimension))

    def _remember(self, trial: Trial) -> None:
        if math.isnan(trial.score):
            return
        self._study.enqueue_trial(_encode(self._search.space, trial.candidate.settings))
        asked = self._study.ask()
        self._suggest(asked)
        self._study.tell(asked, trial.score)


def _encode(space: Space, settings: Settings) -> Settings:
    """Settings as Optuna takes them: of what is listed, the position."""
    options = {d.key: d.values for d in space.dimensions if d.kind in LISTED}
    return {key: options[key].index(value) if key in options else value for key, value in settings.items()}


def batches(search: Search) -> list[int]:
    """Every train.batch_images that a trial may have: resources are planned for all of them."""
    key = "train.batch_images"
    dimension = next((one for one in search.space.dimensions if one.key == key), None)
    own = search.config.train.batch_images
    if dimension is None:
        return [own]
    low, *_, high = dimension.values if len(dimension.values) > 1 else 2 * dimension.values
    found = list(dimension.values) if dimension.kind in LISTED else list(range(low, high + 1))
    return [*found, own] if dimension.when else found


def listed(search: Search) -> list[Candidate]:
    """Every trial of a random or grid search, each tried on the configuration.

    Raises:
        SpaceError: settings that do not go together, or a network that cannot be built.
    """
    return [candidate(number, one, _checked(search.config, one)) for number, one in enumerate(_drawn(search))]


def tried(search: Search) -> dict[str, RunConfig]:
    """Trials that can be known before any starts, by their settings in words: all, or of TPE some that it may choose.

    Raises:
        SpaceError: settings that do not go together, or a network that cannot be built.
    """
    return {_words(settings): _checked(search.config, settings) for settings in _drawn(search)}


def _drawn(search: Search) -> list[Settings]:
    tune, space = search.tune, search.space
    if tune.search == "grid":
        return space.all()
    grids = [dimension.key for dimension in space.dimensions if dimension.kind == "grid"]
    if tune.search == "tpe" and grids:
        raise SpaceError(f"search: tpe chooses by itself, and {', '.join(grids)} is to be tried whole; use choice")
    return space.sample(_CHECKED if tune.search == "tpe" else tune.trials, tune.seed)


def _words(settings: Settings) -> str:
    return "space: " + ", ".join(f"{key}={json.dumps(value)}" for key, value in settings.items())


def _checked(config: RunConfig, settings: Settings) -> RunConfig:
    words = _words(settings)
    try:
        changed = apply(config, settings)
    except ConfigError as error:
        raise SpaceError(f"{words}: {error}; add a `when` that keeps them apart") from error
    require_buildable(changed.model, words)
    weights = changed.init.weights
    if weights not in (None, config.init.weights) and not Path(weights).exists():
        raise SpaceError(f"{words}: there is no weights file or checkpoint {weights}")
    return changed


def _suggest(trial: Any, dimension: Dimension) -> Any:
    """Optuna's trial chooses. Of what is listed it is told positions: it does not take lists as values."""
    if dimension.kind in LISTED:
        return dimension.values[trial.suggest_categorical(dimension.key, range(len(dimension.values)))]
    low, high = dimension.values
    if dimension.kind == "int":
        return trial.suggest_int(dimension.key, low, high)
    return dimension.rounded(trial.suggest_float(dimension.key, low, high, log=dimension.kind == "log_uniform"))
