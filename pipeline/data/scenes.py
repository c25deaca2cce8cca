"""One generated scene: textured, overlapping shapes on a photographic-looking background, with exact visible masks.

A pixel belongs to the front-most object that covers at least half of it. Colour and texture are drawn apart from the
class, so only the shape tells it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

MAX_OBJECTS = 7
EMPTY_SHARE = 0.02  # of images
MIN_VISIBLE_SHARE, MIN_VISIBLE_PX = 0.25, 30  # of an object; one less visible is taken out of the scene
DIAMETER = (0.18, 0.55)  # of the image's shorter side, log-uniform
TILT = np.pi / 7  # most shapes stand upright, give or take this; a bar may lie in any direction
_SUPERSAMPLES = 3  # a side, per pixel


def _circle(u: Floats, v: Floats) -> Bools:
    return u * u + v * v <= 1


def _square(u: Floats, v: Floats) -> Bools:
    return np.maximum(np.abs(u), np.abs(v)) <= 0.78


def _triangle(u: Floats, v: Floats) -> Bools:
    return (v <= 0.5) & (np.float32(3**0.5) * np.abs(u) <= v + 1)


def _star(u: Floats, v: Floats) -> Bools:
    """A pentagram: inside at least four of its five lines."""
    angles = np.float32(2 * np.pi / 5) * np.arange(5, dtype=np.float32)
    inside = np.zeros(u.shape, dtype=np.uint8)
    for cos, sin in zip(np.cos(angles), np.sin(angles), strict=True):
        inside += u * cos + v * sin <= np.float32(0.36)
    star: Bools = inside >= 4
    return star


def _ring(u: Floats, v: Floats) -> Bools:
    square = u * u + v * v
    return (square <= 1) & (square >= 0.55**2)


def _bar(u: Floats, v: Floats) -> Bools:
    return (np.abs(u) <= 1) & (np.abs(v) <= 0.19)


def _cross(u: Floats, v: Floats) -> Bools:
    a, b = np.abs(u), np.abs(v)
    return (np.maximum(a, b) <= 0.95) & (np.minimum(a, b) <= 0.3)


def _heart(u: Floats, v: Floats) -> Bools:
    x, y = u * np.float32(1.2), np.float32(0.12) - v * np.float32(1.2)
    square = x * x + y * y - 1
    heart: Bools = square * square * square <= x * x * y * y * y
    return heart


# What lies inside, for coordinates in which the object fills about the unit circle. The order gives the category ids.
SHAPES: dict[str, Callable[[Floats, Floats], Bools]] = {
    "circle": _circle,
    "square": _square,
    "triangle": _triangle,
    "star": _star,
    "ring": _ring,
    "bar": _bar,
    "cross": _cross,
    "heart": _heart,
}
CLASS_NAMES = tuple(SHAPES)


@dataclass(frozen=True)
class _Body:
    """One object: where it is, and its coverage of the pixels of its box."""

    name: str
    x: int  # of its box
    y: int
    coverage: Floats  # [h, w] 0..1
    u: Floats  # [h, w] object coordinates at pixel centres, for textures
    v: Floats
    whole: int  # pixels covered, also those outside the image


@dataclass(frozen=True)
class Scene:
    """One picture and its exact visible masks."""

    pixels: NDArray[np.uint8]  # [H, W, 3]
    names: tuple[str, ...]  # N
    masks: tuple[Bools, ...]  # N x [H, W], disjoint


def render(rng: np.random.Generator, size_px: int) -> Scene:
    """One scene whose shorter side is `size_px`, from nothing but its arguments."""
    height, width = _size(rng, size_px)
    count = 0 if rng.random() < EMPTY_SHARE else int(rng.integers(1, MAX_OBJECTS + 1))
    bodies, masks = _visible(_place(rng, count, height, width, size_px), height, width)
    canvas = _background(rng, height, width)
    for body in bodies:
        _paint(rng, canvas, body)
    return Scene(photograph(rng, canvas), tuple(body.name for body in bodies), tuple(masks))


def _size(rng: np.random.Generator, size_px: int) -> tuple[int, int]:
    """(height, width): a third each square, landscape and portrait, up to 4:3."""
    kind, longer = rng.integers(3), round(size_px * rng.uniform(1, 4 / 3))
    return ((size_px, size_px), (size_px, longer), (longer, size_px))[kind]


def _place(rng: np.random.Generator, count: int, height: int, width: int, size_px: int) -> list[_Body]:
    """Objects from back to front, moderately overlapping."""
    placed: list[tuple[float, float, float]] = []
    bodies = []
    for _ in range(count):
        name = CLASS_NAMES[rng.integers(len(CLASS_NAMES))]
        radius = size_px * float(np.exp(rng.uniform(*np.log(DIAMETER)))) / 2
        turn = rng.uniform(0, 2 * np.pi) if name == "bar" else rng.uniform(-TILT, TILT)
        stretch = float(np.exp(rng.uniform(-0.12, 0.12)))
        for _ in range(12):
            edge = 0.6 * radius  # an object may leave the picture by less than half
            x, y = rng.uniform(edge, width - edge), rng.uniform(edge, height - edge)
            if all(np.hypot(x - px, y - py) > 0.62 * (radius + pr) for px, py, pr in placed):
                placed.append((x, y, radius))
                bodies.append(_body(name, x, y, radius, turn, stretch, height, width))
                break  # otherwise there is no room for this one
    return bodies


def _body(name: str, x: float, y: float, radius: float, turn: float, stretch: float, height: int, width: int) -> _Body:
    """Render the coverage of one object by supersampling, in its box only."""
    reach = radius * 1.2  # stretched, and the star's and the heart's tips
    x0, y0, x1, y1 = int(x - reach) - 1, int(y - reach) - 1, int(x + reach) + 2, int(y + reach) + 2
    n = _SUPERSAMPLES

    def coordinates(step: int) -> tuple[Floats, Floats]:
        dx = ((np.arange((x1 - x0) * step, dtype=np.float32) + 0.5) / step + (x0 - x)).astype(np.float32)
        dy = ((np.arange((y1 - y0) * step, dtype=np.float32) + 0.5) / step + (y0 - y)).astype(np.float32)[:, None]
        cos, sin = np.float32(np.cos(turn) / radius), np.float32(np.sin(turn) / radius)
        u, v = dx * cos + dy * sin, dy * cos - dx * sin
        return u * np.float32(stretch), v * np.float32(1 / stretch)

    inside = SHAPES[name](*coordinates(n)).view(np.uint8)
    coverage = np.zeros((y1 - y0, x1 - x0), dtype=np.uint8)  # subpixels, 0..9
    for i in range(n):
        for j in range(n):
            coverage += inside[i::n, j::n]
    whole = int((2 * coverage > n * n).sum())
    cut = np.s_[max(-y0, 0) : height - y0, max(-x0, 0) : width - x0]
    u, v = coordinates(1)
    return _Body(name, max(x0, 0), max(y0, 0), coverage[cut] * np.float32(1 / (n * n)), u[cut], v[cut], whole)


def _visible(bodies: list[_Body], height: int, width: int) -> tuple[list[_Body], list[Bools]]:
    """The objects that can be seen well enough, and their visible masks [H, W]."""
    while True:
        masks: list[Bools] = []
        taken = np.zeros((height, width), dtype=np.bool_)
        for body in reversed(bodies):  # from front to back
            h, w = body.coverage.shape
            mask = np.zeros((height, width), dtype=np.bool_)
            mask[body.y : body.y + h, body.x : body.x + w] = body.coverage > 0.5
            masks.append(mask & ~taken)
            taken |= mask
        masks.reverse()
        shown = [int(mask.sum()) for mask in masks]
        hidden = [i for i, body in enumerate(bodies) if shown[i] < max(MIN_VISIBLE_PX, MIN_VISIBLE_SHARE * body.whole)]
        if not hidden:
            return bodies, masks
        bodies = [body for i, body in enumerate(bodies) if i != hidden[0]]  # others may be seen better without it


def noise(rng: np.random.Generator, height: int, width: int, cells: float, channels: int = 1) -> Floats:
    """Smooth noise [H, W, channels] in about -1..1 with `cells` bumps along the longer side."""
    scale = cells / max(height, width)
    grid = rng.uniform(-1, 1, (max(2, round(height * scale)) + 1, max(2, round(width * scale)) + 1, channels))
    planes = [
        np.asarray(Image.fromarray(grid[..., c].astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC))
        for c in range(channels)
    ]
    return np.stack(planes, axis=2)


def _colour(rng: np.random.Generator, saturation: tuple[float, float], value: tuple[float, float]) -> Floats:
    """A random colour: float32 [3], 0..255 RGB."""
    hue, s, v = rng.uniform(0, 6), rng.uniform(*saturation), rng.uniform(*value)
    ramp = np.clip(np.abs((hue + np.array([0, 4, 2])) % 6 - 3) - 1, 0, 1)
    colour: Floats = (255 * v * (1 - s + s * ramp)).astype(np.float32)
    return colour


def _background(rng: np.random.Generator, height: int, width: int) -> Floats:
    """Out-of-focus surroundings: blended colours, multi-octave noise, light from one side; [H, W, 3], 0..255."""
    near, far, third = (_colour(rng, (0.05, 0.6), (0.2, 0.9)) for _ in range(3))
    angle = rng.uniform(0, 2 * np.pi)
    x = np.linspace(-0.5, 0.5, width, dtype=np.float32)
    y = np.linspace(-0.5, 0.5, height, dtype=np.float32)[:, None]
    slope = (x * np.float32(np.cos(angle)) + y * np.float32(np.sin(angle)))[..., None]  # [H, W, 1]
    blend = np.clip(0.5 + slope + 0.45 * noise(rng, height, width, rng.uniform(2, 5)), 0, 1)
    patches = np.clip(2 * noise(rng, height, width, rng.uniform(3, 8)), 0, 1) * np.float32(rng.uniform(0, 0.8))
    canvas = near + blend * (far - near)
    canvas += patches * (third - canvas)
    strength = np.float32(rng.uniform(6, 22))
    for octave in range(3):
        canvas += strength / 2**octave * noise(rng, height, width, 10 * 2.3**octave)
    background: Floats = canvas.astype(np.float32)
    return background


def _texture(rng: np.random.Generator, u: Floats, v: Floats) -> Floats:
    """How much of an object's second colour each pixel takes: [h, w, 1] 0..1."""
    kind = rng.integers(5)
    phase, frequency = rng.uniform(0, 2 * np.pi), np.float32(rng.uniform(5, 11))
    turn = rng.uniform(0, 2 * np.pi)
    along = u * np.float32(np.cos(turn)) + v * np.float32(np.sin(turn))
    across = v * np.float32(np.cos(turn)) - u * np.float32(np.sin(turn))
    amount: NDArray[Any]
    if kind == 0:  # a gradient
        amount = 0.5 + 0.5 * along
    elif kind == 1:  # stripes
        amount = 0.5 + 2.5 * np.sin(frequency * along + phase)
    elif kind == 2:  # checks
        amount = 0.5 + 3 * np.sin(frequency * along + phase) * np.sin(frequency * across)
    elif kind == 3:  # blotches
        amount = 0.5 + 0.9 * noise(rng, u.shape[0], u.shape[1], rng.uniform(4, 9))[..., 0]
    else:  # nearly plain
        amount = 0.15 + 0.15 * along
    share: Floats = np.clip(amount, 0, 1)[..., None].astype(np.float32)
    return share


def _paint(rng: np.random.Generator, canvas: Floats, body: _Body) -> None:
    """Draw one object with its shadow over the canvas, in place."""
    h, w = body.coverage.shape
    place = canvas[body.y : body.y + h, body.x : body.x + w]
    alpha = body.coverage[..., None]
    behind = (place * alpha).sum(axis=(0, 1)) / alpha.sum()
    first = _colour(rng, (0.25, 1), (0.25, 1))
    for _ in range(8):  # what nobody could see would be no fair target
        if np.abs(first - behind).sum() > 150:
            break
        first = _colour(rng, (0.25, 1), (0.25, 1))
    second = first + np.float32(rng.uniform(0.2, 0.55)) * (_colour(rng, (0.1, 1), (0.1, 1)) - first)
    colour = first + _texture(rng, body.u, body.v) * (second - first)
    light = rng.uniform(0, 2 * np.pi)
    shade = body.u * np.float32(np.cos(light)) + body.v * np.float32(np.sin(light))
    colour *= (1 + np.float32(rng.uniform(0.05, 0.3)) * shade)[..., None]
    _shadow(rng, canvas, body)
    place += alpha * (colour - place)


def _shadow(rng: np.random.Generator, canvas: Floats, body: _Body) -> None:
    """A soft shadow, a few pixels aside."""
    depth, dx, dy = rng.uniform(0, 0.45), int(rng.integers(-4, 5)), int(rng.integers(-4, 5))
    pad = 6
    height, width = canvas.shape[:2]
    padded = np.pad((body.coverage * 255).astype(np.uint8), pad)
    soft = np.asarray(Image.fromarray(padded).filter(ImageFilter.BoxBlur(2)))
    x0, y0 = body.x - pad + dx, body.y - pad + dy
    soft = soft[max(-y0, 0) : height - y0, max(-x0, 0) : width - x0]
    x0, y0 = max(x0, 0), max(y0, 0)
    h, w = soft.shape
    canvas[y0 : y0 + h, x0 : x0 + w] *= (1 - soft * np.float32(depth / 255))[..., None]


def photograph(
    rng: np.random.Generator,
    canvas: Floats,
    grain: tuple[float, float] = (1.5, 6),
    blur: tuple[float, float] = (0, 0.8),
) -> NDArray[np.uint8]:
    """What a camera makes of a drawing [H, W, 3] in 0..255: uneven light, a little blur (pixels), sensor noise."""
    height, width = canvas.shape[:2]
    canvas = canvas * (1 + np.float32(rng.uniform(0.05, 0.25)) * noise(rng, height, width, 2))
    pixels = Image.fromarray(np.clip(canvas, 0, 255).astype(np.uint8))
    radius = rng.uniform(*blur)
    sharp = np.asarray(pixels.filter(ImageFilter.GaussianBlur(radius)) if radius > 0.3 else pixels)
    specks = rng.standard_normal(sharp.shape, dtype=np.float32)
    specks *= np.float32(rng.uniform(*grain))
    taken: NDArray[np.uint8] = np.clip(sharp + specks + 0.5, 0, 255).astype(np.uint8)
    return taken
