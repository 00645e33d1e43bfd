"""The connection of a driver to a Ray cluster."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from spacepatch.config import RunConfig
from spacepatch.errors import WorkerError
from spacepatch.extras import needed
from spacepatch.limits import available_cores

CONNECT_SECONDS = 10.0
CLIENT = "ray://"
"""Before addresses of clusters whose driver is on none of their nodes."""
STORE_BYTES = 100_000_000
"""Of Ray's object store on a cluster of our own: nothing but plans and reports passes it."""


@contextmanager
def connected(config: RunConfig) -> Iterator[Any]:
    """Ray, connected to a cluster until the block ends, or as the caller had connected it.

    With its driver gone Ray ends all tasks, within a second or so. To cancel them before that can
    crash it (2.60: "Tried to complete task that was not pending"); so those of a caller who stays
    connected end when their shards are done.

    Raises:
        WorkerError: no cluster can be reached.
    """
    # Ray prints what nodes and workers die of to stdout; what matters of it we say.
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".*")
    ray = needed("ray", "ray", by="--executor ray", extra="ray")
    if ray.is_initialized():
        yield ray
        return
    is_main = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        _connect(ray, config)
    finally:
        if is_main:
            signal.signal(signal.SIGTERM, on_sigterm)  # Ray has set its own
    try:
        yield ray
    finally:
        ray.shutdown()


def first_line(error: object) -> str:
    """Of what Ray says: it adds pages of advice. Where that only announces a traceback, its end."""
    lines = str(error).strip().splitlines() or ["no reason is given"]
    return lines[-1] if lines[0].endswith(":") else lines[0]


def _connect(ray: Any, config: RunConfig) -> None:
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    address = config.address or os.environ.get("RAY_ADDRESS") or None
    try:
        if address not in (None, "local"):
            _reach(address)
            if address.startswith(CLIENT):  # it calls Ctrl-C an unrecoverable error
                logging.getLogger("ray.util.client").setLevel(logging.CRITICAL)
            ray.init(address=address, **quiet)
            return
        # Nobody asked whether a cluster of our own may tell Ray's makers of it.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        own = {"num_cpus": config.workers or available_cores(), "object_store_memory": STORE_BYTES}
        try:
            ray.init(address=address, include_dashboard=False, **own, **quiet)
        except ValueError:
            ray.init(**quiet)  # one runs here, and has its own CPUs
    except (RuntimeError, ValueError, OSError, ray.exceptions.RayError) as error:
        where = (
            f"--address {address}" if config.address else address or "the cluster of this machine"
        )
        raise WorkerError(
            f"Ray: {where}: cannot connect ({first_line(error)}); see ray status, or give another "
            "--address, local for a cluster of its own"
        ) from None


def _reach(address: str) -> None:
    """Raise an OSError where nothing listens at HOST:PORT: Ray would try for minutes."""
    host, _, port = address.removeprefix(CLIENT).rpartition(":")
    if host and port.isdecimal() and "//" not in host:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
