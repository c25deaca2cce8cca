"""What is packed of a directory, in and outside of a repository, and what is refused."""

import os
import subprocess
import zipfile
from pathlib import Path

import pytest

from pipeline.submission.package import PackageError, largest, list_package, write_package


def write(root: Path, files: dict[str, int]) -> Path:
    for name, size in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(os.urandom(size))
    return root


@pytest.fixture(params=["no repository", "repository", "below a repository"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory whose .gitignore names runs/ and *.pth, but not keep.pth."""
    root = tmp_path / "top/code" if request.param == "below a repository" else tmp_path / "code"
    write(
        root, {"a.py": 10, "configs/b.yaml": 20, "runs/x/model": 5000, "w.pth": 5000, "keep.pth": 30, "sub/c/w.pth": 9}
    )
    write(
        root,
        {".git_is_no_directory": 1, "a space, ümlaut.txt": 3, ".env": 7, ".venv/lib/x.py": 5, "__pycache__/a.pyc": 5},
    )
    (root / ".gitignore").write_text("runs/\n*.pth\n!keep.pth\n")
    if request.param == "repository":
        subprocess.run(["git", "init", "-q", str(root)], check=True)
        subprocess.run(["git", "-C", str(root), "add", "a.py", ".gitignore"], check=True)
    if request.param == "below a repository":
        subprocess.run(["git", "init", "-q", str(root.parent)], check=True)
        write(root.parent, {"outside.py": 4})
    return root


KEPT = {".git_is_no_directory", ".gitignore", "a space, ümlaut.txt", "a.py", "configs/b.yaml", "keep.pth"}


def test_gitignore_is_honoured_everywhere(root):
    before = sorted(root.rglob("*"))
    package = list_package(root)
    assert set(package.sizes_bytes) == KEPT
    assert package.bytes == sum((root / name).stat().st_size for name in KEPT)
    assert package.left_out == (".env",)
    assert sorted(root.rglob("*")) == before, "packing leaves no repository behind"


def test_secrets_stay_here(tmp_path):
    secrets = {".env.local": 1, ".ray/auth_token": 1, "deploy/id_rsa.pub": 1, "auth_token": 1, "a/.aws/credentials": 1}
    write(tmp_path, {"a.py": 1, "environment.yaml": 1, "ids.py": 1} | secrets)
    package = list_package(tmp_path)
    assert set(package.sizes_bytes) == {"a.py", "environment.yaml", "ids.py"}
    assert package.left_out == tuple(sorted(secrets))


def test_a_file_that_git_has_is_packed_though_ignored_and_one_deleted_is_not(tmp_path):
    write(tmp_path, {"forced.pth": 5, "gone.py": 5})
    (tmp_path / ".gitignore").write_text("*.pth\n")
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    subprocess.run(["git", "-C", str(tmp_path), "add", "-f", "forced.pth", "gone.py"], check=True)
    (tmp_path / "gone.py").unlink()
    assert set(list_package(tmp_path).sizes_bytes) == {"forced.pth", ".gitignore"}


def test_links_out_and_repositories_inside_are_left_out_and_named(tmp_path):
    root = write(tmp_path / "code", {"a.py": 3, "inner/b.py": 4})
    write(tmp_path, {"passwords": 9})
    (root / "out").symlink_to(tmp_path / "passwords")
    (root / "in").symlink_to(root / "a.py")
    (root / "broken").symlink_to(root / "nothing")
    subprocess.run(["git", "init", "-q", str(root / "inner")], check=True)
    package = list_package(root)
    assert set(package.sizes_bytes) == {"a.py", "in"}
    assert package.left_out == ("broken", "inner", "out")


def test_the_zip_has_the_files_and_is_the_same_bytes_again(root, tmp_path):
    package = list_package(root)
    (root / "a.py").chmod(0o755)
    size = write_package(package, tmp_path / "1.zip")
    os.utime(root / "a.py", (1, 1))
    write_package(list_package(root), tmp_path / "2.zip")
    assert (tmp_path / "1.zip").read_bytes() == (tmp_path / "2.zip").read_bytes()
    assert size == (tmp_path / "1.zip").stat().st_size
    with zipfile.ZipFile(tmp_path / "1.zip") as archive:
        assert archive.testzip() is None
        assert {name: archive.read(name) for name in archive.namelist()} == {n: (root / n).read_bytes() for n in KEPT}
        assert (archive.getinfo("a.py").external_attr >> 16) & 0o777 == 0o755


def test_more_than_the_limit_is_refused_with_what_is_large(tmp_path):
    write(tmp_path, {"data/coco/train.parquet": 900_000, "data/coco/b": 50, "model.bin": 300_000, "a.py": 10})
    with pytest.raises(PackageError) as caught:
        list_package(tmp_path, limit_mb=1.0)
    message = str(caught.value)
    assert "1.2 MB to pack, and the limit is 1 MB" in message
    assert message.index("data/coco/train.parquet 0.9 MB") < message.index("model.bin 0.3 MB")
    assert ".gitignore" in message and "--limit-mb" in message
    assert list_package(tmp_path, limit_mb=1.3).bytes == 1_200_060


def test_what_is_large_is_a_directory_where_no_file_in_it_is_most_of_it():
    files = {f"data/coco/{number}.jpg": 10 for number in range(100)} | {"data/notes": 5, "big": 500}
    assert largest(files) == [("data/coco/", 1000), ("big", 500), ("data/notes", 5)]
    assert largest({"empty/a": 0, "empty/b": 0}) == [("empty/a", 0), ("empty/b", 0)]


def test_nothing_to_pack_and_no_directory_are_refused(tmp_path):
    with pytest.raises(PackageError, match="nothing to pack"):
        list_package(tmp_path)
    with pytest.raises(PackageError, match="no directory"):
        list_package(tmp_path / "absent")


def test_without_git_the_error_names_it(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(PackageError, match="install git"):
        list_package(write(tmp_path, {"a.py": 1}))
