"""What an evaluation was of, kept beside its results: so that they can be compared later with those of another run."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.config import Scorer
from pipeline.data.quarantine import DataError
from pipeline.data.shards import annotations, load_index, load_manifest
from pipeline.errors import UserError

NAME = "evaluation.json"


@dataclass(frozen=True)
class Evaluated:
    """The data, and by which rules."""

    shards: str  # URI
    fingerprint: str  # of the shards
    protocol: Scorer
    categories: tuple[str, ...] | None  # names of those that were scored; None: all
    max_images: int | None  # the first so many; None: all

    def write(self, directory: Path) -> None:
        """Into an evaluation's directory."""
        (directory / NAME).write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")

    def differs_from(self, other: "Evaluated") -> list[str]:
        """In what, for people; where shards lie does not matter."""
        return [
            f"{what} ({ours} and {theirs})"
            for what, ours, theirs in (
                ("data", f"{self.shards} {self.fingerprint[:8]}", f"{other.shards} {other.fingerprint[:8]}"),
                ("protocol", self.protocol, other.protocol),
                ("categories", _names(self.categories), _names(other.categories)),
                ("evaluate.max_images", _all(self.max_images), _all(other.max_images)),
            )
            if (self.fingerprint != other.fingerprint if what == "data" else ours != theirs)
        ]


def read_evaluated(directory: Path) -> Evaluated:
    """What `write` wrote. Raises UserError."""
    path = directory / NAME
    try:
        return TypeAdapter(Evaluated).validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise UserError(
            f"{directory} does not say what was evaluated ({NAME} is missing, older versions did not write it); give "
            "the ground truth: --annotations FILE"
        ) from error
    except ValidationError as error:
        raise UserError(f"{path} is damaged ({error.error_count()} errors); evaluate again") from error


def ground_truth(evaluated: Evaluated, shards: str | None = None) -> dict[str, Any]:
    """COCO's annotation file in memory, of the images that were predicted.

    Args:
        evaluated: what was evaluated.
        shards: where its data lie now; None: where they lay.

    Raises:
        DataError: they are not there, or are not those.
    """
    place = shards or evaluated.shards
    try:
        fingerprint = load_manifest(place).fingerprint
    except DataError as error:
        raise DataError(f"{error}. If the shards have moved, say where they are: --data SHARDS") from error
    if fingerprint != evaluated.fingerprint:
        raise DataError(
            f"{place} is not the data that was evaluated: its fingerprint is {fingerprint[:8]}, that of the evaluation "
            f"{evaluated.fingerprint[:8]}; say where that data is: --data SHARDS"
        )
    truth = annotations(place)
    if evaluated.max_images is None:
        return truth
    return first_images(truth, load_index(place)["sample_id"].slice(0, evaluated.max_images).to_pylist())


def first_images(truth: dict[str, Any], sample_ids: Sequence[int]) -> dict[str, Any]:
    """The ground truth of some images."""
    kept = set(sample_ids)
    return truth | {
        "images": [image for image in truth["images"] if image["id"] in kept],
        "annotations": [a for a in truth["annotations"] if a["image_id"] in kept],
    }


def _names(categories: Sequence[str] | None) -> str:
    return "all" if categories is None else ", ".join(categories)


def _all(images: int | None) -> str:
    return "all" if images is None else str(images)
