"""Records -> Batch: decode, cut, resize, colour, flip, paste, pad.

All that is done to one sample is done in one call, in a thread of a pool (the decoders and the resize release the GIL)
or, one sample after the other, in `collate`.

Legend: B images, G ground-truth slots, P proposals, C crop side, J keypoints.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.config import MaskTarget
from model.types import CROP_SIZE, Batch, Proposals, Targets
from pipeline.data.augment import Geometry, Recipe, cut_to
from pipeline.data.colour import ColourShift, shift_colours
from pipeline.data.copy_paste import choose, paste
from pipeline.data.ground_truth import GroundTruth, move, move_proposals
from pipeline.data.images import ImageError, decode
from pipeline.data.records import Record

SLOT_STEP = 8  # ground-truth slots come in multiples: few different shapes
PROPOSAL_STEP = 128  # and so do proposals
OnBad = Callable[[int, str], None]


class Work(NamedTuple):
    """One sample of a batch, and what is to happen to it."""

    record: Record
    recipe: Recipe
    partner: Record | None = None  # some of its instances are pasted into the sample
    partner_recipe: Recipe | None = None  # drawn for the same size


class _Made(NamedTuple):
    """One finished sample; its pixels are in their slot."""

    size: tuple[int, int]
    truth: GroundTruth | None
    bad: list[tuple[int, str]]  # (sample_id, reason) of pictures that could not be decoded
    proposals: tuple[NDArray[np.float32], NDArray[np.float32]] | None = None  # boxes [P, 4] and scores [P]


def resize_into(slot: Tensor, image: np.ndarray, geometry: Geometry, colour: ColourShift | None = None) -> None:
    """Write the window of a picture [h, w, 3] uint8, resized and perhaps flipped, into the corner of `slot` [H, W, 3].

    Bilinear with antialias on the HWC view: at most one level from Pillow, and the fastest way to it. Colours and the
    flip come before the resize, where there are fewer pixels.
    """
    bottom, right = geometry.top + geometry.window_height, geometry.left + geometry.window_width
    pixels = torch.from_numpy(image)[geometry.top : bottom, geometry.left : right]
    if colour is not None:
        pixels = shift_colours(pixels.permute(2, 0, 1), colour).permute(1, 2, 0)
    if geometry.flip:
        pixels = pixels.flip(1)
    height, width = geometry.new_height, geometry.new_width
    if tuple(pixels.shape[:2]) != (height, width):
        pixels = _resize(pixels, height, width)
    slot[:height, :width] = pixels


_scratch = threading.local()


def _resize(pixels: Tensor, height: int, width: int) -> Tensor:
    """uint8 [h, w, 3] -> [height, width, 3], which is overwritten by this thread's next call.

    F.interpolate would do (it calls the same operator), but a fresh output of some megabytes a picture costs more than
    its resize: the system hands it out, cleared, page by page. Measured: 4.8 ms with one, 1.1 ms without.
    """
    size = 3 * height * width
    buffer: Tensor | None = getattr(_scratch, "buffer", None)
    if buffer is None or buffer.numel() < size:
        buffer = _scratch.buffer = torch.empty(size, dtype=torch.uint8)
    out = buffer[:size].view(1, height, width, 3).permute(0, 3, 1, 2)  # channels last, as the fast kernel needs it
    planes = pixels.contiguous().permute(2, 0, 1)[None]
    torch.ops.aten._upsample_bilinear2d_aa.out(planes, [height, width], False, None, None, out=out)
    return out[0].permute(1, 2, 0)


def collate(
    work: Sequence[Work],
    divisor: int,
    targets: MaskTarget | None,
    keypoints: Sequence[int] | None,
    on_bad: OnBad,
    proposals: int | None = None,
) -> Batch:
    """One batch, made in this thread. The arguments are the Collator's."""
    images = _blank(work, divisor)
    made = [_make(slot, one, targets, keypoints, proposals) for slot, one in zip(images, work, strict=True)]
    return _assemble(images, work, made, targets, keypoints, on_bad, proposals)


class Collator:
    """Makes batches, in order, with `threads` working up to `ahead` batches before they are asked for.

    Args:
        threads: working threads.
        ahead: batches kept ready.
        divisor: padded sides are multiples of it.
        targets: "crop", "image" (see MaskConfig.target), or None for prediction without ground truth.
        on_bad: told (sample_id, reason) of an image that cannot be decoded although its shard was checked. Its pixels
            stay zero and its ground truth is withdrawn, so that the batch keeps its place in the plan. A partner that
            cannot be decoded is told too, and gives nothing.
        keypoints: flip order of the data's keypoints (source.Keypoints.flip), None for targets without keypoints.
        proposals: of another system, an image at most; None: the records have none.
    """

    def __init__(
        self,
        threads: int,
        ahead: int,
        divisor: int,
        targets: MaskTarget | None,
        on_bad: OnBad,
        keypoints: Sequence[int] | None = None,
        proposals: int | None = None,
    ) -> None:
        self.threads, self.ahead, self.divisor, self.targets, self.on_bad = threads, ahead, divisor, targets, on_bad
        self.keypoints, self.proposals = keypoints, proposals

    def __call__(self, batches: Iterable[Sequence[Work]]) -> Iterator[Batch]:
        """A batch for each of `batches`."""
        ready: deque[tuple[Tensor, Sequence[Work], list[Future[_Made]]]] = deque()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="decode") as pool:
            try:
                for work in batches:
                    images = _blank(work, self.divisor)
                    futures = [
                        pool.submit(_make, slot, one, self.targets, self.keypoints, self.proposals)
                        for slot, one in zip(images, work, strict=True)
                    ]
                    ready.append((images, work, futures))
                    if len(ready) > self.ahead:
                        yield self._finish(*ready.popleft())
                while ready:
                    yield self._finish(*ready.popleft())
            finally:  # the consumer stopped early: do not decode what nobody reads
                for _, _, futures in ready:
                    for future in futures:
                        future.cancel()

    def _finish(self, images: Tensor, work: Sequence[Work], futures: list[Future[_Made]]) -> Batch:
        made = [future.result() for future in futures]
        return _assemble(images, work, made, self.targets, self.keypoints, self.on_bad, self.proposals)


def _partner(one: Work) -> tuple[Record, Recipe] | None:
    """The partner of a sample and its recipe, cut to the sample's canvas; None: nothing is pasted."""
    if one.partner is None:
        return None
    assert one.partner_recipe is not None and one.recipe.paste_seed is not None, "pasting needs two drawn recipes"
    cut = cut_to(one.partner_recipe.geometry, one.recipe.canvas)
    return one.partner, replace(one.partner_recipe, geometry=cut)


def _size(one: Work) -> tuple[int, int]:
    """(height, width) of a sample's input: with a partner large enough for both."""
    own, partner = one.recipe.geometry, _partner(one)
    if partner is None:
        return own.new_height, own.new_width
    other = partner[1].geometry
    return max(own.new_height, other.new_height), max(own.new_width, other.new_width)


def _blank(work: Sequence[Work], divisor: int) -> Tensor:
    """Black images uint8 [B, H, W, 3] that all samples fit in."""
    height, width = (max(side) for side in zip(*map(_size, work), strict=True))
    # NumPy asks for huge pages, torch does not: far fewer page faults while a batch is filled.
    shape = (len(work), height + -height % divisor, width + -width % divisor, 3)
    return torch.from_numpy(np.zeros(shape, np.uint8))


def _make(
    slot: Tensor,
    one: Work,
    targets: MaskTarget | None,
    keypoints: Sequence[int] | None,
    proposals: int | None,
) -> _Made:
    """Everything that is done to one sample; its pixels go into `slot` [H, W, 3]."""
    record, recipe = one.record, one.recipe
    own = (recipe.geometry.new_height, recipe.geometry.new_width)
    try:
        pixels = decode(record["image"])
    except ImageError as error:
        return _Made(own, None, [(record["sample_id"], str(error))])
    resize_into(slot, pixels, recipe.geometry, recipe.colour)
    given = None if proposals is None else move_proposals(record, recipe.geometry, proposals)
    if targets is None:
        return _Made(own, None, [], given)
    truth = move(record, recipe.geometry, targets, keypoints)
    partner = _partner(one)
    if partner is None:
        return _Made(own, truth, [], given)
    other, other_recipe = partner
    try:
        other_pixels = decode(other["image"])
    except ImageError as error:
        return _Made(own, truth, [(other["sample_id"], str(error))])
    size = _size(one)
    laid = torch.zeros(*size, 3, dtype=torch.uint8)
    resize_into(laid, other_pixels, other_recipe.geometry, other_recipe.colour)
    other_truth = move(other, other_recipe.geometry, targets, keypoints)
    assert recipe.paste_seed is not None
    covered, truth = paste(
        (record, recipe.geometry, truth),
        (other, other_recipe.geometry, other_truth),
        choose(other_truth, recipe.paste_seed),
        size,
        targets,
    )
    _lay(slot.numpy(), laid.numpy(), covered)
    return _Made(size, truth, [])


def _lay(below: np.ndarray, above: np.ndarray, where: np.ndarray) -> None:
    """Copy the pixels of `above` [h, w, 3] that `where` [h, w] has set into the corner of `below` [H, W, 3]."""
    height, width = where.shape
    stride = width + 1  # a column that is not set ends the runs of each row
    flat = np.zeros(height * stride + 1, np.bool_)
    flat[1:].reshape(height, stride)[:, :width] = where
    changes = np.flatnonzero(flat[1:] != flat[:-1]).tolist()
    for start, end in zip(changes[::2], changes[1::2], strict=True):
        row, column = divmod(start, stride)
        end -= row * stride
        below[row, column:end] = above[row, column:end]


def _assemble(
    images: Tensor,
    work: Sequence[Work],
    made: Sequence[_Made],
    targets: MaskTarget | None,
    keypoints: Sequence[int] | None,
    on_bad: OnBad,
    proposals: int | None,
) -> Batch:
    for one in made:
        for sample_id, reason in one.bad:
            on_bad(sample_id, reason)
    truth = None
    if targets is not None:
        frame = (CROP_SIZE, CROP_SIZE) if targets == "crop" else (images.shape[1], images.shape[2])
        truth = _stack([one.truth for one in made], frame, None if keypoints is None else len(keypoints))
    return Batch(
        images,
        torch.tensor([one.size for one in made]),
        torch.tensor([(one.record["height"], one.record["width"]) for one in work]),
        torch.tensor([one.record["sample_id"] for one in work]),
        truth,
        None if proposals is None else _stack_proposals([one.proposals for one in made], proposals),
    )


def _stack_proposals(given: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]] | None], most: int) -> Proposals:
    """Pad the proposals of B images (None: withdrawn) to the same number of slots, `most` at most."""
    longest = max(1, *(0 if one is None else len(one[1]) for one in given))
    slots = min(most, -(-longest // PROPOSAL_STEP) * PROPOSAL_STEP)
    boxes = np.zeros((len(given), slots, 4), np.float32)
    scores = np.zeros((len(given), slots), np.float32)
    real = np.zeros((len(given), slots), bool)
    for image, one in enumerate(given):
        if one is not None:
            count = len(one[1])
            boxes[image, :count], scores[image, :count], real[image, :count] = one[0], one[1], True
    return Proposals(torch.from_numpy(boxes), torch.from_numpy(scores), torch.from_numpy(real))


def _stack(truths: Sequence[GroundTruth | None], frame: tuple[int, int], joints: int | None) -> Targets:
    """Pad the instances of B images (None: withdrawn) to the same number of slots, their masks to `frame`."""
    slots = -(-max(1, *(0 if t is None else len(t.classes) for t in truths)) // SLOT_STEP) * SLOT_STEP
    boxes = np.zeros((len(truths), slots, 4), np.float32)
    classes = np.zeros((len(truths), slots), np.int64)
    valid = np.zeros((len(truths), slots), bool)
    masks = np.zeros((len(truths), slots, *frame), np.uint8)
    keypoints = None if joints is None else np.zeros((len(truths), slots, joints, 3), np.float32)
    for image, truth in enumerate(truths):
        if truth is None:
            continue
        count = len(truth.classes)
        boxes[image, :count] = truth.boxes
        classes[image, :count] = truth.classes
        valid[image, :count] = True
        masks[image, :count, : truth.masks.shape[1], : truth.masks.shape[2]] = truth.masks
        if keypoints is not None:
            keypoints[image, :count] = truth.keypoints
    return Targets(
        torch.from_numpy(boxes),
        torch.from_numpy(classes),
        torch.from_numpy(valid),
        torch.from_numpy(masks),
        None if keypoints is None else torch.from_numpy(keypoints),
    )
