"""What of a directory goes to the cluster: the files that git would keep, in one zip.

Git itself reads .gitignore, also where the directory is in no repository, so that its rules are git's.
"""

import os
import stat
import subprocess
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError

LIMIT_MB = 100.0
_NEVER = {".git", ".venv", "__pycache__"}
_SECRETS = {".env", ".ray", ".netrc", ".ssh", ".aws", ".kube", "auth_token"}  # secrets go by name
_SECRET_STARTS = (".env.", "id_rsa", "id_ed25519", "id_ecdsa")
_SAME_TIME = (1980, 1, 1, 0, 0, 0)  # the same files are the same bytes, which Ray does not upload again
_HOOK = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
_NAMED = 5


class PackageError(UserError):
    """A directory cannot be packed."""


@dataclass(frozen=True)
class Package:
    """Files of `root`, relative and sorted, with their sizes; `left_out`: paths that git keeps and we do not."""

    root: Path
    sizes_bytes: dict[str, int]
    left_out: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Of all files, before they are zipped."""
        return sum(self.sizes_bytes.values())


def list_package(root: Path, limit_mb: float = LIMIT_MB) -> Package:
    """What would be packed of a directory; an error names what is large where it is more than the limit."""
    root = root.resolve()
    sizes: dict[str, int] = {}
    left_out = []
    for name in sorted(_kept_by_git(root)):
        path = root / name
        parts = set(name.split("/"))
        if parts & _NEVER:
            continue
        if parts & _SECRETS or any(part.startswith(_SECRET_STARTS) for part in parts):
            left_out.append(name)
        elif not path.is_file() or not path.resolve().is_relative_to(root):
            if path.exists() or path.is_symlink():  # a nested repository, a link to elsewhere; else deleted
                left_out.append(name)
        else:
            sizes[name] = path.stat().st_size
    package = Package(root, sizes, tuple(left_out))
    if not sizes:
        raise PackageError(
            f"there is nothing to pack in {root}, or .gitignore names all; give the directory of your code and configs"
        )
    if package.bytes > limit_mb * 1e6:
        large = ", ".join(f"{name} {megabytes(size)}" for name, size in largest(sizes))
        raise PackageError(
            f"{root} has {megabytes(package.bytes)} to pack, and the limit is {limit_mb:g} MB; large are {large}. Add "
            "what the job does not read to .gitignore (data belongs where every node sees it), or raise --limit-mb"
        )
    return package


def largest(sizes_bytes: dict[str, int], count: int = _NAMED) -> list[tuple[str, int]]:
    """The largest files and directories; a directory is opened where one thing in it is most of it."""
    found: list[tuple[str, int]] = []
    waiting = [""]
    while waiting:
        prefix = waiting.pop()
        below: dict[str, int] = {}
        for name, size in sizes_bytes.items():
            if name.startswith(prefix):
                head, slash, _ = name[len(prefix) :].partition("/")
                below[prefix + head + slash] = below.get(prefix + head + slash, 0) + size
        whole = sum(below.values())
        if prefix and max(below.values()) < 0.5 * whole:
            found.append((prefix, whole))
            continue
        waiting += [name for name in below if name.endswith("/")]
        found += [(name, size) for name, size in below.items() if not name.endswith("/")]
    return sorted(found, key=lambda entry: (-entry[1], entry[0]))[:count]


def write_package(package: Package, path: Path) -> int:
    """Zip it, the same bytes for the same files; returns the size of the zip in bytes."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in package.sizes_bytes:
            file = package.root / name
            entry = zipfile.ZipInfo(name, _SAME_TIME)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = (stat.S_IFREG | stat.S_IMODE(file.stat().st_mode)) << 16
            archive.writestr(entry, file.read_bytes())
    return path.stat().st_size


def megabytes(size_bytes: int) -> str:
    """For people: 12.3 MB."""
    return f"{size_bytes / 1e6:.1f} MB" if size_bytes >= 50_000 else f"{size_bytes / 1e3:.1f} kB"


def _kept_by_git(root: Path) -> list[str]:
    """Relative paths; those of a repository's index and those that it does not ignore."""
    with tempfile.TemporaryDirectory(prefix="maskrcnn-git-") as scratch:
        # In a git hook these name a repository, whatever the directory.
        environment = {name: value for name, value in os.environ.items() if name not in _HOOK}
        if _git(["rev-parse", "--is-inside-work-tree"], root, environment, needed=False).strip() != b"true":
            repository = Path(scratch) / "git"
            environment |= {"GIT_DIR": str(repository), "GIT_WORK_TREE": str(root)}
            _git(["init", "--quiet"], root, environment)
        listed = _git(["ls-files", "-z", "--cached", "--others", "--exclude-standard"], root, environment)
    return list({os.fsdecode(name).rstrip("/") for name in listed.split(b"\0") if name})


def _git(words: list[str], root: Path, environment: dict[str, str], needed: bool = True) -> bytes:
    try:
        done = subprocess.run(["git", *words], cwd=root, env=environment, capture_output=True, check=False)
    except FileNotFoundError as error:
        if not root.is_dir():
            raise PackageError(f"{root} is no directory; give the directory of your code and configs") from error
        raise PackageError("git is what reads .gitignore, and it is not installed; install git") from error
    if needed and done.returncode:
        raise PackageError(f"git cannot list {root}: {done.stderr.decode(errors='replace').strip()}")
    return done.stdout if done.returncode == 0 else b""
