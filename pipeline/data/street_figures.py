"""People and two-wheelers of a generated street, cut out of flat parts: polygons in metres, x to the right, y up.

A figure stands at x = 0, y = 0; its parts are drawn in their order. A part without a colour is a hole: what lies
behind is seen through it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Colour = tuple[int, int, int]  # RGB
Points = NDArray[np.float64]  # [N, 2] x, y


class Part(NamedTuple):
    """One polygon of a figure."""

    points: Points
    colour: Colour | None  # None: a hole


TYRE, METAL, DARK = (28, 28, 30), (130, 134, 140), (45, 45, 50)
_SKIN = ((226, 178, 148), (198, 144, 110), (141, 93, 66), (92, 60, 44))
_HAIR = ((40, 30, 24), (90, 62, 38), (170, 130, 70), (120, 118, 116), (20, 18, 20))
_CLOTH = (
    (170, 40, 44), (40, 70, 150), (46, 110, 70), (60, 60, 66), (205, 200, 190), (90, 60, 110), (210, 150, 50),
    (30, 34, 48), (120, 90, 66), (60, 130, 160), (215, 110, 120),
)  # fmt: skip
_TROUSERS = ((40, 48, 74), (34, 34, 38), (84, 78, 70), (120, 106, 84), (60, 66, 80))
_PAINT = ((190, 40, 40), (36, 84, 160), (40, 120, 80), (30, 30, 34), (220, 220, 220), (230, 130, 30), (60, 160, 180))


def person(rng: np.random.Generator) -> list[Part]:
    """Somebody standing or walking, upright; 1.2 to 1.9 m."""
    skin, hair, top, legs = (_pick(rng, c) for c in (_SKIN, _HAIR, _CLOTH, _TROUSERS))
    side = rng.random() < 0.5  # seen from the side: narrow, with a stride
    step = rng.uniform(0.08, 0.3) if side else rng.uniform(0.07, 0.14)
    hip, chest = (0.03, 0.14) if side else (0.09, 0.2)
    swing = rng.uniform(0.05, 0.25) if side else rng.uniform(0.04, 0.16)
    skirt = rng.random() < 0.2
    parts = []
    for sign in (-1, 1):
        knee = (sign * (hip + step) / 2 + (0.05 if side else 0), 0.48)
        foot = (sign * step, 0.06)
        parts += [_limb((sign * hip, 0.9), knee, 0.1, 0.075, legs), _limb(knee, foot, 0.075, 0.05, legs)]
        parts.append(_limb(foot, (foot[0] + (0.12 if side else sign * 0.03), 0.045), 0.05, 0.045, DARK))
    arms = [
        [_limb((s * chest, 1.38), (s * (chest + swing), 0.92), 0.062, 0.045, _shade(top, 0.85)),
         _limb((s * (chest + swing), 0.93), (s * (chest + swing) + 0.01, 0.84), 0.045, 0.045, skin)]
        for s in (-1, 1)
    ]  # fmt: skip
    parts += arms[0]
    if rng.random() < 0.25:
        parts.append(_limb((-0.16, 1.3), (-0.16, 1.0), 0.13, 0.13, _pick(rng, _CLOTH)))  # a rucksack
    waist = 0.12 if side else 0.155
    parts.append(_polygon([(-chest, 1.42), (chest, 1.42), (waist, 1.05), (waist + 0.03, 0.84), (-waist - 0.03, 0.84),
                           (-waist, 1.05)], top))  # fmt: skip
    if skirt:
        parts.append(_polygon([(-waist, 0.98), (waist, 0.98), (waist + 0.14, 0.5), (-waist - 0.14, 0.5)], legs))
    parts += [*arms[1], _limb((0, 1.4), (0, 1.55), 0.06, 0.055, skin), *_head(0.02 if side else 0.0, 1.63, skin, hair)]
    return _scaled(parts, rng.choice([1.0, 1.0, 1.0, 0.72]) * rng.uniform(0.93, 1.08), _facing(rng))


def bicycle(rng: np.random.Generator, rider: bool = False) -> tuple[list[Part], list[Part]]:
    """A bicycle from the side, wheels open; and who rides it (nothing without `rider`)."""
    paint, facing = _pick(rng, _PAINT), _facing(rng)
    rear, front, pedals, saddle = (-0.52, 0.34), (0.53, 0.34), (-0.06, 0.28), (-0.2, 0.88)
    head, bar = (0.36, 0.86), (0.34, 1.02)
    parts = []
    for centre in (rear, front):
        parts += [_disc(*centre, 0.35, 0.35, TYRE), _disc(*centre, 0.27, 0.27, None), _disc(*centre, 0.06, 0.06, METAL)]
        parts += [_limb(centre, _on(centre, 0.29, a), 0.006, 0.006, METAL) for a in np.arange(0.3, 6.2, 2.1)]
    tubes = ((rear, pedals), (rear, saddle), (pedals, saddle), (pedals, head), ((-0.17, 0.78), head), (head, front))
    parts += [_limb(a, b, 0.035, 0.035, paint) for a, b in tubes]
    parts += [_limb(head, bar, 0.03, 0.03, METAL), _limb(bar, (0.46, 1.0), 0.035, 0.03, DARK)]
    parts += [_limb((-0.3, 0.93), (-0.1, 0.93), 0.045, 0.035, DARK), _disc(*pedals, 0.1, 0.1, METAL)]
    riding = []
    if rider:
        riding = _seated(rng, (-0.2, 0.97), (0.14, 1.46), (0.44, 1.03), [(0.14, 0.72), (0.12, 0.52)], [0.12, 0.34])
    scale = rng.uniform(0.95, 1.05)
    return _scaled(parts, scale, facing), _scaled(riding, scale, facing)


def motorcycle(rng: np.random.Generator, rider: bool = False) -> tuple[list[Part], list[Part]]:
    """A motorcycle from the side, heavy and closed; and who rides it (nothing without `rider`)."""
    paint, facing = _pick(rng, _PAINT), _facing(rng)
    rear, front = (-0.7, 0.32), (0.72, 0.32)
    parts = []
    for centre in (rear, front):
        parts += [_disc(*centre, 0.33, 0.33, TYRE), _disc(*centre, 0.18, 0.18, METAL), _disc(*centre, 0.07, 0.07, DARK)]
    parts += [
        _limb((-0.7, 0.3), (-0.1, 0.36), 0.06, 0.1, DARK),
        _polygon([(-0.42, 0.25), (0.34, 0.24), (0.44, 0.62), (-0.36, 0.66)], (70, 72, 78)),  # engine
        _limb((-0.95, 0.3), (-0.1, 0.26), 0.07, 0.05, METAL),  # exhaust
        _limb(front, (0.44, 0.98), 0.055, 0.05, METAL),
        _polygon([(-0.98, 0.74), (-0.9, 0.88), (-0.3, 0.8), (-0.02, 0.98), (0.36, 1.0), (0.48, 0.78), (0.3, 0.58),
                  (-0.4, 0.6)], paint),
        _limb((-0.78, 0.85), (-0.2, 0.8), 0.06, 0.06, DARK),  # seat
        _limb((0.36, 0.98), (0.3, 1.1), 0.04, 0.04, DARK),
        _disc(0.56, 0.86, 0.1, 0.12, (235, 232, 205)),
        _limb((-0.99, 0.78), (-0.95, 0.84), 0.04, 0.04, (200, 30, 30)),
    ]  # fmt: skip
    if rng.random() < 0.5:
        parts.append(_polygon([(0.42, 0.95), (0.6, 0.95), (0.34, 1.3), (0.28, 1.28)], (150, 170, 185)))
    riding = _seated(rng, (-0.34, 0.92), (0.0, 1.44), (0.3, 1.1), [(0.14, 0.8)], [-0.05]) if rider else []
    scale = rng.uniform(0.95, 1.08)
    return _scaled(parts, scale, facing), _scaled(riding, scale, facing)


def tree(rng: np.random.Generator) -> list[Part]:
    """A trunk and a crown, 4 to 8 m."""
    tall, green = rng.uniform(4, 8), rng.uniform(0.75, 1.2)
    trunk = _limb((0, 0), (0, tall * 0.6), 0.17, 0.12, (78, 64, 52))
    parts = [trunk]
    for _ in range(26):
        spread, level = rng.uniform(-0.24, 0.24) * tall, rng.uniform(0.5, 0.98) * tall
        leaf = _shade((74, 104, 52), green * rng.uniform(0.7, 1.25))
        parts.append(_disc(spread, level, rng.uniform(0.06, 0.13) * tall, rng.uniform(0.05, 0.11) * tall, leaf))
    return parts


def post(rng: np.random.Generator) -> list[tuple[str, list[Part]]]:
    """A pole, and perhaps a sign or a traffic light at it."""
    grey, kind = _shade((150, 152, 156), rng.uniform(0.5, 1.0)), rng.integers(3)
    if kind == 0:  # a lamp
        return [("pole", [_limb((0, 0), (0, 6.5), 0.08, 0.05, grey), _limb((0, 6.4), (0.9, 6.6), 0.05, 0.07, grey)])]
    pole = ("pole", [_limb((0, 0), (0, 2.9), 0.05, 0.05, grey)])
    if kind == 1:
        face, rim = ((235, 235, 235), (190, 30, 34)) if rng.random() < 0.5 else ((40, 80, 170), (40, 80, 170))
        return [pole, ("traffic sign", [_disc(0, 2.6, 0.34, 0.34, rim), _disc(0, 2.6, 0.25, 0.25, face)])]
    lit = int(rng.integers(3))
    lamps = [_disc(0, 3.0 - 0.26 * i, 0.1, 0.1, c if i == lit else (52, 52, 52)) for i, c in
             enumerate(((230, 50, 40), (240, 180, 50), (60, 210, 110)))]  # fmt: skip
    return [pole, ("traffic light", [_limb((0, 2.4), (0, 3.06), 0.17, 0.17, (30, 30, 30)), *lamps])]


def two_wheeler_ahead(rng: np.random.Generator, motor: bool) -> tuple[list[Part], list[Part]]:
    """A bicycle or motorcycle from the front or behind, and its rider."""
    wide, paint = (0.09, _pick(rng, _PAINT)) if motor else (0.035, _pick(rng, _PAINT))
    height = 1.08 if motor else 1.02
    parts = [
        _limb((0, 0.08), (0, 0.6), wide, wide, TYRE),
        _limb((0, 0.5), (0, height), 0.06 if motor else 0.03, 0.05 if motor else 0.03, paint),
        _limb((-0.3, height + 0.03), (0.3, height + 0.03), 0.035, 0.035, DARK),
    ]
    if motor:
        parts += [_limb((0, 0.5), (0, 0.85), 0.26, 0.22, paint), _disc(0, 0.88, 0.12, 0.11, (235, 232, 205))]
        parts += [_disc(s * 0.36, height + 0.16, 0.07, 0.05, DARK) for s in (-1, 1)]
        parts += [_limb((s * 0.3, height), (s * 0.36, height + 0.15), 0.02, 0.02, DARK) for s in (-1, 1)]
    skin, hair, top, legs = (_pick(rng, c) for c in (_SKIN, _HAIR, _CLOTH, _TROUSERS))
    out = 0.3 if motor else 0.16
    rider = []
    for sign, foot in ((-1, 0.18), (1, 0.42 if not motor else 0.18)):
        rider += [_limb((sign * 0.1, 0.92), (sign * out, 0.66), 0.1, 0.08, legs)]
        rider += [_limb((sign * out, 0.66), (sign * (out - 0.03), foot + 0.1), 0.075, 0.055, legs)]
        rider += [_limb((sign * (out - 0.03), foot + 0.08), (sign * out, foot + 0.03), 0.055, 0.05, DARK)]
    rider.append(_polygon([(-0.21, 1.46), (0.21, 1.46), (0.17, 0.88), (-0.17, 0.88)], top))
    rider += [_limb((s * 0.22, 1.42), (s * 0.33, 1.18), 0.06, 0.05, _shade(top, 0.85)) for s in (-1, 1)]
    rider += [_limb((s * 0.33, 1.18), (s * 0.28, height + 0.04), 0.05, 0.045, _shade(top, 0.85)) for s in (-1, 1)]
    rider += [_limb((0, 1.46), (0, 1.56), 0.06, 0.06, skin), *_head(0, 1.66, skin, hair, helmet=_pick(rng, _PAINT))]
    return parts, rider


def _seated(
    rng: np.random.Generator,
    hip: tuple[float, float],
    shoulder: tuple[float, float],
    hand: tuple[float, float],
    knees: Sequence[tuple[float, float]],
    feet: Sequence[float],
) -> list[Part]:
    """A rider from the side, looking to the right."""
    skin, hair, top, legs = (_pick(rng, c) for c in (_SKIN, _HAIR, _CLOTH, _TROUSERS))
    parts = []
    for knee, y in zip(knees, feet, strict=True):
        foot = (knee[0] - 0.16, y + 0.06)
        parts += [_limb(hip, knee, 0.11, 0.085, legs), _limb(knee, foot, 0.08, 0.055, legs)]
        parts.append(_limb(foot, (foot[0] + 0.14, foot[1] - 0.02), 0.05, 0.045, DARK))
    parts.append(_limb(hip, shoulder, 0.14, 0.13, top))
    elbow = ((shoulder[0] + hand[0]) / 2, (shoulder[1] + hand[1]) / 2 - 0.07)
    parts += [_limb(shoulder, elbow, 0.07, 0.055, _shade(top, 0.8)), _limb(elbow, hand, 0.055, 0.045, _shade(top, 0.8))]
    head = (shoulder[0] + 0.08, shoulder[1] + 0.25)
    helmet = _pick(rng, _PAINT) if rng.random() < 0.7 else None
    return [*parts, _limb(shoulder, head, 0.06, 0.06, skin), *_head(*head, skin, hair, helmet)]


def _head(x: float, y: float, skin: Colour, hair: Colour, helmet: Colour | None = None) -> list[Part]:
    top = [_on((x, y), 1.0, a) for a in np.linspace(-0.1, np.pi + 0.3, 9)]
    stretch = (0.12, 0.15) if helmet is None else (0.15, 0.18)
    cap = [(x + (px - x) * stretch[0], y + (py - y) * stretch[1]) for px, py in top]
    return [_disc(x, y, 0.11, 0.14, skin), _polygon(cap, hair if helmet is None else helmet)]


def _pick(rng: np.random.Generator, colours: Sequence[Colour]) -> Colour:
    """One of them, a little changed."""
    r, g, b = colours[int(rng.integers(len(colours)))]
    r, g, b = (int(np.clip(v + rng.integers(-14, 15), 0, 255)) for v in (r, g, b))
    return r, g, b


def _shade(colour: Colour, share: float) -> Colour:
    r, g, b = (int(v * share) for v in colour)
    return r, g, b


def _facing(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _scaled(parts: Sequence[Part], scale: float, facing: int) -> list[Part]:
    return [Part(part.points * (scale * facing, scale), part.colour) for part in parts]


def _on(centre: tuple[float, float], radius: float, angle: float) -> tuple[float, float]:
    return centre[0] + radius * float(np.cos(angle)), centre[1] + radius * float(np.sin(angle))


def _polygon(points: Sequence[tuple[float, float]], colour: Colour | None) -> Part:
    return Part(np.array(points, dtype=np.float64), colour)


def _disc(x: float, y: float, rx: float, ry: float, colour: Colour | None) -> Part:
    angles = np.linspace(0, 2 * np.pi, 28, endpoint=False)
    return Part(np.stack((x + rx * np.cos(angles), y + ry * np.sin(angles)), axis=1), colour)


def _limb(a: tuple[float, float], b: tuple[float, float], ra: float, rb: float, colour: Colour | None) -> Part:
    """A tapered bar with round ends."""
    turn = np.arctan2(b[1] - a[1], b[0] - a[0])
    half = np.linspace(np.pi / 2, 3 * np.pi / 2, 7)
    near = np.stack((a[0] + ra * np.cos(turn + half), a[1] + ra * np.sin(turn + half)), axis=1)
    far = np.stack((b[0] + rb * np.cos(turn + half + np.pi), b[1] + rb * np.sin(turn + half + np.pi)), axis=1)
    return Part(np.concatenate((near, far)), colour)
