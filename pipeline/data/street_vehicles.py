"""Vehicles of a generated street: solids with flat faces, in metres: l along the vehicle, y up, s across.

A vehicle's middle is at l = 0, s = 0, its wheels stand on y = 0, and it drives towards +l. A solid is a side profile
of the (l, y) plane drawn out over the vehicle's width; its faces carry details such as windows, lights and wheels.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.data.street_figures import DARK, METAL, TYRE, Colour

Profile = list[tuple[float, float]]
_Marks = list[tuple[Profile, Colour, bool]]  # on an end: corners, colour, is it a licence plate?
GLASS, RED, WHITE, AMBER = (52, 66, 80), (196, 24, 28), (240, 238, 215), (235, 160, 40)
_CAR_PAINT = ((200, 202, 206), (24, 24, 28), (110, 114, 120), (150, 24, 30), (28, 52, 110), (226, 226, 224),
              (70, 84, 74), (180, 150, 90), (40, 110, 140))  # fmt: skip


class Detail(NamedTuple):
    """A polygon on a face."""

    points: NDArray[np.float64]  # [N, 3] l, y, s
    colour: Colour
    plate: bool = False  # a licence plate, which has a label of its own


class Face(NamedTuple):
    """A flat side of a solid."""

    points: NDArray[np.float64]  # [N, 3] l, y, s
    normal: NDArray[np.float64]  # [3], outwards
    colour: Colour
    details: list[Detail]


class Vehicle(NamedTuple):
    """What is drawn, and the ground that it takes."""

    label: str
    solids: list[list[Face]]
    length: float
    width: float


def car(rng: np.random.Generator) -> Vehicle:
    """A saloon, a hatchback or an estate: low, the cabin narrower than the body."""
    kind, h, half = rng.integers(3), rng.uniform(1.42, 1.62), rng.uniform(0.86, 0.95)
    front = 2.15 if kind == 0 else rng.uniform(1.85, 2.1)
    back = -front if kind == 0 else -front + 0.05
    shelf = 0.98
    if kind == 0:
        rear: Profile = [(back, 0.32), (back - 0.04, 0.62), (back + 0.02, 0.95), (-1.45, shelf), (-0.85, h - 0.04)]
    elif kind == 1:
        rear = [(back, 0.32), (back - 0.04, 0.6), (back + 0.03, 0.96), (back + 0.1, shelf), (back + 0.45, h - 0.03)]
    else:
        rear = [(back, 0.32), (back - 0.04, 0.6), (back + 0.03, 0.96), (back + 0.06, shelf), (back + 0.25, h - 0.02)]
    profile = [*rear, (0.2, h), (front - 1.1, shelf), (front - 0.12, 0.78), (front, 0.6), (front, 0.3)]
    low, high = rear[3][0] + 0.2, rear[4][0] + 0.1
    windows = [
        [(low, 1.0), (high, h - 0.1), (-0.3, h - 0.08), (-0.3, 1.0)],
        [(-0.22, 1.0), (-0.22, h - 0.08), (0.15, h - 0.09), (front - 1.25, 1.0)],
    ]
    paint = _pick(rng, _CAR_PAINT)
    side = [(w, GLASS) for w in windows] + _wheels((-1.32, 1.32), 0.33)
    side += [([(front - 0.3, 0.62), (front - 0.02, 0.58), (front - 0.02, 0.7), (front - 0.25, 0.74)], WHITE),
             ([(back, 0.66), (back + 0.22, 0.7), (back + 0.22, 0.84), (back, 0.86)], RED)]  # fmt: skip
    lights = _pair(0.1, 0.9, 0.55, 0.97, RED)
    ends = {
        0: [([(0.1, -0.95), (0.1, 0.95), (0.9, 0.95), (0.9, -0.95)], _shade(paint, 0.7), False)],
        1: [*lights, ([(0.15, -0.28), (0.15, 0.28), (0.5, 0.28), (0.5, -0.28)], WHITE, True)],
        3: [([(0.12, -0.86), (0.12, 0.86), (0.85, 0.84), (0.85, -0.84)], GLASS, False)],
        5: [([(0.1, -0.9), (0.1, 0.9), (0.9, 0.9), (0.9, -0.9)], GLASS, False)],
        7: _pair(0.05, 0.95, 0.5, 0.95, WHITE),
        8: [([(0.3, -0.3), (0.3, 0.3), (0.75, 0.3), (0.75, -0.3)], WHITE, True)],
    }  # fmt: skip

    def half_width(y: float) -> float:
        return half * (1.0 if y < 1.0 else 1.0 - 0.2 * (y - 1.0) / 0.5)

    body = _solid(profile, half_width, paint, side, ends)
    return Vehicle("car", [_tyres(half, (-1.32, 1.32), 0.33) + body], 2 * front, 2 * half)


def truck(rng: np.random.Generator) -> Vehicle:
    """A cab and, apart from it, a higher box."""
    h, half, length = rng.uniform(3.0, 3.7), 1.2, rng.uniform(5.0, 7.0)
    cab_paint, box_paint = (
        _pick(rng, _CAR_PAINT),
        _pick(rng, ((225, 222, 214), (170, 60, 40), (60, 90, 140), (190, 180, 60))),
    )
    back, gap, nose = -length / 2 - 1, length / 2 - 1, length / 2 + 1
    stripe = [(back + 0.5, 1.9), (gap - 0.5, 1.9), (gap - 0.5, 2.3), (back + 0.5, 2.3)]
    box = _solid(
        [(back, 0.9), (back, h), (gap, h), (gap, 0.9)],
        lambda _: half,
        box_paint,
        [(stripe, _shade(box_paint, 0.6))],
        {0: [([(0.05, -0.03), (0.05, 0.03), (0.97, 0.03), (0.97, -0.03)], DARK, False),
             ([(0.02, -0.95), (0.02, 0.95), (0.06, 0.95), (0.06, -0.95)], DARK, False)]},
    )  # fmt: skip
    chassis = _solid(
        [(back, 0.5), (back, 0.92), (nose - 0.3, 0.92), (nose - 0.3, 0.5)],
        lambda _: half - 0.12,
        DARK,
        _wheels((back + 1.0, back + 2.1, nose - 0.9), 0.48),
        {0: [*_pair(0.2, 0.7, 0.7, 0.95, RED), ([(0.2, -0.2), (0.2, 0.2), (0.6, 0.2), (0.6, -0.2)], WHITE, True)]},
    )
    top = min(2.7, h - 0.35)
    cab = _solid(
        [(gap + 0.25, 0.55), (gap + 0.25, top), (nose - 0.25, top), (nose, 1.5), (nose, 0.45)],
        lambda _: half - 0.04,
        cab_paint,
        [([(gap + 0.7, 1.55), (gap + 0.7, top - 0.25), (nose - 0.4, top - 0.25), (nose - 0.15, 1.55)], GLASS)],
        {2: [([(0.12, -0.9), (0.12, 0.9), (0.95, 0.92), (0.95, -0.92)], GLASS, False)],
         3: [*_pair(0.55, 0.75, 0.6, 0.95, WHITE),
             ([(0.15, -0.55), (0.15, 0.55), (0.5, 0.55), (0.5, -0.55)], DARK, False),
             ([(0.8, -0.2), (0.8, 0.2), (0.92, 0.2), (0.92, -0.2)], WHITE, True)]},
    )  # fmt: skip
    return Vehicle("truck", [_tyres(half, (back + 1.0, nose - 0.9), 0.48) + chassis, box, cab], length + 2, 2 * half)


def bus(rng: np.random.Generator) -> Vehicle:
    """One long block with a row of windows, doors and wheels."""
    h, half, length = rng.uniform(2.9, 3.2), 1.25, rng.uniform(9.0, 12.0)
    paint = _pick(rng, ((200, 40, 40), (235, 200, 40), (60, 120, 60), (230, 230, 230), (60, 100, 180)))
    back, nose = -length / 2, length / 2
    count = int(length / 1.5)
    lefts = np.linspace(back + 0.3, nose - 1.5, count)
    side = [([(left, 1.4), (left + 1.15, 1.4), (left + 1.15, h - 0.45), (left, h - 0.45)], GLASS) for left in lefts]
    side += [
        ([(left, 0.5), (left + 1.0, 0.5), (left + 1.0, h - 0.5), (left, h - 0.5)], (36, 44, 54))
        for left in (-0.6, nose - 1.5)
    ]
    side += [([(back + 0.1, 0.9), (nose - 0.1, 0.9), (nose - 0.1, 1.1), (back + 0.1, 1.1)], _shade(paint, 0.55))]
    side += _wheels((back + 2.4, nose - 2.6), 0.48)
    ends = {
        0: [([(0.45, -0.8), (0.45, 0.8), (0.85, 0.8), (0.85, -0.8)], GLASS, False), *_pair(0.1, 0.35, 0.75, 0.95, RED),
            ([(0.1, -0.2), (0.1, 0.2), (0.16, 0.2), (0.16, -0.2)], WHITE, True)],
        2: [([(0.17, -0.9), (0.17, 0.9), (0.65, 0.92), (0.65, -0.92)], GLASS, False),
            ([(0.04, -0.6), (0.04, 0.6), (0.13, 0.6), (0.13, -0.6)], AMBER, False),
            *_pair(0.8, 0.9, 0.65, 0.95, WHITE)],
    }  # fmt: skip
    profile = [(back, 0.35), (back, h), (nose, h), (nose, 0.32)]
    body = _solid(profile, lambda _: half, paint, side, ends)
    return Vehicle("bus", [_tyres(half, (back + 2.4, nose - 2.6), 0.48) + body], length, 2 * half)


def train(rng: np.random.Generator) -> Vehicle:
    """A tram of two or three cars on rails: sloped noses, joints, two colours, no wheels to be seen."""
    h, half, cars, one = rng.uniform(3.3, 3.6), 1.25, int(rng.integers(2, 4)), 9.0
    paint = _pick(rng, ((200, 30, 34), (240, 200, 40), (30, 90, 160), (40, 140, 110)))
    roof, length = (222, 222, 218), cars * one
    solids = []
    for number in range(cars):
        back, nose = -length / 2 + number * one, -length / 2 + (number + 1) * one
        first, last = number == 0, number == cars - 1
        slope_back, slope_nose = 0.9 if first else 0.0, 0.9 if last else 0.0
        profile = [(back, 0.2), (back, 1.2), (back + slope_back, h), (nose - slope_nose, h), (nose, 1.2), (nose, 0.2)]
        side = [([(back, 0.25), (nose, 0.25), (nose, 1.25), (back, 1.25)], paint)]
        band_from, band_to = back + 0.35 + slope_back * 0.75, nose - 0.35 - slope_nose * 0.75
        for left in np.linspace(band_from, band_to - 1.35, 5):
            side.append(([(left, 1.5), (left + 1.35, 1.5), (left + 1.35, h - 0.6), (left, h - 0.6)], GLASS))
        middle = (back + nose) / 2
        side.append(
            ([(middle - 0.7, 0.4), (middle + 0.7, 0.4), (middle + 0.7, h - 0.5), (middle - 0.7, h - 0.5)], (40, 48, 56))
        )
        side += [([(l - 0.14, 0.25), (l + 0.14, 0.25), (l + 0.14, h), (l - 0.14, h)], DARK)
                 for l, at_end in ((back + 0.1, first), (nose - 0.1, last)) if not at_end]  # fmt: skip  # noqa: E741
        screen: _Marks = [([(0.1, -0.85), (0.1, 0.85), (0.85, 0.8), (0.85, -0.8)], GLASS, False)]
        lamps: _Marks = [([(0, -1), (0, 1), (1, 1), (1, -1)], paint, False), *_pair(0.3, 0.55, 0.6, 0.9, WHITE)]
        solids.append(_solid(profile, lambda _: half, roof, side, {0: lamps, 1: screen, 3: screen, 4: lamps}))
    pole = -length / 2 + one * 0.5
    solids.append(_solid([(pole - 0.6, h), (pole - 0.1, h + 0.9), (pole + 0.1, h + 0.9), (pole - 0.4, h)],
                         lambda _: 0.5, METAL, [], {}))  # fmt: skip
    return Vehicle("train", solids, length, 2 * half)


def caravan(rng: np.random.Generator) -> Vehicle:
    """A white caravan: a vehicle that Cityscapes labels and does not score."""
    half = 1.1
    profile = [(-2.2, 0.5), (-2.3, 1.6), (-1.9, 2.5), (1.8, 2.5), (2.3, 1.5), (2.2, 0.5)]
    windows: list[tuple[Profile, Colour]] = [([(-1.4, 1.4), (0.0, 1.4), (0.0, 2.0), (-1.4, 2.0)], GLASS)]
    ends: dict[int, _Marks] = {
        1: [([(0.1, -0.7), (0.1, 0.7), (0.7, 0.7), (0.7, -0.7)], GLASS, False)],
        0: _pair(0.1, 0.3, 0.7, 0.9, RED),
    }
    body = _solid(profile, lambda _: half, (232, 230, 222), windows + _wheels((0.0,), 0.33), ends)
    return Vehicle("caravan", [_tyres(half, (0.0,), 0.33) + body], 4.6, 2 * half)


def _solid(
    profile: Profile,
    half_width: Callable[[float], float],
    paint: Colour,
    side: Sequence[tuple[Profile, Colour]],
    ends: Mapping[int, _Marks],
) -> list[Face]:
    """A profile (clockwise, from the lower back corner) drawn out across.

    Args:
        profile: corners in l, y.
        half_width: metres, of a height y.
        paint: of all faces.
        side: details of both sides, in l, y.
        ends: edge of the profile -> details: corners (share along the edge, share of the half width), colour, plate?
    """
    faces = []
    for sign in (-1.0, 1.0):
        details = [Detail(_across(points, half_width, sign), colour) for points, colour in side]
        faces.append(Face(_across(profile, half_width, sign), np.array([0.0, 0.0, sign]), paint, details))
    for edge, (a, b) in enumerate(zip(profile, [*profile[1:], profile[0]], strict=True)):
        wa, wb = half_width(a[1]), half_width(b[1])
        corners = np.array([(*a, -wa), (*a, wa), (*b, wb), (*b, -wb)])
        normal = np.array([a[1] - b[1], b[0] - a[0], 0.0])
        details = []
        for points, colour, plate in ends.get(edge, ()):
            t, s = np.array(points, dtype=np.float64).T
            along = np.stack((a[0] + t * (b[0] - a[0]), a[1] + t * (b[1] - a[1]), s * (wa + t * (wb - wa))), axis=1)
            details.append(Detail(along, colour, plate))
        faces.append(Face(corners, normal / max(np.linalg.norm(normal), 1e-9), paint, details))
    return faces


def _across(points: Profile, half_width: Callable[[float], float], sign: float) -> NDArray[np.float64]:
    return np.array([(x, y, sign * half_width(y)) for x, y in points])


def _wheels(axles: Sequence[float], radius: float) -> list[tuple[Profile, Colour]]:
    """Wheels as details of a side."""
    parts: list[tuple[Profile, Colour]] = []
    for axle in axles:
        for share, colour in ((1.0, TYRE), (0.62, METAL), (0.2, DARK)):
            angles = np.linspace(0, 2 * np.pi, 24, endpoint=False)
            r = radius * share
            parts.append(([(axle + r * float(np.cos(a)), radius + r * float(np.sin(a))) for a in angles], colour))
    return parts


def _tyres(half: float, axles: Sequence[float], radius: float) -> list[Face]:
    """What is seen of the wheels from the front and from behind, below the body."""
    faces = []
    for end, sign in ((min(axles), -1.0), (max(axles), 1.0)):
        for s in (-half + 0.02, half - 0.24):
            l = end + sign * radius * 0.8  # noqa: E741
            corners = np.array([(l, 0.0, s), (l, 0.0, s + 0.22), (l, radius * 1.5, s + 0.22), (l, radius * 1.5, s)])
            faces.append(Face(corners, np.array([sign, 0.0, 0.0]), TYRE, []))
    return faces


def _pair(
    low: float, high: float, inner: float, outer: float, colour: Colour
) -> list[tuple[list[tuple[float, float]], Colour, bool]]:
    """Two lights, left and right on an end."""
    return [
        ([(low, s * inner), (low, s * outer), (high, s * outer), (high, s * inner)], colour, False) for s in (-1, 1)
    ]


def _pick(rng: np.random.Generator, colours: Sequence[Colour]) -> Colour:
    r, g, b = (int(np.clip(v + rng.integers(-10, 11), 0, 255)) for v in colours[int(rng.integers(len(colours)))])
    return r, g, b


def _shade(colour: Colour, share: float) -> Colour:
    r, g, b = (int(v * share) for v in colour)
    return r, g, b
