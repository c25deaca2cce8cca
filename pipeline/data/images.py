"""Encoded picture -> uint8 RGB pixels, exactly as Pillow's `Image.open(...).convert("RGB")` gives them.

JPEGs go through simplejpeg with libjpeg's exact settings, which releases the GIL; what it cannot do exactly (CMYK) or
refuses (recoverable damage that Pillow accepts), and every other format, goes through Pillow. EXIF rotation is NOT
applied (but in TIFF, where Pillow does): the annotations of COCO and Cityscapes are made on the stored pixels. Of an
animation (GIF, WebP) or a file of several pages (TIFF) the first one counts; what is transparent shows the colour
stored below.
"""

from io import BytesIO
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pipeline.errors import UserError

# Pillow reads far more, but some of that runs programs (EPS) or is as good as never fuzzed; nobody trains on it.
_FORMATS = {
    "JPEG": (".jpg", ".jpeg"),
    "PNG": (".png",),
    "BMP": (".bmp",),
    "WEBP": (".webp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}
SUFFIXES = tuple(suffix for suffixes in _FORMATS.values() for suffix in suffixes)  # of files that are pictures
MAX_PIXELS = 178_956_970  # Pillow refuses pictures above this as decompression bombs; so do we, on both ways
_JPEG_PIXELS_PER_BYTE = 512  # at most: each block of 8 x 8 pixels takes a bit or more
_ORIENTATION = 0x0112  # EXIF's tag
_EXACT_COLORSPACES = ("Gray", "YCbCr", "RGB")  # simplejpeg's conversion is bit-equal to Pillow's for these


class ImageError(UserError):
    """The bytes are no picture, are truncated, or decode to something that is no 8-bit picture."""


class Checked(NamedTuple):
    """What a full decode says about a picture."""

    height: int  # pixels
    width: int
    grayscale: bool  # all pixels are grey, however they are stored


def decode(data: bytes) -> NDArray[np.uint8]:
    """The pixels of a picture: uint8 [H, W, 3] RGB. Raises ImageError."""
    if data[:2] == b"\xff\xd8":
        pixels = _decode_jpeg(data)
        if pixels is not None:
            return pixels
    return _decode_pillow(data)


def image_size(data: bytes) -> tuple[int, int]:
    """(height, width) from the header alone. Raises ImageError."""
    try:
        with _open(data) as image:
            width, height = image.size
    except Exception as error:  # Pillow's plugins raise nearly anything on garbage
        raise ImageError(_what(data, error)) from error
    return height, width


def check(data: bytes) -> Checked:
    """Decode a picture completely, as training will, so that what passes here decodes there. Raises ImageError."""
    pixels = decode(data)
    return Checked(pixels.shape[0], pixels.shape[1], _is_grey(pixels))


def lies_on_its_side(data: bytes) -> bool:
    """Whether EXIF tells viewers to turn what `decode` gives by 90 degrees, and to show its height as the width."""
    try:
        with _open(data) as image:
            return image.format != "TIFF" and image.getexif().get(_ORIENTATION) in (5, 6, 7, 8)
    except Exception:  # Pillow's plugins raise nearly anything on garbage, which tells nobody to turn anything
        return False


def _open(data: bytes) -> Image.Image:
    return Image.open(BytesIO(data), formats=tuple(_FORMATS))


def _decode_jpeg(data: bytes) -> NDArray[np.uint8] | None:
    """The pixels, or None where Pillow has to decide. Raises ImageError."""
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        if height * width > MAX_PIXELS:
            return None
        if height * width > _JPEG_PIXELS_PER_BYTE * len(data):
            raise ImageError(
                f"{len(data)} bytes cannot hold the {width} x {height} pixels of the header; fetch it again"
            )
        if colorspace not in _EXACT_COLORSPACES:
            return None
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", fastdct=False, fastupsample=False, strict=True)
    except ImageError:
        raise
    except ValueError:  # any damage; Pillow tells a truncated file (refused) from stray bytes between markers (read)
        return None
    return pixels


def _decode_pillow(data: bytes) -> NDArray[np.uint8]:
    try:
        with _open(data) as image:
            if image.width * image.height > MAX_PIXELS:  # also where Image.MAX_IMAGE_PIXELS was raised
                raise ImageError(f"{image.width} x {image.height} pixels are more than {MAX_PIXELS}; scale it down")
            image.load()
            if image.mode.startswith("I;16"):  # convert("RGB") would clip at 255; keep the high byte, as for 16-bit RGB
                high = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)
                return np.repeat(high[:, :, None], 3, axis=2)
            if image.mode in ("I", "F"):
                raise ImageError(f"pixels of mode {image.mode!r} have no 8-bit range; store the picture as 8 bit")
            return np.array(image if image.mode == "RGB" else image.convert("RGB"))  # convert would copy it once more
    except ImageError:
        raise
    except Exception as error:  # Pillow's plugins raise nearly anything on garbage
        raise ImageError(_what(data, error)) from error


def _what(data: bytes, error: Exception) -> str:
    if not data:
        return "the file is empty"
    if isinstance(error, UnidentifiedImageError):
        return f"not a picture: {len(data)} bytes that begin with {data[:8]!r} are no {', '.join(_FORMATS)}"
    if isinstance(error, Image.DecompressionBombError):
        return f"more than {MAX_PIXELS} pixels ({error}); scale it down"
    return f"{len(data)} bytes do not decode: {error}"


def _is_grey(pixels: NDArray[np.uint8]) -> bool:
    red, green, blue = pixels[..., 0], pixels[..., 1], pixels[..., 2]
    thin = np.s_[::16, ::16]  # nearly every colour picture is told by a few pixels
    if (red[thin] != green[thin]).any() or (green[thin] != blue[thin]).any():
        return False
    return bool((red == green).all() and (green == blue).all())
