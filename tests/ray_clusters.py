"""Ray clusters of several nodes on this machine, and the processes of a node."""

from __future__ import annotations

import signal
import socket
from pathlib import Path
from typing import Any

import psutil

MEGABYTE = 1024 * 1024
SMALL: dict[str, Any] = {"object_store_memory": 80 * MEGABYTE}
"""Of each node: its part of the memory that objects are shared in."""
QUICK = {"health_check_initial_delay_ms": 1000, "health_check_period_ms": 1000}
QUICK |= {"health_check_timeout_ms": 10_000, "health_check_failure_threshold": 3}
"""Settings of a cluster that soon takes a killed node for lost, whose port refuses at once; one
that is only slow, on a machine with much to do, is waited for."""


def make_cluster(**more: Any) -> Any:
    """A cluster of its head alone."""
    from ray.cluster_utils import Cluster

    before = signal.getsignal(signal.SIGTERM)

    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": QUICK, **SMALL, **more}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    signal.signal(signal.SIGTERM, before)  # it has set its own
    return cluster


def free_port() -> int:
    """Of loopback, free until somebody takes it."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


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


def runs(node: Any, function: str) -> bool:
    """Whether a task of this function runs on a node: Ray names its workers after what they do."""
    return any(f"ray::{function}" in _command(process) for process in processes_of(node)[1:])


def files_of(servers: list[psutil.Process]) -> set[Path]:
    """Semaphores, and sockets in folders for temporary files, of what is forked from these."""
    found = set()
    for server in servers:
        found |= {Path(socket.laddr) for socket in server.net_connections("unix") if socket.laddr}
        for worker in server.children():
            found |= {Path(entry.path) for entry in worker.memory_maps() if "/sem." in entry.path}
    return found


def is_server(process: psutil.Process) -> bool:
    return "multiprocessing.forkserver" in _command(process)


def _command(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:  # it has just ended
        return ""


def kill(node: Any) -> list[psutil.Process]:
    """SIGKILL for a node's raylet and its workers of Ray; what they had started is returned."""
    own = processes_of(node)
    of_ray = [own[0], *own[0].children()]
    for process in of_ray:
        process.kill()
    return [process for process in own if process not in of_ray]
