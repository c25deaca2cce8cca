"""`maskrcnn cluster render`: what reaches the files, where they go, what comes next, and what is refused."""

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from jobs.main import app
from pipeline.configure import from_yaml_text, load_config

RECIPE = "configs/coco/mask_rcnn_r50_fpn_1x.yaml"
PLACES = ["data.train=/shared/coco/train", "data.val=/shared/coco/val", "cluster.runs_dir=/shared/runs"]
RUN = [RECIPE, "cluster.workers=8", *PLACES]
IMAGE = ["--image", "ghcr.io/team/maskrcnn-ray:1.0"]
EFS = ["--file-system", "fs-0123456789abcdef0"]


@pytest.fixture(autouse=True)
def here(monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def render(*words: str) -> Result:
    return CliRunner().invoke(app, ["cluster", "render", *words])


def test_kuberay(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.org")
    done = render(
        "kuberay", *RUN, "train.name=r50", *IMAGE, "--cpu-workers", "2", "--claim", "coco", "--secret", "ours"
    )
    assert done.exit_code == 0, done.output
    settings, job = yaml.safe_load_all(done.stdout)
    wanted = load_config(Path(RECIPE), [*RUN[1:], "train.name=r50", "track.uri=https://mlflow.example.org"])
    assert from_yaml_text(settings["data"]["config.yaml"]) == wanted
    assert job["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]["replicas"] == 2
    assert 'claimName: "coco"' in done.stdout and 'name: "ours"' in done.stdout
    assert done.stderr.splitlines()[0] == "next        kubectl apply --filename FILE"


def test_slurm(tmp_path):
    file = tmp_path / "a job.sh"
    words = ["train.name=it's", "model.mask=null"]
    done = render(
        "slurm", *RUN, *words, "--gpus-per-node", "4", "--hours", "2", "--partition", "gpu", "--out", str(file)
    )
    assert done.exit_code == 0 and done.stdout == "", done.output
    assert done.stderr.splitlines()[0] == f"next        sbatch {shlex.quote(str(file))}"
    script = file.read_text()
    assert "#SBATCH --nodes=2\n" in script and "#SBATCH --time=2:00:00\n" in script
    assert "#SBATCH --partition=gpu\n" in script
    given = command_of(script)
    assert given == ["maskrcnn", "train", *RUN, *words, "train.name=it's"]
    assert load_config(Path(RECIPE), given[3:]).train.name == "it's"


def test_aws():
    done = render("aws", *RUN, *IMAGE, *EFS, "--instance-type", "g6e.48xlarge", "--region", "eu-west-1")
    assert done.exit_code == 0, done.output
    made = yaml.safe_load(done.stdout)
    assert made["provider"]["region"] == "eu-west-1"
    assert made["available_node_types"]["train"]["node_config"]["InstanceType"] == "g6e.48xlarge"
    steps = done.stderr.split("\n")
    assert steps[0] == "next        ray up FILE"
    submit = shlex.split(steps[2])
    assert submit[:6] == ["maskrcnn", "submit", "--follow", "--", "train", RECIPE]


def command_of(script: str) -> list[str]:
    """The words of the verb."""
    line = next(line for line in script.splitlines() if line.startswith("maskrcnn train "))
    *words, ampersand = shlex.split(line)
    assert ampersand == "&"
    return words


def test_a_run_without_a_name_gets_one_that_stays_when_the_job_starts_anew():
    words = command_of(render("slurm", *RUN).stdout)
    name = load_config(Path(RECIPE), words[3:]).train.name
    assert re.fullmatch(r"mask_rcnn_r50_fpn_1x-\d{8}-\d{6}", str(name))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["kubray", *RUN], "kuberay"),
        (["kuberay", *RUN], "error: --image must name the container image of the nodes, got none; build and push one"),
        (["kuberay", RECIPE, *PLACES, *IMAGE], "error: cluster.workers must say how many GPUs"),
        (
            ["kuberay", *RUN, "cluster.gpus_per_worker=0", *IMAGE],
            "error: cluster.gpus_per_worker must be above 0, got 0",
        ),
        (["kuberay", *RUN, "data.val=coco/val", *IMAGE], "error: data.val must be a directory below /shared"),
        (["kuberay", *RUN, "cluster.worker=8", *IMAGE], "did you mean cluster.workers?"),
        (["aws", *RUN, *IMAGE, *EFS, "--instance-type", "p4d.24xlrge"], "did you mean p4d.24xlarge?"),
        (["aws", *RUN, *IMAGE], "error: --file-system must name"),
        (["slurm", *RUN, "--out", "/no/such/directory/job.sh"], "error: --out must be a file that can be written"),
        (["slurm", "no.yaml"], "no such file"),
    ],
)
def test_what_is_refused(words, message):
    done = render(*words)
    assert done.exit_code == 2, done.output
    assert message in done.output and "Traceback" not in done.output
