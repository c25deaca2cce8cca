"""How long an evaluation took, measured where it happened."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Prediction:
    """The prediction of all images."""

    seconds: float  # from asking for it to the last image: with starting workers, loading the model, waiting
    worker_seconds: float  # that workers spent on images, from encoded picture to results, added up over workers
    workers: str  # how many, and what each has
    devices: tuple[str, ...]  # that computed


@dataclass(frozen=True)
class Speed:
    """Of one evaluation."""

    images: int
    score_seconds: float  # checking and scoring results; reading them is not in it
    analysis_seconds: float  # for the report: matching, error costs, sizes
    prediction: Prediction | None  # None: the results came from a file

    @property
    def worker_images_per_second(self) -> float | None:
        """Of one worker while it predicts; None where that was not measured."""
        busy = 0.0 if self.prediction is None else self.prediction.worker_seconds
        return self.images / busy if busy > 0 else None
