"""The processes of a run, seen from outside."""

from __future__ import annotations

import psutil


def workers_of(pid: int) -> list[psutil.Process]:
    """The workers of a process: children of its child that forks them. Zombies are among them."""
    try:
        servers = psutil.Process(pid).children()
        return [worker for server in servers for worker in server.children()]
    except psutil.NoSuchProcess:
        return []
