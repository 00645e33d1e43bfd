"""Where runs of clips are cut into tasks, against a rule that packs every prefix anew."""

from __future__ import annotations

import numpy as np
import pytest

from spacepatch.packers import ALL_PACKERS
from spacepatch.pipeline.placement import Lengths, Placement, cut_into_tasks

PACK_LENGTH = 100
BYTES = {12: 20, 48: 70}
"""Of a token, by its width."""


def make_runs(seed: int, num_runs: int) -> list[Lengths]:
    """Runs of up to three clips, most of them of one width."""
    draw = np.random.default_rng(seed)
    runs = []
    for size in draw.integers(1, 4, num_runs):
        tokens = draw.integers(1, 11, size) * 7
        widths = np.where(draw.random(size) < 0.2, 48, 12)
        runs.append(Lengths(tokens, np.full(size, 7), widths))
    return runs


def cut_slowly(runs: list[Lengths], packer: str, capacity: int) -> list[tuple[int, int]]:
    def bytes_of(first: int, last: int) -> tuple[int, int, bool]:
        """Of full packs, of the tokens in them; and whether there are as few as tokens fill."""
        room = content = num_packs = least = 0
        for width, token_bytes in BYTES.items():
            tokens = [
                length
                for run in runs[first:last]
                for length, of in zip(run.tokens.tolist(), run.widths.tolist(), strict=True)
                if of == width
            ]
            packs = len(ALL_PACKERS[packer](np.array(tokens, int), pack_length=PACK_LENGTH))
            room += packs * token_bytes * PACK_LENGTH
            content += sum(tokens) * token_bytes
            num_packs += packs
            least += -(-sum(tokens) // PACK_LENGTH)
        return room, content, num_packs == least

    tasks, first = [], 0
    while first < len(runs):
        high = first + 1
        while high < len(runs) and bytes_of(first, high + 1)[1] <= capacity:
            high += 1
        low = first + 1
        while low < high:
            middle = -(-(low + high) // 2)
            low, high = (
                (middle, high) if bytes_of(first, middle)[0] <= capacity else (low, middle - 1)
            )
        best, best_fill = low, 0.0
        for border in range(low, max(first, low - 16), -1):
            room, content, is_least = bytes_of(first, border)
            if room > capacity:
                continue
            if border == len(runs) and is_least:
                best = border
                break
            if content / room > best_fill:
                best, best_fill = border, content / room
            if content < 0.75 * capacity:
                break
        tasks.append((first, best))
        first = best
    return tasks


@pytest.mark.parametrize("packer", ["best-fit-decreasing", "first-fit", "next-fit", "spfhp"])
@pytest.mark.parametrize(("seed", "packs_of_a_shard"), [(0, 1), (1, 4), (2, 15), (3, 1000)])
def test_borders_are_those_of_a_rule_that_packs_every_prefix_anew(packer, seed, packs_of_a_shard):
    runs = make_runs(seed, 60)
    capacity = packs_of_a_shard * PACK_LENGTH * BYTES[48]
    placement = Placement(PACK_LENGTH, packer, None, None, cut_to_fit=False)
    tasks = cut(runs, placement, capacity)
    assert tasks == cut_slowly(runs, packer, capacity)
    assert len(tasks) > 1 or packs_of_a_shard == 1000
    # Cut as they come, a few at a time, they have the same borders.
    found, held, first = [], [], 0
    for place, run in enumerate(runs):
        held.append(run)
        if place % (1 + 5 * seed) == 0:
            certain = cut(held, placement, capacity, is_end=False)
            found += [(first + one, first + two) for one, two in certain]
            done = certain[-1][1] if certain else 0
            held, first = held[done:], first + done
    found += [(first + one, first + two) for one, two in cut(held, placement, capacity)]
    assert found == tasks


def test_no_runs_make_no_tasks():
    placement = Placement(PACK_LENGTH, "first-fit", None, None, cut_to_fit=False)
    assert cut([], placement, 1) == []


def cut(
    runs: list[Lengths], placement: Placement, capacity: int, *, is_end: bool = True
) -> list[tuple[int, int]]:
    nothing = np.empty(0, np.int64)
    return cut_into_tasks(
        Lengths.join([Lengths(nothing, nothing, nothing), *runs]),
        np.cumsum([0, *(run.tokens.size for run in runs)]),
        placement=placement,
        token_bytes=BYTES.__getitem__,
        capacity=capacity,
        is_end=is_end,
    )
