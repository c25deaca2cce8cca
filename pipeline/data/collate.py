"""Records -> Batch: decode, resize, flip, pad. Threads decode ahead of the consumer (the decoders release the GIL).

Legend: B images, G ground-truth slots, C crop side.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import MaskTarget
from model.types import CROP_SIZE, Batch, Targets
from pipeline.data.augment import Geometry
from pipeline.data.images import ImageError, decode
from pipeline.data.records import Record
from pipeline.data.rle import to_mask, unpack_crops

SLOT_STEP = 8  # ground-truth slots come in multiples: few different shapes
Work = tuple[Sequence[Record], Sequence[Geometry]]


def resize_into(slot: Tensor, image: np.ndarray, geometry: Geometry) -> None:
    """Write the resized, perhaps flipped image [h, w, 3] uint8 into the corner of `slot` [H, W, 3] uint8.

    Bilinear with antialias on the HWC view: at most one level from Pillow, and the fastest way to it.
    """
    pixels = torch.from_numpy(image)
    size = (geometry.new_height, geometry.new_width)
    if tuple(pixels.shape[:2]) != size:
        planes = pixels.permute(2, 0, 1)[None]
        pixels = F.interpolate(planes, size=size, mode="bilinear", antialias=True)[0].permute(1, 2, 0)
    slot[: size[0], : size[1]] = pixels.flip(1) if geometry.flip else pixels


def _decode_into(slot: Tensor, record: Record, geometry: Geometry) -> None:
    resize_into(slot, decode(record["image"]), geometry)


def make_targets(
    records: Sequence[Record], geometries: Sequence[Geometry], full_masks: tuple[int, int] | None
) -> Targets:
    """Ground truth without crowds, in pixels of the input.

    Args:
        records: B samples.
        geometries: what happened to each.
        full_masks: None for masks as [B, G, C, C] crops; (H, W) for full-resolution masks [B, G, H, W].
    """
    kept = [[i for i, crowd in enumerate(record["crowd"]) if not crowd] for record in records]
    slots = -(-max(1, *(len(k) for k in kept)) // SLOT_STEP) * SLOT_STEP
    frame = (CROP_SIZE, CROP_SIZE) if full_masks is None else full_masks
    boxes = np.zeros((len(records), slots, 4), np.float32)
    classes = np.zeros((len(records), slots), np.int64)
    valid = np.zeros((len(records), slots), bool)
    masks = np.zeros((len(records), slots, *frame), np.uint8)
    for image, (record, geometry, keep) in enumerate(zip(records, geometries, kept, strict=True)):
        if not keep:
            continue
        x_scale, y_scale = geometry.new_width / geometry.width, geometry.new_height / geometry.height
        own = np.array([record["boxes"][i] for i in keep], np.float32) * np.array([x_scale, y_scale] * 2, np.float32)
        if geometry.flip:
            own[:, [0, 2]] = geometry.new_width - own[:, [2, 0]]
        count = len(keep)
        boxes[image, :count] = own
        classes[image, :count] = [record["classes"][i] for i in keep]
        valid[image, :count] = True
        if full_masks is None:
            crops = unpack_crops([record["crops"][i] for i in keep])
            masks[image, :count] = crops[:, :, ::-1] if geometry.flip else crops
        else:
            for slot, i in enumerate(keep):
                mask = torch.from_numpy(to_mask(record["rles"][i], record["height"], record["width"]))
                size = (geometry.new_height, geometry.new_width)
                scaled = F.interpolate(mask[None, None], size=size, mode="nearest")[0, 0]  # as torchvision
                masks[image, slot, : size[0], : size[1]] = (scaled.flip(1) if geometry.flip else scaled).numpy()
    return Targets(*(torch.from_numpy(a) for a in (boxes, classes, valid, masks)))


class Collator:
    """Makes batches, in order, with `threads` decoding up to `ahead` batches before they are asked for.

    Args:
        threads: decoding threads.
        ahead: batches kept ready.
        divisor: padded sides are multiples of it.
        targets: "crop", "image" (see MaskConfig.target), or None for prediction without ground truth.
        on_bad: told (sample_id, reason) of an image that cannot be decoded although its shard was checked. Its pixels
            stay zero and its ground truth is withdrawn, so that the batch keeps its place in the plan.
    """

    def __init__(
        self, threads: int, ahead: int, divisor: int, targets: MaskTarget | None, on_bad: Callable[[int, str], None]
    ) -> None:
        self.threads, self.ahead, self.divisor, self.targets, self.on_bad = threads, ahead, divisor, targets, on_bad

    def __call__(self, work: Iterable[Work]) -> Iterator[Batch]:
        """Batches of `work`, one for one."""
        ready: deque[tuple[Batch, list[Future[None]]]] = deque()
        with ThreadPoolExecutor(self.threads, thread_name_prefix="decode") as pool:
            try:
                for records, geometries in work:
                    ready.append(self._start(pool, records, geometries))
                    if len(ready) > self.ahead:
                        yield self._finish(*ready.popleft())
                while ready:
                    yield self._finish(*ready.popleft())
            finally:  # the consumer stopped early: do not decode what nobody reads
                for _, futures in ready:
                    for future in futures:
                        future.cancel()

    def _start(
        self, pool: ThreadPoolExecutor, records: Sequence[Record], geometries: Sequence[Geometry]
    ) -> tuple[Batch, list[Future[None]]]:
        height = max(g.new_height for g in geometries)
        width = max(g.new_width for g in geometries)
        height, width = height + -height % self.divisor, width + -width % self.divisor
        images = torch.zeros(len(records), height, width, 3, dtype=torch.uint8)
        futures = [
            pool.submit(_decode_into, images[i], record, geometry)
            for i, (record, geometry) in enumerate(zip(records, geometries, strict=True))
        ]
        targets = None
        if self.targets is not None:
            targets = make_targets(records, geometries, (height, width) if self.targets == "image" else None)
        batch = Batch(
            images,
            torch.tensor([(g.new_height, g.new_width) for g in geometries]),
            torch.tensor([(g.height, g.width) for g in geometries]),
            torch.tensor([record["sample_id"] for record in records]),
            targets,
        )
        return batch, futures

    def _finish(self, batch: Batch, futures: list[Future[None]]) -> Batch:
        for image, future in enumerate(futures):
            try:
                future.result()
            except ImageError as error:
                if batch.targets is not None:
                    batch.targets.valid[image] = False
                self.on_bad(int(batch.sample_ids[image]), str(error))
        return batch
