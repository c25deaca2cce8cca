"""A data set with some of its classes: instances of the others are gone, the pictures stay."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pipeline.data.quarantine import DataError, Quarantine
from pipeline.data.source import Dataset, Reader, Sample

_COLUMNS = ("boxes", "crowd", "areas", "annotation_ids", "rles", "crops", "keypoints")  # one item an instance


@dataclass(frozen=True)
class SubsetReader:
    """Reads as another reader does, and keeps instances of some classes."""

    reader: Reader
    kept: tuple[int, ...]  # classes 1..K of the reader, which become 1, 2, ... in this order

    def read(self, entry: Any, quarantine: Quarantine) -> Sample | None:
        """The sample with what is kept of it."""
        sample = self.reader.read(entry, quarantine)
        if sample is None:
            return None
        number_of = {old: new for new, old in enumerate(self.kept, 1)}
        old: dict[str, Any] = dict(sample.record)
        rows = [row for row, number in enumerate(old["classes"]) if number in number_of]
        new = old | {name: [old[name][row] for row in rows] for name in _COLUMNS}
        new["classes"] = [number_of[old["classes"][row]] for row in rows]
        for name in ("negative_classes", "partial_classes"):
            new[name] = [number_of[number] for number in old[name] if number in number_of]
        return Sample(new, sample.grayscale)  # type: ignore[arg-type]  # a Record with other instances


def only_classes(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """`dataset` with the classes `names`, in their order.

    It is scored by COCO's protocol where it was by Cityscapes', which knows its own eight classes alone.

    Raises:
        DataError: there are none, one is twice, or the data set does not have it.
    """
    strangers = [name for name in names if name not in dataset.class_names]
    if not names or strangers or len(set(names)) < len(names):
        got = ", ".join(strangers) + " among them" if strangers else f"{len(names)} names, {len(set(names))} different"
        raise DataError(
            f"--classes must hold different names of the data's classes, got {got}; it has "
            f"{', '.join(dataset.class_names[:10])}{', ...' if len(dataset.class_names) > 10 else ''}"
        )
    kept = tuple(dataset.class_names.index(name) + 1 for name in names)
    return replace(
        dataset,
        class_names=tuple(names),
        category_ids=tuple(dataset.category_ids[number - 1] for number in kept),
        frequencies=tuple(dataset.frequencies[number - 1] for number in kept) if dataset.frequencies else (),
        scoring="coco" if dataset.scoring == "cityscapes" else dataset.scoring,
        reader=SubsetReader(dataset.reader, kept),
    )
