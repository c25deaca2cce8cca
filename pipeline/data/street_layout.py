"""The place of a generated street: camera, sky, houses, road, kerbs, perhaps a crossing with rails.

The world is in metres: x to the right of the camera, y up from the ground, z ahead.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.street_figures import Colour, Part, Points

_END = 130.0  # metres; where the houses end


class Camera(NamedTuple):
    """A pinhole, looking along the road."""

    focal: float  # pixels
    x: float  # of the vanishing point, pixels
    horizon: float  # y of it
    height: float  # metres above the ground
    picture: tuple[int, int]  # height, width, pixels

    @staticmethod
    def random(rng: np.random.Generator, height: int, width: int) -> "Camera":
        """About the field of view of Cityscapes' camera (2262 pixels of 2048)."""
        focal, x, horizon = rng.uniform(1.0, 1.15) * width, rng.uniform(0.42, 0.58) * width, rng.uniform(0.4, 0.48)
        return Camera(focal, x, horizon * height, rng.uniform(1.35, 1.7), (height, width))

    def project(self, points: NDArray[np.float64]) -> Points:
        """World [N, 3] -> pixels [N, 2]; what is nearer than 1 m is moved there."""
        scale = self.focal / np.maximum(points[:, 2], 1.0)
        return np.stack((self.x + points[:, 0] * scale, self.horizon + (self.height - points[:, 1]) * scale), axis=1)

    def quad(self, corners: list[tuple[float, float, float]]) -> Points:
        """World corners as pixels."""
        return self.project(np.array(corners, dtype=np.float64))

    @property
    def near(self) -> float:
        """Distance of the ground at the picture's lower edge, metres."""
        return self.focal * self.height / (self.picture[0] - self.horizon)


class Surface(NamedTuple):
    """Something flat of one label, and what is painted on it; all in pixels of the picture."""

    label: str
    outline: Points
    colour: Colour
    details: list[Part]


class Layout(NamedTuple):
    """Where things can stand."""

    surfaces: list[Surface]  # from back to front
    left: float  # x of the kerbs
    right: float
    crossing: tuple[float, float] | None  # z of a road that crosses
    rails: bool  # along that road
    haze: Colour

    def in_crossing(self, z: float, margin: float) -> bool:
        """Whether z lies on the crossing road."""
        return self.crossing is not None and self.crossing[0] - margin < z < self.crossing[1] + margin


def lay_out(rng: np.random.Generator, camera: Camera) -> Layout:
    """Draw a place."""
    left, right = -rng.uniform(6.6, 8.2), rng.uniform(3.6, 5.2)
    near = rng.uniform(13, 26)
    crossing = (near, near + rng.uniform(8, 11)) if rng.random() < 0.6 else None
    rails = crossing is not None and rng.random() < 0.45
    grey, dim = rng.uniform(150, 205), rng.uniform(0.85, 1.1)
    haze = _colour(np.array([grey, grey + 4, grey + 10]) * dim)
    surfaces = [_sky(rng, camera, dim), *_end(rng, camera, haze)]
    for side, kerb in ((-1, left), (1, right)):
        surfaces += _houses(rng, camera, side, kerb + side * rng.uniform(3.4, 5.5), crossing, haze)
    surfaces.sort(key=lambda surface: surface.label != "sky")
    return Layout(
        [*surfaces, *_ground(rng, camera, left, right, crossing, rails, dim)], left, right, crossing, rails, haze
    )


def _sky(rng: np.random.Generator, camera: Camera, dim: float) -> Surface:
    height, width = camera.picture
    clear = rng.uniform(0, 1)  # from overcast to blue
    high = (np.array([196.0, 202, 208]) + clear * (np.array([112.0, 158, 218]) - np.array([196.0, 202, 208]))) * dim
    low = np.array([222.0, 226, 228]) * dim
    bands = []
    bottom = camera.horizon + 0.02 * height
    for i in range(24):
        y0, y1 = bottom * i / 24, bottom * (i + 1) / 24
        corners = np.array([(-1, y0), (width, y0), (width, y1 + 1), (-1, y1 + 1)])
        bands.append(Part(corners, _colour(high + (low - high) * i / 23)))
    whole = np.array([(0.5, 0.5), (width - 0.5, 0.5), (width - 0.5, bottom), (0.5, bottom)])
    return Surface("sky", whole, bands[-1].colour or (0, 0, 0), bands)


def _end(rng: np.random.Generator, camera: Camera, haze: Colour) -> list[Surface]:
    """Trees and houses at the end of the road."""
    height, width = camera.picture
    surfaces = []
    for label, colour, low, high, steps in (
        ("building", (150, 142, 136), 0.05, 0.13, 14),
        ("vegetation", (70, 88, 58), 0.01, 0.06, 60),
    ):
        x = np.linspace(0.5, width - 0.5, steps)
        y = camera.horizon - height * rng.uniform(low, high, steps)
        top = (
            np.column_stack((np.repeat(x, 2)[1:], np.repeat(y, 2)[:-1]))
            if label == "building"
            else np.column_stack((x, y))
        )
        foot = camera.horizon + 0.02 * height
        outline = np.concatenate((top, [(width - 0.5, foot), (0.5, foot)]))
        surfaces.append(Surface(label, outline, _mix(colour, haze, 0.5), []))
    return surfaces


_WALLS = ((186, 160, 130), (160, 150, 146), (200, 188, 160), (150, 96, 78), (120, 116, 118), (206, 200, 192),
          (170, 130, 104), (140, 150, 156))  # fmt: skip


def _houses(
    rng: np.random.Generator, camera: Camera, side: int, x: float, crossing: tuple[float, float] | None, haze: Colour
) -> list[Surface]:
    """A row of houses along x, from the far end to the camera, with gaps where trees stand."""
    surfaces: list[list[Surface]] = []
    z = 2.0
    while z < _END:
        depth = rng.uniform(9, 20)
        end = z + depth
        if crossing is not None and z < crossing[1] and end > crossing[0]:
            if crossing[0] - z < 3:
                z = crossing[1] + 1.5
                continue
            end = crossing[0] - 1.5
        gap = rng.random() < 0.12 and z > 6
        tall, wall = rng.uniform(7, 17), _colour(np.array(_WALLS[rng.integers(len(_WALLS))]) + rng.uniform(-16, 16, 3))
        if not gap:
            surfaces.append(_house(rng, camera, side, x + side * rng.uniform(0, 0.6), z, end, tall, wall, haze))
        else:
            surfaces.append([_bushes(rng, camera, side, x, z, end, haze)])
        z = end
    return [surface for house in reversed(surfaces) for surface in house]


def _house(
    rng: np.random.Generator,
    camera: Camera,
    side: int,
    x: float,
    z0: float,
    z1: float,
    tall: float,
    wall: Colour,
    haze: Colour,
) -> list[Surface]:
    """The wall that faces the camera, and the front along the street with its windows."""
    far = 1 - np.exp(-(z0 + z1) / 2 / 150)
    paint = _mix(wall, haze, far)
    shops = _mix(_colour(np.array(wall) * rng.uniform(0.5, 0.8)), haze, far)
    glass = _mix((70, 84, 98) if rng.random() < 0.7 else (150, 170, 186), haze, far)
    front = [(x, 0, z0), (x, tall, z0), (x, tall, z1), (x, 0, z1)]
    details = [Part(camera.quad([(x, 0, z0), (x, 3.1, z0), (x, 3.1, z1), (x, 0, z1)]), shops)]
    roof = _mix((96, 66, 58) if rng.random() < 0.5 else (84, 84, 88), haze, far)
    details.append(Part(camera.quad([(x, tall - 0.7, z0), (x, tall, z0), (x, tall, z1), (x, tall - 0.7, z1)]), roof))
    step, wide, floor = rng.uniform(2.2, 3.2), rng.uniform(0.45, 0.62), rng.uniform(2.8, 3.3)
    if z0 < 70:
        for left in np.arange(z0 + 0.6, z1 - step * 0.7, step):
            right = left + step * wide
            rows = [(0.4, 2.5), *((y + 0.8, y + floor - 0.5) for y in np.arange(3.1, tall - floor, floor))]
            details += [
                Part(camera.quad([(x, a, left), (x, b, left), (x, b, right), (x, a, right)]), glass) for a, b in rows
            ]
    gable = camera.quad([(x, 0, z0), (x, tall, z0), (x + side * 14, tall, z0), (x + side * 14, 0, z0)])
    dark = _colour(np.array(paint) * 0.82)
    return [Surface("building", gable, dark, []), Surface("building", camera.quad(front), paint, details)]


def _bushes(
    rng: np.random.Generator, camera: Camera, side: int, x: float, z0: float, z1: float, haze: Colour
) -> Surface:
    """A piece of greenery between two houses."""
    z = np.linspace(z0, z1, 14)
    tops = np.convolve(rng.uniform(2.0, 6.0, 16), (0.25, 0.5, 0.25), mode="valid")
    points = [(x, float(t), float(d)) for t, d in zip(tops, z, strict=True)]
    outline = camera.quad([(x, 0, z0), *points, (x, 0, z1)])
    return Surface("vegetation", outline, _mix((66, 92, 50), haze, 1 - np.exp(-z0 / 150)), [])


def _ground(
    rng: np.random.Generator,
    camera: Camera,
    left: float,
    right: float,
    crossing: tuple[float, float] | None,
    rails: bool,
    dim: float,
) -> list[Surface]:
    """Pavement everywhere, the road on it, the crossing road, its stripes and rails."""
    height, width = camera.picture
    n, e = camera.near * 0.99, 400.0
    asphalt = _colour(np.array([104.0, 104, 108]) * dim * rng.uniform(0.8, 1.15))
    slabs = _colour(np.array([152.0, 146, 142]) * dim * rng.uniform(0.85, 1.1))
    line = _colour(np.array([222.0, 222, 216]) * dim)
    foot = np.array(
        [(0.5, camera.horizon), (width - 0.5, camera.horizon), (width - 0.5, height - 0.5), (0.5, height - 0.5)]
    )
    seams = [_flat(camera, (x, x + 0.06), (n, 60.0), _colour(np.array(slabs) * 0.88)) for x in
             (left - 1.5, left - 3, right + 1.5, right + 3)]  # fmt: skip
    kerbs = [_flat(camera, (x - 0.12, x + 0.12), (n, 200.0), _colour(np.array(slabs) * 1.15)) for x in (left, right)]
    surfaces = [Surface("sidewalk", foot, slabs, seams + kerbs)]
    dashes = [_flat(camera, (-1.72, -1.58), (z, z + 2.5), line) for z in np.arange(4, 80, 6.0)]
    surfaces.append(
        Surface("road", camera.quad([(left, 0, n), (left, 0, e), (right, 0, e), (right, 0, n)]), asphalt, dashes)
    )
    if crossing is None:
        return surfaces
    a, b = crossing
    stripes = [_flat(camera, (x, x + 0.5), (a - 3.2, a - 0.6), line) for x in np.arange(left + 0.4, right - 0.5, 1.0)]
    wide = 2.2 * b
    outline = camera.quad([(-wide, 0, a), (-wide, 0, b), (wide, 0, b), (wide, 0, a)])
    surfaces.append(Surface("road", _inside(outline, width), asphalt, stripes))
    if rails:
        middle = (a + b) / 2
        bed = camera.quad(
            [(-wide, 0, middle - 1.5), (-wide, 0, middle + 1.5), (wide, 0, middle + 1.5), (wide, 0, middle - 1.5)]
        )
        steel = [_flat(camera, (-wide, wide), (z, z + 0.12), (168, 170, 172)) for z in (middle - 0.75, middle + 0.65)]
        surfaces.append(Surface("rail track", _inside(bed, width), _colour(np.array([110.0, 100, 92]) * dim), steel))
    return surfaces


def _flat(camera: Camera, x: tuple[float, float], z: tuple[float, float], colour: Colour) -> Part:
    """A rectangle on the ground."""
    return Part(camera.quad([(x[0], 0, z[0]), (x[0], 0, z[1]), (x[1], 0, z[1]), (x[1], 0, z[0])]), colour)


def _inside(points: Points, width: int) -> Points:
    return np.column_stack((np.clip(points[:, 0], 0.5, width - 0.5), points[:, 1]))


def _mix(colour: Colour, other: Colour, share: float) -> Colour:
    return _colour(np.array(colour) + share * (np.array(other, dtype=np.float64) - np.array(colour)))


def _colour(values: NDArray[np.float64]) -> Colour:
    r, g, b = (int(v) for v in np.clip(values, 0, 255))
    return r, g, b
