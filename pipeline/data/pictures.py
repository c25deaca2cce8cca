"""The pictures that annotations name: found below a root, never outside it, and of the size that was annotated."""

import os
from pathlib import Path

from pipeline.data import images
from pipeline.data.quarantine import BadError
from pipeline.data.storage import Storage


def read_inside(root: Storage, file_name: str) -> bytes:
    """The bytes of a picture that must lie below `root`, symlinks followed. Raises BadError."""
    try:
        file_name.encode()  # a shard's names are UTF-8
        local = root.local
        if local is None:
            if file_name.startswith("/") or ".." in file_name.split("/"):
                raise BadError("file_name leaves the picture directory", file_name)
            return root.read(file_name)
        path = Path(os.path.realpath(local / file_name))  # Path.resolve raises its own error at a loop of links
        if not path.is_relative_to(os.path.realpath(local)):
            raise BadError("file_name leaves the picture directory", file_name)
        if path.exists() and not path.is_file():  # reading a pipe would wait for ever
            raise BadError("picture cannot be read", f"a directory or a device, not a file: {file_name}")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BadError("picture is missing", file_name) from error
    except OSError as error:
        raise BadError("picture cannot be read", f"{error.strerror or error}: {file_name}") from error
    except ValueError as error:  # a null byte or half a character in the name
        raise BadError("file_name is no path", f"{file_name!r}: {error}") from error


def check_picture(data: bytes, height: int, width: int) -> images.Checked:
    """Decode a picture that must have this size in pixels, EXIF rotation not applied. Raises BadError."""
    checked = decode_picture(data)
    if (checked.height, checked.width) == (height, width):
        return checked
    got = f"{checked.height} x {checked.width} in the file, {height} x {width} in the JSON"
    if (checked.width, checked.height) == (height, width) and images.lies_on_its_side(data):
        raise BadError(
            "picture has an EXIF rotation, and was annotated as rotated",
            f"{got}; store it upright (jpegtran, exiftran -a, or Pillow's ImageOps.exif_transpose): pixels are read "
            "as they are stored",
        )
    raise BadError("picture's size differs from the JSON's", got)


def decode_picture(data: bytes) -> images.Checked:
    """Decode a picture of any size. Raises BadError."""
    try:
        return images.check(data)
    except images.ImageError as error:
        raise BadError("picture does not decode", str(error)) from error
