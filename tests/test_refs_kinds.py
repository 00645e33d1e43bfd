"""Packs of references are the packs of the tokens that they refer to, whatever the settings."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from loaded_packs import read_plainly
from referred_packs import KINDS, Pair, alike, assert_alike, assert_equal, make_pair, make_videos
from small_runs import rows

from spacepatch.inspection import verify
from spacepatch.loader import PackDataset, PackStream


@pytest.fixture(scope="module")
def sources(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_videos(tmp_path_factory.mktemp("sources"), sample_clips)


@pytest.fixture(scope="module", params=KINDS)
def pair(
    sources: list[str], tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Pair:
    return make_pair(sources, tmp_path_factory.mktemp("pair"), **KINDS[request.param])


def test_they_are_the_same_segments_in_the_same_packs(pair: Pair) -> None:
    assert verify(pair.refs) == []
    for name in ("segments.parquet", "losses.parquet"):
        assert rows(pair.refs, name) == rows(pair.tokens, name)
    some, others = read_plainly(pair.refs), read_plainly(pair.tokens)
    assert len(some) >= 5
    for one, other in zip(some, others, strict=True):
        assert one.keys() == {"segments", "pack"}
        assert (one["segments"] == other["segments"]).all()
        for own, whole in zip(one["pack"]["segments"], other["pack"]["segments"], strict=True):
            assert own.items() >= whole.items()
    shards = [json.loads((folder / "dataset.json").read_text())["shards"]
              for folder in (pair.refs, pair.tokens)]  # fmt: skip
    counts = ("packs", "segments", "tokens")
    assert [[shard[key] for key in counts] for shard in shards[0]] == [
        [shard[key] for key in counts] for shard in shards[1]
    ]


def test_they_give_the_same_tensors(pair: Pair) -> None:
    for options in ({}, {"padded": False, "token_order": "random", "drop": "random:0.3"}):
        assert_alike(PackDataset(pair.tokens, **options), pair.load(**options))


def test_one_pack_after_the_other_in_any_order_is_the_same(pair: Pair) -> None:
    stored = PackDataset(pair.tokens)
    # Next to nothing is remembered, so that each pack is made for itself, again and again.
    made = pair.load(decode_cache="1kB")
    for index in [*range(len(stored))[::-2], 0, 1, 0]:
        assert_equal(alike(made[index]), alike(stored[index]))


def test_a_stream_gives_the_same(pair: Pair) -> None:
    options = {"shuffle_buffer": 5, "seed": 3}
    made = PackStream(pair.refs, source_root=pair.roots, **options)
    assert_alike(PackStream(pair.tokens, **options), made)
