"""One generated street as a car's camera sees it, with the polygons that Cityscapes' annotators would have drawn.

A pinhole camera stands on a road between houses. People, two-wheelers and vehicles stand on the ground at their true
sizes, so that size and height in the picture tell the distance; nearer ones cover farther ones. What lies behind an
open wheel is drawn over it as a polygon of its own, as the annotators do for holes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from pipeline.data import scenes, street_figures, street_vehicles
from pipeline.data.cityscapes_labels import LABELS, Canvas, label_ids
from pipeline.data.outline import Polygon, fill, outlines, whole_pixels
from pipeline.data.street_figures import Colour, Part, Points
from pipeline.data.street_layout import Camera, Layout, Surface, lay_out

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


class Thing(NamedTuple):
    """Something that stands on the ground, projected."""

    label: str
    depth: float  # metres
    parts: list[Part]  # points in pixels of the picture, x to the right, y down
    shadow: Points  # where it darkens the ground; empty if nowhere
    plates: list[Points]


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
    things = [] if rng.random() < EMPTY_SHARE else _populate(rng, camera, layout)
    things += _furniture(rng, camera, layout)
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


def _populate(rng: np.random.Generator, camera: Camera, layout: Layout) -> list[Thing]:
    """People and vehicles, each on ground that no other takes."""
    taken: list[tuple[float, float, float, float]] = []  # x, z, half sizes
    things: list[Thing] = []

    def free(x: float, z: float, half_x: float, half_z: float) -> bool:
        if any(abs(x - a) < half_x + c and abs(z - b) < half_z + d for a, b, c, d in taken):
            return False
        taken.append((x, z, half_x, half_z))
        return True

    def drive(x: float, z: float, heading: float, kind: str | None = None) -> None:
        make = _VEHICLES[kind or str(rng.choice(list(_VEHICLES), p=(0.77, 0.1, 0.1, 0.0, 0.03)))]
        vehicle = make(rng)
        along = abs(np.sin(heading)) > 0.5
        half_x, half_z = (vehicle.width, vehicle.length) if along else (vehicle.length, vehicle.width)
        if z - half_z / 2 > 5.5 and free(x, z, half_x / 2 + 0.2, half_z / 2 + 0.4):
            things.append(_vehicle(camera, vehicle, x, z, heading))

    def stand(figures: Sequence[tuple[str, list[Part]]], x: float, z: float, half: float) -> None:
        if z > 5 and free(x, z, half, 0.5):
            things.extend(_flat(camera, label, parts, x, z - 0.01 * n) for n, (label, parts) in enumerate(figures))

    up, right = np.pi / 2, 0.0
    if layout.crossing is not None:
        near, far = layout.crossing
        rails, middle = layout.rails, (near + far) / 2
        if rails and rng.random() < 0.85:
            drive(rng.uniform(-10, 10), middle, rng.choice([right, np.pi]), "train")
        for z, heading in ((middle - 2.2, right), (middle + 2.2, np.pi)):
            for _ in range(rng.integers(0, 3)):
                if not rails:
                    drive(rng.uniform(-0.6, 0.6) * z, z, heading + rng.uniform(-0.04, 0.04))
        for _ in range(rng.integers(0, 3)):
            stand(
                _ridden(rng, rng.random() < 0.4, True), rng.uniform(-0.4, 0.4) * near, near + rng.uniform(0.5, 1.2), 1.0
            )
        for _ in range(rng.integers(0, 5)):
            stand(
                [("person", street_figures.person(rng))], rng.uniform(-0.4, 0.4) * near, near - rng.uniform(0.4, 2), 0.4
            )
    z = rng.uniform(11, 30)
    while z < 90 and rng.random() < 0.65:
        drive(rng.uniform(-0.3, 0.3), z, up + rng.uniform(-0.03, 0.03))
        z += rng.uniform(10, 30)
    z = rng.uniform(9, 30)
    while z < 90 and rng.random() < 0.7:
        drive(-3.4 + rng.uniform(-0.3, 0.3), z, -up + rng.uniform(-0.03, 0.03))
        z += rng.uniform(10, 30)
    for side, edge in ((-1, layout.left), (1, layout.right)):
        for z in np.arange(rng.uniform(8, 12), 60, 6.3) if rng.random() < 0.65 else ():
            if rng.random() < 0.6 and not layout.in_crossing(z, 4):
                drive(edge - side * 1.1, z, side * up, "car" if rng.random() < 0.85 else None)
        for _ in range(rng.integers(0, 7)):
            x, z = edge + side * rng.uniform(0.6, 3.0), _far(rng, 6, 45)
            stand([("person", street_figures.person(rng))], x, z, 0.35)
        for _ in range(rng.integers(0, 3)):
            x, z = edge + side * rng.uniform(0.4, 3.2), _far(rng, 6, 25)
            label, make = (
                ("bicycle", street_figures.bicycle) if rng.random() < 0.6 else ("motorcycle", street_figures.motorcycle)
            )
            stand([(label, make(rng)[0])], x, z, 0.9)
        if rng.random() < 0.18:
            x, z = edge + side * rng.uniform(1, 3), rng.uniform(12, 40)
            stand([_group(rng)], x, z, 1.6)
    if rng.random() < 0.15:
        things.append(_jam(rng, camera))
    for _ in range(rng.integers(0, 3)):
        x = rng.choice([layout.right - 2.9, layout.left + 2.9]) + rng.uniform(-0.4, 0.4)
        stand(_ridden(rng, rng.random() < 0.45, rng.random() < 0.2), x, _far(rng, 7, 35), 0.5)
    return things


_VEHICLES = {
    "car": street_vehicles.car,
    "truck": street_vehicles.truck,
    "bus": street_vehicles.bus,
    "train": street_vehicles.train,
    "caravan": street_vehicles.caravan,
}


def _far(rng: np.random.Generator, low: float, high: float) -> float:
    """A distance in metres; near ones are as frequent as a street shows them."""
    return float(np.exp(rng.uniform(np.log(low), np.log(high))))


def _ridden(rng: np.random.Generator, motor: bool, sideways: bool) -> list[tuple[str, list[Part]]]:
    """A two-wheeler, and its rider in front of it."""
    if not sideways:
        machine, rider = street_figures.two_wheeler_ahead(rng, motor)
    else:
        machine, rider = (street_figures.motorcycle if motor else street_figures.bicycle)(rng, rider=True)
    return [("motorcycle" if motor else "bicycle", machine), ("rider", rider)]


def _group(rng: np.random.Generator) -> tuple[str, list[Part]]:
    """Several that nobody could tell apart: one polygon of them all."""
    person = rng.random() < 0.6
    parts: list[Part] = []
    for x in np.linspace(-1.2, 1.2, int(rng.integers(4, 8))):
        one = street_figures.person(rng) if person else street_figures.bicycle(rng)[0]
        aside = np.array([x + rng.uniform(-0.1, 0.1), 0])
        parts += [Part(part.points + aside, part.colour) for part in one]
    return ("persongroup" if person else "bicyclegroup"), parts


def _jam(rng: np.random.Generator, camera: Camera) -> Thing:
    """Cars so far away that they are one group."""
    places = sorted(((z, x) for x in (-3.4, 0.0) for z in np.arange(rng.uniform(92, 100), 125, 7.5)), reverse=True)
    cars = [_vehicle(camera, street_vehicles.car(rng), x + rng.uniform(-0.4, 0.4), z, np.pi / 2) for z, x in places]
    return Thing("cargroup", cars[-1].depth, [part for car in cars for part in car.parts], cars[-1].shadow, [])


def _furniture(rng: np.random.Generator, camera: Camera, layout: Layout) -> list[Thing]:
    """Trees, lamps, signs and lights along the kerb."""
    things = []
    for side, edge in ((-1, layout.left), (1, layout.right)):
        trees = rng.random() < 0.6
        for z in np.arange(rng.uniform(9, 16), 80, rng.uniform(9, 16)):
            if layout.in_crossing(z, 0.5):
                continue
            x = edge + side * rng.uniform(0.5, 1.0)
            if trees and rng.random() < 0.6:
                things.append(_flat(camera, "vegetation", street_figures.tree(rng), x + side * 1.2, z))
            elif rng.random() < 0.5:
                things += [_flat(camera, label, parts, x, z) for label, parts in street_figures.post(rng)]
    return things


def _flat(camera: Camera, label: str, parts: Sequence[Part], x: float, z: float) -> Thing:
    """A flat figure that faces the camera."""

    def place(points: Points) -> Points:
        return camera.project(np.column_stack((points[:, 0] + x, points[:, 1], np.full(len(points), z))))

    low = np.concatenate([part.points for part in parts])
    low = low[low[:, 1] < 0.6][:, 0]
    shadow = np.zeros((0, 2))
    if len(low):
        angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
        half = np.ptp(low) / 2 + 0.1
        ground_x = x + low.min() + half - 0.1 + half * np.cos(angles)
        shadow = camera.project(np.column_stack((ground_x, np.zeros(20), z + 0.25 * np.sin(angles))))
    return Thing(label, z, [Part(place(part.points), part.colour) for part in parts], shadow, [])


def _vehicle(camera: Camera, vehicle: street_vehicles.Vehicle, x: float, z: float, heading: float) -> Thing:
    """A solid, turned and projected; faces that look away are left out, nearer ones come later."""
    cos, sin = np.cos(heading), np.sin(heading)
    turn = np.array([[cos, 0, sin], [0, 1, 0], [sin, 0, -cos]])  # l, y, s -> x, y, z
    eye = np.array([-x, camera.height, -z]) @ turn  # in the vehicle's coordinates (the turn is its own inverse)
    light = np.array([0.35, 0.8, -0.48])
    parts: list[Part] = []
    plates: list[Points] = []

    def place(points: NDArray[np.float64]) -> Points:
        return camera.project(points @ turn.T + (x, 0, z))

    def distance(points: NDArray[np.float64]) -> float:
        return float(np.linalg.norm(points.mean(axis=0) - eye))

    for solid in sorted(vehicle.solids, key=lambda faces: -distance(np.concatenate([f.points for f in faces]))):
        for face in sorted(solid, key=lambda face: -distance(face.points)):
            if (eye - face.points.mean(axis=0)) @ face.normal <= 0:
                continue
            shade = 0.72 + 0.3 * max(0.0, float(turn @ face.normal @ light))
            parts.append(Part(place(face.points), _times(face.colour, shade)))
            for detail in face.details:
                parts.append(Part(place(detail.points), _times(detail.colour, shade)))
                if detail.plate:
                    plates.append(parts[-1].points)
    l, s = vehicle.length / 2 + 0.1, vehicle.width / 2 + 0.15  # noqa: E741
    return Thing(vehicle.label, z, parts, place(np.array([(-l, 0, -s), (l, 0, -s), (l, 0, s), (-l, 0, s)])), plates)


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


def _times(colour: Colour, share: float) -> Colour:
    r, g, b = (min(255, int(v * share)) for v in colour)
    return r, g, b
