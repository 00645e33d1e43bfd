"""A short run of the fuzz target, and that it would see what it looks for; `make fuzz` is long."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fuzz
import pytest


@pytest.fixture(scope="module")
def seeds() -> list[tuple[str, bytes]]:
    return fuzz.load_seeds()


def test_two_hundred_mutated_files_cost_no_run_and_each_is_accounted_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    tally = fuzz.fuzz(num_files=200, seed=3, batch=200)
    assert tally.num_files == 200
    assert tally.unexplained == []
    # Some are read all the same and some are not, or the mutations are too weak or too strong.
    assert 40 < tally.num_written < 180
    assert tally.reasons["unreadable"] > 10
    assert "200 mutated files" in capsys.readouterr().out


def test_a_case_is_the_same_bytes_every_time(seeds: list[tuple[str, bytes]]) -> None:
    again = fuzz.load_seeds()
    assert again == seeds
    for number in range(50):
        case = fuzz.make_case(seeds, seed=1, number=number)
        assert fuzz.make_case(again, seed=1, number=number) == case


def test_cases_differ_from_their_seeds_and_from_each_other(seeds: list[tuple[str, bytes]]) -> None:
    cases = {content for _, content in (fuzz.make_case(seeds, seed=1, number=n) for n in range(99))}
    assert len(cases) > 95
    assert len(cases & {content for _, content in seeds}) < 5


def test_a_file_that_is_nowhere_in_the_tables_is_noticed(
    seeds: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    tally = fuzz.Tally()
    fuzz.run_batch(iter([("a.ts", seeds[0][1]), ("b.mp4", b"junk")]), tmp_path, tally)
    with pytest.raises(AssertionError):
        fuzz.account(tmp_path / "out", {"a.ts", "b.mp4", "c.mp4"}, tally)


def test_what_ffmpeg_prints_by_itself_counts_as_noise(
    seeds: list[tuple[str, bytes]], tmp_path: Path
) -> None:
    for number in range(20):
        (tmp_path / f"{number}.ts").write_bytes(fuzz.make_case(seeds, seed=1, number=number)[1])
    program = (
        "import sys, av\n"
        "av.logging.set_level(av.logging.ERROR)\nav.logging.restore_default_callback()\n"
        "for uri in sys.argv[1:]:\n"
        "    try:\n"
        "        with av.open(uri) as container:\n"
        "            [None for _ in container.decode(video=0)]\n"
        "    except Exception:\n"
        "        pass\n"
    )
    command = [sys.executable, "-c", program, *map(str, sorted(tmp_path.iterdir()))]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    assert fuzz.NOISE.search(done.stderr)
