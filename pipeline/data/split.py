"""Which images are held out: a function of their names, so that an image stays where it is when others come or go."""

import hashlib
from collections.abc import Collection, Mapping

from pipeline.data.quarantine import DataError


def hold_out(classes: Mapping[str, Collection[int]], share: float) -> frozenset[str]:
    """Names of the images to evaluate on.

    An image is held out where the hash of its name says so. Then, as little as will do is changed
    for both sides to be of use: the only image of a class trains; either side has an image with an
    annotation; and, rarest classes first, a class of several images gets one on either side, where that takes no other
    class its last one.

    Args:
        classes: file name of an image -> the classes that are in it.
        share: of the images, above 0 and below 1.

    Raises:
        DataError: there are fewer than two images with annotations.
    """
    order = sorted(classes, key=_place)  # first are held out
    filled = [image for image in order if classes[image]]
    if len(filled) < 2:
        raise DataError(
            f"{len(filled)} images with annotations cannot be split into some to train on and some to evaluate on; "
            "give --val-annotations, or annotate more images"
        )
    images_of: dict[int, list[str]] = {}
    for image in filled:
        for number in set(classes[image]):
            images_of.setdefault(number, []).append(image)
    only = {images[0] for images in images_of.values() if len(images) == 1}
    held = {image: _place(image) < share and image not in only for image in order}
    if not any(held[image] for image in filled):
        held[next((image for image in filled if image not in only), filled[0])] = True
    if all(held[image] for image in filled):
        held[filled[-1]] = False
    for number in sorted(images_of, key=lambda one: (len(images_of[one]), one)):
        own = images_of[number]
        for wanted in (True, False):
            if len(own) < 2 or any(held[image] == wanted for image in own):
                continue
            for image in own if wanted else reversed(own):
                if _can_leave(image, held, classes, images_of):
                    held[image] = wanted
                    break
    return frozenset(image for image, out in held.items() if out)


def _can_leave(
    image: str, held: Mapping[str, bool], classes: Mapping[str, Collection[int]], images_of: Mapping[int, list[str]]
) -> bool:
    """Whether each class of an image has another image on its side."""
    return all(any(other != image and held[other] == held[image] for other in images_of[n]) for n in classes[image])


def _place(image: str) -> float:
    """In [0, 1), the same everywhere and always."""
    return int.from_bytes(hashlib.sha256(image.encode()).digest()[:7], "big") / 2**56
