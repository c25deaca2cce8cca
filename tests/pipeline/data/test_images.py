import contextlib
import io
import struct
import warnings
import zlib
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
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


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_that_is_shown_on_its_side(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(np.zeros((20, 30, 3), np.uint8)), kind, exif=exif)
    assert images.lies_on_its_side(data) == (orientation >= 5)
    assert images.check(data)[:2] == (20, 30)


def test_tiff_is_turned_as_pillow_does() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    data = encoded(Image.fromarray(pixels), "TIFF", exif=exif)
    assert np.array_equal(images.decode(data), np.rot90(pixels, -1)) and images.image_size(data) == (30, 20)
    assert not images.lies_on_its_side(data)


def test_nothing_lies_on_its_side_without_saying_so() -> None:
    assert not images.lies_on_its_side(jpeg(20, 30))
    assert not images.lies_on_its_side(b"")
    broken = jpeg(20, 30, exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's: the EXIF data are corrupt
        assert not images.lies_on_its_side(broken)
    assert images.check(broken)[:2] == (20, 30)


def frames(count: int) -> list[Image.Image]:
    noise = np.random.default_rng(5).integers(0, 256, (count, 9, 7, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_the_first_picture_of_several(kind: str) -> None:
    first, *others = frames(3)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(first, kind, save_all=True, append_images=others, **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3
    pixels = images.decode(data)
    assert np.array_equal(pixels, pillow(data))
    if kind != "GIF":  # whose palette changes colours
        assert np.array_equal(pixels, np.asarray(first))


def test_transparent_pictures_show_the_colour_below() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 4), dtype=np.uint8)
    assert np.array_equal(images.decode(encoded(Image.fromarray(pixels), "PNG")), pixels[..., :3])
    grey = Image.fromarray(pixels[..., :2], "LA")
    assert np.array_equal(images.decode(encoded(grey, "PNG")), np.repeat(pixels[..., :1], 3, axis=2))
    palette = Image.fromarray(pixels[..., :3]).quantize(16)
    data = encoded(palette, "PNG", transparency=3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.array_equal(images.decode(data), np.asarray(palette.convert("RGB")))


def test_formats_that_are_not_read() -> None:
    """Pillow reads EPS by running Ghostscript, for one."""
    small = Image.new("RGB", (8, 8))
    for kind in ("EPS", "PPM", "TGA", "ICO", "PCX", "SGI"):
        with pytest.raises(images.ImageError, match=r"not a picture: .* are no JPEG, PNG, BMP, WEBP, TIFF, GIF"):
            images.decode(encoded(small, kind))


def test_suffixes_are_of_formats_that_are_read() -> None:
    Image.init()
    for suffix in images.SUFFIXES:
        data = encoded(Image.new("RGB", (8, 9)), Image.registered_extensions()[suffix])
        assert images.decode(data).shape == (9, 8, 3)


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


@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_that_cannot_hold_its_pixels(progressive: bool) -> None:
    """It ends with an end marker, so Pillow would fill 13000 x 13000 pixels with grey."""
    data = bytearray(jpeg(16, 16, progressive=progressive))
    at = data.index(b"\xff\xc2" if progressive else b"\xff\xc0") + 5  # the size in the frame header
    data[at : at + 4] = (13000).to_bytes(2, "big") * 2
    forget_peak()
    before = peak_bytes()
    with pytest.raises(images.ImageError, match=r"\d+ bytes cannot hold the 13000 x 13000 pixels of the header"):
        images.check(bytes(data))
    assert peak_bytes() - before < 20e6


def test_plain_jpegs_hold_their_pixels() -> None:
    for options in ({}, {"quality": 1, "optimize": True}, {"quality": 1, "progressive": True}):
        for image in (Image.new("L", (4000, 3000)), Image.new("RGB", (4000, 3000), (255, 255, 255))):
            data = encoded(image, "JPEG", **options)
            assert np.array_equal(images.decode(data), pillow(data)), options


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(height: int, width: int, *extra: bytes) -> bytes:
    """A grey PNG whose header says height x width; its pixels are ten thousand zeros."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = chunk(b"IDAT", zlib.compress(bytes(10_000)))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(extra) + pixels + chunk(b"IEND", b"")


def peak_bytes() -> int:
    """The most memory since `forget_peak`."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])


def forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pytest.skip("needs Linux to measure memory")


@pytest.mark.parametrize(("height", "width"), [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (2**31 - 1, 1)])
def test_png_bomb_takes_no_memory(height: int, width: int) -> None:
    data = png(height, width)
    forget_peak()
    before = peak_bytes()
    for read in (images.check, images.image_size):
        with pytest.raises(images.ImageError, match=r"pixels .*scale it down"):
            read(data)
    assert peak_bytes() - before < 20e6


@pytest.mark.parametrize("kind", [b"iCCP", b"zTXt", b"iTXt"])
def test_compressed_metadata_takes_no_memory(kind: bytes) -> None:
    packed = zlib.compress(bytes(200_000_000), 9)
    name = {b"iCCP": b"x\0\0", b"zTXt": b"x\0\0", b"iTXt": b"x\0\1\0\0\0"}[kind]
    data = png(100, 99, chunk(kind, name + packed))
    forget_peak()
    before = peak_bytes()
    with contextlib.suppress(images.ImageError):  # Pillow leaves some of it unread, and refuses the rest
        images.check(data)
    assert peak_bytes() - before < 30e6


def test_much_metadata_takes_no_memory() -> None:
    packed = zlib.compress(bytes(1_000_000), 9)
    data = png(100, 99, *(chunk(b"zTXt", f"{i}\0\0".encode() + packed) for i in range(500)))
    forget_peak()
    before = peak_bytes()
    with pytest.raises(images.ImageError, match=r"do not decode: Too much memory used in text chunks"):
        images.check(data)
    assert peak_bytes() - before < 200e6


@cache
def small_pictures() -> list[bytes]:
    generator = np.random.default_rng(3)
    colour = Image.fromarray(generator.integers(0, 256, (12, 17, 3), dtype=np.uint8))
    deep = Image.fromarray(generator.integers(0, 2**16, (12, 17), dtype=np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        *(jpeg(12, 17, mode, **options) for mode in ("RGB", "L", "CMYK") for options in ({}, {"progressive": True})),
        jpeg(12, 17, exif=exif),
        *(encoded(colour.convert(mode), "PNG") for mode in ("RGB", "P", "L", "LA", "RGBA", "1")),
        encoded(deep, "PNG"),
        encoded(colour, "PNG", exif=exif, icc_profile=bytes(200)),
        *(encoded(colour, kind) for kind in ("BMP", "WEBP", "TIFF", "GIF")),
        encoded(colour, "TIFF", compression="tiff_lzw"),
        encoded(colour, "WEBP", save_all=True, append_images=[colour.transpose(Image.Transpose.ROTATE_180)]),
        encoded(colour, "GIF", save_all=True, append_images=[colour.transpose(Image.Transpose.ROTATE_180)]),
    ]


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    """A small picture with some bytes changed, taken out or put in."""
    data = bytearray(draw(st.sampled_from(small_pictures())))
    for _ in range(draw(st.integers(1, 6))):
        at = draw(st.integers(0, len(data) - 1)) if data else 0
        how = draw(st.sampled_from(["change", "header", "insert", "cut", "end"]))
        if how == "change":
            data[at : at + 1] = draw(st.binary(min_size=1, max_size=4))
        elif how == "header":  # where sizes, counts and offsets are
            data[at % 64 : at % 64 + 1] = draw(st.sampled_from([b"\0", b"\xff", b"\x7f", b"\xff\xff\xff\xff"]))
        elif how == "insert":
            data[at:at] = draw(st.binary(max_size=20))
        elif how == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        else:
            del data[at:]
    return bytes(data)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=spoiled())
def test_spoiled_pictures(data: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the bytes are: pixels or an ImageError, and memory for no more than MAX_PIXELS."""
    monkeypatch.setattr(images, "MAX_PIXELS", 2_000_000)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1_000_000)
    forget_peak()
    before = peak_bytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        images.lies_on_its_side(data)
        size = pixels = None
        with contextlib.suppress(images.ImageError):
            size = images.image_size(data)
        with contextlib.suppress(images.ImageError):
            pixels = images.decode(data)
        if pixels is None:
            with pytest.raises(images.ImageError):
                images.check(data)
        else:
            assert pixels.dtype == np.uint8 and pixels.shape == (*pixels.shape[:2], 3)
            assert pixels.size <= 3 * images.MAX_PIXELS
            assert images.check(data)[:2] == pixels.shape[:2]
            assert size == pixels.shape[:2]
    assert peak_bytes() - before < 100e6


def test_real_pictures(coco_small: Path) -> None:
    paths = sorted((coco_small / "val2017").glob("*.jpg"))
    for path in paths[::4]:
        data = path.read_bytes()
        assert np.array_equal(images.decode(data), pillow(data)), path
