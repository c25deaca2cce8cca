"""A directory of pictures without annotations, to predict on."""

import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.data.images import SUFFIXES
from pipeline.data.pictures import decode_picture, read_inside
from pipeline.data.quarantine import BadError, BadSample, DataError, Quarantine
from pipeline.data.records import empty_record
from pipeline.data.source import Dataset, Sample
from pipeline.data.storage import Storage


@dataclass(frozen=True)
class PictureEntry:
    """One file, not read yet."""

    sample_id: int
    file_name: str


@dataclass(frozen=True)
class FolderReader:
    """Reads pictures; their sizes are known only then."""

    images: Storage

    def read(self, entry: PictureEntry, quarantine: Quarantine) -> Sample | None:
        """Read and check one picture; None when it went to quarantine."""
        try:
            data = read_inside(self.images, entry.file_name)
            checked = decode_picture(data)
        except BadError as bad:
            quarantine.add(BadSample("image", entry.sample_id, None, entry.file_name, bad.reason, bad.got))
            return None
        return Sample(
            empty_record(entry.sample_id, entry.file_name, checked.height, checked.width, data), checked.grayscale
        )


def read_folder(images: Path | str | Storage, quarantine: Quarantine) -> Dataset:
    """List the pictures (by suffix) in a directory and below it: samples 1..N in the order of their names.

    Hidden files and what is no picture by its suffix are left out and counted in `source`. Symbolic links to pictures
    are followed by the reader, inside the directory; links to directories are not followed. Raises DataError.
    """
    root = Storage.at(images)
    if root.local is not None and not root.local.is_dir():
        raise DataError(f"no directory of pictures at {root}; give a directory, or s3://BUCKET/PATH")
    names = root.list(recursive=True) if root.local is None else _walk(root.local)
    pictures = [name for name in names if _is_picture(name)]
    if not pictures:
        raise DataError(
            f"{root} holds no pictures ({', '.join(SUFFIXES)}), but {len(names)} other files; "
            "give a directory that does"
        )
    entries = []
    for number, name in enumerate(sorted(pictures), start=1):
        try:
            name.encode()
        except UnicodeEncodeError as error:  # a shard's names are UTF-8
            shown = name.encode(errors="backslashreplace").decode()
            quarantine.add(BadSample("image", number, None, shown, "file name is not UTF-8", str(error)))
            continue
        entries.append(PictureEntry(number, name))
    return Dataset(
        class_names=(),
        category_ids=(),
        scoring="none",
        keypoints=None,
        frequencies=(),
        entries=tuple(entries),
        reader=FolderReader(root),
        source={"images": root.name, "other_files": str(len(names) - len(pictures))},
        generator=None,
        quarantine=quarantine,
    )


def _walk(root: Path) -> list[str]:
    """The files below a directory, by relative name. Links to directories, which may go in circles, are not entered."""
    return [
        (Path(directory) / name).relative_to(root).as_posix()
        for directory, _, files in os.walk(root, onerror=_refuse)
        for name in files
    ]


def _refuse(error: OSError) -> None:
    raise DataError(f"cannot list {error.filename}: {error.strerror}; make it readable, or move it away") from error


def _is_picture(name: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix.lower() in SUFFIXES and not any(part.startswith(".") for part in path.parts)
