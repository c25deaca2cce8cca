"""How long an evaluation took, measured where it happened."""

import time
from dataclasses import dataclass

_MOMENT_SECONDS = 0.05


@dataclass(frozen=True)
class Prediction:
    """The prediction of all images, with the start of its workers."""

    seconds: float
    first_seconds: float  # until the first images came back: starting workers, loading the model, one batch
    first_images: int  # that came back by then
    workers: str  # how many, and what each has

    def images_per_second(self, images: int) -> float | None:
        """After the first ones; None where all came at once."""
        later, rest = images - self.first_images, self.seconds - self.first_seconds
        return later / rest if later > 0 and rest > 0 else None


@dataclass(frozen=True)
class Speed:
    """Of one evaluation."""

    images: int
    score_seconds: float  # reading results is not in it, checking them is
    analysis_seconds: float  # for the report: matching, error costs, sizes
    prediction: Prediction | None  # None: the results came from a file


class Stopwatch:
    """Times a prediction: `saw` is told how many images have come, `stop` ends it."""

    def __init__(self) -> None:
        self._start = time.perf_counter()
        self._first: tuple[float, int] | None = None

    def saw(self, images: int) -> None:
        """So many images are there. Those that come within a moment of the first came with it."""
        now = time.perf_counter() - self._start
        if self._first is None or now - self._first[0] < _MOMENT_SECONDS:
            self._first = (self._first[0] if self._first else now, images)

    def stop(self, workers: str) -> Prediction:
        """What was measured."""
        first_seconds, first_images = self._first or (0.0, 0)
        return Prediction(time.perf_counter() - self._start, first_seconds, first_images, workers)
