"""Ray clusters of several nodes on this machine, and the processes of a node."""

from __future__ import annotations

import signal
from typing import Any

import psutil

MEGABYTE = 1024 * 1024
SMALL: dict[str, Any] = {"object_store_memory": 80 * MEGABYTE}
"""Of each node: its part of the memory that objects are shared in."""
QUICK = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}
QUICK |= {"health_check_timeout_ms": 1000, "health_check_failure_threshold": 3}
"""Settings of a cluster that soon takes a silent node for lost."""


def make_cluster() -> Any:
    """A cluster of its head alone."""
    from ray.cluster_utils import Cluster

    before = signal.getsignal(signal.SIGTERM)

    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": QUICK, **SMALL}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    signal.signal(signal.SIGTERM, before)  # it has set its own
    return cluster


def add_node(cluster: Any, **more: Any) -> Any:
    before = signal.getsignal(signal.SIGTERM)
    node = cluster.add_node(num_cpus=1, **SMALL, **more)
    signal.signal(signal.SIGTERM, before)
    return node


def processes_of(node: Any) -> list[psutil.Process]:
    """The raylet of a node and all that descends from it: workers of Ray, and of ours."""
    (started,) = node.all_processes["raylet"]
    raylet = psutil.Process(started.process.pid)
    return [raylet, *raylet.children(recursive=True)]


def servers_of(node: Any) -> list[psutil.Process]:
    """What the workers of ours are forked from, on a node: while there is one, it is at work, or
    has been."""
    return [process for process in processes_of(node) if is_server(process)]


def is_server(process: psutil.Process) -> bool:
    try:
        return "multiprocessing.forkserver" in " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return False


def kill(node: Any) -> list[psutil.Process]:
    """SIGKILL for a node's raylet and its workers of Ray; what they had started is returned."""
    own = processes_of(node)
    of_ray = [own[0], *own[0].children()]
    for process in of_ray:
        process.kill()
    return [process for process in own if process not in of_ray]
