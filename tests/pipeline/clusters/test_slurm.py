"""The batch script as a text; tests/jobs/test_slurm_script.py runs it."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from asked import AWKWARD, run, run_called

from pipeline.clusters.request import ClusterRequestError
from pipeline.clusters.slurm import SlurmOptions, render_slurm

WORDS = ["maskrcnn", "train", "configs/coco/mask_rcnn_r50_fpn_1x.yaml"]


def check(script: str, folder: Path) -> None:
    """With ShellCheck, which must find nothing."""
    (folder / "job.sh").write_text(script)
    linter = Path(sys.executable).with_name("shellcheck")
    done = subprocess.run([linter, folder / "job.sh"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def directives(script: str) -> dict[str, str]:
    lines = [line.removeprefix("#SBATCH --") for line in script.splitlines() if line.startswith("#SBATCH")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def test_the_run_fills_the_script(tmp_path):
    options = SlurmOptions(gpus_a_node=4, memory_gb=300, hours=8, partition="gpu,debug", account="vision_1")
    script = render_slurm(run("cluster.workers=8", "cluster.cpus_per_worker=10"), WORDS, options)
    check(script, tmp_path)
    assert directives(script) == {
        "job-name": "r50",
        "nodes": "2",
        "ntasks-per-node": "1",
        "cpus-per-task": "40",
        "gpus-per-node": "4",
        "mem": "300G",
        "time": "8:00:00",
        "signal": "B:USR1@300",
        "requeue": "",
        "open-mode": "append",
        "output": "%x-%j.log",
        "partition": "gpu,debug",
        "account": "vision_1",
    }
    first, *rest = script.splitlines()
    assert first == "#!/bin/bash"
    begun = next(number for number, line in enumerate(rest) if line and not line.startswith("#"))
    assert not any(line.startswith("#SBATCH") for line in rest[begun:]), "Slurm stops reading at the first command"


def test_without_options_there_are_no_lines_for_them(tmp_path):
    script = render_slurm(run(), WORDS, SlurmOptions())
    check(script, tmp_path)
    assert not {"partition", "account"} & set(directives(script))
    assert "<options>" not in script and "<command>" not in script and "<nodes>" not in script


@pytest.mark.parametrize("name", AWKWARD)
def test_names_stay_in_their_place(name):
    words = [*WORDS, f"train.name='{name}'"]
    script = render_slurm(run_called(name), words, SlurmOptions())
    plain = render_slurm(run(), WORDS, SlurmOptions())
    called = directives(script)["job-name"]
    assert script.replace(shlex.join(words), shlex.join(WORDS)).replace(f"={called}\n", "=r50\n") == plain
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        ([], SlurmOptions(partition="gpu\n#SBATCH --wrap=id"), "--partition must be a name such as partition"),
        ([], SlurmOptions(account="a b"), "--account must be a name"),
        ([], SlurmOptions(gpus_a_node=3), "--gpus-per-node one of 1, 2, 4, 8"),
        (["cluster.workers=null"], SlurmOptions(), "cluster.workers must say"),
        (["cluster.runs_dir=/tmp/runs"], SlurmOptions(), "every node sees, got /tmp/runs"),
    ],
)
def test_what_is_refused(overrides, options, message):
    with pytest.raises(ClusterRequestError, match=message):
        render_slurm(run(*overrides), WORDS, options)
