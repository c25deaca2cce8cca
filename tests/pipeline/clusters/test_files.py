"""The image and the compose file, which are used as they are, and the words of other programs in all of these files."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml
from asked import run
from rayjob_schema import FLAG, TEXT, array, mapping, struct

from pipeline.clusters.aws import AwsOptions, render_aws
from pipeline.clusters.request import CPUS_OF_CPU_NODE
from pipeline.clusters.slurm import SlurmOptions, render_slurm

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "configs/cluster"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

# What we use of the compose specification: github.com/compose-spec/compose-spec, schema/compose-spec.json. As there, a
# field that it does not have is refused.
DURATION = {"type": "string", "pattern": r"^\d+(ms|s|m|h)$"}
SERVICE = struct(
    image=TEXT,
    command=array(TEXT),
    environment=mapping(TEXT),
    depends_on={
        "oneOf": [
            array(TEXT),
            mapping(
                struct(
                    ("condition",),
                    condition={"enum": ["service_started", "service_healthy", "service_completed_successfully"]},
                )
            ),
        ]
    },
    healthcheck=struct(test=array(TEXT), interval=DURATION, timeout=DURATION, retries={"type": "number"}),
    ports=array(TEXT),
    volumes=array(TEXT),
    restart={"enum": ["no", "always", "on-failure", "unless-stopped"]},
    shm_size=TEXT,
    read_only=FLAG,
)
COMPOSE = struct(("services",), name=TEXT, services=mapping(SERVICE), volumes=mapping({"type": ["object", "null"]}))
# Variables are filled in with `${NAME}`, `${NAME:-default}`, `${NAME:?message}`; any other dollar has to be doubled.
VARIABLE = re.compile(r"\$\{([A-Z0-9_]+)(:[-?][^}]*)?\}")


@pytest.fixture(scope="module")
def compose():
    made = yaml.safe_load((FOLDER / "compose.yaml").read_text())
    jsonschema.validate(made, COMPOSE)
    return made


def test_compose_names_what_is_there(compose):
    services, volumes = compose["services"], compose["volumes"]
    for name, service in services.items():
        assert set(service.get("depends_on", ())) <= set(services) - {name}
        for volume in service.get("volumes", ()):
            source = VARIABLE.sub("./x", volume).split(":")[0]
            assert source.startswith("./") or source in volumes
        for address in re.findall(r"(?:http://|@)([a-z0-9]+)[:/]", str(service)):
            assert address in services, f"{name} speaks to {address}"
    healthy = [
        name
        for service in services.values()
        if isinstance(service.get("depends_on"), dict)
        for name, how in service["depends_on"].items()
        if how["condition"] == "service_healthy"
    ]
    assert all("healthcheck" in services[name] for name in healthy)


def test_only_this_machine_reaches_what_compose_starts(compose):
    ports = {name: service["ports"] for name, service in compose["services"].items() if "ports" in service}
    assert ports == {"mlflow": ["127.0.0.1:5000:5000"], "ray": ["127.0.0.1:8265:8265"]}
    assert compose["services"]["ray"]["environment"]["RAY_AUTH_MODE"] == "token"


def test_secrets_of_compose_come_from_the_environment_and_must_be_there(compose):
    text = (FOLDER / "compose.yaml").read_text()
    assert not re.search(r"\$(?!\{|\()", VARIABLE.sub("", text.partition("services:")[2]))
    secret = re.compile("PASSWORD|SECRET|TOKEN$")
    found = {
        name: value
        for service in compose["services"].values()
        for name, value in service["environment"].items()
        if secret.search(name)
    }
    assert {"POSTGRES_PASSWORD", "MINIO_ROOT_PASSWORD", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "RAY_AUTH_TOKEN"} == set(
        found
    )
    for value in found.values():
        match = VARIABLE.fullmatch(value)
        assert match and match[2].startswith(":?")
        assert f" {match[1]}=" in text.partition("services:")[0], "its head says how to make it"


def test_the_bucket_is_made_where_mlflow_writes(compose):
    bucket, mlflow = compose["services"]["bucket"], compose["services"]["mlflow"]
    compile(bucket["command"][2], "bucket", "exec")
    assert 'create_bucket(Bucket="mlflow")' in bucket["command"][2]
    assert "--artifacts-destination=s3://mlflow" in mlflow["command"]
    assert mlflow["environment"]["MLFLOW_S3_ENDPOINT_URL"] in bucket["command"][2]


# --- the image


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"\\\n", " ", (FOLDER / "Dockerfile").read_text())
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest) for word, _, rest in (line.partition(" ") for line in lines)]


def test_hadolint_finds_nothing_in_the_dockerfile():
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, FOLDER / "Dockerfile"], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stdout, done.stdout + done.stderr


def test_the_image_copies_what_is_there_and_what_is_needed():
    copied = [rest.split() for word, rest in instructions() if word == "COPY"]
    sources = {source for *sources, _ in copied for source in sources}
    assert all((ROOT / source).exists() for source in sources)
    packages = {pattern.rstrip("*") for pattern in ("model*", "pipeline*", "jobs*")}
    assert (
        packages | {"configs", "pyproject.toml", "constraints.txt", PROJECT["readme"], *PROJECT["license-files"]}
        == sources
    )
    tracked = subprocess.run(["git", "ls-files", *sources], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert {line.split("/")[0] for line in tracked.splitlines()} == sources, "a clone has them"


def test_the_image_has_the_python_and_the_packages_of_the_project():
    words = dict(instructions())
    version = re.match(r"python:(\d+\.\d+)-slim", words["FROM"])
    assert version and f"Python {version[1]} " in (ROOT / "constraints.txt").read_text()
    assert tuple(map(int, version[1].split("."))) >= tuple(map(int, PROJECT["requires-python"][2:].split(".")))
    installs = [rest for word, rest in instructions() if word == "RUN" and rest.startswith("pip install")]
    assert installs == ["pip install --no-cache-dir --constraint constraints.txt --editable '.[server]'"]
    pins = {line.split("==")[0].lower() for line in (ROOT / "constraints.txt").read_text().splitlines()}
    extra = {re.split(r"[\[><=]", package)[0] for package in PROJECT["optional-dependencies"]["server"]}
    assert extra <= pins
    assert words["USER"] == "1000", "the manifests say runAsUser: 1000"
    assert "RAY_AUTH_MODE=token" in words["ENV"]


# --- words of other programs


def options_of(command: str) -> set[str]:
    """--words before an equals sign."""
    return {word.partition("=")[0] for word in shlex.split(command) if word.startswith("--")}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of libraries, while they are imported
def test_ray_start_knows_its_options(compose):
    from ray.scripts.scripts import start

    known = {option for parameter in start.params for option in (*parameter.opts, *parameter.secondary_opts)}
    made = yaml.safe_load(render_aws(run(), AwsOptions("a", "fs-01234567")))
    script = render_slurm(run(), ["true"], SlurmOptions()).replace("\\\n", " ")
    calls = [
        made["head_start_ray_commands"][-1],
        made["worker_start_ray_commands"][-1],
        shlex.join(compose["services"]["ray"]["command"]),
        script.partition(" ray start ")[2].partition('"$@"')[0],
        *re.findall(r"\n *start_ray (.*)", script),
    ]
    assert len(calls) == 6, calls
    for call in calls:
        used = options_of(call)
        assert used and used <= known, used - known


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_mlflow_server_knows_its_options(compose):
    from mlflow.cli import cli

    known = {option for parameter in cli.commands["server"].params for option in parameter.opts}
    used = options_of(shlex.join(compose["services"]["mlflow"]["command"]))
    assert used and used <= known, used - known


def test_nodes_of_cpus_have_as_many_as_is_said():
    made = yaml.safe_load(render_aws(run(), AwsOptions("a", "fs-01234567")))
    assert made["available_node_types"]["data"]["resources"] == {"CPU": CPUS_OF_CPU_NODE}
    assert f"&cpu_node {{cpu: {CPUS_OF_CPU_NODE}, " in (FOLDER / "kuberay.yaml").read_text()
