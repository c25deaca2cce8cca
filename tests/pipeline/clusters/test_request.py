"""How large a cluster is, what it is called, and which places its nodes see."""

import re

import pytest
from asked import AWKWARD, PLACES, run

from pipeline.clusters.request import (
    ClusterRequestError,
    Nodes,
    check_image,
    check_mount,
    check_places,
    gpus_of,
    label,
    named,
    plan_nodes,
)
from pipeline.configure import load_config
from pipeline.errors import UserError
from pipeline.training.placement import plan_evaluation, plan_workers

EVALUATORS = "evaluate.during_training"
DURING = f"{EVALUATORS}.every_steps=2500"


@pytest.mark.parametrize(
    ("overrides", "gpus_a_node", "nodes"),
    [
        (["cluster.workers=1"], None, Nodes(1, 1, 8, 32)),
        (["cluster.workers=6", "train.batch_images=18"], None, Nodes(1, 6, 48, 192)),
        (["cluster.workers=8"], None, Nodes(1, 8, 64, 256)),
        (["cluster.workers=24", "train.batch_images=24"], None, Nodes(3, 8, 64, 256)),
        (["cluster.workers=12", "train.batch_images=24"], 4, Nodes(3, 4, 32, 128)),
        (["cluster.gpus_per_worker=2", "cluster.cpus_per_worker=12"], None, Nodes(2, 8, 48, 192)),
        (["cluster.workers=4", "cluster.gpus_per_worker=0.5", "cluster.cpus_per_worker=1"], None, Nodes(1, 2, 4, 16)),
        (["cluster.workers=2", "cluster.address=auto"], 1, Nodes(2, 1, 8, 32)),
        # 7 that train and 1 that evaluates; 2 that train and 2 that evaluate; 8, and evaluation on a CPU
        (["cluster.workers=7", "train.batch_images=14", DURING], None, Nodes(1, 8, 65, 260)),
        (
            ["cluster.workers=2", DURING, f"{EVALUATORS}.workers=2", f"{EVALUATORS}.cpus_per_worker=3"],
            2,
            Nodes(2, 2, 22, 88),
        ),
        ([DURING, f"{EVALUATORS}.gpus_per_worker=0"], None, Nodes(1, 8, 65, 260)),
        (["data.decode=cluster"], None, Nodes(1, 8, 64, 256)),
    ],
)
def test_the_run_fills_machines(overrides, gpus_a_node, nodes):
    config = run(*overrides)
    assert plan_nodes(config, gpus_a_node) == nodes
    assert gpus_of(config) == pytest.approx(nodes.count * nodes.gpus)
    # What the run asks when it starts there: its workers get what was thought of them.
    during = config.evaluate.during_training
    machines = [{"CPU": float(nodes.cpus), "GPU": float(nodes.gpus)}] * nodes.count
    beside = None if during is None else plan_evaluation(during, machines)
    layout = plan_workers(config.cluster, config.train.batch_images, config.data.decode, beside, machines)
    assert layout.workers == config.cluster.workers
    assert (
        layout.workers * layout.gpus + (0 if beside is None else beside.workers * beside.gpus)
        == nodes.count * nodes.gpus
    )


@pytest.mark.parametrize(
    ("overrides", "gpus_a_node", "message"),
    [
        (["cluster.workers=null"], None, "cluster.workers must say .* got null.*; give cluster.workers=8"),
        (["cluster.gpus_per_worker=0"], None, "gpus_per_worker must be above 0, got 0.*; give .*=1"),
        (
            ["cluster.workers=12", "train.batch_images=24"],
            None,
            "of 8 GPUs, got 12 GPUs; .* one of 1, 2, 3, 4, 6, 12, or",
        ),
        (["cluster.workers=2"], 8, "fill machines of 8 GPUs, got 2 GPUs; give --gpus-per-node one of 1, 2, or"),
        (["cluster.workers=4", "cluster.gpus_per_worker=0.3"], None, r"of 2 GPUs, got 1\.2 GPUs; change"),
        ([DURING], None, "and those of evaluate.during_training must fill machines of 8 GPUs, got 9 GPUs"),
        (["cluster.address=10.0.0.1:6379"], None, "cluster.address must be null .* got 10.0.0.1:6379"),
        (["data.decode=cluster", "cluster.cpus_per_worker=4"], None, "decodes on CPUs that no worker claims"),
    ],
)
def test_what_fills_no_machines_is_refused_with_what_would(overrides, gpus_a_node, message):
    with pytest.raises(UserError, match=message):
        plan_nodes(run(*overrides), gpus_a_node)


def test_decoding_on_nodes_of_its_own():
    config = run("data.decode=cluster", "cluster.cpus_per_worker=4")
    assert plan_nodes(config, cpu_workers=1) == Nodes(1, 8, 32, 128)


def test_a_machine_has_its_workers_cpus():
    config = run("cluster.workers=4", "cluster.cpus_per_worker=16")
    with pytest.raises(ClusterRequestError, match=r"CPUs of its 4 workers, 64, got 48; lower cluster.cpus_per_worker"):
        plan_nodes(config, 4, 48, 192)


@pytest.mark.parametrize("limit", [47, 63])
@pytest.mark.parametrize("name", [*AWKWARD, "r50", "r50-1x", "R50", "1x", "x" * 48, "a-", "", "ends-at-the-limit-" * 3])
def test_a_label_is_one_of_dns_and_of_this_name_alone(name, limit):
    made = label(name, limit)
    assert re.fullmatch("[a-z]([a-z0-9-]*[a-z0-9])?", made) and len(made) <= limit
    assert made == label(name, limit) and label(made, limit) == made
    others = {label(other, limit) for other in (name + "_", name.upper() + "!", name + "ß", "x" * 199)}
    assert made not in others


def test_a_short_plain_name_stays():
    assert label("r50-1x", 47) == "r50-1x"
    assert label("mask_rcnn_R50", 47).startswith("mask-rcnn-r50-")


def test_what_the_cluster_could_not_know_is_filled_in():
    config = load_config(None, list(PLACES))
    filled = named(config, "r50-20260102", "http://mlflow:5000")
    assert (filled.train.name, filled.track.uri) == ("r50-20260102", "http://mlflow:5000")
    told = load_config(None, [*PLACES, "train.name=mine", "track.uri=http://other"])
    assert named(told, "r50-20260102", "http://mlflow:5000") == told
    assert named(config, "x", "").track.uri is None


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.train=s3://bucket/train", "data.val=gs://bucket/val"],
        ["data.train=[/shared/a, 's3://b/c']", "data.mix_weights=[1, 2]"],
        ["init.weights=/shared/zoo/r50.pth", "track.uri=sqlite:////shared/runs/mlflow.db"],
        ["track.uri=https://mlflow.example.org"],
    ],
)
def test_places_that_all_nodes_see(overrides):
    check_places(run(*overrides), "/shared")
    check_places(run(*overrides), None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.train=null", "data.train must name shards, got null; give data.train=/shared/coco/train"),
        (
            "data.val=data/coco/val",
            "data.val must be a directory below /shared, .* got data/coco/val.*; give data.val=",
        ),
        ("data.train=[/shared/a, /data/b]", "data.train .* got /data/b"),
        ("data.train=/shared/../etc", r"got /shared/\.\./etc"),
        ("data.train=/sharedother/x", "got /sharedother/x"),
        ("cluster.runs_dir=runs", "cluster.runs_dir must be a directory below /shared"),
        ("cluster.runs_dir=s3://bucket/runs", "cluster.runs_dir must be a directory, got s3://bucket/runs; give"),
        ("init.weights=r50.pth", "init.weights must be .* got r50.pth"),
        ("track.uri=sqlite:////home/me/mlflow.db", "track.uri must be a directory below /shared"),
        ("track.uri=http://localhost:5000", "must be an address that the nodes reach, got http://localhost:5000"),
        ("track.uri=http://127.0.0.1:5000", "must be an address that the nodes reach"),
    ],
)
def test_places_of_one_machine_are_refused(override, message):
    with pytest.raises(ClusterRequestError, match=message):
        check_places(run(override), "/shared")


def test_a_shared_file_system_has_any_directory_but_those_of_one_machine():
    check_places(run("data.val=data/coco/val", "cluster.runs_dir=runs"), None)
    with pytest.raises(
        ClusterRequestError, match="that every node sees, got /tmp/runs, which each has for itself; give"
    ):
        check_places(run("cluster.runs_dir=/tmp/runs"), None)


@pytest.mark.parametrize("image", ["maskrcnn-ray", "ghcr.io/team/maskrcnn-ray:1.0", "host:5000/a/b@sha256:" + "0" * 64])
def test_images(image):
    assert check_image(image) == image


@pytest.mark.parametrize("image", [None, "", "a b", "a;id", "$(id)", "a\nb", "-v", "https://x/y", "a:b:c"])
def test_what_is_no_image(image):
    with pytest.raises(ClusterRequestError, match=r"--image must .*got .*(build|give)"):
        check_image(image)


@pytest.mark.parametrize(
    "mount", ["", "shared", "/", "/etc", "/opt/maskrcnn", "/a b", "/$x", "/shared/", "/x:y", "/../x"]
)
def test_where_nothing_can_be_mounted(mount):
    with pytest.raises(ClusterRequestError, match="--mount must be an absolute directory"):
        check_mount(mount)
    assert check_mount("/mnt/data-1.x") == "/mnt/data-1.x"
