"""How many trials fit on a cluster at once, and what each of them has, so that none waits for ever for another.

Ray places the workers of a trial together or not at all, so trials that wait for workers hold nothing. But each trial
that trains waits for its evaluators, and holds its workers meanwhile: that it always gets them is what is counted here.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.config import ClusterConfig, Decode, DuringTrainingConfig
from pipeline.ray_cluster import ClusterError
from pipeline.training.cluster import Layout, plan_evaluation, plan_workers

Resources = Mapping[str, float]  # "CPU", "GPU" of one node
_KINDS = ("CPU", "GPU")
_EPSILON = 1e-6  # shares of a CPU add up to the whole


@dataclass(frozen=True)
class Budget:
    """What trials get."""

    concurrent: int  # at once
    workers: Layout  # of each, for training
    evaluators: Layout  # of each, beside them

    def __str__(self) -> str:
        at_once = f"{self.concurrent} trial{'s' if self.concurrent > 1 else ''} at once"
        return f"{at_once}, each {self.workers}, and {self.evaluators} to evaluate"


def plan_trials(
    cluster: Sequence[Resources],
    config: ClusterConfig,
    during: DuringTrainingConfig,
    batch_images: int,
    decode: Decode,
    concurrent: int | None,
    trials: int,
) -> Budget:
    """The largest budget that fits, with `concurrent` trials at once if that is given.

    Without cluster.workers a trial has an equal share of the cluster; of one trial at a time that is all of it.

    Args:
        cluster: what each node has.
        config: cluster.workers, gpus_per_worker and cpus_per_worker are those of one trial.
        during: the evaluators of one trial.
        batch_images: has to divide over the workers of a trial.
        decode: "cluster" leaves CPUs to the tasks that decode.
        concurrent: trials at once; None: as many as fit, or one where the configuration does not say what one takes.
        trials: more than these never run at once.

    Raises:
        ClusterError: not even one trial fits, or not so many as were asked for.
    """
    wanted = concurrent if concurrent is not None else _room(cluster, config, during) if config.workers else 1
    reason = ""
    for count in range(max(min(wanted, trials), 1), 0, -1):
        share = {kind: sum(node.get(kind, 0.0) for node in cluster) / count for kind in _KINDS}
        try:
            evaluators = plan_evaluation(during, share)
            workers = plan_workers(config, batch_images, decode, evaluators, share)
        except ClusterError as error:
            reason = reason or str(error)
            continue
        budget = Budget(count, workers, evaluators)
        problem = shortage(cluster, budget)
        if problem is None and (concurrent is None or count == min(concurrent, trials)):
            return budget
        if problem is None:
            raise ClusterError(
                f"{wanted} trials at once do not fit on this cluster ({_describe(cluster)}): {reason}; set "
                f"tune.concurrent={count}, or lower cluster.workers, cluster.cpus_per_worker or cluster.gpus_per_worker"
            )
        reason = reason or problem
    raise ClusterError(f"not even one trial fits on this cluster ({_describe(cluster)}): {reason}")


def shortage(cluster: Sequence[Resources], budget: Budget) -> str | None:
    """Why so many trials could wait for ever; None: they cannot."""
    for layout, what in ((budget.workers, "worker"), (budget.evaluators, "evaluator")):
        if not any(_fits(node, layout) for node in cluster):
            return f"no node is large enough for {_one(layout, what)}"
    if not _pack(cluster, budget):
        return f"the workers of {budget.concurrent} trials, {budget.workers} each, have no room beside their evaluators"
    blocking = [_blocking(node, budget) for node in cluster if _fits(node, budget.evaluators)]
    if all(count is not None for count in blocking):
        needed, workers = sum(count or 0 for count in blocking), budget.concurrent * budget.workers.workers
        if workers >= needed:
            return (
                f"{workers} workers can lie so that no node has room left for {_one(budget.evaluators, 'evaluator')}, "
                "and all trials would wait"
            )
    return None


def _fits(node: Resources, layout: Layout) -> bool:
    return all(node.get(kind, 0.0) + _EPSILON >= amount for kind, amount in layout.resources.items())


def _blocking(node: Resources, budget: Budget) -> int | None:
    """Fewest workers that leave a node no room for an evaluator; None: so many do not fit there."""
    workers, evaluator = budget.workers.resources, budget.evaluators.resources
    fewest = [
        math.floor((node.get(kind, 0.0) - amount + _EPSILON) / workers[kind]) + 1
        for kind, amount in evaluator.items()
        if amount and workers.get(kind)
    ]
    most = min(math.floor((node.get(kind, 0.0) + _EPSILON) / amount) for kind, amount in workers.items() if amount)
    return min((count for count in fewest if count <= most), default=None)


def _room(cluster: Sequence[Resources], config: ClusterConfig, during: DuringTrainingConfig) -> int:
    """Trials that the totals have room for, where one worker takes what is configured, else a GPU, or a CPU."""
    total = {kind: sum(node.get(kind, 0.0) for node in cluster) for kind in _KINDS}
    workers = config.workers or 1
    gpus = config.gpus_per_worker if config.gpus_per_worker is not None else float(total["GPU"] > 0)
    cpus = config.cpus_per_worker if config.cpus_per_worker is not None else 1.0
    needs = {
        "CPU": workers * cpus + during.workers * during.cpus_per_worker,
        "GPU": workers * gpus + during.workers * (during.gpus_per_worker or 0.0),
    }
    return max(1, min(int(total[kind] / need + _EPSILON) for kind, need in needs.items() if need))


def _pack(cluster: Sequence[Resources], budget: Budget) -> bool:
    """Whether all bundles of all trials have a place: the largest first, each on the first node with room."""
    bundles = [budget.workers.resources] * (budget.concurrent * budget.workers.workers)
    bundles += [budget.evaluators.resources] * (budget.concurrent * budget.evaluators.workers)
    bundles.sort(key=lambda bundle: (bundle.get("GPU", 0.0), bundle["CPU"]), reverse=True)
    if budget.workers.decode_cpus:  # tasks that decode take what CPUs there are
        bundles += [{"CPU": budget.workers.decode_cpus}] * (budget.concurrent * budget.workers.workers)
    free = [{kind: node.get(kind, 0.0) for kind in _KINDS} for node in cluster]
    for bundle in bundles:
        place = next((node for node in free if all(node[k] + _EPSILON >= bundle.get(k, 0.0) for k in _KINDS)), None)
        if place is None:
            return False
        for kind in _KINDS:
            place[kind] -= bundle.get(kind, 0.0)
    return True


def _one(layout: Layout, what: str) -> str:
    return f"one {what}, which takes " + " and ".join(f"{amount:g} {kind}" for kind, amount in layout.resources.items())


def _describe(cluster: Sequence[Resources]) -> str:
    cpus, gpus = (sum(node.get(kind, 0.0) for node in cluster) for kind in _KINDS)
    places = f" on {len(cluster)} nodes" if len(cluster) > 1 else ""
    return f"{cpus:g} CPUs and {gpus:g} GPUs{places}"
