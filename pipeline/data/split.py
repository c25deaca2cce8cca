"""Which images are held out: a function of their ids, so that an image stays where it is when others come or go."""

import hashlib
from collections.abc import Collection, Mapping

from pipeline.data.quarantine import DataError


def hold_out(classes: Mapping[int, Collection[int]], share: float) -> frozenset[int]:
    """Ids of the images to evaluate on.

    An image is held out where the hash of its id says so. Then, rarest classes first, a class of two or more images
    gets one on either side, where that takes no other class its last one.

    Args:
        classes: image id -> the classes that are in it.
        share: of the images, above 0 and below 1.

    Raises:
        DataError: there are fewer than two images.
    """
    if len(classes) < 2:
        raise DataError(
            f"{len(classes)} images cannot be split into some to train on and some to evaluate on; "
            "give --val-annotations, or more images"
        )
    order = sorted(classes, key=_place)  # first are held out
    sides = {image: _place(image) < share for image in order}  # True: held out
    if not any(sides.values()):
        sides[order[0]] = True
    if all(sides.values()):
        sides[order[-1]] = False
    images_of: dict[int, list[int]] = {}
    for image in order:
        for number in set(classes[image]):
            images_of.setdefault(number, []).append(image)
    for number in sorted(images_of, key=lambda one: (len(images_of[one]), one)):
        own = images_of[number]
        for wanted in (True, False):
            if len(own) < 2 or any(sides[image] == wanted for image in own):
                continue
            for image in own if wanted else reversed(own):
                if _can_leave(image, sides, classes, images_of):
                    sides[image] = wanted
                    break
    return frozenset(image for image, held in sides.items() if held)


def _can_leave(
    image: int, sides: Mapping[int, bool], classes: Mapping[int, Collection[int]], images_of: Mapping[int, list[int]]
) -> bool:
    """Whether each class of an image has another image on its side, and that side another image at all."""
    here = sides[image]
    if not any(other != image and side == here for other, side in sides.items()):
        return False
    return all(any(other != image and sides[other] == here for other in images_of[n]) for n in classes[image])


def _place(image: int) -> float:
    """In [0, 1), the same everywhere and always."""
    return int.from_bytes(hashlib.sha256(str(image).encode()).digest()[:7], "big") / 2**56
