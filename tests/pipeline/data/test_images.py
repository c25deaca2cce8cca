import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_coco import jpeg

from pipeline.data import images


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pillow(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}, {"quality": 30}])
def test_jpeg_is_pillows_pixels(mode: str, options: dict[str, object]) -> None:
    data = jpeg(37, 51, mode, **options)
    pixels = images.decode(data)
    assert pixels.dtype == np.uint8 and pixels.shape == (37, 51, 3)
    assert np.array_equal(pixels, pillow(data))
    assert images.image_size(data) == (37, 51)


def test_grayscale_is_told_from_colour() -> None:
    assert images.check(jpeg(20, 30, "L")) == (20, 30, True)
    assert images.check(jpeg(20, 30, "RGB")) == (20, 30, False)
    grey = np.full((64, 64, 3), 80, np.uint8)
    grey[63, 63, 0] = 81
    assert not images.check(encoded(Image.fromarray(grey), "PNG")).grayscale


def test_exif_rotation_is_not_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees to show
    data = jpeg(20, 30, exif=exif)
    assert images.decode(data).shape == (20, 30, 3)
    assert images.image_size(data) == (20, 30)
    assert np.array_equal(images.decode(data), images.decode(jpeg(20, 30)))


def test_other_formats() -> None:
    colour = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), dtype=np.uint8))
    for image in (colour, colour.convert("P"), colour.convert("L"), colour.convert("RGBA"), colour.convert("1")):
        data = encoded(image, "PNG")
        assert np.array_equal(images.decode(data), pillow(data)), image.mode
    deep = np.arange(9 * 7, dtype=np.uint16).reshape(9, 7) * 1000
    assert np.array_equal(images.decode(encoded(Image.fromarray(deep), "PNG"))[..., 1], (deep >> 8).astype(np.uint8))
    with pytest.raises(images.ImageError, match="mode 'F' have no 8-bit range"):
        images.decode(encoded(Image.fromarray(np.zeros((3, 3), np.float32)), "TIFF"))


@pytest.mark.parametrize("keep", [0.999, 0.9, 0.5, 0.1])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_truncated_jpeg_is_refused(mode: str, keep: float) -> None:
    data = jpeg(100, 120, mode, quality=95)
    with pytest.raises(images.ImageError, match="do not decode"):
        images.check(data[: int(len(data) * keep)])


def test_truncated_png_is_refused() -> None:
    data = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)), "PNG")
    with pytest.raises(images.ImageError, match="do not decode"):
        images.check(data[: len(data) // 2])


def test_no_picture() -> None:
    with pytest.raises(images.ImageError, match="the file is empty"):
        images.decode(b"")
    with pytest.raises(images.ImageError, match=r"not a picture: 9 bytes that begin with b'<html></'"):
        images.decode(b"<html></>")
    with pytest.raises(images.ImageError, match="not a picture"):
        images.image_size(b"\xff\xd8\xff nothing")


def test_bomb_is_refused() -> None:
    data = bytearray(jpeg(16, 16))
    at = data.index(b"\xff\xc0") + 5  # the size in the frame header
    data[at : at + 4] = (60000).to_bytes(2, "big") * 2
    with pytest.raises(images.ImageError, match=r"more than 178956970 pixels"):
        images.decode(bytes(data))


def test_real_pictures(coco_small: Path) -> None:
    paths = sorted((coco_small / "val2017").glob("*.jpg"))
    for path in paths[::4]:
        data = path.read_bytes()
        assert np.array_equal(images.decode(data), pillow(data)), path
