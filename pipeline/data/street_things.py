"""Who and what stands on a generated street, and where: people, two-wheelers, vehicles, trees and poles, projected.

Everything stands on the ground at its true size, so that size and height in the picture tell the distance.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data import street_figures, street_vehicles
from pipeline.data.street_figures import Colour, Part, Points
from pipeline.data.street_layout import Camera, Layout


class Thing(NamedTuple):
    """Something that stands on the ground, projected."""

    label: str
    depth: float  # metres
    parts: list[Part]  # points in pixels of the picture, x to the right, y down
    shadow: Points  # where it darkens the ground; empty if nowhere
    plates: list[Points]


def populate(rng: np.random.Generator, camera: Camera, layout: Layout) -> list[Thing]:
    """People and vehicles, each on ground that no other takes."""
    ground = _Ground(rng, camera)
    if layout.crossing is not None:
        _fill_crossing(rng, ground, layout.crossing, layout.rails)
    for x, heading, first, more in ((0.0, _AHEAD, 11, 0.65), (-3.4, -_AHEAD, 9, 0.7)):  # our lane, the oncoming one
        z = rng.uniform(first, 30)
        while z < 90 and rng.random() < more:
            ground.drive(x + rng.uniform(-0.3, 0.3), z, heading + rng.uniform(-0.03, 0.03))
            z += rng.uniform(10, 30)
    for side, edge in ((-1, layout.left), (1, layout.right)):
        _fill_kerb(rng, ground, layout, side, edge)
    if rng.random() < 0.15:
        ground.things.append(_jam(rng, camera))
    for _ in range(rng.integers(0, 3)):
        x = rng.choice([layout.right - 2.9, layout.left + 2.9]) + rng.uniform(-0.4, 0.4)
        ground.stand(_ridden(rng, rng.random() < 0.45, rng.random() < 0.2), x, _far(rng, 7, 35), 0.5)
    return ground.things


_AHEAD, _ACROSS = np.pi / 2, 0.0  # headings: away from the camera, to the right


class _Ground:
    """The ground that is taken, and by what."""

    def __init__(self, rng: np.random.Generator, camera: Camera) -> None:
        self.rng, self.camera = rng, camera
        self.things: list[Thing] = []
        self._taken: list[tuple[float, float, float, float]] = []  # x, z, half sizes

    def drive(self, x: float, z: float, heading: float, kind: str | None = None) -> None:
        """A vehicle, of any kind but trains, if there is room."""
        make = _VEHICLES[kind or str(self.rng.choice(list(_VEHICLES), p=(0.77, 0.1, 0.1, 0.0, 0.03)))]
        vehicle = make(self.rng)
        half_x, half_z = vehicle.length / 2, vehicle.width / 2
        if abs(np.sin(heading)) > 0.5:
            half_x, half_z = half_z, half_x
        if z - half_z > 5.5 and self._take(x, z, half_x + 0.2, half_z + 0.4):
            self.things.append(_vehicle(self.camera, vehicle, x, z, heading))

    def stand(self, figures: Sequence[tuple[str, list[Part]]], x: float, z: float, half: float) -> None:
        """Figures at one place, the later ones in front, if there is room; `half` is half the width, metres."""
        if z > 5 and self._take(x, z, half, 0.5):
            for number, (label, parts) in enumerate(figures):
                self.things.append(_flat(self.camera, label, parts, x, z - 0.01 * number))

    def _take(self, x: float, z: float, half_x: float, half_z: float) -> bool:
        if any(abs(x - a) < half_x + c and abs(z - b) < half_z + d for a, b, c, d in self._taken):
            return False
        self._taken.append((x, z, half_x, half_z))
        return True


def _fill_crossing(rng: np.random.Generator, ground: _Ground, crossing: tuple[float, float], rails: bool) -> None:
    """A train or vehicles from the side, riders before them, people on the stripes."""
    near, far = crossing
    middle = (near + far) / 2
    if rails and rng.random() < 0.85:
        ground.drive(rng.uniform(-10, 10), middle, rng.choice([_ACROSS, np.pi]), "train")
    for z, heading in ((middle - 2.2, _ACROSS), (middle + 2.2, np.pi)):
        for _ in range(0 if rails else rng.integers(0, 3)):
            ground.drive(rng.uniform(-0.6, 0.6) * z, z, heading + rng.uniform(-0.04, 0.04))
    for _ in range(rng.integers(0, 3)):
        x, z = rng.uniform(-0.4, 0.4) * near, near + rng.uniform(0.5, 1.2)
        ground.stand(_ridden(rng, rng.random() < 0.4, True), x, z, 1.0)
    for _ in range(rng.integers(0, 5)):
        x, z = rng.uniform(-0.4, 0.4) * near, near - rng.uniform(0.4, 2)
        ground.stand([("person", street_figures.person(rng))], x, z, 0.4)


def _fill_kerb(rng: np.random.Generator, ground: _Ground, layout: Layout, side: int, edge: float) -> None:
    """Parked vehicles on one side of the road, and people, two-wheelers and groups on its pavement."""
    for z in np.arange(rng.uniform(8, 12), 60, 6.3) if rng.random() < 0.65 else ():
        if rng.random() < 0.6 and not layout.in_crossing(z, 4):
            ground.drive(edge - side * 1.1, z, side * _AHEAD, "car" if rng.random() < 0.85 else None)
    for _ in range(rng.integers(0, 7)):
        x, z = edge + side * rng.uniform(0.6, 3.0), _far(rng, 6, 45)
        ground.stand([("person", street_figures.person(rng))], x, z, 0.35)
    for _ in range(rng.integers(0, 3)):
        x, z = edge + side * rng.uniform(0.4, 3.2), _far(rng, 6, 25)
        bicycle = rng.random() < 0.6
        machine, _ = street_figures.bicycle(rng) if bicycle else street_figures.motorcycle(rng)
        ground.stand([("bicycle" if bicycle else "motorcycle", machine)], x, z, 0.9)
    if rng.random() < 0.18:
        ground.stand([_group(rng)], edge + side * rng.uniform(1, 3), rng.uniform(12, 40), 1.6)


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


def furniture(rng: np.random.Generator, camera: Camera, layout: Layout) -> list[Thing]:
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


def _times(colour: Colour, share: float) -> Colour:
    r, g, b = (min(255, int(v * share)) for v in colour)
    return r, g, b
