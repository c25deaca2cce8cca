"""The file of Ray's cluster launcher, as Ray itself reads and validates it."""

import re
import shlex

import jsonschema
import pytest
import yaml
from asked import AWKWARD, run, run_called
from ray.autoscaler._private.util import prepare_config, validate_config

from pipeline.clusters.aws import INSTANCES, AwsOptions, choose_instance, render_aws
from pipeline.clusters.request import ClusterRequestError

EFS = "fs-0123456789abcdef0"
OPTIONS = AwsOptions("ghcr.io/team/maskrcnn-ray:1.0", EFS)


def parse(text):
    """Of a file that `ray up` takes."""
    made = yaml.safe_load(text)
    validate_config(prepare_config(made))  # as it does: with its defaults for what is absent
    return made


def test_the_run_fills_the_file():
    options = AwsOptions("ghcr.io/a/b:1", EFS, "g5.12xlarge", "eu-central-1", "/shared", cpu_workers=2)
    made = parse(render_aws(run("cluster.workers=16"), options))
    assert made["docker"]["image"] == "ghcr.io/a/b:1" and made["provider"]["region"] == "eu-central-1"
    train, data = made["available_node_types"]["train"], made["available_node_types"]["data"]
    assert train["node_config"]["InstanceType"] == "g5.12xlarge"
    assert train["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert (train["min_workers"], train["max_workers"], train["resources"]) == (4, 4, {"CPU": 48, "GPU": 4})
    assert (data["min_workers"], made["max_workers"]) == (2, 6)
    head = made["available_node_types"][made["head_node_type"]]
    assert head["resources"] == {"CPU": 0} and "InstanceMarketOptions" not in head["node_config"]
    assert f"{EFS}.efs.eu-central-1.amazonaws.com:/ /shared" in made["initialization_commands"][1]
    assert "--volume=/shared:/shared" in made["docker"]["run_options"]


def test_the_token_goes_to_each_node_and_the_dashboard_to_nobody():
    text = render_aws(run(), OPTIONS)
    made = parse(text)
    assert made["file_mounts"] == {"~/.ray/auth_token": "~/.ray/auth_token"}
    for commands in (made["head_start_ray_commands"], made["worker_start_ray_commands"]):
        assert commands[-1].startswith("RAY_AUTH_MODE=token ray start ")
    assert "--dashboard-host=127.0.0.1" in made["head_start_ray_commands"][-1]
    assert "0.0.0.0" not in text


@pytest.mark.parametrize(
    ("gpus", "instance"),
    [(1, "g5.2xlarge"), (2, "g5.2xlarge"), (4, "g5.12xlarge"), (8, "p4d.24xlarge"), (12, "g5.12xlarge")],
)
def test_the_usual_instance_is_the_largest_that_fills(gpus, instance):
    assert choose_instance(gpus) == instance
    nodes = parse(render_aws(run(f"cluster.workers={gpus}", "train.batch_images=48"), OPTIONS))
    train = nodes["available_node_types"]["train"]
    assert train["min_workers"] * INSTANCES[instance].gpus == gpus


@pytest.mark.parametrize("name", AWKWARD)
def test_names_stay_in_their_place(name):
    made = parse(render_aws(run_called(name), OPTIONS))
    assert re.fullmatch("[a-z][a-z0-9-]{0,62}", made["cluster_name"])
    plain = parse(render_aws(run(), OPTIONS))
    assert made | {"cluster_name": "r50"} == plain


def test_commands_are_words_of_a_shell():
    made = parse(render_aws(run(), OPTIONS))
    for key, commands in made.items():
        if key.endswith("_commands"):
            assert all(shlex.split(command) for command in commands), key


def test_no_placeholder_is_left():
    assert "<" not in render_aws(run(), OPTIONS)


def test_ray_refuses_fields_that_it_does_not_know():
    made = parse(render_aws(run(), OPTIONS))
    for spoiled in (made | {"clustername": "x"}, made | {"docker": {"img": "x"}}, made | {"max_workers": 0}):
        with pytest.raises((ValueError, jsonschema.ValidationError)):
            validate_config(prepare_config(spoiled))


@pytest.mark.parametrize(
    ("overrides", "options", "message"),
    [
        ([], AwsOptions(None, EFS), "--image must name"),
        ([], AwsOptions("a", None), "--file-system must name the EFS file system .* got none; make one"),
        ([], AwsOptions("a", "fs-1; id"), "--file-system must be a name such as fs-0123456789abcdef0, got 'fs-1; id'"),
        ([], AwsOptions("a", EFS, region="mars"), "--region must be a name such as us-west-2, got 'mars'"),
        ([], AwsOptions("a", EFS, "g5.12xlrge"), "got g5.12xlrge; did you mean g5.12xlarge?"),
        (
            ["cluster.workers=6", "train.batch_images=18"],
            AwsOptions("a", EFS, "p5.48xlarge"),
            "6 GPUs must fill .* have 8; give",
        ),
        (["cluster.cpus_per_worker=20"], AwsOptions("a", EFS, "g5.12xlarge"), "its 4 workers, 80, got 48; lower"),
        (["cluster.workers=null"], OPTIONS, "cluster.workers must say"),
        (["cluster.gpus_per_worker=0"], OPTIONS, "gpus_per_worker must be above 0"),
        (["data.train=coco/train"], OPTIONS, "data.train must be a directory below /shared"),
    ],
)
def test_what_is_refused(overrides, options, message):
    with pytest.raises(ClusterRequestError, match=message):
        render_aws(run(*overrides), options)
