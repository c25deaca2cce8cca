"""manifest.json: what a directory of shards holds. It is written last, so a directory without one is incomplete."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from functools import cache
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from pipeline.data.quarantine import DataError
from pipeline.data.records import FORMAT_VERSION
from pipeline.data.source import Keypoints, Scoring
from pipeline.data.storage import Location, Storage

MANIFEST, INDEX, QUARANTINE = "manifest.json", "index.parquet", "quarantine.jsonl"
COUNTS = ("images", "instances", "crowd", "empty", "grayscale")
# Only where the data have them: instances with a labelled keypoint, images with label ids, and pairs of an image and a
# class that was looked for and is absent (negative) or whose instances are not all annotated (partial). Proposals
# (counted, be it none) where there are columns for them.
MORE_COUNTS = ("with_keypoints", "label_ids", "negative_classes", "partial_classes", "proposals")
QUARANTINE_COUNTS = ("quarantined_images", "quarantined_annotations")
_SHARD_NAME = re.compile(r"shard-(\d{5,})\.parquet")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_STRICT = ConfigDict(extra="forbid", strict=True)


@dataclass(frozen=True)
class Shard:
    """One file of rows."""

    __pydantic_config__ = _STRICT

    name: str
    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a directory of shards holds."""

    __pydantic_config__ = _STRICT

    format_version: int
    class_names: tuple[str, ...]  # of classes 1..K
    category_ids: tuple[int, ...]  # of the source, of classes 1..K
    scoring: Scoring  # the protocol by which detections on this data are scored
    keypoints: Keypoints | None  # what the keypoints of an instance are
    frequencies: tuple[str, ...]  # of classes 1..K, LVIS: "r", "c" or "f"; empty elsewhere
    counts: dict[str, int]  # COUNTS, those of MORE_COUNTS that are not 0, and QUARANTINE_COUNTS
    quarantined: dict[str, int]  # by reason
    shards: tuple[Shard, ...]
    index_sha256: str
    fingerprint: str  # of all rows and the classes
    source: dict[str, str]  # as Dataset's
    options: dict[str, int | None]  # seed (null: in the order of the source), rows_per_shard, rows_per_group
    generator: dict[str, Any] | None  # settings of a generated data set

    @property
    def images(self) -> int:
        """Rows in all."""
        return self.counts["images"]

    @property
    def has_proposals(self) -> bool:
        """Whether the rows have proposals of another system."""
        return "proposals" in self.counts


def shard_name(shard: int) -> str:
    """The file name of a shard of the index."""
    return f"shard-{shard:05d}.parquet"


def shard_number(name: str) -> int | None:
    """Which shard of the index a file is; None for a file that is no shard."""
    found = _SHARD_NAME.fullmatch(name)
    return int(found[1]) if found and shard_name(int(found[1])) == name else None


def fingerprint_of(shards: Sequence[Shard], class_names: Sequence[str], category_ids: Sequence[int]) -> str:
    """Of all rows and the classes."""
    content = [FORMAT_VERSION, [shard.sha256 for shard in shards], list(class_names), list(category_ids)]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


T = TypeVar("T")
_once: ContextVar[dict[tuple[str, str], Any] | None] = ContextVar("reading_once", default=None)


@contextmanager
def reading_once() -> Iterator[None]:
    """Within it a manifest or index is read once, however often it is loaded: to check many configurations at once."""
    token = _once.set({})
    try:
        yield
    finally:
        _once.reset(token)


def once(kind: str, storage: Storage, read: Callable[[Storage], T]) -> T:
    """What `read` makes of a directory of shards; within `reading_once` that of the first time."""
    kept = _once.get()
    if kept is None:
        return read(storage)
    key = kind, storage.uri
    if key not in kept:
        kept[key] = read(storage)
    found: T = kept[key]
    return found


def load_manifest(location: Location) -> Manifest:
    """The manifest of a complete directory of shards, checked. Raises DataError."""
    return once(MANIFEST, Storage.at(location), _load)


def _load(storage: Storage) -> Manifest:
    text, content = read_json(storage)
    version = content.get("format_version")
    if version == 1:
        raise DataError(
            f"{storage} holds shards of format 1, this version reads format {FORMAT_VERSION}; "
            f"convert them with `maskrcnn shard migrate {storage} --out NEW`"
        )
    if version != FORMAT_VERSION:
        raise DataError(
            f"{storage} holds shards of format {version}, this version reads format {FORMAT_VERSION}; "
            "write them again with `maskrcnn shard`"
        )
    try:
        manifest = _adapter().validate_json(text)
        _check(manifest)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(map(str, first["loc"])) or "its content"
        raise DataError(
            f"{storage.child(MANIFEST)} is damaged: {field}: {first['msg']}, got {first['input']!r:.80}; "
            "copy it again, or write the shards again"
        ) from error
    except _BadError as error:
        raise DataError(
            f"{storage.child(MANIFEST)} is damaged: {error}; copy it again, or write the shards again"
        ) from error
    return manifest


def read_json(storage: Storage) -> tuple[bytes, dict[str, Any]]:
    """The manifest of shards of any format, as it is and parsed. Raises DataError, StorageError."""
    try:
        text = storage.read(MANIFEST)
        content = json.loads(text)
    except FileNotFoundError as error:
        begun = any(name.endswith(".parquet") for name in storage.list())
        state = "sharding did not finish there" if begun else "it holds no shards"
        raise DataError(f"{storage} has no {MANIFEST}: {state}; run `maskrcnn shard` into it") from error
    except OSError as error:
        raise storage.refusal(f"{storage.child(MANIFEST)} cannot be read", error) from error
    except ValueError as error:
        raise DataError(f"{storage.child(MANIFEST)} cannot be read ({error}); write the shards again") from error
    if not isinstance(content, dict):
        raise DataError(f"{storage.child(MANIFEST)} is damaged: it is no object; write the shards again")
    return text, content


def save_manifest(manifest: Manifest, storage: Storage) -> None:
    """Write the manifest: from here on the directory is complete. Raises StorageError."""
    storage.write(MANIFEST, (json.dumps(asdict(manifest), indent=2) + "\n").encode())


class _BadError(Exception):
    """What the types of the fields do not say."""


def _check(manifest: Manifest) -> None:
    classes = len(manifest.class_names)
    if len(manifest.category_ids) != classes or len(set(manifest.category_ids)) != classes:
        raise _BadError(f"{classes} class_names do not go with the category_ids {list(manifest.category_ids)!r:.80}")
    if manifest.frequencies and (len(manifest.frequencies) != classes or not set(manifest.frequencies) <= set("rcf")):
        raise _BadError(f"frequencies are not one of r, c, f a class: {list(manifest.frequencies)!r:.80}")
    needed = {*COUNTS, *QUARANTINE_COUNTS}
    if set(manifest.counts) - set(MORE_COUNTS) != needed or min(manifest.counts.values()) < 0:
        raise _BadError(f"counts are not numbers of {', '.join((*COUNTS, *QUARANTINE_COUNTS))}: {manifest.counts}")
    if not classes and (manifest.counts["instances"] or manifest.counts["crowd"]):
        raise _BadError("there are annotations, but no class_names")
    numbers = [shard_number(shard.name) for shard in manifest.shards]
    if None in numbers or len(set(numbers)) != len(numbers) or not numbers:
        raise _BadError(f"shards are not named {shard_name(0)}, ...: {[s.name for s in manifest.shards]!r:.80}")
    if sum(shard.rows for shard in manifest.shards) != manifest.images:
        raise _BadError(f"the rows of the shards are not the {manifest.images} images of the counts")
    if not all(_SHA256.fullmatch(s) for s in (manifest.index_sha256, *(shard.sha256 for shard in manifest.shards))):
        raise _BadError("a sha256 is not 64 hexadecimal digits")
    if manifest.keypoints is not None:
        _check_keypoints(manifest.keypoints)


def _check_keypoints(keypoints: Keypoints) -> None:
    count, flip = len(keypoints.names), keypoints.flip
    if sorted(flip) != list(range(count)) or any(flip[flip[j]] != j for j in range(count)):
        raise _BadError(f"keypoints.flip does not swap {count} keypoints in pairs: {list(flip)!r:.80}")
    if not all(0 <= j < count for pair in keypoints.skeleton for j in pair):
        raise _BadError(f"keypoints.skeleton joins what is none of {count} keypoints: {keypoints.skeleton!r:.80}")
    if keypoints.sigmas is not None and (len(keypoints.sigmas) != count or min(keypoints.sigmas) <= 0):
        raise _BadError(f"keypoints.sigmas are not {count} numbers above 0: {keypoints.sigmas!r:.80}")


@cache
def _adapter() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)
