"""Processes that decode references: how they end, what they open, and what they take."""

from __future__ import annotations

import gc
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from referred_packs import CLIPS, Pair, assert_alike, make_pair

from spacepatch.errors import SegmentError
from spacepatch.loader import PackDataset, PackLoader, PackStream

LONG = "long.mp4"
STRACE = shutil.which("strace")


@pytest.fixture(scope="module")
def pair(ffmpeg: str, sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Of small clips, and one that takes a second to decode; each pack has several sources, and
    each source lies in several packs."""
    folder = tmp_path_factory.mktemp("sources") / "videos"
    folder.mkdir()
    for name in CLIPS:
        shutil.copy(sample_clips / name, folder)
    source = "testsrc2=size=1280x720:rate=30:duration=10"
    encode = f"{ffmpeg} -v error -f lavfi -i {source} -c:v mpeg4 -q:v 5 -g 1000".split()
    subprocess.run([*encode, str(folder / LONG)], check=True)
    settings = {"fps": "2", "max_tokens_per_frame": 16, "packer": "next-fit", "pack_length": 80}
    pair = make_pair([str(folder)], tmp_path_factory.mktemp("pair"), clip_seconds=2, **settings)
    assert len(of_long(pair)) > 1
    assert (
        len({one["source"] for one in PackDataset(pair.tokens)[of_long(pair)[0]]["segments"]}) > 1
    )
    return pair


def decoders() -> list[psutil.Process]:
    """The processes of this one that decode, or wait to."""
    servers = [
        child for child in psutil.Process().children() if "forkserver" in " ".join(child.cmdline())
    ]
    return [child for server in servers for child in server.children()]


def busy_decoder(path: Path) -> psutil.Process:
    """The one that has a file open."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        for child in decoders():
            try:
                if any(file.path == str(path) for file in child.open_files()):
                    return child
            except psutil.Error:
                continue
        time.sleep(0.002)
    raise AssertionError("nobody opened the file")


def meanwhile(act: Callable[[], None]) -> threading.Thread:
    thread = threading.Thread(target=act, daemon=True)
    thread.start()
    return thread


def of_long(pair: Pair) -> list[int]:
    """The packs that the long clip lies in; in the first of them with others."""
    sources = [
        [segment["source"] for segment in pack["segments"]] for pack in PackDataset(pair.tokens)
    ]
    own = [index for index, names in enumerate(sources) if LONG in names]
    return sorted(own, key=lambda index: -len(set(sources[index])))


# --- hangs and crashes --------------------------------------------------------------------------


def test_a_source_that_hangs_costs_its_segments_and_no_more(pair: Pair) -> None:
    packs = pair.load(decoder_workers=2, decode_timeout=3, on_bad_source="skip", padded=False)
    index = of_long(pair)[0]
    path = Path(pair.sources[0]) / LONG
    thread = meanwhile(lambda: busy_decoder(path).suspend())
    pack = packs[index]
    thread.join()
    stored = PackDataset(pair.tokens, padded=False)[index]
    lost = sum(segment["source"] == LONG for segment in stored["segments"])
    assert LONG not in {segment["source"] for segment in pack["segments"]}
    assert packs.num_bad_segments == lost < len(stored["segments"])
    # It was the process that hung, and not the file: once more, and all is there.
    assert len(packs[index]["segments"]) == len(stored["segments"])
    assert packs.num_bad_segments == 0
    packs.references.close()


def test_a_hang_is_told_in_the_loaders_words(pair: Pair) -> None:
    packs = pair.load(decoder_workers=1, decode_timeout=3)
    thread = meanwhile(lambda: busy_decoder(Path(pair.sources[0]) / LONG).suspend())
    with pytest.raises(SegmentError, match="raise decode_timeout if it is slow") as caught:
        packs[of_long(pair)[0]]
    thread.join()
    assert (caught.value.source, caught.value.reason) == (LONG, "timeout")
    packs.references.close()


def test_a_source_that_kills_its_decoder_twice_is_an_error(pair: Pair) -> None:
    packs = pair.load(decoder_workers=1)

    def kill_twice() -> None:
        path = Path(pair.sources[0]) / LONG
        first = busy_decoder(path)
        first.send_signal(signal.SIGSEGV)
        psutil.wait_procs([first], timeout=10)
        busy_decoder(path).send_signal(signal.SIGSEGV)

    thread = meanwhile(kill_twice)
    with pytest.raises(SegmentError, match=r"crash: killed its worker twice \(SIGSEGV\)") as caught:
        packs[of_long(pair)[0]]
    thread.join()
    assert caught.value.reason == "crash"
    assert_alike(PackDataset(pair.tokens), packs)
    packs.references.close()


# --- they end -----------------------------------------------------------------------------------


def test_they_end_with_their_dataset(pair: Pair) -> None:
    before = set(decoders())
    packs = pair.load(decoder_workers=2)
    assert packs[0]
    own = set(decoders()) - before
    assert own
    del packs
    gc.collect()
    _, alive = psutil.wait_procs(own, timeout=10)
    assert not alive


SCRIPT = """
import sys, time
from spacepatch.loader import PackDataset, PackLoader

def main():
    packs = PackDataset(sys.argv[1], source_root=sys.argv[2], decoder_workers=2)
    for batch in PackLoader(packs):
        print("loaded", flush=True)
        if sys.argv[3] == "error":
            raise RuntimeError("a bug of the user's")
        if sys.argv[3] == "wait":
            time.sleep(60)

if __name__ == "__main__":
    main()
"""


@pytest.mark.parametrize(("how", "number", "code"), [
    ("end", None, 0), ("error", None, 1), ("wait", signal.SIGINT, -signal.SIGINT),
    ("wait", signal.SIGKILL, -signal.SIGKILL),
])  # fmt: skip
def test_none_is_left_after_the_program(
    pair: Pair, tmp_path: Path, how: str, number: signal.Signals | None, code: int
) -> None:
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, str(script), str(pair.refs), pair.sources[0], how],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"TMPDIR": str(temporary)},
    )  # fmt: skip
    assert process.stdout is not None and process.stdout.readline() == "loaded\n"
    children = psutil.Process(process.pid).children(recursive=True) if how == "wait" else []
    if number is not None:
        process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == code, said
    assert ("a bug of the user's" in said) == (how == "error")
    assert how != "end" or said == ""
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive
    deadline = time.monotonic() + 10
    while list(temporary.iterdir()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not list(temporary.iterdir())


# --- how often a source is opened ---------------------------------------------------------------

PASSES = """
import os, sys
from spacepatch.loader import PackDataset, PackLoader, PackStream

def packs(cache="512MB"):
    return PackDataset(sys.argv[1], source_root=sys.argv[2], decode_cache=cache)

def stream(cache="512MB"):
    options = {"source_root": sys.argv[2], "decode_cache": cache, "shuffle_buffer": 100}
    return PackStream(sys.argv[1], **options)

def alone(given):
    return [given[index] for index in range(len(given))]

for name, load in {
    "loop": lambda: list(packs()),
    "batch": lambda: list(PackLoader(packs(), batch_size=len(packs()))),
    "stream": lambda: list(stream()),
    "alone": lambda: alone(packs("300kB")),
    "tight": lambda: list(stream("300kB")),
}.items():
    os.path.exists("begin/" + name)
    load()
"""


@pytest.mark.skipif(STRACE is None, reason="strace is not on the PATH")
def test_neighbours_share_a_pass(pair: Pair, tmp_path: Path) -> None:
    log = tmp_path / "log"
    trace = f"{STRACE} -f -qq -e trace=openat,open,stat,newfstatat,statx -o".split()
    run = [sys.executable, "-c", PASSES, str(pair.refs), pair.sources[0]]
    subprocess.run([*trace, str(log), *run], check=True, timeout=120)
    opened: dict[str, Counter[str]] = {}
    for line in log.read_text().splitlines():
        path = Path(line.split('"')[1]) if '"' in line else Path()
        if path.parent.name == "begin":
            counts = opened[path.name] = Counter()
        elif path.name in (*CLIPS, LONG) and "open" in line.split("(")[0]:
            counts[path.name] += 1
    # In a pass its content is looked at, its kind, and then it is decoded.
    (opens,) = set(opened["stream"].values())
    assert 1 <= opens <= 4
    assert opened["loop"] == opened["batch"] == opened["stream"]
    # Where nothing is known of its neighbours, and nothing remembered, each pack needs one.
    assert opened["alone"][LONG] == opens * len(of_long(pair)) > opens
    assert opens < opened["tight"][LONG] <= opened["alone"][LONG]


# --- memory -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_memory_is_bounded_by_the_cache(pair: Pair, workers: int) -> None:
    room = 200_000
    packs = PackStream(pair.refs, source_root=pair.roots, shuffle_buffer=2,
                       decoder_workers=workers, decode_cache=f"{room}B")  # fmt: skip
    for _ in PackLoader(packs):
        cache = packs.references._maker._cache
        held = [*cache._waiting.values(), *cache._given.values()]
        total = sum(one.tokens.nbytes for one in held)
        assert total == cache._held <= room
        assert all(one.tokens.base is None or one.tokens.base.nbytes == one.tokens.nbytes
                   for one in held)  # fmt: skip
        if workers:
            spare = packs.references._maker._workers._arenas._spare
            assert sum(arena.num_bytes for arena in spare) <= room
    packs.references.close()
