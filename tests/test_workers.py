"""Worker processes: their limits, how they die, and that nothing of them stays."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as parquet
import pytest
from fuzz import session_of
from test_crashes import busy_worker
from worker_processes import workers_of

from spacepatch.config import RunConfig
from spacepatch.limits import WORKER_MEMORY
from spacepatch.pipeline.planning import probe_sources
from spacepatch.sources import list_sources
from spacepatch.workers import Fault, WorkerPool

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc are Linux's")


def ask(function: Any, argument: Any, **settings: Any) -> Any:
    """What a worker answers."""
    with WorkerPool(workers=1, timeout=60, **settings) as pool:
        ((_, outcome),) = pool.map(function, iter([("key", argument)]))
    return outcome


def test_a_probe_that_hangs_costs_none_of_those_that_share_its_way_to_a_worker(
    sample_clips: Path, tmp_path: Path
) -> None:
    (listed,) = list_sources([str(sample_clips / "square_320x320.mp4")]).sources
    os.mkfifo(tmp_path / "fifo.mp4")  # put in the place of a file after it was listed
    hanging = replace(listed, uri=str(tmp_path / "fifo.mp4"))
    sources = [*[listed] * 20, hanging, *[listed] * 20]
    with WorkerPool(workers=1, timeout=1) as pool:
        found = probe_sources(sources, RunConfig(), pool)
    assert [place for place, probed in enumerate(found) if probed.info is None] == [20]
    assert found[20].reason == "timeout"


# --- limits ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "most"),
    [
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 2**20),
        (resource.RLIMIT_NOFILE, 256),
        (resource.RLIMIT_DATA, WORKER_MEMORY),
    ],
)
def test_a_worker_has_limits_that_it_cannot_lift(kind: int, most: int) -> None:
    soft, hard = ask(resource.getrlimit, kind)
    assert 0 <= soft == hard <= most


def test_the_parent_has_none_of_them() -> None:
    before = [resource.getrlimit(kind) for kind in range(16)]
    ask(abs, -1)
    assert [resource.getrlimit(kind) for kind in range(16)] == before


def test_a_worker_writes_no_large_file(tmp_path: Path) -> None:
    program = f"with open({str(tmp_path / 'a')!r}, 'wb') as file: file.write(bytes(2**21))"
    with pytest.raises(OSError) as error:
        ask(exec, program)
    assert error.value.errno == errno.EFBIG


def test_torch_and_a_large_arena_fit_into_less_memory_than_the_arena_has() -> None:
    # What is shared with the parent does not count, nor does code.
    descriptor = os.memfd_create("arena")
    os.ftruncate(descriptor, 3_000_000_000)
    program = f"""
import mmap, torch
assert torch.ones(1000, 1000).sum() == 1e6
with open("/proc/{os.getpid()}/fd/{descriptor}", "r+b") as file:
    arena = mmap.mmap(file.fileno(), 3_000_000_000)
arena[:100_000_000] = bytes(100_000_000)
"""
    try:
        assert ask(exec, program, worker_memory=1_000_000_000) is None
    finally:
        os.close(descriptor)


def test_the_kernel_prefers_to_kill_a_worker() -> None:
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert int(ask(Path.read_text, Path("/proc/self/oom_score_adj"))) == max(own, 500)


def test_memory_that_python_does_not_get_is_a_fault_that_names_the_setting() -> None:
    fault = ask(bytearray, 10**9, worker_memory=500_000_000)
    assert fault == Fault("out_of_memory", "it needs more than 0.5 GB; raise --worker-memory")


DECODE = """
from spacepatch.decode.opening import open_container, raise_unless_damage
from spacepatch.errors import DecodeError
from av.error import FFmpegError
kept = []
with open_container({uri!r}) as container:
    try:
        for frame in container.decode(video=0):
            kept.append(frame)
    except FFmpegError as error:
        raise_unless_damage(error, DecodeError)
"""


def test_memory_that_ffmpeg_does_not_get_is_no_damage_of_the_video(
    tmp_path: Path, ffmpeg: str
) -> None:
    from spacepatch.errors import DecodeError

    path = tmp_path / "a.mp4"
    source = "-f lavfi -i testsrc2=s=1920x1080:r=25:d=4 -c:v mpeg4 -q:v 2"
    subprocess.run([ffmpeg, "-v", "error", *source.split(), path], check=True)
    program = DECODE.format(uri=str(path))
    # 100 pictures of 3 MB are kept: they need 0.3 GB more than the 0.1 GB that a worker has.
    with pytest.raises(DecodeError) as error:
        ask(exec, program, worker_memory=300_000_000)
    assert error.value.reason == "out_of_memory"
    assert ask(exec, program) is None


def test_a_video_that_needs_more_memory_than_there_is_costs_itself_alone(
    tmp_path: Path, ffmpeg: str, sample_clips: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    shutil.copy(sample_clips / "square_320x320.mp4", folder)
    # 212 MB a picture, so that there is no room for the first one. FFmpeg's H.264 decoder may hide
    # that it found no memory, and go on without a picture; this one says so.
    source = "-f lavfi -i color=gray:s=8192x4320:r=5:d=1 -c:v ffv1 -pix_fmt yuv444p16le"
    how = [*source.split(), "-threads", "1"]
    subprocess.run([ffmpeg, "-v", "error", *how, folder / "large.mkv"], check=True)
    command = ["tokenize", str(folder), "--out", str(out), "--num-frames", "4"]
    less = ["--worker-memory", "200MB"]
    done = run_cli(*command, *less)
    assert done.returncode == 3, done.stderr
    (loss,) = parquet.read_table(out / "losses.parquet").to_pylist()
    assert (loss["source"], loss["reason"]) == ("large.mkv", "out_of_memory")
    assert loss["retryable"]
    assert run_cli(*command, "--retry-lost").returncode == 0


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "spacepatch", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )


# --- deaths ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "reason"), [(signal.SIGKILL, "out_of_memory"), (signal.SIGSEGV, "crash")]
)
def test_a_worker_that_is_killed_twice_costs_its_job_alone(
    number: signal.Signals, reason: str
) -> None:
    jobs = [("bad", number), *((n, 0) for n in range(20))]
    with WorkerPool(workers=2, timeout=60) as pool:
        found = dict(pool.map(raise_signal, iter(jobs)))
    fault = found.pop("bad")
    assert fault.reason == reason
    assert number.name in fault.message
    assert found == dict.fromkeys(range(20))


def raise_signal(number: int) -> None:
    if number:
        signal.raise_signal(number)


def test_a_worker_that_the_system_kills_costs_one_video(
    tmp_path: Path, ffmpeg: str, sample_clips: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    shutil.copy(sample_clips / "square_320x320.mp4", folder)
    source = "-f lavfi -i testsrc2=size=1920x1080:rate=30:duration=20 -c:v mpeg4 -q:v 2"
    subprocess.run([ffmpeg, "-v", "error", *source.split(), folder / "long.mp4"], check=True)
    command = ["tokenize", folder, "--out", out, "--every-frame", "--max-tokens-per-frame", "16"]
    process = subprocess.Popen(
        [sys.executable, "-m", "spacepatch", *map(str, command)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not (out / "plan.json").exists():
        time.sleep(0.01)
    for _ in range(2):
        worker = busy_worker(process.pid, folder / "long.mp4")
        worker.kill()
        psutil.wait_procs([worker], timeout=10)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 3, stderr
    assert "long.mp4 clip 0: out_of_memory: the system killed its worker twice" in stderr
    assert not session_of(process.pid)
    (loss,) = parquet.read_table(out / "losses.parquet").to_pylist()
    assert (loss["source"], loss["retryable"]) == ("long.mp4", True)


# --- what is left ------------------------------------------------------------------------------

SCENES = {
    "normal": "print(sorted(n for n, _ in pool.map(time.sleep, ((n, 0.02) for n in range(50)))))",
    "crashes": "print({x.reason for _, x in pool.map(signal.raise_signal, crashes)})",
    "timeouts": "print({x.reason for _, x in pool.map(time.sleep, ((n, 99) for n in range(3)))})",
    "left early": "for n in range(6): pool.submit(n, time.sleep, 99)\n    time.sleep(1)",
    "our own bug": "list(pool.map(math.sqrt, iter([(0, -1.0)])))",
    "interrupted": "for n in range(6): pool.submit(n, time.sleep, 99)\n"
    "    print('running', flush=True)\n    pool.next_finished()",
}


@pytest.mark.parametrize("scene", sorted(SCENES))
def test_no_process_and_no_zombie_is_left(scene: str, tmp_path: Path) -> None:
    program = tmp_path / "scene.py"
    program.write_text(
        "import math, signal, time\nfrom spacepatch.workers import WorkerPool\n"
        "crashes = ((n, signal.SIGSEGV if n % 2 else signal.SIGKILL) for n in range(6))\n"
        "if __name__ == '__main__':\n  with WorkerPool(workers=2, timeout=1) as pool:\n"
        f"    {SCENES[scene]}\n"
        "    pool.num_running\n  time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(program)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        if scene == "interrupted":
            assert process.stdout.readline() == "running\n"
            time.sleep(1)
            os.killpg(process.pid, signal.SIGINT)  # Ctrl-C reaches them all
        if scene not in ("interrupted", "our own bug"):
            # While it still runs, after its pool.
            wait_for_end_of_workers(process.pid)
            assert process.poll() is None
            process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
        assert not session_of(process.pid)
    finally:
        for left in session_of(process.pid):
            left.kill()


def wait_for_end_of_workers(leader: int) -> None:
    """Wait until workers came and went, as zombies too; what forks them stays."""
    deadline = time.monotonic() + 40
    seen = False
    while time.monotonic() < deadline:
        workers = workers_of(leader)
        if seen and not workers:
            time.sleep(0.5)
            return
        seen = seen or bool(workers)
        time.sleep(0.05)
    raise AssertionError(f"workers are left: {workers}")
