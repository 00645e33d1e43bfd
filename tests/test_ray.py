"""Shards made by a real Ray cluster: of several nodes, some of which die, and some come."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy
import psutil
import pytest
from ray_clusters import add_node, files_of, free_port, kill, make_cluster, runs, servers_of
from test_crashes import digests

from spacepatch.config import load_config
from spacepatch.errors import ConfigError, ResumeError
from spacepatch.executors.ray_task import Order, check_node
from spacepatch.inspection import verify
from spacepatch.pipeline import make_plan

pytest.importorskip("ray", reason="ray is not installed: pip install 'spacepatch[ray]'")

SETTINGS = ["--every-frame", "--max-tokens-per-frame", "128", "--pack-length", "512"]
SETTINGS += ["--shard-size", "8MB"]
DONE_WITH_LOSSES = 3
SECONDS = 60
"""Until something is taken never to happen."""


@pytest.fixture(scope="module")
def videos(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample clips, twice: twenty tasks and some."""
    folder = tmp_path_factory.mktemp("videos")
    for number in range(2):
        shutil.copytree(sample_clips, folder / str(number))
    return folder


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes of one CPU, the head among them."""
    cluster = make_cluster()
    for _ in range(2):
        add_node(cluster)
    yield cluster
    cluster.shutdown()


@pytest.fixture(scope="module")
def local(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """sha256 of every file of the run without Ray."""
    out = tmp_path_factory.mktemp("local") / "out"
    done = subprocess.run(command(videos, out), capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == DONE_WITH_LOSSES, done.stderr
    return digests(out)


def command(videos: Path, out: Path, *more: str) -> list[str]:
    begin = [sys.executable, "-m", "spacepatch", "tokenize", str(videos), "--out", str(out)]
    return [*begin, *SETTINGS, *more]


def on_ray(cluster: Any, *more: str) -> list[str]:
    return ["--executor", "ray", "--address", cluster.address, *more]


def start(
    arguments: list[str], environment: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """In a process group of its own, to which Ctrl-C goes."""
    return subprocess.Popen(
        arguments,
        env={**os.environ, **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def receipts(out: Path) -> dict[str, int]:
    """Receipts, and when each was written."""
    return {path.name: path.stat().st_mtime_ns for path in sorted(out.glob("*-??????.json"))}


def wait_for_receipts(driver: subprocess.Popen[str], out: Path, number: int) -> None:
    end = time.monotonic() + SECONDS
    while len(receipts(out)) < number:
        assert driver.poll() is None, driver.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.02)


def kill_one_that_runs(
    function: str, cluster: Any, driver: subprocess.Popen[str]
) -> list[psutil.Process]:
    """Kill a node, not the head, in the middle of such a task of Ray's; what it leaves behind."""
    end = time.monotonic() + SECONDS
    while True:
        for node in cluster.list_all_nodes():
            if node is not cluster.head_node and runs(node, function):
                return kill(node)
        assert driver.poll() is None, driver.communicate()[1]
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_node_that_is_killed_and_one_that_is_added_change_no_byte(
    cluster: Any, videos: Path, local: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    driver = start(command(videos, out, *on_ray(cluster)))
    wait_for_receipts(driver, out, 3)
    orphans = kill_one_that_runs("make_shard", cluster, driver)
    before = len(receipts(out))
    add_node(cluster)
    printed, said = driver.communicate(timeout=SECONDS)

    assert driver.returncode == DONE_WITH_LOSSES, said
    assert before < len(receipts(out)), "it was not killed in the middle"
    assert "shards that lost their node or its worker are done again: " in said
    assert printed.startswith(f"{out}: ")
    assert len(printed.splitlines()) == 1
    assert digests(out) == local
    assert verify(out) == []
    assert orphans
    assert psutil.wait_procs(orphans, timeout=SECONDS)[1] == []


def test_a_plan_that_nodes_probe_for_is_the_same_though_one_of_them_is_killed(
    cluster: Any, sample_clips: Path, tmp_path: Path
) -> None:
    plan = [sys.executable, "-m", "spacepatch", "plan", str(sample_clips), *SETTINGS]
    plan += ["--on-error", "skip-video"]  # it decodes all: there is time to kill
    alone = start([*plan, "--out", str(tmp_path / "alone")])
    _, said = alone.communicate(timeout=SECONDS)
    assert alone.returncode == 0, said

    driver = start([*plan, "--out", str(tmp_path / "out"), *on_ray(cluster)])
    orphans = kill_one_that_runs("probe_here", cluster, driver)
    add_node(cluster)
    _, said = driver.communicate(timeout=SECONDS)
    assert driver.returncode == 0, said
    assert "batches of sources that lost their node or its worker are done again: 1" in said
    assert digests(tmp_path / "out") == digests(tmp_path / "alone")
    assert psutil.wait_procs(orphans, timeout=SECONDS)[1] == []


def test_a_driver_that_is_stopped_goes_on_from_there(
    cluster: Any, videos: Path, local: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    driver = start(command(videos, out, *on_ray(cluster)))
    wait_for_receipts(driver, out, 2)
    at_work = [process for node in cluster.list_all_nodes() for process in servers_of(node)]
    assert at_work
    files = files_of(at_work)
    assert {path.name[:4] for path in files} == {"sem.", "list"}
    os.killpg(driver.pid, signal.SIGINT)
    _, said = driver.communicate(timeout=SECONDS)
    assert driver.returncode == 130, said
    assert said.splitlines()[-1].startswith("interrupted: finished shards are kept")
    assert psutil.wait_procs(at_work, timeout=SECONDS)[1] == []
    end = time.monotonic() + SECONDS
    while left := [path for path in files if path.exists()]:
        assert time.monotonic() < end, left
        time.sleep(0.02)
    kept = receipts(out)
    assert 2 <= len(kept) < sum(name.endswith(".tar") for name in local)

    # As in a Ray job, which finds its cluster in the environment.
    asked = [*command(videos, out), "--executor", "ray"]
    driver = start(asked, {"RAY_ADDRESS": cluster.address})
    _, said = driver.communicate(timeout=SECONDS)
    assert driver.returncode == DONE_WITH_LOSSES, said
    assert {name: when for name, when in receipts(out).items() if name in kept} == kept
    assert digests(out) == local


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_cluster_that_is_not_there_is_said_in_a_line(
    scheme: str, sample_clips: Path, tmp_path: Path
) -> None:
    address = f"{scheme}127.0.0.1:{free_port()}"
    asked = ["--executor", "ray", "--address", address]
    still = sample_clips / "still_picture_400x300.png"
    driver = start(command(still, tmp_path / "out", *asked))
    _, said = driver.communicate(timeout=SECONDS)
    assert said.startswith(f"error: Ray: --address {address}: cannot connect (")
    assert len(said.splitlines()) == driver.returncode == 1


def test_a_token_that_is_asked_for_and_missing_is_said_in_a_line(
    cluster: Any, sample_clips: Path, tmp_path: Path
) -> None:
    still = sample_clips / "still_picture_400x300.png"
    without = {"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)}
    driver = start(command(still, tmp_path / "out", *on_ray(cluster)), without)
    _, said = driver.communicate(timeout=SECONDS)
    assert said.startswith(f"error: Ray: --address {cluster.address}: cannot connect (Token ")
    assert len(said.splitlines()) == driver.returncode == 1


def test_a_node_of_other_libraries_is_refused_by_name(
    cluster: Any, videos: Path, tmp_path: Path
) -> None:
    (tmp_path / "other" / "numpy-99.0.dist-info").mkdir(parents=True)
    metadata = tmp_path / "other" / "numpy-99.0.dist-info" / "METADATA"
    metadata.write_text("Metadata-Version: 2.1\nName: numpy\nVersion: 99.0\n")
    path = os.pathsep.join([str(tmp_path / "other"), *filter(None, [os.environ.get("PYTHONPATH")])])
    node = add_node(cluster, num_gpus=1, env_vars={"PYTHONPATH": path})
    # It alone has what a task takes here.
    asked = on_ray(cluster, "--gpus-per-task", "0.5", "--limit", "4")
    driver = start(command(videos, tmp_path / "out", *asked))
    _, said = driver.communicate(timeout=SECONDS)
    cluster.remove_node(node)
    (line,) = said.splitlines()
    assert line.startswith("error: node ")
    assert f"numpy is 99.0, the plan is made with {numpy.__version__}" in line
    assert driver.returncode == 1
    assert receipts(tmp_path / "out") == {}


def test_sources_that_a_node_does_not_see_are_no_losses(
    cluster: Any, sample_clips: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(sample_clips)  # nodes work in a folder of their own
    video = Path("/proc/self/cwd/square_320x320.mp4")
    driver = start(command(video, tmp_path / "out", *on_ray(cluster)))
    _, said = driver.communicate(timeout=SECONDS)
    assert said.startswith("error: node ")
    assert f": {video} cannot be read there, but can here; mount the sources on every node" in said
    assert len(said.splitlines()) == driver.returncode == 1


WITHOUT_ROOM = """
import sys
from spacepatch.config import load_config
from spacepatch.executors.on_ray import RayExecutor
from spacepatch.pipeline import list_inputs, make_pool
from spacepatch.pipeline.planning import probe_job

if __name__ == "__main__":
    config = load_config({"executor": "ray", "address": sys.argv[2], "cpus_per_task": 64})
    (source,) = list_inputs([sys.argv[1]], config, root=None).sources
    with make_pool(config) as pool:
        executor = RayExecutor(config, None, pool, patience=1.0)
        list(executor.probe([probe_job(source, config)], on_note=print))
"""


def test_a_cluster_that_never_has_room_for_a_task_is_not_waited_for_forever(
    cluster: Any, sample_clips: Path, tmp_path: Path
) -> None:
    script = tmp_path / "run.py"
    script.write_text(WITHOUT_ROOM)
    arguments = [str(sample_clips / "square_320x320.mp4"), cluster.address]
    driver = start([sys.executable, str(script), *arguments])
    printed, said = driver.communicate(timeout=SECONDS)
    assert "nodes of the cluster has 64 CPU: waiting 1 s" in printed
    assert "WorkerError: none of the" in said.splitlines()[-1]


def test_a_driver_that_waits_for_room_ends_with_sigterm(
    cluster: Any, sample_clips: Path, tmp_path: Path
) -> None:
    asked = on_ray(cluster, "--cpus-per-task", "64")
    driver = start(command(sample_clips / "square_320x320.mp4", tmp_path / "out", *asked))
    assert driver.stderr is not None
    assert "nodes of the cluster has 64 CPU: waiting 300 s" in driver.stderr.readline()
    driver.terminate()
    assert driver.stderr.readline().startswith("interrupted: finished shards are kept")
    driver.communicate(timeout=SECONDS)
    assert driver.returncode == 130


def test_a_node_that_sees_another_folder_is_refused(sample_clips: Path, tmp_path: Path) -> None:
    config = load_config({"workers": 1})
    plan = make_plan([str(sample_clips)], config=config, out=tmp_path / "out")
    own = plan.part(plan.tasks[0])
    check_node(Order(own, tmp_path / "out", config, None))
    (tmp_path / "elsewhere").mkdir()
    with pytest.raises(ResumeError, match=r"node .*elsewhere is not the folder .* all nodes share"):
        check_node(Order(own, tmp_path / "elsewhere", config, None))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"address": "head:6379"}, "address head:6379 is for executor ray"),
        ({"cpus_per_task": 2}, "cpus_per_task 2 is for executor ray"),
        ({"executor": "rya"}, "did you mean ray"),
        (
            {"executor": "ray", "encoder": "tae:vae", "device": "cuda:1"},
            "Ray gives each task its own GPU",
        ),
    ],
)
def test_settings_that_say_nothing_to_an_executor_are_refused(
    settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(settings)
