"""Cityscapes' fine annotations -> Records, validated.

    leftImg8bit/{split}/{city}/{name}_leftImg8bit.png    the picture; name is {city}_{sequence:06}_{frame:06}
    gtFine/{split}/{city}/{name}_gtFine_instanceIds.png  16 bit; or, where it is missing, drawn from
    gtFine/{split}/{city}/{name}_gtFine_polygons.json    the polygons
    gtFine/{split}/{city}/{name}_gtFine_labelIds.png     8 bit; where it is missing, it follows from the instance ids

Ids of 1000 and more are objects; a label's own id marks a group of them, which becomes a crowd region. What makes the
directory unusable as a whole is refused with a DataError; a single bad picture goes to quarantine with its reason.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.data import images as pictures
from pipeline.data import rle
from pipeline.data.cityscapes_labels import CATEGORY_IDS, CLASS_NAMES, LABEL_IDS, LABELS, draw_instances, label_ids
from pipeline.data.instance_ids import Region, regions
from pipeline.data.quarantine import BadSample, DataError, Quarantine
from pipeline.data.records import Record, empty_record
from pipeline.data.source import Dataset, Sample
from pipeline.data.storage import Storage

PICTURES, GROUND_TRUTH = "leftImg8bit", "gtFine"
GENERATOR = "generator.json"  # in the root of a generated data set (streets.py): its settings
HELD_BACK = "test"  # the split whose ground truth the benchmark keeps; the files that lie there are dummies
_PICTURE = f"_{PICTURES}.png"
_INSTANCES, _LABELS, _POLYGONS = (
    f"_{GROUND_TRUTH}_{kind}" for kind in ("instanceIds.png", "labelIds.png", "polygons.json")
)
_ID_BITS = 46  # so that sample id * 100,000 + instance id stays below 2^63
_IDS_A_SAMPLE = 100_000  # more than 16 bits can say


@dataclass(frozen=True)
class CityscapesEntry:
    """One picture with the files of its ground truth, not read yet. Names are relative to the root."""

    sample_id: int
    file_name: str
    instance_ids: str | None
    label_ids: str | None
    polygons: str | None  # read only where there are no instance_ids


@dataclass(frozen=True)
class CityscapesReader:
    """Reads the pictures of a Cityscapes directory with their ground truth."""

    root: Storage

    def read(self, entry: CityscapesEntry, quarantine: Quarantine) -> Sample | None:
        """Read, check and convert one picture; None when it went to quarantine."""
        try:
            data = self._bytes(entry.file_name)
            checked = _check_picture(data)
            record = empty_record(entry.sample_id, entry.file_name, checked.height, checked.width, data)
            ids = self._instance_ids(entry, checked.height, checked.width)
            if ids is not None:
                record["semantic"] = self._semantic(entry, ids)
        except _BadImageError as bad:
            quarantine.add(BadSample("image", entry.sample_id, None, entry.file_name, bad.reason, bad.got))
            return None
        for region in regions(ids) if ids is not None else ():
            label = int(label_ids(np.array(region.id, dtype=np.uint16)))
            if label in CATEGORY_IDS:
                _append(record, region, label)
            elif label not in LABEL_IDS:
                annotation = annotation_id(entry.sample_id, region.id)
                got = f"instance id {region.id} on {region.area} pixels"
                quarantine.add(
                    BadSample("annotation", entry.sample_id, annotation, entry.file_name, "label is unknown", got)
                )
        return Sample(record, checked.grayscale)

    def _instance_ids(self, entry: CityscapesEntry, height: int, width: int) -> NDArray[np.uint16] | None:
        """Uint16 [height, width]; None for a picture that has no ground truth, and need not."""
        if entry.instance_ids is not None:
            return _decode_ids(self._bytes(entry.instance_ids), entry.instance_ids, 16, height, width)
        if entry.polygons is None:
            return None
        try:
            return draw_instances(self._bytes(entry.polygons), height, width)
        except ValueError as error:
            raise _BadImageError("polygons are not valid", f"{entry.polygons}: {error}") from error

    def _semantic(self, entry: CityscapesEntry, ids: NDArray[np.uint16]) -> bytes:
        """The PNG of label ids."""
        if entry.label_ids is None:
            # A label above 255 // 1000 cannot be meant; it is quarantined as an annotation, and unlabeled here.
            labels = label_ids(ids)
            return _png(np.where(np.isin(labels, list(LABEL_IDS)) & ~_void_groups(ids), labels, np.uint8(0)))
        data = self._bytes(entry.label_ids)
        found = _decode_ids(data, entry.label_ids, 8, *ids.shape)
        unknown = sorted(set(np.flatnonzero(np.bincount(found.reshape(-1))).tolist()) - LABEL_IDS)
        if unknown:
            raise _BadImageError("labelIds has labels that are unknown", f"{entry.label_ids}: {unknown}")
        void = _void_groups(ids)
        return _png(np.where(void, 0, found).astype(np.uint8)) if void.any() else data

    def _bytes(self, name: str) -> bytes:
        """A file of the listing; as nobody else names files, links to elsewhere (a city on another disk) are fine."""
        try:
            return self.root.read(name)
        except FileNotFoundError as error:
            raise _BadImageError("file is missing", name) from error
        except OSError as error:
            raise _BadImageError("file cannot be read", f"{name}: {error.strerror or error}") from error


def read_cityscapes(
    root: Path | str | Storage, split: str, quarantine: Quarantine, cities: Sequence[str] | None = None
) -> Dataset:
    """Find the pictures of a split and their ground truth; they are opened later, by the reader. Raises DataError.

    Args:
        root: the directory that has leftImg8bit/ and gtFine/.
        split: train, val or test. Pictures of test have no annotations.
        quarantine: where pictures without ground truth go, and ground truth without a picture.
        cities: only these; None for all. A picture has the same id with any choice.
    """
    root = Storage.at(root)
    if root.local is not None and not root.local.is_dir():
        raise DataError(f"no directory at {root}; give the one that has {PICTURES}/ and {GROUND_TRUTH}/")
    found = _names(root, PICTURES, split, (_PICTURE,))
    if not found:
        raise DataError(_nothing_there(root, split))
    truths = {} if split == HELD_BACK else _names(root, GROUND_TRUTH, split, (_INSTANCES, _LABELS, _POLYGONS))
    if not truths and split != HELD_BACK:
        raise DataError(
            f"{root} has {len(found)} pictures in {PICTURES}/{split} but no ground truth in {GROUND_TRUTH}/{split}; "
            f"unpack gtFine_trainvaltest.zip there ({GROUND_TRUTH}/{split}/CITY/*{_INSTANCES})"
        )
    if cities is not None:
        found, truths = _of_cities(found, cities, split), _of_cities(truths, cities, None)
    entries: dict[int, CityscapesEntry] = {}
    for name in sorted(found | truths):
        number, kinds = sample_id(name), truths.get(name, frozenset())
        picture = f"{PICTURES}/{split}/{name}{_PICTURE}"
        has = {kind: f"{GROUND_TRUTH}/{split}/{name}{kind}" if kind in kinds else None for kind in _KINDS}
        if name not in found:
            reason, got = "ground truth has no picture", ", ".join(sorted(file for file in has.values() if file))
        elif split != HELD_BACK and has[_INSTANCES] is None and has[_POLYGONS] is None:
            reason, got = "no ground truth", f"no {GROUND_TRUTH}/{split}/{name}{_INSTANCES} and no {_POLYGONS}"
        elif number in entries:
            reason, got = "sample id is taken (a collision of hashes; rename one of the two)", entries[number].file_name
        else:
            entries[number] = CityscapesEntry(number, picture, has[_INSTANCES], has[_LABELS], has[_POLYGONS])
            continue
        quarantine.add(BadSample("image", number, None, picture, reason, got))
    return Dataset(
        class_names=CLASS_NAMES,
        category_ids=CATEGORY_IDS,
        scoring="none" if split == HELD_BACK else "cityscapes",
        keypoints=None,
        frequencies=(),
        entries=tuple(entry for _, entry in sorted(entries.items())),
        reader=CityscapesReader(root),
        source={"root": root.name, "split": split} | ({} if cities is None else {"cities": ", ".join(sorted(cities))}),
        generator=_generator(root),
        quarantine=quarantine,
    )


def sample_id(name: str) -> int:
    """The id of picture `{city}/{name}`, 1..2^46: a hash, so that it depends on no other picture of the directory."""
    digest = hashlib.blake2b(name.encode("utf-8", errors="surrogateescape"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> (64 - _ID_BITS)) + 1


def annotation_id(sample: int, instance_id: int) -> int:
    """Unique in a data set; the last five digits are the id in *_instanceIds.png."""
    return sample * _IDS_A_SAMPLE + instance_id


_KINDS = (_INSTANCES, _LABELS, _POLYGONS)


class _BadImageError(Exception):
    """One picture is bad; caught where it is known which one."""

    def __init__(self, reason: str, got: str) -> None:
        super().__init__(reason)
        self.reason, self.got = reason, got if len(got) <= 300 else got[:297] + "..."


def _names(root: Storage, kind: str, split: str, endings: tuple[str, ...]) -> dict[str, frozenset[str]]:
    """City/name of every file of a split with one of the endings -> the endings that it has."""
    found: dict[str, set[str]] = {}
    for file in root.child(kind).child(split).list(recursive=True):
        ending = next((ending for ending in endings if file.endswith(ending)), None)
        if ending is not None and not PurePosixPath(file).name.startswith("."):  # macOS leaves ._ files behind
            found.setdefault(file.removesuffix(ending), set()).add(ending)
    return {name: frozenset(kinds) for name, kinds in found.items()}


def _of_cities(names: dict[str, frozenset[str]], cities: Sequence[str], split: str | None) -> dict[str, frozenset[str]]:
    """What is in the directories `cities`; with a split, each of them must be there."""
    present = {name.split("/")[0] for name in names}
    missing = sorted(set(cities) - present)
    if split is not None and (missing or not cities):
        raise DataError(
            f"no pictures of {', '.join(missing) or 'no city'} in {PICTURES}/{split}; "
            f"choose from {', '.join(sorted(present))}"
        )
    return {name: kinds for name, kinds in names.items() if name.split("/")[0] in cities}


def _nothing_there(root: Storage, split: str) -> str:
    """What is wrong with a directory in which no picture was found."""
    expected = f"{PICTURES}/{split}/CITY/*{_PICTURE}"
    there = _first_level(root)
    got = f"it holds: {', '.join(there)}"[:300] if there else "it is empty"
    if PICTURES in there:
        got = f"{PICTURES}/ holds: {', '.join(_first_level(root.child(PICTURES))) or 'nothing'}"[:300]
        return f"{root} has no pictures {expected} ({got}); name a split that is there, or unpack leftImg8bit there"
    return f"{root} has no pictures {expected} ({got}); give the directory that has {PICTURES}/ and {GROUND_TRUTH}/"


def _generator(root: Storage) -> dict[str, Any] | None:
    """The settings of a generated data set, None for real pictures."""
    if not root.exists(GENERATOR):
        return None
    try:
        settings = json.loads(root.read(GENERATOR))
    except ValueError as error:
        raise DataError(f"{root}/{GENERATOR} is not valid JSON ({error}); generate the streets again") from error
    if not isinstance(settings, dict):
        raise DataError(f"{root}/{GENERATOR} is no JSON object of settings; generate the streets again")
    return settings


def _first_level(directory: Storage) -> list[str]:
    """Names of what lies directly in a directory."""
    if directory.local is not None:
        return sorted(path.name for path in directory.local.iterdir())
    return sorted({file.split("/")[0] for file in directory.list(recursive=True)})


def _check_picture(data: bytes) -> pictures.Checked:
    try:
        return pictures.check(data)
    except pictures.ImageError as error:
        raise _BadImageError("picture does not decode", str(error)) from error


def _decode_ids(data: bytes, name: str, bits: int, height: int, width: int) -> NDArray[np.uint16]:
    """A grey PNG of exactly these bits and size, as uint16 [height, width]."""
    kind = name.rpartition("_")[2].removesuffix(".png")
    if data[:8] != b"\x89PNG\r\n\x1a\n" or data[12:16] != b"IHDR" or len(data) < 26:
        raise _BadImageError(f"{kind} is no PNG", f"{name}: {len(data)} bytes that begin with {data[:8]!r}")
    if (data[24], data[25]) != (bits, 0):  # bit depth; colour type, 0 is grey
        colours = {0: "grey", 2: "RGB", 3: "palette", 4: "grey with alpha", 6: "RGB with alpha"}
        raise _BadImageError(
            f"{kind} is not {bits}-bit grey", f"{name}: {data[24]}-bit {colours.get(data[25], 'of no known colour')}"
        )
    size = int.from_bytes(data[20:24], "big"), int.from_bytes(data[16:20], "big")
    if size != (height, width):  # before decoding: a wild size would eat all memory
        raise _BadImageError(
            f"{kind}'s size differs from the picture's",
            f"{name}: {size[0]} x {size[1]}, the picture is {height} x {width}",
        )
    try:
        with Image.open(BytesIO(data), formats=["PNG"]) as image:
            return np.asarray(image).astype(np.uint16)
    except Exception as error:  # Pillow raises nearly anything on garbage
        raise _BadImageError(f"{kind} does not decode", f"{name}: {len(data)} bytes: {error}") from error


def _void_groups(ids: NDArray[np.uint16]) -> NDArray[np.bool_]:
    """Groups of caravans or trailers, objects that are not scored: bool [H, W].

    They are stored as unlabeled, because for Cityscapes' AP a group of caravans is void and a single caravan is not,
    and label ids do not tell the two apart. Scores of label ids, which ignore both, stay the same.
    """
    return np.isin(ids, [label.id for label in LABELS if label.has_instances and label.train_id is None])


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _append(record: Record, region: Region, label: int) -> None:
    height, width = record["height"], record["width"]
    record["boxes"].append(region.box)
    record["classes"].append(CATEGORY_IDS.index(label) + 1)
    record["crowd"].append(region.id == label)
    record["areas"].append(float(region.area))
    record["annotation_ids"].append(annotation_id(record["sample_id"], region.id))
    record["rles"].append(rle.from_counts(region.runs.tolist(), height, width))
    record["crops"].append(rle.crop(region.runs, height, width, region.box))
    record["keypoints"].append([])
