"""One generated street as a car's camera sees it, with the polygons that Cityscapes' annotators would have drawn.

A pinhole camera stands on a road (street_layout.py) with people and vehicles on it (street_things.py), of which
nearer ones cover farther ones. What lies behind an open wheel is drawn over it as a polygon of its own, as the
annotators do for holes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from pipeline.data import scenes
from pipeline.data.cityscapes_labels import LABELS, Canvas, label_ids
from pipeline.data.outline import Polygon, fill, outlines, whole_pixels
from pipeline.data.street_figures import Colour, Part, Points
from pipeline.data.street_layout import Camera, Surface, lay_out
from pipeline.data.street_things import Thing, furniture, populate

EMPTY_SHARE = 0.04  # of pictures: no object at all
MIN_VISIBLE_SHARE, MIN_VISIBLE_PX = 0.2, 24  # of an object; one less visible is taken out of the street
_FINE = 2  # pixels of the drawing a side, per pixel of the picture
_HAZE_METRES = 160.0


@dataclass(frozen=True)
class Street:
    """One picture with its annotation."""

    pixels: NDArray[np.uint8]  # [H, W, 3]
    objects: tuple[dict[str, Any], ...]  # label and polygon, from back to front, as in *_polygons.json
    instance_ids: NDArray[np.uint16]  # [H, W], what these polygons give


class _Layer(NamedTuple):
    """A thing, drawn."""

    thing: Thing
    x: int  # of its upper left corner, pixels of the picture
    y: int
    fine: Image.Image  # RGBA, _FINE times the picture's resolution
    mask: NDArray[np.bool_]  # [h, w] pixels of the picture of which it covers half
    outline: Polygon  # of the largest connected part, in pixels of the picture
    inside: NDArray[np.bool_]  # [h, w] what that outline holds


def render(rng: np.random.Generator, height_px: int) -> Street:
    """One street, twice as wide as high, from nothing but its arguments."""
    height, width = height_px, 2 * height_px
    camera = Camera.random(rng, height, width)
    layout = lay_out(rng, camera)
    things = [] if rng.random() < EMPTY_SHARE else populate(rng, camera, layout)
    things += furniture(rng, camera, layout)
    hood = _hood(rng, height, width)
    hidden = fill(whole_pixels(hood.outline, height, width), height, width)
    drawn = [_draw(thing, height, width) for thing in sorted(things, key=lambda thing: -thing.depth)]
    layers = _visible(drawn, hidden)
    canvas = Image.new("RGB", (width * _FINE, height * _FINE))
    annotation = _Annotation(height, width)
    for surface in layout.surfaces:
        _paint_surface(canvas, surface)
        annotation.add_surface(surface.label, surface.outline)
    _texture(rng, canvas, annotation)
    for layer in layers:
        _paint_shadow(canvas, layer.thing.shadow)
        _paint_layer(rng, canvas, layer, layout.haze)
        annotation.add_layer(layer)
    _paint_surface(canvas, hood)
    annotation.add_surface(hood.label, hood.outline)
    small = canvas.resize((width, height), Image.Resampling.BOX)
    pixels = scenes.photograph(rng, np.asarray(small, dtype=np.float32), grain=(1, 4), blur=(0, 0.5 + height / 2048))
    return Street(pixels, tuple(annotation.objects), annotation.canvas.instance_ids())


class _Annotation:
    """The polygons so far, and what they give."""

    def __init__(self, height: int, width: int) -> None:
        self.canvas = Canvas(height, width)
        self.size = height, width
        self.objects: list[dict[str, Any]] = []

    def add(self, label: str, polygon: Polygon) -> None:
        self.canvas.draw(label, polygon)
        self.objects.append({"label": label, "polygon": polygon})

    def add_surface(self, label: str, outline: Points) -> None:
        """What of it lies in the picture, as the annotators' tool has it."""
        polygon = whole_pixels(outline, *self.size)
        if polygon:
            self.add(label, polygon)

    def add_layer(self, layer: _Layer) -> None:
        """A thing, and through its holes the ground or wall behind; what else is behind stays hidden by it."""
        h, w = layer.mask.shape
        holes = layer.inside & ~layer.mask
        behind = np.asarray(self.canvas.image.crop((layer.x, layer.y, layer.x + w, layer.y + h)))
        self.add(layer.thing.label, layer.outline)
        for label in np.unique(behind[holes]).tolist():
            if label < 24:  # neither an object nor a group of objects
                for polygon, inside in outlines(holes & (behind == label)):
                    if inside.sum() >= 4:
                        self.add(LABELS[label].name, [[x + layer.x, y + layer.y] for x, y in polygon])
        for plate in layer.thing.plates:
            self.add_surface("license plate", plate)


def _draw(thing: Thing, height: int, width: int) -> _Layer | None:
    """Draw a thing on a layer of its own; None where nothing of it lies in the picture."""
    points = np.concatenate([part.points for part in thing.parts])
    x0, y0 = (int(v) - 1 for v in np.floor(points.min(axis=0)))
    x1, y1 = (int(v) + 2 for v in np.ceil(points.max(axis=0)))
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if x1 <= x0 or y1 <= y0:
        return None
    fine = Image.new("RGBA", ((x1 - x0) * _FINE, (y1 - y0) * _FINE))
    draw = ImageDraw.Draw(fine)
    for part in thing.parts:
        _fill(draw, part.points - (x0, y0), (0, 0, 0, 0) if part.colour is None else (*part.colour, 255))
    mask = np.asarray(fine.getchannel("A").reduce(_FINE)) >= 128
    parts = list(outlines(mask))
    if not parts:
        return None
    polygon, inside = max(parts, key=lambda part: part[1].sum())
    return _Layer(thing, x0, y0, fine, mask & inside, [[x + x0, y + y0] for x, y in polygon], inside)


def _visible(layers: Sequence[_Layer | None], taken: NDArray[np.bool_]) -> list[_Layer]:
    """Of layers from back to front, those of which enough can be seen; `taken` [H, W] is what is nearer than all."""
    taken = taken.copy()
    kept: list[_Layer] = []
    for layer in reversed([layer for layer in layers if layer is not None]):
        h, w = layer.mask.shape
        place = taken[layer.y : layer.y + h, layer.x : layer.x + w]
        shown = int((layer.mask & ~place).sum())
        if shown >= max(MIN_VISIBLE_PX, MIN_VISIBLE_SHARE * layer.mask.sum()):
            place |= layer.inside
            kept.append(layer)
    return kept[::-1]


def _paint_surface(canvas: Image.Image, surface: Surface) -> None:
    draw = ImageDraw.Draw(canvas)
    _fill(draw, surface.outline, surface.colour)
    for part in surface.details:
        if part.colour is not None:
            _fill(draw, part.points, part.colour)


def _paint_shadow(canvas: Image.Image, shadow: Points) -> None:
    """Darken the ground under a thing, softly."""
    if not len(shadow):
        return
    soft = max(1.0, _FINE * float(np.ptp(shadow[:, 1])) / 8)
    pad = int(3 * soft) + 2
    x0, y0 = (int(v) * _FINE - pad for v in np.floor(shadow.min(axis=0)))
    x1, y1 = (int(v) * _FINE + pad for v in np.ceil(shadow.max(axis=0)))
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, canvas.width), min(y1, canvas.height)
    if x1 <= x0 or y1 <= y0:
        return
    mask = Image.new("L", (x1 - x0, y1 - y0))
    ImageDraw.Draw(mask).polygon([(x * _FINE - x0, y * _FINE - y0) for x, y in shadow.tolist()], fill=130)
    canvas.paste((22, 22, 26), (x0, y0, x1, y1), mask.filter(ImageFilter.BoxBlur(soft)))


def _paint_layer(rng: np.random.Generator, canvas: Image.Image, layer: _Layer, haze: Colour) -> None:
    """Put a drawn thing on the canvas: uneven, lit from one side, paler with its distance."""
    colours = np.asarray(layer.fine.convert("RGB"), dtype=np.float32)
    h, w = colours.shape[:2]
    colours = colours * (1 + np.float32(rng.uniform(0.04, 0.16)) * scenes.noise(rng, h, w, rng.uniform(4, 12)))
    colours *= np.linspace(1.08, 0.88, h, dtype=np.float32)[:, None, None]
    far = np.float32(1 - np.exp(-layer.thing.depth / _HAZE_METRES))
    colours += far * (np.array(haze, dtype=np.float32) - colours)
    painted = Image.fromarray(np.clip(colours, 0, 255).astype(np.uint8))
    canvas.paste(painted, (layer.x * _FINE, layer.y * _FINE), layer.fine.getchannel("A"))


_ROUGHNESS = {"sky": 0.035, "road": 0.1, "sidewalk": 0.12, "building": 0.09, "vegetation": 0.3, "terrain": 0.3}


def _texture(rng: np.random.Generator, canvas: Image.Image, annotation: _Annotation) -> None:
    """Make the surfaces uneven, each label in its own strength, in place."""
    rough = np.full(256, 0.08, dtype=np.float32)
    for label in LABELS:
        if label.id >= 0 and label.name in _ROUGHNESS:
            rough[label.id] = _ROUGHNESS[label.name]
    height, width = canvas.height // _FINE, canvas.width // _FINE
    amount = rough[label_ids(annotation.canvas.instance_ids())][..., None]
    grain = sum(scenes.noise(rng, height, width, width / cells) / n for n, cells in ((1, 3), (1.3, 9), (1.3, 60)))
    factor = np.repeat(np.repeat(1 + amount * grain, _FINE, axis=0), _FINE, axis=1)
    canvas.paste(Image.fromarray(np.clip(np.asarray(canvas) * factor, 0, 255).astype(np.uint8)))


def _hood(rng: np.random.Generator, height: int, width: int) -> Surface:
    """The front of the car that carries the camera."""
    x = np.linspace(-1, 1, 25)
    across, top = (x + 1) / 2 * (width + 2) - 1, height * (rng.uniform(0.91, 0.95) + 0.05 * np.abs(x) ** 2.5)
    arc, low, lower = (np.column_stack((across, top + share * height)) for share in (0, 0.012, 0.02))
    outline = np.concatenate((arc, [(width + 1, height + 1), (-1, height + 1)]))
    shine = np.concatenate((low, lower[::-1]))
    return Surface("ego vehicle", outline, (30, 32, 36), [Part(shine, (74, 78, 84))])


def _fill(draw: ImageDraw.ImageDraw, points: Points, colour: tuple[int, ...]) -> None:
    draw.polygon([(round(x), round(y)) for x, y in (points * _FINE - 0.5).tolist()], fill=colour)
