"""Masks: COCO run-length encoding <-> pixels -> the 112 x 112 crop that training reads.

An RLE is held as its compressed `counts` (bytes); the image's height and width, which it needs to mean anything, are
always passed beside it. pycocotools rasterises polygons and encodes; what comes from a file is validated before it gets
there, because its C code trusts the counts and writes outside the mask when they lie.
"""

import math
from collections.abc import Sequence
from typing import Any

import hotcoco
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

_MANY = 1024  # masks that are looked at at once: what is computed of them stays in the cache
CROP_SIZE = 112  # cells a side; is model.types.CROP_SIZE (a test compares), repeated so that sharding needs no torch
_STEPS = np.arange(CROP_SIZE + 1) / CROP_SIZE  # a box's cell edges, as shares of its side


def from_segmentation(segmentation: object, height: int, width: int) -> bytes:
    """COCO's `segmentation` (polygons, uncompressed or compressed RLE) as compressed counts. Raises ValueError."""
    if isinstance(segmentation, list):
        return from_polygons(segmentation, height, width)
    if not isinstance(segmentation, dict) or "counts" not in segmentation:
        raise ValueError(f"a segmentation is a list of polygons or an RLE, got {_short(segmentation)}")
    size, counts = segmentation.get("size"), segmentation["counts"]
    if not isinstance(size, list | tuple) or list(size) != [height, width]:
        raise ValueError(f"the RLE's size must be the image's [{height}, {width}], got {_short(size)}")
    if isinstance(counts, list):
        return from_counts(counts, height, width)
    if isinstance(counts, str):
        if not counts.isascii():
            raise ValueError(f"not COCO's compressed counts: {_short(counts)}")
        counts = counts.encode("ascii")
    if not isinstance(counts, bytes):
        raise ValueError(f"an RLE's counts are a list or a string, got {_short(counts)}")
    _check_counts(parse_counts(counts), height, width)
    return counts


def from_polygons(polygons: Sequence[object], height: int, width: int) -> bytes:
    """The union of polygons [x, y, x, y, ...] in pixels, rasterised by COCO's rule. Raises ValueError."""
    if not polygons:
        raise ValueError("no polygon in the segmentation")
    reach = 10 * max(height, width)  # the rasteriser walks along every edge; a wild coordinate would eat all memory
    for polygon in polygons:
        if not isinstance(polygon, list | tuple) or len(polygon) < 6 or len(polygon) % 2:
            got = f"{len(polygon)} numbers" if isinstance(polygon, list | tuple) else _short(polygon)
            raise ValueError(f"a polygon needs at least 3 points (6 numbers, an even count), got {got}")
        try:
            points = np.asarray(polygon)
        except ValueError as error:  # lists among the numbers
            raise ValueError(f"a polygon's coordinates must be numbers, got {_short(polygon)}") from error
        if points.dtype.kind not in "iuf":  # strings, booleans, None, integers beyond 64 bits
            raise ValueError(f"a polygon's coordinates must be numbers, got {_short(polygon)}")
        points = points.astype(np.float64)
        if points.ndim != 1 or not np.isfinite(points).all() or np.abs(points).max() > reach:
            raise ValueError(f"a polygon's coordinates must be finite and near the image, got {_short(polygon)}")
    parts = coco_mask.frPyObjects(list(polygons), height, width)
    return bytes(coco_mask.merge(parts)["counts"])


def from_counts(counts: Sequence[object], height: int, width: int) -> bytes:
    """Uncompressed run lengths (column-major, zeros first) as compressed counts. Raises ValueError."""
    if not all(isinstance(run, int) and not isinstance(run, bool) for run in counts):
        raise ValueError(f"an RLE's run lengths must be integers, got {_short(counts)}")
    if any(abs(run) > height * width for run in counts if isinstance(run, int)):
        raise ValueError(f"the RLE's runs must lie in 0..{height * width} ({height} x {width}), got {_short(counts)}")
    _check_counts(np.asarray(counts, dtype=np.int64), height, width)
    return bytes(coco_mask.frPyObjects({"size": [height, width], "counts": list(counts)}, height, width)["counts"])


def from_mask(mask: NDArray[np.uint8] | NDArray[np.bool_]) -> bytes:
    """A binary mask [H, W] as compressed counts."""
    return bytes(coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"])


def from_box(box: Sequence[float], height: int, width: int) -> bytes:
    """All pixels that a box (xyxy, inside the picture) touches, as compressed counts: never empty."""
    left, top, right, bottom = math.floor(box[0]), math.floor(box[1]), math.ceil(box[2]), math.ceil(box[3])
    tall, wide = bottom - top, right - left
    if tall == height:  # whole columns are one run
        runs = [left * height, wide * height]
    else:
        runs = [left * height + top, *[tall, height - tall] * (wide - 1), tall]
    rest = height * width - sum(runs)
    return from_counts([*runs, rest] if rest else runs, height, width)


def to_mask(counts: bytes, height: int, width: int) -> NDArray[np.uint8]:
    """Compressed counts as a binary mask: uint8 [H, W] in 0/1, columns contiguous."""
    return _columns(parse_counts(counts), height, 0, width).T


def area(counts: bytes, height: int, width: int) -> int:
    """Pixels of a mask."""
    return int(coco_mask.area({"size": [height, width], "counts": counts}))


def parse_counts(counts: bytes) -> NDArray[np.int64]:
    """Run lengths of compressed counts: 5 bits a character, bit 6 continues, deltas to the run before last."""
    values, _ = _numbers(counts)
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def parse_many(masks: Sequence[bytes]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Run lengths of N compressed counts at once: P pairs of zeros and the ones after them.

    Returns:
        [P, 2] one mask after the other, the last pair of a mask without ones where it ends in zeros; and [N] how many
        pairs each mask has.
    """
    for counts in masks:
        if counts and counts[-1] - 48 & 0x20:  # would run on into the next one
            raise ValueError(f"not COCO's compressed counts: {_short(counts)}")
    values, ends = _numbers(b"".join(masks))
    runs = np.diff(np.searchsorted(ends, np.cumsum([len(counts) for counts in masks])), prepend=0)  # [N]
    pairs = (runs + 1) // 2  # [N]
    first = np.cumsum(pairs) - pairs  # [N] of each mask
    padding = np.repeat(2 * first - (np.cumsum(runs) - runs), runs)  # zeros that come before a run
    padded = np.zeros(2 * int(pairs.sum()), dtype=np.int64)
    padded[np.arange(len(values)) + padding] = values
    lengths = padded.reshape(-1, 2)  # [P, 2]
    some = first[pairs > 0]
    begins = lengths[some, 0]  # the first run is what it says, and no delta's base
    lengths[some, 0] = 0
    sums = np.cumsum(lengths, axis=0)
    sums -= np.repeat(sums[some] - lengths[some], pairs[pairs > 0], axis=0)  # what masks before have added
    sums[some, 0] = begins
    odd = (first + pairs - 1)[runs % 2 == 1]
    sums[odd, 1] = 0
    return sums, pairs


def _numbers(counts: bytes) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The numbers that compressed counts spell, deltas as they are, and the place of each one's last character."""
    symbols = np.frombuffer(counts, dtype=np.uint8).astype(np.int64) - 48
    if not len(symbols):
        return np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
    if symbols.min() < 0 or symbols.max() > 63 or symbols[-1] & 0x20:
        raise ValueError(f"not COCO's compressed counts: {_short(counts)}")
    ends = np.flatnonzero((symbols & 0x20) == 0)  # [R] last character of each run
    starts = np.concatenate(([0], ends[:-1] + 1))
    place = np.arange(len(symbols)) - np.repeat(starts, ends - starts + 1)  # of the character in its run
    if place.max() > 6:
        raise ValueError(f"not COCO's compressed counts (a run has {place.max() + 1} characters): {_short(counts)}")
    values = np.add.reduceat((symbols & 0x1F) << (5 * place), starts)
    values -= np.where(symbols[ends] & 0x10, np.int64(1) << (5 * (place[ends] + 1)), 0)  # sign
    return values, ends


def compress_many(runs: NDArray[np.int64], sizes: NDArray[np.int64]) -> list[bytes]:
    """Compressed counts of N masks, whose run lengths follow each other in `runs`, sizes[i] of the i-th (at least 1).

    From the fourth run of a mask on, the text has the difference to the one before the last.
    """
    if not len(sizes):
        return []
    starts = np.cumsum(sizes) - sizes
    values = runs.copy()
    values[2:] -= runs[:-2]
    for i in range(3):  # the first three of each mask stay as they are
        kept = (starts + i)[sizes > i]
        values[kept] = runs[kept]

    characters: list[NDArray[np.uint8]] = []  # the k-th character of every value
    written: list[NDArray[np.bool_]] = []  # and whether the value has one
    active = np.ones(len(values), dtype=np.bool_)
    while active.any():
        bits = values & 0x1F
        values >>= 5
        more = values != np.where(bits & 0x10, -1, 0)  # the rest is not just the sign
        characters.append((bits + 48 + 32 * more).astype(np.uint8))
        written.append(active)
        active = active & more
    used = np.stack(written, axis=1)
    text = np.stack(characters, axis=1)[used].tobytes()
    ends = np.cumsum(np.add.reduceat(used.sum(axis=1), starts)).tolist()
    return [text[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]


def areas(masks: Sequence[dict[str, Any]], pixels: NDArray[np.int64]) -> NDArray[np.int64]:
    """Pixels of N RLEs with compressed counts, of images of so many; -1 where from_segmentation refuses it.

    (One by one it takes longer than scoring the masks.) Raises TypeError where counts are no str.
    """
    found = np.empty(len(masks), dtype=np.int64)
    for start in range(0, len(masks), _MANY):
        some = masks[start : start + _MANY]
        sound = _areas_of_sound(some, pixels[start : start + _MANY])
        found[start : start + len(some)] = list(map(_area, some)) if sound is None else sound
    return found


def _areas_of_sound(masks: Sequence[dict[str, Any]], pixels: NDArray[np.int64]) -> NDArray[np.int64] | None:
    """The pixels of masks that are all valid, else None.

    hotcoco refuses runs that are negative or add up to more than the image. Whether they add up to less is what is
    looked at here; given that, it is enough to know their sums modulo 2^32.
    """
    counts = [mask["counts"] for mask in masks]
    text = "".join(counts)
    if not (all(counts) and text.isascii()) or pixels.max() >= 2**32:
        return None
    symbols = np.frombuffer(text.encode("ascii"), dtype=np.uint8) - np.uint8(48)  # what is too small becomes too large
    lengths = np.fromiter(map(len, counts), np.int64, len(counts))
    lasts = np.cumsum(lengths) - 1  # last character of each mask
    more = symbols >= 32  # the run goes on
    if symbols.max() > 63 or more[lasts].any():
        return None
    try:
        found = hotcoco.mask.area(list(masks))
    except ValueError:
        return None

    # Each character adds its five bits, shifted by its place in the run; those of a run's last one have a sign.
    values = ((symbols ^ 16) - np.uint8(16)).view(np.int8).astype(np.int32)
    going = np.flatnonzero(more)
    values[going] = symbols[going] - np.uint8(32)
    for _ in range(6):
        values[going + 1] <<= 5
        going = going[more[going + 1]] + 1
    if len(going):  # a run of more than 7 characters
        return None
    # From the fourth on, a run is a difference to the one before the last: what it says is added to every second run
    # from there to the mask's end.
    ended = np.cumsum(~more, dtype=np.int32)  # runs up to each character
    after = np.repeat(ended[lasts], lengths)
    after -= ended
    after -= more  # runs after the one that a character is of
    weights = (after >> 1) + 1
    firsts = lasts - lengths + 1
    own = firsts
    while len(own):  # no run is a difference to the first one
        weights[own] = 1
        own = own[more[own]] + 1
    weights *= values
    sums = np.add.reduceat(weights, firsts).astype(np.uint32)
    return np.asarray(found, dtype=np.int64) if np.array_equal(sums, pixels) else None


def _area(mask: dict[str, Any]) -> int:
    try:
        runs = parse_counts(from_segmentation(mask, *mask["size"]))
    except ValueError:
        return -1
    return int(runs[1::2].sum())


def crop(runs: NDArray[np.int64], height: int, width: int, box: Sequence[float]) -> bytes:
    """The 112 x 112 crop of a mask, given by its run lengths, inside its box (xyxy, pixels): row-major bits.

    A cell is set where at least half of its area is mask, pixels being unit squares: exact for any box, larger or
    smaller than the crop; what lies outside the picture is not mask. The area integral is separable, hence two running
    sums read at the cells' fractional edges.
    (Two products with weight matrices are as fast alone, but BLAS' own threads fight with those that shard.)
    """
    x_edges = np.clip(box[0] + (box[2] - box[0]) * _STEPS, 0, width)  # [C + 1]
    y_edges = np.clip(box[1] + (box[3] - box[1]) * _STEPS, 0, height)
    x0, x1 = int(x_edges[0]), math.ceil(x_edges[-1])
    y0, y1 = int(y_edges[0]), math.ceil(y_edges[-1])
    cell = (box[2] - box[0]) / CROP_SIZE * (box[3] - box[1]) / CROP_SIZE
    if x0 >= x1 or y0 >= y1 or cell <= 0:  # the box lies outside, or has no area
        return bytes(CROP_SIZE * CROP_SIZE // 8)
    columns = _columns(runs, height, x0, x1)[:, y0:y1]  # [w, h]
    sums = np.zeros((x1 - x0, y1 - y0 + 1), dtype=np.int32)
    np.cumsum(columns, axis=1, out=sums[:, 1:])
    by_y = _between(sums, y_edges - y0)  # [w, C]
    sums_x = np.zeros((CROP_SIZE, x1 - x0 + 1))
    np.cumsum(by_y.T, axis=1, out=sums_x[:, 1:])
    covered = _between(sums_x, x_edges - x0)  # [C (y), C (x)] pixels^2
    least = 0.5 * cell * (1 - 1e-9)  # the tolerance is float64's: a half stays a half
    return np.packbits(np.greater_equal(covered, least)).tobytes()


def window(runs: NDArray[np.int64], height: int, x0: int, y0: int, x1: int, y1: int) -> NDArray[np.uint8]:
    """The part of a mask inside whole pixels x0..x1, y0..y1: uint8 [y1 - y0, x1 - x0] in 0/1, columns contiguous."""
    return _columns(runs, height, x0, x1)[:, y0:y1].T


def unpack_crops(crops: Sequence[bytes]) -> NDArray[np.uint8]:
    """Crops as uint8 [N, 112, 112] in 0/1."""
    bits = np.unpackbits(np.frombuffer(b"".join(crops), dtype=np.uint8))
    return bits.reshape(len(crops), CROP_SIZE, CROP_SIZE)


def _columns(runs: NDArray[np.int64], height: int, x0: int, x1: int) -> NDArray[np.uint8]:
    """Columns x0..x1 of the mask as rows: uint8 [x1 - x0, height]. Far cheaper than decoding the whole picture."""
    bounds = np.zeros(len(runs) + 1, dtype=np.int64)
    np.cumsum(runs, out=bounds[1:])
    np.clip(bounds, x0 * height, x1 * height, out=bounds)
    values = np.zeros(len(runs), dtype=np.uint8)
    values[1::2] = 1
    return np.repeat(values, np.diff(bounds)).reshape(x1 - x0, height)


def _between(sums: NDArray[np.int32] | NDArray[np.float64], edges: NDArray[np.float64]) -> NDArray[np.float64]:
    """Running sums over unit pixels [m, n + 1] -> integrals between consecutive edges in 0..n: [m, len(edges) - 1]."""
    below = np.minimum(edges.astype(np.int64), sums.shape[1] - 2)
    low = sums[:, below]
    at_edges = low + (edges - below) * (sums[:, below + 1] - low)
    integrals: NDArray[np.float64] = at_edges[:, 1:] - at_edges[:, :-1]
    return integrals


def _check_counts(runs: NDArray[np.int64], height: int, width: int) -> None:
    if len(runs) and runs.min() < 0:
        raise ValueError(f"an RLE's runs must not be negative, got {runs.min()}")
    if runs.sum() != height * width:
        raise ValueError(f"the RLE's runs must add up to {height} x {width} = {height * width}, got {runs.sum()}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
