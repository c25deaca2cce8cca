"""The Ray that this process works with. Imports nothing of Ray Train or torch, so that sharding starts at once."""

import logging
import os
import signal
import socket
import threading
from typing import Any

import ray

from pipeline.config import ClusterConfig
from pipeline.errors import UserError

IDLE_PROCESS_MS = 600_000
_LOOPBACK = "127.0.0.1"


class ClusterError(UserError):
    """The cluster cannot serve the run."""


def start_ray(config: ClusterConfig, dashboard: bool = False) -> None:
    """Join the cluster of `address` or RAY_ADDRESS, or start a Ray of our own on this machine's loopback.

    With a `dashboard` where trials are stopped early: what Ray Train frees the workers of a trial with asks it whether
    the trial is alive.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default; spares its warning
    # Ray ends idle processes beyond the free CPUs after a second. Where training has all CPUs, each read task would
    # start a Python of its own, and that cost more than the training step. A cluster has its own setting.
    os.environ.setdefault("RAY_idle_worker_killing_time_threshold_ms", str(IDLE_PROCESS_MS))
    # Ray's core prints warnings about its own pools as errors, into the middle of our output.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    if ray.is_initialized():
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    served: dict[str, Any] = {}
    if dashboard and not address:
        # That asks whichever Ray it finds on this machine, and gives up where it finds two: tell it which.
        port = _free_port()
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://{_LOOPBACK}:{port}"
        served = {"dashboard_host": _LOOPBACK, "dashboard_port": port}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address=address or "local",  # None would join a cluster that somebody started on this machine
            include_dashboard=None if address else dashboard,
            log_to_driver=False,
            logging_level="ERROR",
            namespace="maskrcnn",
            **served,
        )
        if callable(on_sigterm) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray sets its own, which ends the process in the midst of things
        logging.getLogger("ray.data").setLevel(logging.ERROR)  # its progress is ours to show
    except ConnectionError as error:
        raise ClusterError(
            f"no Ray cluster answers at {address} ({error}); check cluster.address or RAY_ADDRESS, "
            "or leave both empty to start one on this machine"
        ) from error


def node_resources() -> list[dict[str, float]]:
    """What each node of the running cluster has: "CPU", "GPU" and more."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def taken_resources() -> dict[str, float]:
    """CPUs and GPUs of the running cluster that others use now."""
    there, free = ray.cluster_resources(), ray.available_resources()
    taken = {kind: there.get(kind, 0.0) - free.get(kind, 0.0) for kind in ("CPU", "GPU")}
    return {kind: amount for kind, amount in taken.items() if amount > 1e-3}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_LOOPBACK, 0))
        return int(probe.getsockname()[1])
