"""Pictures of instances: colour over each mask, its outline, a thin box, keypoints, and class and score in a label.

    draw_comparison(image, from_record(record), from_results(results, category_ids), names, Path("123.png"))

A class has the same colour in every picture. Small images are enlarged, so that labels can be read.
"""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from pipeline.evaluation.colours import CROWD, Colour, class_colour, text_colour
from pipeline.evaluation.instances import Crop, Instances, Pixels
from pipeline.evaluation.skeletons import draw_skeleton

Rectangle = tuple[float, float, float, float]  # xyxy, pixels of the panel

_SHORT_SIDE_PX = 480  # smaller images are enlarged to this, so that labels can be read
_LONG_SIDE_PX = 1600  # larger ones are made smaller
_PANEL_PX = 800  # longer side of each of several panels
_FILL = 0.45  # opacity of a mask's colour
_STRIPES_PX = 12  # from one stripe of a crowd region to the next
_GAP_PX = 12
_CROWDED = 15  # with more objects the labels get smaller


def draw_comparison(
    image: Pixels,
    ground_truth: Instances,
    predicted: Instances,
    class_names: Sequence[str],
    path: Path,
    skeleton: Sequence[tuple[int, int]] = (),
) -> None:
    """Prediction beside ground truth.

    Args:
        image: uint8 [H, W, 3] RGB.
        ground_truth: what there is.
        predicted: what was found.
        class_names: K names; class c is class_names[c - 1].
        path: file to write; its ending chooses the format (.png, .jpg).
        skeleton: pairs of keypoints (from 0) to join.
    """
    titles = (f"prediction: {_objects(predicted)}", f"ground truth: {_objects(ground_truth)}")
    _save(compare(image, ground_truth, predicted, class_names, skeleton, titles), path)


def compare(
    image: Pixels,
    ground_truth: Instances,
    predicted: Instances,
    class_names: Sequence[str],
    skeleton: Sequence[tuple[int, int]],
    titles: tuple[str, str],
    longer_px: int | None = None,
    letters_px: int | None = None,
) -> Image.Image:
    """`draw_comparison` in memory, with titles of one's own, and panels and letters of this size."""
    panels = [
        _titled(_panel(image, shown, class_names, skeleton, longer_px, letters_px), title, letters_px)
        for title, shown in zip(titles, (predicted, ground_truth), strict=True)
    ]
    width = sum(panel.width for panel in panels) + _GAP_PX
    sheet = Image.new("RGB", (width, panels[0].height), "white")
    sheet.paste(panels[0], (0, 0))
    sheet.paste(panels[1], (panels[0].width + _GAP_PX, 0))
    return sheet


def draw_predictions(image: Pixels, predicted: Instances, class_names: Sequence[str], path: Path) -> None:
    """What was found, alone. The arguments are those of `draw_comparison`."""
    _save(_panel(image, predicted, class_names), path)


def draw_sample(
    image: Pixels,
    ground_truth: Instances,
    class_names: Sequence[str],
    path: Path,
    skeleton: Sequence[tuple[int, int]] = (),
) -> None:
    """What there is, alone; `skeleton` are the pairs of keypoints (from 0) to join. Else as `draw_comparison`."""
    _save(_panel(image, ground_truth, class_names, skeleton), path)


def draw_panels(
    panels: Sequence[tuple[str, Pixels, Instances]],
    class_names: Sequence[str],
    path: Path,
    skeleton: Sequence[tuple[int, int]] = (),
    columns: int = 3,
) -> None:
    """Several pictures with their instances, each below its title, in rows; else as `draw_sample`.

    All are shown at one size, whatever theirs is.
    """
    drawn = [_titled(_panel(image, truth, class_names, skeleton, _PANEL_PX), title) for title, image, truth in panels]
    rows = [drawn[i : i + columns] for i in range(0, len(drawn), columns)]
    widths = [max(panel.width for panel in drawn[column::columns]) for column in range(min(columns, len(drawn)))]
    height = sum(max(panel.height for panel in row) + _GAP_PX for row in rows) - _GAP_PX
    sheet = Image.new("RGB", (sum(widths) + _GAP_PX * (len(widths) - 1), height), "white")
    top = 0
    for row in rows:
        for column, panel in enumerate(row):
            sheet.paste(panel, (sum(widths[:column]) + _GAP_PX * column, top))
        top += max(panel.height for panel in row) + _GAP_PX
    _save(sheet, path)


def gallery(paths: Sequence[Path], path: Path, columns: int = 2, width_px: int = 1600) -> None:
    """A contact sheet of pictures, row by row, `width_px` wide."""
    cell = (width_px - (columns - 1) * _GAP_PX) // columns
    pictures = []
    for source in paths:
        with Image.open(source) as opened:
            picture = opened.convert("RGB")
        pictures.append(picture.resize((cell, max(1, round(picture.height * cell / picture.width))), _LANCZOS))
    rows = [pictures[i : i + columns] for i in range(0, len(pictures), columns)]
    heights = [max(p.height for p in row) for row in rows]
    sheet = Image.new("RGB", (width_px, sum(heights) + _GAP_PX * max(0, len(rows) - 1)), "white")
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, picture in enumerate(row):
            sheet.paste(picture, (column * (cell + _GAP_PX), top))
        top += height + _GAP_PX
    _save(sheet, path)


_LANCZOS, _BILINEAR = Image.Resampling.LANCZOS, Image.Resampling.BILINEAR


def _panel(
    image: Pixels,
    instances: Instances,
    class_names: Sequence[str],
    skeleton: Sequence[tuple[int, int]] = (),
    longer_px: int | None = None,
    letters_px: int | None = None,
) -> Image.Image:
    """The image with its instances, at the size in which pictures are shown, or with this longer side."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"a picture needs uint8 [H, W, 3], got {image.dtype} {list(image.shape)}; convert it to RGB")
    wrong = sorted({int(c) for c in instances.classes if not 1 <= c <= len(class_names)})
    if wrong:
        raise ValueError(f"classes must be 1..{len(class_names)}, got {wrong}; pass the names the model was trained on")
    height, width = image.shape[:2]
    scale = min(max(1.0, _SHORT_SIDE_PX / min(height, width)), _LONG_SIDE_PX / max(height, width))
    if longer_px is not None:
        scale = longer_px / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    canvas = Image.fromarray(image).resize(size, _LANCZOS)
    crowd = instances.crowd if instances.crowd is not None else np.zeros(len(instances.boxes), dtype=np.bool_)
    colours = [CROWD if c else class_colour(int(k)) for k, c in zip(instances.classes, crowd, strict=True)]
    if instances.masks is not None:
        area = [int(crop.sum()) for _, _, crop in instances.masks]
        for i in sorted(range(len(area)), key=lambda i: -area[i]):  # small ones stay visible on top
            _paint(canvas, instances.masks[i], colours[i], scale, hatched=bool(crowd[i]))
    draw = ImageDraw.Draw(canvas)
    boxes = [tuple(float(v) * scale for v in box) for box in instances.boxes]
    for (x0, y0, x1, y1), colour in zip(boxes, colours, strict=True):
        draw.rectangle((x0, y0, max(x0, x1 - 1), max(y0, y1 - 1)), outline=colour, width=1)
    for points, colour in zip(instances.keypoints or (), colours, strict=instances.keypoints is not None):
        draw_skeleton(draw, points, skeleton, colour, scale)
    letters = letters_px or max(12, round(0.019 * max(size)))
    font = _font(letters if len(boxes) <= _CROWDED else (10 if letters_px is None else letters_px * 2 // 3))
    placed: list[Rectangle] = []
    scores = instances.scores
    order = range(len(boxes)) if scores is None else np.argsort(-scores, kind="stable").tolist()
    for i in order:
        text = class_names[int(instances.classes[i]) - 1]
        text += " (crowd)" if crowd[i] else ""
        text += "" if scores is None else f" {100 * scores[i]:.0f}"
        _label(draw, text, boxes[i], colours[i], font, size, placed)
    return canvas


def _paint(canvas: Image.Image, mask: Crop, colour: Colour, scale: float, *, hatched: bool) -> None:
    """Lay a colour over a mask (in stripes where hatched), and a line along the inside of its border."""
    y0, x0, crop = mask
    if crop.size == 0:
        return
    h, w = crop.shape
    left, right = math.floor(x0 * scale) - 1, math.ceil((x0 + w) * scale) + 1
    top, bottom = math.floor(y0 * scale) - 1, math.ceil((y0 + h) * scale) + 1
    pad = math.ceil(1 / scale) + 2  # zeros around, for the resampling and the outline
    source = Image.fromarray(np.pad(crop * np.uint8(255), pad))
    limit_x, limit_y = float(source.width), float(source.height)
    box = (
        max(0.0, left / scale - x0 + pad),
        max(0.0, top / scale - y0 + pad),
        min(limit_x, right / scale - x0 + pad),
        min(limit_y, bottom / scale - y0 + pad),
    )
    soft = source.resize((right - left, bottom - top), _BILINEAR, box=box)
    contrast = max(1.0, scale)
    inside = soft.point(lambda v: max(0.0, min(255.0, (v - 127.5) * contrast + 127.5)))  # a sharp, smooth border
    core = inside.filter(ImageFilter.MinFilter(5))
    alpha = np.asarray(inside, dtype=np.float32) / 255
    edge = alpha - np.asarray(core, dtype=np.float32) / 255
    fill: float | NDArray[np.float32] = _FILL
    if hatched:
        across = np.add.outer(np.arange(top, bottom), np.arange(left, right))
        fill = np.where(across % _STRIPES_PX < _STRIPES_PX // 2, np.float32(0.75), np.float32(0.15))
    opacity = np.maximum(fill * alpha, edge)[..., None]  # [h, w, 1]
    region = np.asarray(canvas.crop((left, top, right, bottom)), dtype=np.float32)
    mixed = region * (1 - opacity) + np.array(colour, dtype=np.float32) * opacity
    canvas.paste(Image.fromarray(mixed.round().astype(np.uint8)), (left, top))


def _label(
    draw: ImageDraw.ImageDraw,
    text: str,
    box: Sequence[float],
    colour: Colour,
    font: ImageFont.FreeTypeFont,
    size: tuple[int, int],
    placed: list[Rectangle],
) -> None:
    """Write on a patch of the class's colour, where it hides the least of the labels that are there."""
    x0, y0, x1, y1 = box
    ascent, descent = font.getmetrics()
    width, height = draw.textlength(text, font=font) + 6, float(ascent + descent)
    corners = [(x0, y0 - height), (x0, y0), (x1 - width, y0), (x0, y1), (x0, y1 - height), (x1 - width, y1 - height)]
    best: tuple[float, Rectangle] | None = None
    for x, y in corners:
        x, y = min(max(x, 0.0), size[0] - width), min(max(y, 0.0), size[1] - height)
        rectangle = (x, y, x + width, y + height)
        hidden = sum(_overlap(rectangle, other) for other in placed)
        if best is None or hidden < best[0]:
            best = (hidden, rectangle)
    assert best is not None
    rectangle = best[1]
    placed.append(rectangle)
    draw.rectangle(rectangle, fill=colour)
    draw.text((rectangle[0] + 3, rectangle[1]), text, font=font, fill=text_colour(colour))


def _overlap(a: Rectangle, b: Rectangle) -> float:
    """Pixels^2 that two rectangles share."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def _titled(panel: Image.Image, title: str, letters_px: int | None = None) -> Image.Image:
    font = _font(letters_px or max(14, round(0.022 * max(panel.size))))
    strip = sum(font.getmetrics()) + 8
    sheet = Image.new("RGB", (panel.width, panel.height + strip), "white")
    ImageDraw.Draw(sheet).text((2, 4), title, font=font, fill=(30, 30, 30))
    sheet.paste(panel, (0, strip))
    return sheet


def _objects(instances: Instances) -> str:
    n = len(instances.boxes)
    return f"{n} object{'' if n == 1 else 's'}"


def _font(size_px: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib (imported here: its import makes a config directory)."""
    from matplotlib import get_data_path

    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size_px)


def _save(picture: Image.Image, path: Path) -> None:
    if path.suffix.lower() in (".jpg", ".jpeg"):
        picture.save(path, quality=92)
    else:
        picture.save(path)
