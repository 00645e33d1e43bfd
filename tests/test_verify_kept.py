"""Mutation testing of `verify`: which tokens are kept, what they stand for, what is masked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import make_dataset
from spoiled_shards import (
    Mutations,
    Shard,
    assert_found,
    assert_found_alone,
    cases,
    edit_json,
    found,
    in_array,
    in_row,
    tars,
)

from spacepatch.inspection import verify
from spacepatch.randomness import Draws
from spacepatch.tubelets import cell_order, merge_of

SETTINGS: dict[str, dict[str, Any]] = {
    "random": {
        "fps": "4",
        "drop": "random:uniform:0.3..0.7",
        "order": "merge 2 x 2",
        "multiple": 2,
        "index": "compact",
        "mask": "random:0.75",
        "store_mask": True,
    },
    "static": {"fps": "8", "drop": "static"},
}


@pytest.fixture(scope="module")
def datasets(
    part_damaged: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A function that makes a dataset of damaged videos by the name of its settings, once."""
    folder = tmp_path_factory.mktemp("geometry")

    def make(name: str) -> Path:
        out = folder / name.replace(" ", "_")
        return out if out.exists() else make_dataset(part_damaged, out, **SETTINGS[name])

    return make


# --- lost rows ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def one_token(part_damaged: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips of two grid rows, of which one may be lost, that keep one token each."""
    settings = {"fps": "8", "drop": "tokens:1", "clip_seconds": "0.5", "views": 16}
    return make_dataset(part_damaged[1:], tmp_path_factory.mktemp("one") / "out", **settings)


def replaced(shard: Shard) -> dict[str, Any]:
    """A segment whose drawn token is lost."""
    positions = shard.array("positions.npy")
    for row in shard.rows():
        _, height, width = row["grid_thw"]
        t, h, w = positions[row["offset"]].tolist()
        drawn = int(Draws(row["segment_id"], "keep").order(row["num_tokens"])[0])
        if drawn != (t * height + h) * width + w:
            assert row["corrupt_frames"]
            return row
    raise AssertionError("no drawn token is lost")


def test_a_token_that_takes_the_place_of_the_lost_ones_is_the_best_that_is_there(
    one_token: Path, tmp_path: Path
) -> None:
    assert verify(one_token) == []
    out = shutil.copytree(one_token, tmp_path / "copy")
    shard = Shard.of(out)
    row = replaced(shard)
    positions = shard.array("positions.npy")
    positions[row["offset"], 2] = (positions[row["offset"], 2] + 1) % row["grid_thw"][2]
    shard.put("positions.npy", positions)
    shard.seal()
    assert found(verify(out), ".tar: pack", "not what was drawn")


# --- mutations ---------------------------------------------------------------------------------


def span(row: Any) -> slice:
    return slice(row["offset"], row["offset"] + row["num_kept"])


def exchange(array: np.ndarray, row: Any) -> None:
    first = row["offset"] + 3
    array[[first, first + 1]] = array[[first + 1, first]]


def sort_by_raster(array: np.ndarray, row: Any) -> None:
    array[span(row)] = np.sort(array[span(row)])


def keep_another(array: np.ndarray, row: Any) -> None:
    """One token is kept instead of the one before it, in the same row and in order."""
    _, height, width = row["grid_thw"]
    order = cell_order(height, width, merge=merge_of(row["order"]))
    kept = array[span(row)]
    t = int(kept[0]) // order.size
    stored = [int(t * order.size + cell) for cell in order]
    place = next(
        place
        for place, cell in enumerate(stored[1:], 1)
        if cell not in kept and stored[place - 1] in kept
    )
    kept[kept == stored[place - 1]] = stored[place]


def lose_last(shard: Shard) -> None:
    """The last token of the pack goes, everywhere but in the plan."""
    last = max(shard.rows(), key=lambda row: row["offset"])
    for name in shard.names[:-1]:
        if name != "segments.npy":
            shard.put(name, shard.array(name)[:-1])
    segments = shard.array("segments.npy")
    segments[-1, 1] -= 1
    shard.put("segments.npy", segments)

    def change(rows: list[Any]) -> None:
        row = max(rows, key=lambda row: row["offset"])
        assert row["offset"] == last["offset"]
        row["num_kept"] -= 1
        row["tokens_crc32c"] = shard.crc32c(row)

    shard.edit_rows(change)
    edit_json(shard.receipt, lambda receipt: receipt.update(tokens=receipt["tokens"] - 1))
    shard.seal()


def flip_visible(array: np.ndarray, row: Any) -> None:
    array[row["offset"] + 5] ^= 1


def lengthen_run(array: np.ndarray, row: Any) -> None:
    """Of a token of the first row, which another one of its cell follows."""
    grid_t, height, width = row["grid_thw"]
    place = row["offset"] + int(np.argmin(array[span(row)][: height * width]))
    assert array[place] < grid_t
    array[place] += 1


def shorten_run(array: np.ndarray, row: Any) -> None:
    place = row["offset"] + int(np.argmax(array[span(row)]))
    array[place] -= 1


def stop_run(array: np.ndarray, row: Any) -> None:
    array[row["offset"] + 2] = 0


def endless_run(array: np.ndarray, row: Any) -> None:
    array[row["offset"] + row["num_kept"] - 1] += 1


def miscount_lost_tokens(shard: Shard) -> None:
    """In the receipt of whichever shard has lost some."""

    def change(receipt: Any) -> None:
        receipt["losses"][0]["num_tokens"] -= 1

    for tar in tars(shard.folder):
        path = tar.with_suffix(".json")
        if json.loads(path.read_text())["losses"]:
            edit_json(path, change)


def whole_row_called_lost(row: Any) -> int:
    return int(row["valid_frames"] - row["tubelet_size"])


RANDOM: Mutations = {
    "cells exchanged": (in_array("kept.npy", exchange), ".tar: pack", "not in merge 2 x 2 order"),
    "cells in raster order": (
        in_array("kept.npy", sort_by_raster),
        ".tar: pack",
        "not in merge 2 x 2 order",
    ),
    "another token kept": (in_array("kept.npy", keep_another), ".tar: pack", "not what was drawn"),
    "one token fewer": (lose_last, ".tar: pack", "not what was drawn"),
    "one token fewer than planned": (lose_last, ".segments.parquet", "tokens planned"),
    "a visible bit flipped": (in_array("visible.npy", flip_visible), ".tar: pack", "not the mask"),
    "neither visible nor hidden": (
        in_array("visible.npy", lambda array, row: array.__setitem__(4, 2)),
        ".tar: pack",
        "other than 0 and 1",
    ),
    "another rate": (in_row(drop="random 0.9"), ".parquet: row", "drop is 'random 0.9', the plan"),
    "no drop": (in_row(drop=None), ".parquet: row", "keeps"),
    "another drop": (in_row(drop="tokens 9"), ".parquet: row", "'tokens 9', the settings say"),
    "a drop that says nothing": (in_row(drop="random x"), ".parquet: row", "is not random RATE"),
    "a rate of 1": (in_row(drop="random 1"), ".parquet: row", "not as such values are written"),
    "another order": (in_row(order="raster"), ".parquet: row", "order is 'raster', the settings"),
    "no order": (in_row(order="spiral"), ".parquet: row", "order is 'spiral'"),
    "a row called lost": (
        in_row(valid_frames=whole_row_called_lost, corrupt_frames=lambda r: r["tubelet_size"]),
        ".tar: pack",
        "valid_frames says",
    ),
    "more kept than there are": (
        in_row(num_kept=lambda row: row["num_tokens"] + 1),
        ".parquet: row",
        "keeps",
    ),
}

STATIC: Mutations = {
    "a run too long": (
        in_array("run_lengths.npy", lengthen_run),
        ".tar: pack",
        "beyond the next kept token",
    ),
    "a run too short": (
        in_array("run_lengths.npy", shorten_run),
        ".tar: pack",
        "do not cover the same grid rows",
    ),
    "a run of nothing": (in_array("run_lengths.npy", stop_run), ".tar: pack", "of no tubelet"),
    "a run beyond the end": (
        in_array("run_lengths.npy", endless_run),
        ".tar: pack",
        "beyond the",
    ),
    "runs of another dtype": (
        lambda shard: (
            shard.put("run_lengths.npy", shard.array("run_lengths.npy").astype(np.int32)),
            shard.seal(),
        )[1],
        ".tar: pack",
        "run_lengths.npy is int32",
    ),
    "one token fewer": (lose_last, ".tar: pack", "run_lengths.npy"),
    "positions exchanged": (
        in_array("positions.npy", exchange),
        ".tar: pack",
        "not in raster order",
    ),
    "a frame called lost": (
        in_row(valid_frames=whole_row_called_lost, corrupt_frames=lambda r: r["tubelet_size"]),
        ".tar: pack",
        "valid_frames says",
    ),
    "fewer tokens than a row has": (
        in_row(num_kept=5),
        ".parquet: row",
        "keeps 5 tokens, not",
    ),
    "lost tokens miscounted": (
        miscount_lost_tokens,
        ".segments.parquet",
        "tokens planned",
    ),
}

ALL = cases(random=RANDOM, static=STATIC)


@pytest.mark.parametrize(("name", "mutate", "where", "what"), ALL)
def test_a_defect_of_what_tokens_are_is_found(
    datasets: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    mutate: Callable[[Shard], None],
    where: str,
    what: str,
) -> None:
    assert_found(datasets(name), tmp_path, mutate, where, what)


SEEN_ALONE = {
    "random: cells exchanged",
    "random: another token kept",
    "random: one token fewer",
    "random: neither visible nor hidden",
    "static: a run too long",
    "static: a run too short",
}
"""Of the defects, those that a shard shows without its plan."""


@pytest.mark.parametrize(
    ("name", "mutate", "where", "what"), [case for case in ALL if case.id in SEEN_ALONE]
)
def test_a_shard_alone_shows_what_it_can(
    datasets: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    mutate: Callable[[Shard], None],
    where: str,
    what: str,
) -> None:
    assert_found_alone(datasets(name), tmp_path, mutate, where, what)
