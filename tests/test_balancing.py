"""Packs of near-equal attention cost, against trying every way."""

from __future__ import annotations

import json
from collections import Counter
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_runs import rows, run
from untimed import untimed

from spacepatch.balancing import NEAR, Spread, attention_costs, balance_packs
from spacepatch.inspection import summarize, verify
from spacepatch.packing import PACKERS


def cost_of(lengths: list[int], packs: list[list[int]]) -> list[int]:
    return [sum(lengths[index] ** 2 for index in pack) for pack in packs]


def check(lengths: list[int], before: list[list[int]], limits: dict[str, Any]) -> list[list[int]]:
    """The packs balanced: the same sequences within the limits, and in no way less even."""
    after = balance_packs(lengths, before, **limits)
    assert len(after) == len(before)
    assert sorted(index for pack in after for index in pack) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in pack) <= limits["pack_length"] for pack in after)
    cap = limits["max_segments"] or len(lengths)
    assert all(1 <= len(pack) <= cap for pack in after)
    old, new = cost_of(lengths, before), cost_of(lengths, after)
    assert max(new, default=0) <= max(old, default=0)
    assert sum(cost**2 for cost in new) <= sum(cost**2 for cost in old)
    return after


@st.composite
def packings(draw: st.DrawFn, most: int, size: int) -> tuple[list[int], dict[str, Any]]:
    pack_length = draw(st.integers(2, most))
    lengths = draw(st.lists(st.integers(1, pack_length), max_size=size))
    return lengths, {
        "pack_length": pack_length,
        "max_segments": draw(st.none() | st.integers(1, 5)),
    }


@pytest.mark.parametrize("packer", ["next-fit", "best-fit-decreasing"])
@untimed
@given(packing=packings(60, 60))
def test_packs_hold_the_same_within_the_limits_and_are_never_less_even(packer, packing):
    lengths, limits = packing
    before = PACKERS[packer](lengths, **limits)
    after = check(lengths, before, limits)
    assert after == balance_packs(np.array(lengths, np.int32), before, **limits)


@untimed
@given(packing=packings(40, 9))
def test_no_two_packs_of_a_few_can_share_out_their_sequences_more_evenly(packing):
    """Tried against every subset; of two packs in all, this is the optimum."""
    lengths, limits = packing
    after = check(lengths, PACKERS["best-fit-decreasing"](lengths, **limits), limits)
    cap = limits["max_segments"] or len(lengths)
    near = sum(length**2 for length in lengths) // (max(len(after), 1) * NEAR)
    for first, second in combinations(after, 2):
        pool = first + second
        costs = [
            abs(cost_of(lengths, [one])[0] - cost_of(lengths, [other])[0])
            for chosen in product([False, True], repeat=len(pool))
            for one in [[index for index, is_in in zip(pool, chosen, strict=True) if is_in]]
            for other in [[index for index in pool if index not in one]]
            if max(len(one), len(other)) <= cap
            and max(sum(lengths[n] for n in one), sum(lengths[n] for n in other))
            <= limits["pack_length"]
        ]
        found = abs(np.diff(cost_of(lengths, [first, second]))[0])
        assert found <= max(min(costs), near)


def test_where_there_is_room_every_pack_comes_to_cost_the_same():
    # Best-fit-decreasing makes packs of long ones and packs of short ones.
    lengths = [400] * 16 + [100] * 64
    packs = PACKERS["best-fit-decreasing"](lengths, pack_length=800)
    assert set(cost_of(lengths, packs)) == {320_000, 80_000}
    costs = cost_of(lengths, check(lengths, packs, {"pack_length": 800, "max_segments": None}))
    assert set(costs) == {200_000}


def test_many_sequences_are_balanced_in_seconds_and_much_more_evenly():
    lengths = np.random.default_rng(0).choice([196, 256, 512, 784, 1024], 5_000)
    packs = PACKERS["best-fit-decreasing"](lengths, pack_length=8192)
    after = balance_packs(lengths, packs, pack_length=8192)
    before = Spread.of(attention_costs(lengths, packs))
    assert Spread.of(attention_costs(lengths, after)).variation < before.variation / 2


def test_a_spread_is_that_of_numpy_and_adds_up():
    costs = np.random.default_rng(0).integers(1, 10**9, 100)
    spread = Spread.of(costs[:30]) + Spread.of(costs[30:]) + Spread()
    assert spread.max_over_mean == pytest.approx(costs.max() / costs.mean())
    assert spread.variation == pytest.approx(costs.std() / costs.mean())
    assert (Spread().max_over_mean, Spread().variation) == (1.0, 0.0)


# --- whole runs --------------------------------------------------------------------------------

SETTINGS = {"pack_length": 1024, "shard_size": "100MB", "clip_seconds": "1", "fps": "4"}


def test_a_run_makes_as_many_packs_and_says_how_much_more_even_they_are(
    sample_clips: Path, tmp_path: Path
) -> None:
    run([sample_clips], tmp_path / "a", **SETTINGS)
    run([sample_clips], tmp_path / "b", **SETTINGS, balance="attention")
    run([sample_clips], tmp_path / "c", **SETTINGS, balance="attention", workers=1)
    assert verify(tmp_path / "b") == []
    plain, even = summarize(tmp_path / "a"), summarize(tmp_path / "b")
    assert even["totals"]["packs"] == plain["totals"]["packs"]
    assert plain["attention"]["unbalanced"] is None
    before = {key: plain["attention"][key] for key in ("max_over_mean", "variation")}
    assert even["attention"]["unbalanced"] == before
    costs: Counter[tuple[int, int]] = Counter()
    for row in rows(tmp_path / "b", "segments.parquet"):
        costs[row["shard"], row["pack"]] += row["num_kept"] ** 2
    values = np.array(list(costs.values()))
    assert even["attention"]["max_over_mean"] == pytest.approx(values.max() / values.mean())
    assert even["attention"]["variation"] == pytest.approx(values.std() / values.mean())
    assert even["attention"]["variation"] < 0.8 * plain["attention"]["variation"]
    tars = [sorted(path.read_bytes() for path in (tmp_path / n).glob("*.tar")) for n in "bc"]
    assert tars[0] == tars[1]


def test_verify_finds_a_receipt_whose_spread_is_not_of_its_segments(
    sample_clips: Path, tmp_path: Path
) -> None:
    run([sample_clips / "square_320x320.mp4"], tmp_path / "a", **SETTINGS, balance="attention")
    (receipt,) = tmp_path.glob("a/*-000000.json")
    document = json.loads(receipt.read_text())
    document["unbalanced"][2] += 1
    receipt.write_text(json.dumps(document))
    assert any("unbalanced is" in str(problem) for problem in verify(tmp_path / "a"))
    receipt.write_text(json.dumps(document | {"unbalanced": [1, 2]}))
    assert any("not four counts" in str(problem) for problem in verify(tmp_path / "a"))
