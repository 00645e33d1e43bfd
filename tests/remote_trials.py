"""Output on S3 under faults and kills, as often as asked; `make trials`.

A trial starts a run, and starts it again after each end, while requests fail by seeded chance
(5xx, 429, resets, slow and cut-off answers, some after the request was carried out) and processes
are killed by SIGKILL after a drawn number of requests. Whenever no run is alive, what is visible
must be whole: every object has the bytes that a run on local disk gave it, every receipt has its
files, dataset.json has all. When the faults end, one more run must complete all of it.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from s3_server import Fault, S3Server, s3_server

LEASE_SECONDS = 0.8
SETTINGS = {"pack_length": 64, "max_tokens_per_frame": 16, "shard_size": "60kB", "workers": 1}
MOST_RUNS = 2
"""Under faults, of a trial."""
PATIENCE_SECONDS = 60
"""Before a lease that nobody renews counts as one that never ends."""
DONE, FAILED, REFUSED, BROKEN = 0, 10, 11, 70
"""How a run ends: BROKEN is by an error that no user should see."""


def make_pictures(folder: Path) -> list[str]:
    """Small stills, each a source: what is tried is where tokens go, not how they are made."""
    from PIL import Image

    folder.mkdir()
    draw = random.Random(7)
    for number in range(6):
        content = draw.randbytes(96 * 96 * 3)
        Image.frombytes("RGB", (96, 96), content).save(folder / f"{number}.png")
    return [str(folder)]


def tokenize(sources: list[str], out: str | Path) -> int:
    """A run in this process; how it ended."""
    from spacepatch.config import load_config
    from spacepatch.errors import ResumeError, StoreError
    from spacepatch.pipeline import tokenize

    try:
        tokenize(sources, out=out, config=load_config(SETTINGS))
    except StoreError as error:
        print(f"failed: {error}", flush=True)
        return FAILED
    except ResumeError as error:
        print(f"refused: {error}", flush=True)
        return REFUSED
    return DONE


def in_process(function: Callable[[], int], log: Path) -> int:
    """Start a function in a process of its own; its number."""
    child = os.fork()
    if child:
        return child
    code = BROKEN
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        code = function()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


class Trial:
    """One of them: its own bucket, faults and kills by its seed."""

    def __init__(
        self, s3: S3Server, seed: int, sources: list[str], expected: dict[str, str], log: Path
    ) -> None:
        self._s3, self._sources, self._expected, self._log = s3, sources, expected, log
        self._draw = random.Random(seed)
        self._bucket = s3.bucket()
        self.counts: Counter[str] = Counter()

    def run(self, num_requests: int) -> None:
        """Raises an AssertionError for what must not be.

        Args:
            num_requests: that a run without faults needs, about.
        """
        for _ in range(self._draw.randint(1, MOST_RUNS)):
            kill_after = None
            if self._draw.random() < 0.6:
                kill_after = self._draw.randrange(num_requests)
            self._s3.inject(*self._faults())
            self._count("runs", self._once(kill_after))
            self._s3.inject()
            self.check()
        assert self._once(None) == DONE, "the last run must complete"
        assert self.check() == set(self._expected), "the last run must leave all files"
        client = self._s3.client()
        assert not client.list_multipart_uploads(Bucket=self._bucket).get("Uploads")
        left = [key for key in self._s3.keys(self._bucket) if "/.spacepatch/" in key]
        assert len(left) == 1 and json.loads(self._s3.get(self._bucket, left[0]))["seconds"] == 0

    def _faults(self) -> list[Fault]:
        draw, seed = self._draw, self._draw.randrange(1 << 30)
        common: dict[str, Any] = {"probability": draw.choice([0.02, 0.05, 0.1]), "seed": seed}
        applied = draw.random() < 0.5
        status, code = draw.choice(
            [(500, "InternalError"), (502, "BadGateway"), (503, "SlowDown"), (429, "TooMany")]
        )
        kinds = [
            Fault("status", status=status, code=code, applied=applied, **common),
            Fault("reset", applied=applied, **common),
            Fault("slow", seconds=draw.uniform(0.05, 1.2 * LEASE_SECONDS), **common),
            Fault("truncate", method="GET", **common),
            Fault("short", method="GET", **common),
            # An outage: a run may give up.
            Fault(
                "status",
                status=status,
                code=code,
                applied=applied,
                count=draw.randint(3, 12),
                target=draw.choice([r"\.tar", r"\.json", r"\.parquet", r"\.spacepatch"]),
            ),
        ]
        return draw.sample(kinds, draw.randint(1, 3))

    def _once(self, kill_after: int | None) -> int:
        """A run to its end, or to its death; waits while a dead one's lease holds."""
        end = time.monotonic() + PATIENCE_SECONDS
        while True:
            code = self._start(kill_after)
            if code != REFUSED or time.monotonic() > end:
                return code
            time.sleep(LEASE_SECONDS / 4)

    def _start(self, kill_after: int | None) -> int:
        self._s3.forget()
        url = f"s3://{self._bucket}/some/shards"
        child = in_process(lambda: tokenize(self._sources, url), self._log)
        while True:
            found, status = os.waitpid(child, os.WNOHANG)
            if found:
                code = os.waitstatus_to_exitcode(status)
                assert code in (DONE, FAILED, REFUSED), self._log.read_text()[-3000:]
                self._note()
                return code
            if kill_after is not None and len(self._s3.requests()) > kill_after:
                os.kill(child, signal.SIGKILL)
                os.waitpid(child, 0)
                self._note()
                return -signal.SIGKILL
            time.sleep(0.005)

    def _note(self) -> None:
        for request in self._s3.requests():
            self.counts["requests"] += 1
            if request.fault:
                self.counts[f"faults: {request.fault}"] += 1

    def _count(self, what: str, code: int) -> None:
        names = {DONE: "ended", FAILED: "gave up", REFUSED: "refused", -9: "killed"}
        self.counts[f"{what} {names[code]}"] += 1

    def check(self) -> set[str]:
        """That all that is visible is whole; returns the names of the objects."""
        found = {}
        for key in self._s3.keys(self._bucket):
            if "/.spacepatch/" not in key:
                found[key.rpartition("/")[2]] = self._s3.get(self._bucket, key)
        for name, content in found.items():
            assert name in self._expected, f"{name} is no file of the run on local disk"
            digest = hashlib.sha256(content).hexdigest()
            assert digest == self._expected[name], f"{name} has other bytes than on local disk"
        for name, content in found.items():
            if name.endswith(".json") and name not in ("plan.json", "dataset.json"):
                for file, entry in json.loads(content)["files"].items():
                    assert file in found, f"{name} is there and {file} is not"
                    assert entry["sha256"] == hashlib.sha256(found[file]).hexdigest()
        if "plan.json" in found:
            assert "plan.parquet" in found
        if "dataset.json" in found:
            assert set(found) == set(self._expected), "dataset.json is there before the rest"
        return set(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--first", type=int, default=0, help="Seed of the first one.")
    options = parser.parse_args()
    # Once for all runs, which are forked: nothing here starts a thread.
    import s3fs  # noqa: F401

    import spacepatch.pipeline
    import spacepatch.remote.leases

    counts: Counter[str] = Counter()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="trials-")))
        s3 = stack.enter_context(s3_server(folder))
        # One attempt of botocore: else few faults would reach us.
        os.environ |= s3.env | {"AWS_MAX_ATTEMPTS": "1"}
        os.environ[spacepatch.remote.leases.SECONDS] = str(LEASE_SECONDS)
        sources = make_pictures(folder / "pictures")
        log = folder / "runs.log"
        code = os.waitpid(in_process(lambda: tokenize(sources, folder / "local"), log), 0)[1]
        assert code == 0, log.read_text()
        expected = {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in (folder / "local").iterdir()
            if path.is_file()
        }
        assert sum(name.endswith(".tar") for name in expected) > 1
        untroubled = Trial(s3, -1, sources, expected, log)
        assert untroubled._once(None) == DONE, log.read_text()
        num_requests = len(s3.requests())
        for seed in range(options.first, options.first + options.trials):
            trial = Trial(s3, seed, sources, expected, log)
            try:
                trial.run(num_requests)
            except AssertionError:
                print(f"trial {seed}:\n{log.read_text()[-6000:]}", file=sys.stderr)
                raise
            counts += trial.counts
            counts["trials"] += 1
    for name, count in sorted(counts.items()):
        print(f"{name}: {count:,}")


if __name__ == "__main__":
    main()
