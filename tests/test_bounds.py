"""Lower bounds of packs, against exhaustive search and the definition of L2."""

from __future__ import annotations

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from conftest import SpacepatchCli
from hypothesis import given
from hypothesis import strategies as st
from small_runs import run
from untimed import untimed

from spacepatch.bounds import LowerBound, bound_packs, martello_toth
from spacepatch.errors import MissingDependencyError
from spacepatch.inspection import summarize
from spacepatch.packing import lower_bound


def l2_by_its_definition(lengths: list[int], pack_length: int) -> int:
    best = 0
    for k in range(pack_length // 2 + 1):
        alone = [n for n in lengths if n > pack_length - k]
        large = [n for n in lengths if pack_length / 2 < n <= pack_length - k]
        small = [n for n in lengths if k <= n <= pack_length / 2]
        over = sum(small) - (len(large) * pack_length - sum(large))
        best = max(best, len(alone) + len(large) + max(0, -(-over // pack_length)))
    return best


def fewest_packs(lengths: list[int], pack_length: int, cap: int) -> int:
    """Put the first sequence left with every set of others."""

    @cache
    def fewest(left: tuple[int, ...]) -> int:
        if not left:
            return 0
        rests: set[tuple[int, ...]] = set()

        def choose(start: int, rest: tuple[int, ...], room: int, slots: int) -> None:
            rests.add(rest)
            for place in range(start, len(rest)):
                if rest[place] <= room and slots:
                    others = rest[:place] + rest[place + 1 :]
                    choose(place, others, room - rest[place], slots - 1)

        choose(0, left[1:], pack_length - left[0], cap - 1)
        return 1 + min(map(fewest, rests))

    return fewest(tuple(sorted(lengths, reverse=True)))


@st.composite
def packings(draw: st.DrawFn, size: int) -> tuple[list[int], int, int | None]:
    pack_length = draw(st.integers(1, 24))
    lengths = draw(st.lists(st.integers(1, pack_length), max_size=size))
    return lengths, pack_length, draw(st.none() | st.integers(1, 4))


@untimed
@given(packing=packings(30))
def test_l2_is_that_of_its_definition_and_never_below_the_tokens(packing):
    lengths, pack_length, _ = packing
    found = martello_toth(Counter(lengths), pack_length=pack_length)
    assert found == l2_by_its_definition(lengths, pack_length)
    assert found >= lower_bound(sum(lengths), pack_length=pack_length)


@untimed
@given(packing=packings(8), thorough=st.booleans())
def test_no_bound_is_above_the_fewest_packs_that_an_exhaustive_search_finds(packing, thorough):
    pytest.importorskip("scipy")
    lengths, pack_length, max_segments = packing
    limits = {"pack_length": pack_length, "max_segments": max_segments}
    found = bound_packs({1: Counter(lengths)}, **limits, thorough=thorough)
    fewest = fewest_packs(lengths, pack_length, max_segments or len(lengths))
    assert lower_bound(sum(lengths), pack_length=pack_length) <= found.packs <= fewest


@pytest.mark.parametrize(
    ("lengths", "max_segments", "bound"),
    [
        ([5, 5, 5, 5], None, LowerBound(2, "tokens")),
        ([1, 1, 1, 1, 1], 2, LowerBound(3, "segments")),
        ([6, 6, 6], None, LowerBound(3, "L2")),
        # Two in each, though the tokens would fill four.
        ([4] * 10, None, LowerBound(5, "columns")),
        ([], None, LowerBound(0, "tokens")),
    ],
)
def test_a_bound_says_how_it_was_had(lengths, max_segments, bound):
    pytest.importorskip("scipy")
    counts = {7: Counter(lengths)}
    assert bound_packs(counts, pack_length=10, max_segments=max_segments) == bound


def test_packs_hold_one_width_so_bounds_of_widths_add_up():
    counts = {768: Counter([3]), 1536: Counter([6, 6, 6])}
    assert bound_packs(counts, pack_length=10) == LowerBound(4, "L2")


@pytest.mark.parametrize(("name", "packs"), [("wikipedia_512", 8_135_727), ("squad_384", 40_195)])
def test_the_bounds_of_the_published_histograms(shared: Path, name: str, packs: int) -> None:
    pytest.importorskip("scipy")
    path = shared / "packing" / "histograms.json"
    if not path.exists():
        pytest.skip("the published histograms are no part of the package")
    numbers = json.loads(path.read_text())[name]
    counts = {length: number for length, number in enumerate(numbers, 1) if number}
    # With packs known, the quick bound of Wikipedia is proof enough.
    found = bound_packs({1: counts}, pack_length=len(numbers), packs=packs)
    assert found == LowerBound(packs, {512: "L2", 384: "columns"}[len(numbers)])


def test_without_scipy_the_quick_bounds_stay_and_a_thorough_one_says_what_to_install(
    without_scipy: None,
) -> None:
    counts = {1: Counter([4] * 10)}
    assert bound_packs(counts, pack_length=10) == LowerBound(4, "tokens")
    with pytest.raises(MissingDependencyError, match=r"pip install 'spacepatch\[pack\]'"):
        bound_packs(counts, pack_length=10, thorough=True)


def test_a_limit_of_segments_that_bites_makes_column_generation_no_longer_quick() -> None:
    """A knapsack for up to 8 segments is 8 columns instead of one."""
    pytest.importorskip("scipy")
    third = Counter(range(1366, 1466))
    for counts, max_segments in ((third, None), (third, 8), (third | Counter([1]), None)):
        found = bound_packs({1: counts}, pack_length=4096, max_segments=max_segments)
        assert found == LowerBound(50, "columns")
    counts = {1: third | Counter([1])}
    assert bound_packs(counts, pack_length=4096, max_segments=8) == LowerBound(35, "tokens")
    found = bound_packs(counts, pack_length=4096, max_segments=8, thorough=True)
    assert found == LowerBound(50, "columns")


def test_inspect_and_plan_print_the_bound_and_how_it_was_had(
    sample_clips: Path, tmp_path: Path, spacepatch_cli: SpacepatchCli
) -> None:
    run([sample_clips], tmp_path / "a", pack_length=256, shard_size="500KB")
    words = r"lower bound \d+ \((tokens / pack length|Martello|proven by column generation)"
    found = summarize(tmp_path / "a", thorough=True)
    assert found["lower_bound"]["packs"] >= found["totals"]["lower_bound"]
    done = spacepatch_cli("inspect", tmp_path / "a", "--bound")
    assert f"lower bound {found['lower_bound']['packs']} (" in done.stdout
    flags = ["--pack-length", "256", "--fps", "2", "--max-tokens-per-frame", "64"]
    done = spacepatch_cli(
        "tokenize", sample_clips, *flags, "--shard-size", "500KB", "--out", tmp_path / "a"
    )
    plain = f"lower bound {found['totals']['lower_bound']} (tokens / pack length"
    assert plain in done.stdout
    done = spacepatch_cli("plan", sample_clips, *flags)
    assert re.search(words, done.stdout)
    done = spacepatch_cli("plan", sample_clips, *flags, "--json")
    assert json.loads(done.stdout)["lower_bound"] == found["lower_bound"]
