"""The RayJob: its fields are KubeRay's, its configuration reads back, and no name can break out of its place."""

import copy

import jsonschema
import pytest
import yaml
from asked import AWKWARD, run, run_called
from rayjob_schema import CONFIG_MAP, RAYJOB

from pipeline.clusters.kuberay import KubeRayOptions, render_kuberay
from pipeline.clusters.request import ClusterRequestError
from pipeline.configure import from_yaml_text

OPTIONS = KubeRayOptions("ghcr.io/team/maskrcnn-ray:1.0")


def parse(text):
    """Of a manifest that is valid."""
    settings, job = yaml.safe_load_all(text)
    jsonschema.validate(settings, CONFIG_MAP)
    jsonschema.validate(job, RAYJOB)
    return settings, job


def containers(job):
    cluster = job["spec"]["rayClusterSpec"]
    groups = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    return [container for group in groups for container in group["template"]["spec"]["containers"]]


def test_the_run_fills_the_manifest():
    config = run("cluster.workers=16", "cluster.cpus_per_worker=10", "track.uri=https://mlflow.example.org")
    options = KubeRayOptions("ghcr.io/a/b:1", "coco", "/shared", "team-secrets", memory_gb=500, cpu_workers=3)
    settings, job = parse(render_kuberay(config, options))
    assert from_yaml_text(settings["data"]["config.yaml"]) == config
    cluster = job["spec"]["rayClusterSpec"]
    train, data = cluster["workerGroupSpecs"]
    assert (train["replicas"], train["minReplicas"], train["maxReplicas"]) == (2, 2, 2)
    assert (data["replicas"], data["minReplicas"], data["maxReplicas"]) == (3, 3, 3)
    head, gpu_node, cpu_node = containers(job)
    wanted = {"cpu": 80, "memory": "500Gi", "nvidia.com/gpu": 8}
    assert gpu_node["resources"] == {"requests": wanted, "limits": wanted}
    assert "nvidia.com/gpu" not in cpu_node["resources"]["limits"]
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    for container in (head, gpu_node, cpu_node):
        assert container["image"] == "ghcr.io/a/b:1"
        assert container["envFrom"] == [{"secretRef": {"name": "team-secrets", "optional": True}}]
        assert {"name": "shared", "mountPath": "/shared"} in container["volumeMounts"]
    volumes = train["template"]["spec"]["volumes"]
    assert {"name": "shared", "persistentVolumeClaim": {"claimName": "coco"}} in volumes


def test_nobody_gets_in_without_a_token_and_no_secret_is_written():
    text = render_kuberay(run(), OPTIONS)
    _, job = parse(text)
    assert job["spec"]["rayClusterSpec"]["authOptions"] == {"mode": "token"}
    assert job["spec"]["rayClusterSpec"]["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert all("env" not in container for container in containers(job)), "credentials come from the Secret alone"


def test_the_entrypoint_reads_the_configuration_that_is_mounted():
    settings, job = parse(render_kuberay(run(), OPTIONS))
    (file,) = settings["data"]
    mounts = {mount["name"]: mount["mountPath"] for mount in containers(job)[0]["volumeMounts"]}
    assert job["spec"]["entrypoint"] == f"maskrcnn train {mounts['config']}/{file}"
    volumes = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["volumes"]
    assert {"name": "config", "configMap": {"name": settings["metadata"]["name"]}} in volumes


@pytest.mark.parametrize("name", AWKWARD)
def test_names_stay_in_their_place(name):
    config = run_called(name)
    assert config.train.name == name
    settings, job = parse(render_kuberay(config, OPTIONS))
    assert from_yaml_text(settings["data"]["config.yaml"]) == config
    assert job["metadata"]["name"] == settings["metadata"]["name"]
    _, plain = parse(render_kuberay(run(), OPTIONS))
    made = yaml.safe_dump(job["spec"]).replace(job["metadata"]["name"], "r50")
    assert yaml.safe_load(made) == plain["spec"], "nothing but the name differs"


def test_no_placeholder_is_left():
    assert "<" not in render_kuberay(run(), OPTIONS)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (KubeRayOptions(None), "--image must name .* got none; build and push one"),
        (KubeRayOptions("a", claim="My Claim"), "--claim must be a name such as maskrcnn, got 'My Claim'; give"),
        (KubeRayOptions("a", secret="a\nb: c"), "--secret must be a name"),
        (KubeRayOptions("a", mount="/usr/share"), "--mount must be"),
        (KubeRayOptions("a", mount="/data"), "below /data, which all nodes mount, got /shared/coco/train"),
        (KubeRayOptions("a", gpus_a_node=3), "--gpus-per-node one of 1, 2, 4, 8"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ClusterRequestError, match=message):
        render_kuberay(run(), options)


def test_the_schema_refuses_what_kuberay_does_not_know():
    _, job = parse(render_kuberay(run(), OPTIONS))
    for spoil in (
        lambda it: it["spec"].update(entryPoint="x"),
        lambda it: it["spec"]["rayClusterSpec"].update(auth={"mode": "token"}),
        lambda it: it["spec"]["rayClusterSpec"]["authOptions"].update(mode="none"),
        lambda it: it["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"].update({"num-cpus": 0}),
        lambda it: it["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].update(replicas="2"),
        lambda it: it["spec"]["rayClusterSpec"]["workerGroupSpecs"][0].pop("template"),
        lambda it: containers(it)[1]["resources"]["limits"].update(memory="64 GB"),
        lambda it: it["metadata"].update(name="x" * 48),
    ):
        spoiled = copy.deepcopy(job)
        spoil(spoiled)
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(spoiled, RAYJOB)
