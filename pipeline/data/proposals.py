"""Proposals of another system beside each picture, for Fast R-CNN: from results files into records.

Legend: P proposals of a picture, best first.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.data.manifest import load_manifest
from pipeline.data.quarantine import BadSample, DataError, Quarantine
from pipeline.data.results_json import load_results
from pipeline.data.source import Dataset, Entry, Reader, Sample
from pipeline.data.storage import Location

Float32 = NDArray[np.float32]
_NONE = np.zeros((0, 5), np.float32)


@dataclass(frozen=True)
class ProposedEntry:
    """An entry with its proposals."""

    entry: Entry
    proposals: Float32  # [P, 5]: xyxy in pixels of the picture, perhaps outside it, and a score; best first

    @property
    def sample_id(self) -> int:
        """Of the entry."""
        return self.entry.sample_id

    @property
    def file_name(self) -> str:
        """Of the entry."""
        return self.entry.file_name


@dataclass(frozen=True)
class ProposedReader:
    """Reads what another reader reads, and adds the proposals."""

    reader: Reader

    def read(self, entry: ProposedEntry, quarantine: Quarantine) -> Sample | None:
        """The sample; proposals are cut to the picture, and those that lie outside it are left out and counted."""
        sample = self.reader.read(entry.entry, quarantine)
        if sample is None:
            return None
        record = sample.record
        boxes = np.clip(entry.proposals[:, :4], 0, [record["width"], record["height"]] * 2).astype(np.float32)
        inside: NDArray[np.bool_] = np.all(boxes[:, 2:] > boxes[:, :2], axis=1)
        if not inside.all():
            got = f"{np.count_nonzero(~inside)} of {len(inside)} proposals"
            reason = "proposals have no area in their picture"
            quarantine.add(BadSample("annotation", record["sample_id"], None, record["file_name"], reason, got))
        record["proposals"] = boxes[inside].tolist()
        record["proposal_scores"] = entry.proposals[inside, 4].tolist()
        return sample


def with_proposals(dataset: Dataset, files: Sequence[Path]) -> Dataset:
    """The data set with the proposals of files in COCO's results format: image_id, bbox xywh in pixels, score.

    Several files are read one after the other: JSON takes a hundred times the memory of what is kept. A picture may
    have no proposal; a proposal must have a picture.

    Raises:
        DataError: a file is not such a list, or it is of other pictures.
    """
    ids = np.array([entry.sample_id for entry in dataset.entries], dtype=np.int64)
    found: dict[int, list[Float32]] = {}
    for file in files:
        owners, proposals = _read(file, ids)
        order = np.argsort(owners, kind="stable")
        numbers, starts = np.unique(owners[order], return_index=True)
        for number, part in zip(numbers.tolist(), np.split(proposals[order], starts[1:]), strict=True):
            found.setdefault(number, []).append(part)
    entries = [ProposedEntry(entry, _best_first(found.get(entry.sample_id, []))) for entry in dataset.entries]
    return replace(
        dataset,
        entries=entries,
        reader=ProposedReader(dataset.reader),
        source={**dataset.source, "proposals": ", ".join(file.name for file in files)},
        proposals=True,
    )


def require_proposals(locations: Iterable[Location]) -> None:
    """Raises DataError where shards have no proposals, which a model without an RPN needs."""
    for location in locations:
        if not load_manifest(location).has_proposals:
            raise DataError(
                f"{location} has no proposals, and model.rpn is null (Fast R-CNN): shard again with --proposals FILE, "
                "or give model.rpn its section"
            )


def _read(file: Path, ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], Float32]:
    """Image ids [N], and [N, 5] xyxy and score, of all proposals of a file."""
    results: list[Any] = load_results(file)
    if not results:
        raise DataError(f"{file} holds no proposal; write them again")
    try:
        owners = np.array([result["image_id"] for result in results])
        boxes = np.array([result["bbox"] for result in results], dtype=np.float64)
        scores = np.array([result["score"] for result in results], dtype=np.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{file}: every proposal needs image_id, bbox [x, y, width, height] and score, got {error!r:.200}; mend it"
        ) from error
    if owners.dtype.kind not in "iu" or boxes.shape != (len(results), 4) or scores.ndim != 1:
        raise DataError(f"{file}: image_id must be an integer, bbox four numbers and score a number; mend it")
    wrong = np.flatnonzero(~(np.isfinite(boxes).all(axis=1) & np.isfinite(scores) & (boxes[:, 2:] >= 0).all(axis=1)))
    if len(wrong):
        raise DataError(
            f"{file}: {len(wrong)} of {len(results)} proposals are no finite box with a finite score, such as number "
            f"{wrong[0]}: {results[wrong[0]]!r:.200}; mend it"
        )
    strangers = np.flatnonzero(~np.isin(owners, ids))
    if len(strangers):
        raise DataError(
            f"{file}: {len(strangers)} of {len(results)} proposals are of images that the annotations do not list, "
            f"such as image_id {owners[strangers[0]]}; give the proposals of these annotations' images"
        )
    boxes[:, 2:] += boxes[:, :2]
    return owners.astype(np.int64), np.concatenate([boxes, scores[:, None]], axis=1).astype(np.float32)


def _best_first(parts: Sequence[Float32]) -> Float32:
    """[P, 5] by falling score; of equal scores in the files' order."""
    joined = np.concatenate([_NONE, *parts])
    return joined[np.argsort(-joined[:, 4], kind="stable")]
