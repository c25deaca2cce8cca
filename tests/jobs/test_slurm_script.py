"""The batch script of `maskrcnn cluster render slurm`, run: a Slurm of two shell scripts, nodes on the loopback."""

import os
import signal
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from maskrcnn_process import Maskrcnn, has_proc

from pipeline.clusters.slurm import SlurmOptions, render_slurm
from pipeline.configure import load_config

pytestmark = [pytest.mark.timeout(300), has_proc]

SHIMS = Path(__file__).parent / "fake_slurm"
NODES = "127.0.0.2,127.0.0.3"
IDLE = "#!/bin/bash\nexec sleep 600\n"  # a Ray that runs and does nothing
JOINED = (
    '#!/bin/bash\nif [[ $1 == - ]]; then exit 0; fi\nexec "$REAL_PYTHON" "$@"\n'  # all nodes have come, says python
)

# As a training: takes a while, saves where it is asked to end, and ends.
VERB = """
import os, signal, sys, time
from pathlib import Path
token = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
print("token", oct(token.stat().st_mode & 0o777), oct(token.parent.stat().st_mode & 0o777), len(token.read_text()))
{more}
signal.signal(signal.SIGTERM, lambda *_: (print("asked to end"), time.sleep(0.5), print("ended"), os._exit(143)))
print("the verb is at work", flush=True)
time.sleep(600)
"""
ON_RAY = """
import ray
ray.init(log_to_driver=False, logging_level="ERROR")
Place = ray.remote(num_gpus=1)(type("Place", (), {"node": lambda self: ray.get_runtime_context().get_node_id()}))
places = [Place.remote() for _ in range(2)]  # both at once
print("nodes", len(set(ray.get([place.node.remote() for place in places]))))
"""


@dataclass
class Slurm:
    """Where jobs run, and what was asked of it."""

    folder: Path
    environment: dict[str, str]
    scratch: Path

    @property
    def log(self) -> str:
        return (self.folder / "slurm.log").read_text()

    def job(self, *command: str) -> Maskrcnn:
        overrides = ["cluster.workers=2", "cluster.cpus_per_worker=1", "data.train=/s/train", "data.val=/s/val"]
        config = load_config(None, [*overrides, "train.name=tiny", "cluster.runs_dir=/s/runs"])
        script = self.folder / "job.sh"
        script.write_text(render_slurm(config, command, SlurmOptions(gpus_a_node=1)))
        return Maskrcnn(script, cwd=self.folder, program="/bin/bash", environment=self.environment)


def free_job() -> int:
    """The number of a job whose ports are free."""
    for job in range(os.getpid() % 1000 + 1, 3000):
        first = 20000 + job % 1500 * 8
        probes = [socket.socket() for _ in range(5)]
        try:
            for number, probe in enumerate(probes):
                probe.bind(("0.0.0.0", first + number))
            if not Path(f"/tmp/ray-{job}").exists():
                return job
        except OSError:
            pass
        finally:
            for probe in probes:
                probe.close()
    raise AssertionError("no free ports")


@pytest.fixture
def slurm(tmp_path: Path) -> Slurm:
    job = free_job()
    environment = {
        "PATH": f"{SHIMS}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FAKE_SLURM_LOG": str(tmp_path / "slurm.log"),
        "SLURM_JOB_ID": str(job),
        "SLURM_JOB_NODELIST": NODES,
        "SLURM_CPUS_PER_TASK": "1",
        "OMP_NUM_THREADS": "1",
    }
    return Slurm(tmp_path, environment, Path(f"/tmp/ray-{job}"))


@pytest.fixture
def without_ray(slurm: Slurm) -> Slurm:
    """Ray's nodes do nothing, and are taken to have joined."""
    fakes = slurm.folder / "fakes"
    fakes.mkdir()
    for name, text in (("ray", IDLE), ("python", JOINED)):
        (fakes / name).write_text(text)
        (fakes / name).chmod(0o755)
    slurm.environment |= {
        "PATH": f"{fakes}{os.pathsep}{slurm.environment['PATH']}",
        "REAL_PYTHON": sys.executable,
    }
    return slurm


def expect_nothing_left(slurm: Slurm, job: Maskrcnn) -> None:
    assert job.pids() == []
    assert not list(slurm.folder.glob(".ray-*")), "the token is gone"
    assert not slurm.scratch.exists()


@pytest.mark.slow
def test_nodes_join_work_and_are_ended_and_a_run_out_of_time_goes_back_into_the_queue(slurm):
    with slurm.job("python", "-c", VERB.format(more=ON_RAY)) as job:
        job.wait_until(lambda: "at work" in job.stdout, 250)
        assert "2 nodes have joined Ray at 127.0.0.2:" in job.stdout
        assert "nodes 2" in job.stdout, "a GPU of each"
        assert "token 0o600 0o700 65" in job.stdout, "64 digits and the end of the line, for nobody else"
        job.process.send_signal(signal.SIGUSR1)
        assert job.wait(100) == 143
        assert "asked to end\nended\n" in job.stdout
        expect_nothing_left(slurm, job)
    assert slurm.log.endswith(f"scontrol requeue {slurm.environment['SLURM_JOB_ID']}\n")
    assert "srun 127.0.0.2: ray start" in slurm.log and "srun 127.0.0.3: ray start" in slurm.log


@pytest.mark.parametrize("code", [0, 3])
def test_the_exit_code_is_the_verbs(without_ray, code):
    with without_ray.job("python", "-c", f"print('done'); raise SystemExit({code})") as job:
        assert job.wait(100) == code
        assert "done" in job.stdout
        expect_nothing_left(without_ray, job)
    assert "requeue" not in without_ray.log


def test_scancel_ends_the_verb_and_does_not_queue_it_again(without_ray):
    with without_ray.job("python", "-c", VERB.format(more="")) as job:
        job.wait_until(lambda: "at work" in job.stdout, 60)
        job.process.terminate()
        assert job.wait(100) == 143
        assert "asked to end\nended\n" in job.stdout
        expect_nothing_left(without_ray, job)
    assert "requeue" not in without_ray.log


def test_words_reach_the_verb_as_they_are(without_ray):
    words = ["it's", 'a "b"', "$HOME `id` $(id)", "Größe 日本", "a;b & c > d", "<nodes> <", "back\\slash", "*"]
    with without_ray.job("python", "-c", "import sys; print(sys.argv[1:])", *words) as job:
        assert job.wait(100) == 0, job.stderr
        assert repr(words) in job.stdout


def test_a_ray_that_cannot_start_ends_the_job(slurm):
    fakes = slurm.folder / "fakes"
    fakes.mkdir()
    (fakes / "ray").write_text("#!/bin/bash\necho no port is free >&2\nexit 1\n")
    (fakes / "ray").chmod(0o755)
    slurm.environment["PATH"] = f"{fakes}{os.pathsep}{slurm.environment['PATH']}"
    with slurm.job("python", "-c", "print('never')") as job:
        assert job.wait(100) == 1
        assert "no port is free" in job.stderr and "error: Ray has ended on a node before all had joined" in job.stderr
        assert "never" not in job.stdout
        expect_nothing_left(slurm, job)
