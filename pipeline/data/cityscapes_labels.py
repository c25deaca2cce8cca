"""Cityscapes' labels, and its polygons -> the image of instance ids, pixel for pixel as cityscapesscripts draws it.

An instance id is `1000 * label id + number` for one object, the label id alone for a group of objects and for all that
has no instances (cityscapesscripts' preparation/json2instanceImg.py).
"""

import json
import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

INSTANCES_A_LABEL = 1000  # instance ids have room for so many


class Label(NamedTuple):
    """One row of cityscapesscripts' helpers/labels.py."""

    name: str
    id: int  # -1 is never drawn
    train_id: int | None  # None: not scored, and not trained on
    category: str
    has_instances: bool
    colour: tuple[int, int, int]


LABELS = (
    Label("unlabeled", 0, None, "void", False, (0, 0, 0)),
    Label("ego vehicle", 1, None, "void", False, (0, 0, 0)),
    Label("rectification border", 2, None, "void", False, (0, 0, 0)),
    Label("out of roi", 3, None, "void", False, (0, 0, 0)),
    Label("static", 4, None, "void", False, (0, 0, 0)),
    Label("dynamic", 5, None, "void", False, (111, 74, 0)),
    Label("ground", 6, None, "void", False, (81, 0, 81)),
    Label("road", 7, 0, "flat", False, (128, 64, 128)),
    Label("sidewalk", 8, 1, "flat", False, (244, 35, 232)),
    Label("parking", 9, None, "flat", False, (250, 170, 160)),
    Label("rail track", 10, None, "flat", False, (230, 150, 140)),
    Label("building", 11, 2, "construction", False, (70, 70, 70)),
    Label("wall", 12, 3, "construction", False, (102, 102, 156)),
    Label("fence", 13, 4, "construction", False, (190, 153, 153)),
    Label("guard rail", 14, None, "construction", False, (180, 165, 180)),
    Label("bridge", 15, None, "construction", False, (150, 100, 100)),
    Label("tunnel", 16, None, "construction", False, (150, 120, 90)),
    Label("pole", 17, 5, "object", False, (153, 153, 153)),
    Label("polegroup", 18, None, "object", False, (153, 153, 153)),
    Label("traffic light", 19, 6, "object", False, (250, 170, 30)),
    Label("traffic sign", 20, 7, "object", False, (220, 220, 0)),
    Label("vegetation", 21, 8, "nature", False, (107, 142, 35)),
    Label("terrain", 22, 9, "nature", False, (152, 251, 152)),
    Label("sky", 23, 10, "sky", False, (70, 130, 180)),
    Label("person", 24, 11, "human", True, (220, 20, 60)),
    Label("rider", 25, 12, "human", True, (255, 0, 0)),
    Label("car", 26, 13, "vehicle", True, (0, 0, 142)),
    Label("truck", 27, 14, "vehicle", True, (0, 0, 70)),
    Label("bus", 28, 15, "vehicle", True, (0, 60, 100)),
    Label("caravan", 29, None, "vehicle", True, (0, 0, 90)),
    Label("trailer", 30, None, "vehicle", True, (0, 0, 110)),
    Label("train", 31, 16, "vehicle", True, (0, 80, 100)),
    Label("motorcycle", 32, 17, "vehicle", True, (0, 0, 230)),
    Label("bicycle", 33, 18, "vehicle", True, (119, 11, 32)),
    Label("license plate", -1, None, "vehicle", False, (0, 0, 142)),
)
BY_NAME = {label.name: label for label in LABELS}
LABEL_IDS = frozenset(label.id for label in LABELS if label.id >= 0)

# What is scored (labels with instances that are not ignored in evaluation), in the order of their ids.
CLASS_NAMES = ("person", "rider", "car", "truck", "bus", "train", "motorcycle", "bicycle")
CATEGORY_IDS = tuple(BY_NAME[name].id for name in CLASS_NAMES)


def label_ids(instance_ids: NDArray[np.uint16]) -> NDArray[np.uint8]:
    """Instance ids [H, W] -> label ids, of any shape; ids of labels above 65 do not occur in 16 bits."""
    labels: NDArray[np.uint8] = _LABEL_OF[instance_ids]
    return labels


_LABEL_OF = np.minimum(np.where(np.arange(65536) < 1000, np.arange(65536), np.arange(65536) // 1000), 255).astype("u1")


def draw_instances(polygons: bytes, height: int, width: int) -> NDArray[np.uint16]:
    """A *_polygons.json as instance ids [height, width]. Raises ValueError, also where the JSON has another size."""
    try:
        content = json.loads(polygons)
    except ValueError as error:  # json.JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"not valid JSON: {error}") from error
    objects = content.get("objects") if isinstance(content, dict) else None
    if not isinstance(objects, list):
        raise ValueError(f"no list 'objects' in {_short(content)}")
    size = content.get("imgHeight"), content.get("imgWidth")
    if size != (height, width):
        raise ValueError(f"imgHeight x imgWidth is {size[0]!r} x {size[1]!r}, the picture is {height} x {width}")
    canvas = Canvas(height, width)
    for thing in objects:
        if not isinstance(thing, dict):
            raise ValueError(f"an object must be a dict, got {_short(thing)}")
        if not thing.get("deleted"):
            canvas.draw(thing.get("label"), thing.get("polygon"))
    return canvas.instance_ids()


class Canvas:
    """An image of instance ids that polygons are drawn on, from back to front."""

    def __init__(self, height: int, width: int) -> None:
        self.image = Image.new("I", (width, height), 0)  # unlabeled
        self._draw = ImageDraw.Draw(self.image)
        self._counts: dict[str, int] = {}  # instances drawn so far, by label

    def draw(self, name: object, polygon: object) -> int | None:
        """Draw one object, a list of [x, y]; returns its id, None where nothing is drawn. Raises ValueError."""
        if not isinstance(name, str):
            raise ValueError(f"an object's label must be a string, got {_short(name)}")
        group = name not in BY_NAME and name.endswith("group")
        label = BY_NAME.get(name.removesuffix("group") if group else name)
        if label is None:
            raise ValueError(f"label {name!r} is not one of Cityscapes'")
        points = _points(polygon, name, 10 * max(self.image.size))
        number = label.id
        if label.has_instances and not group:
            count = self._counts.get(label.name, 0)
            if count == INSTANCES_A_LABEL:
                raise ValueError(f"more than {count} objects of label {name!r}; their ids would be the next label's")
            self._counts[label.name] = count + 1
            number = label.id * INSTANCES_A_LABEL + count
        if number < 0:
            return None
        self._draw.polygon(points, fill=number)
        return number

    def instance_ids(self) -> NDArray[np.uint16]:
        """What was drawn: uint16 [H, W]."""
        return np.asarray(self.image).astype(np.uint16)


def _points(polygon: object, name: str, reach: float) -> list[tuple[float, float]]:
    """The corners as Pillow takes them: at least two, finite and near the image."""
    if not isinstance(polygon, list) or len(polygon) < 2:
        raise ValueError(f"the polygon of a {name} needs at least 2 points, got {_short(polygon)}")
    for point in polygon:
        if not isinstance(point, list) or len(point) < 2 or not all(_is_number(v, reach) for v in point[:2]):
            raise ValueError(f"a point of a {name} must be [x, y], finite and near the image, got {_short(point)}")
    return [(point[0], point[1]) for point in polygon]


def _is_number(value: Any, reach: float) -> bool:
    return (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and abs(value) <= reach
    )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
