"""How many workers train, what each has, and that none of what runs waits for ever for a place on a node.

Ray places the workers of one training together or not at all, so what waits for workers holds nothing. But evaluators,
and tasks that decode, are waited for by trainings that hold their workers meanwhile: that they always get a place,
wherever Ray put the workers, is what is counted here. One training, and several of a search at once, are counted alike.
"""

from collections.abc import Iterator, Mapping, Sequence

from pipeline import config as ours
from pipeline.ray_cluster import ClusterError, node_resources
from pipeline.training.cluster import Layout

MOST_CPU_WORKERS = 8  # without GPUs; more than that is a cluster's choice
Resources = Mapping[str, float]  # "CPU", "GPU", "memory" (bytes)
_KINDS = ("CPU", "GPU")
_EPSILON = 1e-6  # shares of a CPU add up to the whole


def plan_evaluation(config: ours.DuringTrainingConfig, nodes: Sequence[Resources] | None = None) -> Layout:
    """The workers that evaluate while others train, on the running cluster or these nodes: GPUs where there are two."""
    several = total(node_resources() if nodes is None else nodes, "GPU") >= 2
    gpus = config.gpus_per_worker if config.gpus_per_worker is not None else float(several)
    return Layout(config.workers, gpus, config.cpus_per_worker)


def plan_workers(
    config: ours.ClusterConfig,
    batch_images: int | None = None,
    decode: ours.Decode = "worker",
    beside: Layout | None = None,
    nodes: Sequence[Resources] | None = None,
    trainings: int = 1,
) -> Layout:
    """The layout of each of so many `trainings` at once, each with evaluators `beside` it.

    By default one worker a GPU, or without GPUs one a CPU (at most 8, and so many that the batch divides). CPUs are
    shared out among the workers, whose threads decode, as far as nodes are large enough; reading shards claims none.
    Where so many or so large workers have no place, fewer or smaller ones are tried.

    Args:
        config: workers, gpus_per_worker and cpus_per_worker of one training.
        batch_images: has to divide over the workers; None for prediction, where nothing has to.
        decode: "cluster" leaves half of the CPUs to the tasks that decode, unless config.cpus_per_worker says how many
            the workers take.
        beside: evaluators of one training.
        nodes: what each node has; None: those of the running cluster.
        trainings: that run at once.

    Raises:
        ClusterError: the batch does not divide, or the cluster or its nodes are too small.
    """
    nodes = node_resources() if nodes is None else nodes
    cpus, gpus = total(nodes, "CPU"), total(nodes, "GPU")
    taken_cpus, taken_gpus = (0.0, 0.0)
    if beside is not None:
        taken_cpus, taken_gpus = (trainings * beside.workers * each for each in (beside.cpus, beside.gpus))
        if taken_cpus >= cpus or taken_gpus > gpus or (gpus and taken_gpus == gpus):
            raise ClusterError(
                f"evaluate.during_training takes {taken_cpus:g} CPUs and {taken_gpus:g} GPUs, which leaves nothing of "
                f"the cluster's {cpus:g} CPUs and {gpus:g} GPUs to train on; lower its workers, cpus_per_worker "
                "(such as 0.5) or gpus_per_worker (such as 0)"
            )
    free_cpus, free_gpus = (cpus - taken_cpus) / trainings, (gpus - taken_gpus) / trainings  # of one training
    gpus_each = config.gpus_per_worker if config.gpus_per_worker is not None else float(gpus > 0)
    problem = ""
    for workers in _counts(config, batch_images, free_cpus, free_gpus, gpus_each):
        if workers * gpus_each > free_gpus + _EPSILON:
            beside_it = f", of which {taken_gpus:g} are the evaluators'" if taken_gpus else ""
            without = ", evaluate.during_training.gpus_per_worker=0 to evaluate on CPUs" if taken_gpus else ""
            problem = (
                f"{trainings * workers} workers with {gpus_each:g} GPU each need {trainings * workers * gpus_each:g} "
                f"GPUs, the cluster has {gpus:g}{beside_it}; lower cluster.workers, or set "
                f"cluster.gpus_per_worker=0 to train on CPUs{without}"
            )
            continue
        equal = (free_cpus if decode == "worker" or config.cpus_per_worker is not None else free_cpus / 2) / workers
        for size in _sizes(config, nodes, beside, equal, trainings * workers):
            decode_cpus = 0.0 if decode == "worker" else (free_cpus - workers * size) / workers
            layout = Layout(workers, gpus_each, size, decode_cpus)
            found = _claims_all(layout, cpus, taken_cpus, trainings, decode) or shortage(
                nodes, layout, beside, trainings
            )
            if found is None:
                return layout
            problem = found
    raise ClusterError(problem)


def shortage(nodes: Sequence[Resources], workers: Layout, beside: Layout | None, trainings: int = 1) -> str | None:
    """Why so many trainings could wait for ever, and what to change; None: they cannot."""
    count = trainings * workers.workers
    have = _list(nodes)
    if _places(nodes, workers.resources) < count:
        return (
            f"{count} workers with {workers.cpus:g} CPU and {workers.gpus:g} GPU each have no place: a worker lies on "
            f"one node, and they have {have}; lower cluster.workers, cluster.cpus_per_worker or cluster.gpus_per_worker"
        )
    waits: list[tuple[str, Resources, str]] = []
    if beside is not None:
        waits.append(("evaluator", beside.resources, "cpus_per_worker or gpus_per_worker of evaluate.during_training"))
    if workers.decode_cpus:
        waits.append(("task that decodes", {"CPU": workers.decode_task_cpus}, "cluster.cpus_per_worker"))
    for what, needs, fix in waits:
        if not _places(nodes, needs):
            return f"no node has {_words(needs)} for one {what}, they have {have}; lower {fix}"
    bundles = [(workers.resources, count)]
    if beside is not None:
        bundles.append((beside.resources, trainings * beside.workers))
    if workers.decode_cpus:
        bundles.append(({"CPU": workers.decode_task_cpus}, 1))  # more of them go faster, but none waits for others
    if not _pack(nodes, bundles):
        return (
            f"{count} workers with {_words(workers.resources)} each leave no place beside them for what they wait for ("
            f"{', '.join(f'{what} with {_words(needs)}' for what, needs, _ in waits)}) on nodes that have {have}; "
            f"lower cluster.workers or cluster.cpus_per_worker, or {waits[0][2]}"
        )
    for what, needs, fix in waits:
        blocking = [_blocking(node, workers.resources, needs) for node in nodes if _places([node], needs)]
        if all(fewest is not None for fewest in blocking) and count >= sum(fewest or 0 for fewest in blocking):
            return (
                f"{count} workers with {_words(workers.resources)} each can lie so that no node has {_words(needs)} "
                f"left for one {what}, which would wait for ever; lower cluster.workers or cluster.cpus_per_worker, "
                f"or {fix}"
            )
    return None


def total(nodes: Sequence[Resources], kind: str) -> float:
    """Of all nodes."""
    return sum(node.get(kind, 0.0) for node in nodes)


def _counts(
    config: ours.ClusterConfig, batch_images: int | None, cpus: float, gpus: float, gpus_each: float
) -> Sequence[int]:
    """How many workers a training may have, the most first."""
    if config.workers is None:
        most = int(gpus / gpus_each + _EPSILON) if gpus_each else min(int(cpus), MOST_CPU_WORKERS)
        return [w for w in range(max(most, 1), 0, -1) if batch_images is None or batch_images % w == 0]
    if batch_images is not None and batch_images % config.workers:
        fits = [w for w in range(1, batch_images + 1) if batch_images % w == 0]
        raise ClusterError(
            f"train.batch_images={batch_images} does not divide over cluster.workers={config.workers}; "
            f"use a multiple of {config.workers} for the batch, or one of {fits} workers"
        )
    return [config.workers]


def _sizes(
    config: ours.ClusterConfig, nodes: Sequence[Resources], beside: Layout | None, equal: float, workers: int
) -> Iterator[float]:
    """CPUs that a worker may have, the most first: an equal share of all, else what nodes can be divided into."""
    if config.cpus_per_worker is not None:
        yield config.cpus_per_worker
        return
    largest = min(_whole(equal), max((node.get("CPU", 0.0) for node in nodes), default=0.0))
    yield largest
    yield from (float(size) for size in range(int(largest) - (largest == int(largest)), 0, -1))
    kept = {0.0} if beside is None else {0.0, beside.cpus, beside.cpus * beside.workers}
    pieces = {
        (node.get("CPU", 0.0) - others) / count for node in nodes for others in kept for count in range(1, workers + 1)
    }
    yield from sorted((piece for piece in pieces if 0 < piece < min(largest, 1)), reverse=True)


def _claims_all(layout: Layout, cpus: float, taken: float, trainings: int, decode: ours.Decode) -> str | None:
    """Where the workers claim more CPUs than there are, or all of which others have to decode with some."""
    workers = trainings * layout.workers
    left = cpus - taken - workers * layout.cpus
    beside = f", of which {taken:g} are the evaluators'" if taken else ""
    if layout.cpus <= 0 or left < -_EPSILON:
        return (
            f"{workers} workers with {layout.cpus:g} CPU each need {workers * layout.cpus:g} CPUs, the cluster has "
            f"{cpus:g}{beside}; lower cluster.workers or cluster.cpus_per_worker"
        )
    if decode == "cluster" and left <= _EPSILON:
        return (
            f"data.decode=cluster decodes on CPUs that no worker claims, and {workers} workers with {layout.cpus:g} "
            f"CPU each claim all of the {cpus:g} CPUs{beside}; lower cluster.cpus_per_worker, or set data.decode=worker"
        )
    return None


def _whole(cpus: float) -> float:
    """Ray takes whole CPUs, or a fraction of one."""
    return float(int(cpus)) if cpus >= 1 else cpus


def _fits(node: Resources, needs: Resources) -> int:
    """How many that take so much have room on a node."""
    return min(int(max(node.get(kind, 0.0), 0.0) / need + _EPSILON) for kind, need in needs.items() if need)


def _places(nodes: Sequence[Resources], needs: Resources) -> int:
    """How many that take so much have room on these nodes."""
    return sum(_fits(node, needs) for node in nodes) if any(needs.values()) else 0


def _pack(nodes: Sequence[Resources], bundles: Sequence[tuple[Resources, int]]) -> bool:
    """Whether all have a place: the largest first, each on the first node with room."""
    free = [{kind: node.get(kind, 0.0) for kind in _KINDS} for node in nodes]
    for needs, left in sorted(bundles, key=lambda one: (one[0].get("GPU", 0.0), one[0]["CPU"]), reverse=True):
        for node in free:
            count = min(left, _fits(node, needs))
            left -= count
            for kind, need in needs.items():
                node[kind] -= count * need
        if left:
            return False
    return True


def _blocking(node: Resources, worker: Resources, needs: Resources) -> int | None:
    """Fewest workers that leave a node no room for `needs`; None: so many do not fit there."""
    fewest = [
        int((node.get(kind, 0.0) - need + _EPSILON) / worker[kind]) + 1
        for kind, need in needs.items()
        if need and worker.get(kind)
    ]
    return min((count for count in fewest if count <= _fits(node, worker)), default=None)


def _words(needs: Resources) -> str:
    return " and ".join(f"{amount:g} {kind}" for kind, amount in needs.items())


def _list(nodes: Sequence[Resources]) -> str:
    each = [f"{node.get('CPU', 0.0):g} CPUs and {node.get('GPU', 0.0):g} GPUs" for node in nodes]
    alike = {words: each.count(words) for words in each}
    return ", ".join(words if count == 1 else f"{count} x {words}" for words, count in alike.items())
