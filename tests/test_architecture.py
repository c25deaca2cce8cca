"""Imports run one way, each outside library lives in its rooms, and importing any module does nothing."""

import ast
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
LAYERS = ("model", "pipeline", "jobs")  # each may import itself and those before it
FILES = sorted(path for layer in LAYERS for path in (ROOT / layer).rglob("*.py"))

# Where an outside library may be imported: whole directories end in a slash.
ROOMS = {
    "ray": (
        "pipeline/data/stream.py",
        "pipeline/data/sharding.py",
        "pipeline/ray_cluster.py",
        "pipeline/training/",
        "pipeline/evaluation/",
        "pipeline/search/",
        "pipeline/submission/",
        "jobs/",
    ),
    "mlflow": ("pipeline/tracking/",),
    "typer": ("jobs/",),
}
MODEL_LIBRARIES = {
    "torch": ("model/",),
    "torchvision": ("model/",),
    "safetensors": ("model/weights/",),
    "triton": ("model/ops/nms_triton.py",),
}


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and absolute name of every import, also those inside functions."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(ROOT).parent.parts
            above = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*above, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)


def uses() -> Iterator[tuple[str, str, str]]:
    """File, "file:line name", top-level package."""
    for path in FILES:
        file = path.relative_to(ROOT).as_posix()
        for line, name in imports(path):
            yield file, f"{file}:{line} imports {name}", name.split(".")[0]


def inside(file: str, rooms: tuple[str, ...]) -> bool:
    return any(file.startswith(room) if room.endswith("/") else file == room for room in rooms)


def test_the_layers_are_there():
    assert {path.relative_to(ROOT).parts[0] for path in FILES} == set(LAYERS)


def test_imports_run_one_way():
    wrong = [
        use
        for file, use, package in uses()
        if package in (*LAYERS, "tests") and package not in LAYERS[: LAYERS.index(file.split("/")[0]) + 1]
    ]
    assert not wrong, "imports run jobs -> pipeline -> model:\n" + "\n".join(wrong)


def test_outside_libraries_stay_in_their_rooms():
    wrong = [use for file, use, package in uses() if package in ROOMS and not inside(file, ROOMS[package])]
    assert not wrong, f"{ROOMS}:\n" + "\n".join(wrong)


def test_the_model_needs_torch_alone():
    wrong = [
        use
        for file, use, package in uses()
        if file.startswith("model/")
        and package not in sys.stdlib_module_names
        and package != "model"
        and not inside(file, MODEL_LIBRARIES.get(package, ()))
    ]
    assert not wrong, "model/ imports torch and torchvision (safetensors in weights/):\n" + "\n".join(wrong)


# --- importing does nothing

# What a library that we cannot do without does while it is imported: file below site-packages, event, why.
ALLOWED = (
    ("numpy/_core/", "os.putenv", "sets OPENBLAS_MAIN_FREE while OpenBLAS loads"),
    ("numpy/_core/", "os.unsetenv", "and takes it away again"),
    ("cuda/pathfinder/", "subprocess.Popen", "torch's CUDA build asks ldconfig where the CUDA libraries are"),
    ("cuda/pathfinder/", "open", "/dev/null for that process"),
    ("torch/_inductor/", "os.mkdir", "torchvision.ops imports the compiler, which makes its cache directory in TMPDIR"),
    ("torch/_inductor/", "open", "the compiler tries whether TMPDIR can be written"),
    ("torch/_inductor/", "os.remove", "and removes that file"),
    ("torch/_inductor/", "os.putenv", "TORCHINDUCTOR_CACHE_DIR"),
    ("ray/_private/", "os.putenv", "RAY_CLIENT_MODE=0: Ray is not started"),
    ("urllib3/util/connection.py", "socket.bind", "port 0 of ::1, closed at once, to learn whether there is IPv6"),
)
ALLOWED_LEFT = "torchinductor_"  # that cache directory, empty

# Runs in a process of its own: an audit hook sees each file opened for writing, directory made, socket and process, by
# us or by a library that we import; prints [module being imported, file at fault, event, what] for each.
RECORDER = """
import importlib, json, os, sys, sysconfig, threading

WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod",
           "os.chdir", "os.putenv", "os.unsetenv", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork",
           "os.forkpty", "pty.spawn", "subprocess.Popen", "socket.connect", "socket.bind", "socket.getaddrinfo",
           "socket.gethostbyname", "socket.sendto", "sqlite3.connect", "urllib.Request", "tempfile.mkstemp",
           "tempfile.mkdtemp"}
STANDARD = sysconfig.get_paths()["stdlib"]
current, events, broken = "", [], {}

def culprit():
    frame = sys._getframe(2)
    while frame:
        file = frame.f_code.co_filename
        if not file.startswith("<") and (not file.startswith(STANDARD) or "site-packages" in file):
            return file.partition("site-packages/")[2] or file
        frame = frame.f_back
    return "?"

def watch(event, args):
    if event in CHANGES or (event == "open" and isinstance(args[2], int) and args[2] & WRITING):
        events.append([current, culprit(), event, str(args[0] if event == "open" else args)[:300]])

sys.addaudithook(watch)
for current in sys.argv[1:]:
    try:
        importlib.import_module(current)
    except Exception as error:
        broken[current] = repr(error)
ray = sys.modules.get("ray")
print(json.dumps({"events": events, "broken": broken, "ray": bool(ray and ray.is_initialized()),
                  "threads": [t.name for t in threading.enumerate() if t is not threading.main_thread()]}))
"""


def record(modules: list[str], path: Path, folder: Path) -> dict[str, Any]:
    """Import modules in a fresh process with an empty home and working directory below `folder`."""
    home, work = folder / "home", folder / "work"
    home.mkdir()
    work.mkdir()
    environment = {key: os.environ[key] for key in ("PATH", "LD_LIBRARY_PATH", "VIRTUAL_ENV") if key in os.environ}
    environment |= {"PYTHONPATH": str(path), "PYTHONDONTWRITEBYTECODE": "1", "HOME": str(home), "TMPDIR": str(work)}
    done = subprocess.run(
        [sys.executable, "-c", RECORDER, *modules],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    *said, summary = done.stdout.splitlines()
    left = [str(entry.relative_to(folder)) for place in (home, work) for entry in place.rglob("*")]
    return json.loads(summary) | {"left": left, "said": said}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    return record([name_of(path) for path in FILES], ROOT, tmp_path_factory.mktemp("imports"))


def test_every_module_can_be_imported(recorded):
    assert recorded["broken"] == {}


def test_importing_touches_nothing(recorded):
    wrong = [
        f"{module}: {culprit} did {event} {what}"
        for module, culprit, event, what in recorded["events"]
        if not any(culprit.startswith(file) and event == allowed for file, allowed, _ in ALLOWED)
    ]
    assert not wrong, "move it into a function, or import the library there:\n" + "\n".join(wrong)
    assert [path for path in recorded["left"] if ALLOWED_LEFT not in path] == []


def test_importing_starts_no_ray_and_no_thread_and_says_nothing(recorded):
    assert not recorded["ray"]
    assert recorded["threads"] == []
    assert recorded["said"] == []


def test_the_recorder_sees_what_it_should(tmp_path):
    (tmp_path / "sinner.py").write_text(
        "import os, pathlib, socket, subprocess, sys\n"
        "pathlib.Path('made').mkdir()\n"
        "pathlib.Path('made/file').write_text('x')\n"
        "subprocess.run([sys.executable, '-c', ''], check=True)\n"
        "with socket.socket() as s:\n    s.bind(('127.0.0.1', 0))\n"
        "print('hello')\n"
    )
    (tmp_path / "wreck.py").write_text("1 / 0\n")
    seen = record(["sinner", "wreck"], tmp_path, tmp_path)
    assert {event for _, _, event, _ in seen["events"]} >= {"os.mkdir", "open", "subprocess.Popen", "socket.bind"}
    assert {culprit for _, culprit, _, _ in seen["events"]} == {str(tmp_path / "sinner.py")}
    assert set(seen["broken"]) == {"wreck"}
    assert seen["left"] == ["work/made", "work/made/file"]
    assert seen["said"] == ["hello"]
