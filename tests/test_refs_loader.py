"""References loaded by workers of all kinds, in mixes, and from where it was left."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from listings import make_tar
from referred_packs import CLIPS, Pair, alike, assert_alike, ids_of, make_pair
from tiny_packs import as_json
from torch.utils.data import DataLoader

from spacepatch.errors import ConfigError
from spacepatch.inspection import verify
from spacepatch.loader import PackDataset, PackLoader, PackMix, PackStream, collate

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker:UserWarning"),
]

SETTINGS = {"clip_seconds": 0.7, "pack_length": 56}


@pytest.fixture(scope="module")
def pair(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Of long and short clips, some in a tar; packs with clips of several sources."""
    folder = tmp_path_factory.mktemp("sources")
    (folder / "videos").mkdir()
    for name in CLIPS:
        shutil.copy(sample_clips / name, folder / "videos")
    names = ("portrait_270x480.mp4", "still_picture_400x300.png")
    make_tar(folder / "some.tar", [(n, (sample_clips / n).read_bytes()) for n in names])
    sources = [str(folder / "videos"), str(folder / "some.tar")]
    return make_pair(sources, tmp_path_factory.mktemp("pair"), **SETTINGS)


def batches(packs: Any, **options: Any) -> Iterator[dict[str, Any]]:
    """An epoch, in drawn order."""
    return iter(PackLoader(packs, batch_size=2, **options))


# --- workers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_workers", "start"), [(1, "fork"), (4, "fork"), (1, "spawn")])
def test_workers_of_a_dataloader_give_the_same(pair: Pair, num_workers: int, start: str) -> None:
    packs = pair.load()
    assert packs[0]  # so that this process has opened all when they start
    options = {"num_workers": num_workers, "multiprocessing_context": start}
    loaded = DataLoader(packs, batch_size=3, collate_fn=collate, timeout=120, **options)
    stored = DataLoader(PackDataset(pair.tokens), batch_size=3, collate_fn=collate)
    assert_alike(iter(stored), iter(loaded))
    packs.references.close()


@pytest.mark.parametrize("kind", [PackDataset, PackStream])
@pytest.mark.parametrize("options", [{}, {"num_workers": 4}, {"decoder_workers": 1},
                                     {"decoder_workers": 4}])  # fmt: skip
def test_a_pack_loader_gives_the_same(pair: Pair, kind: Any, options: dict[str, int]) -> None:
    own = {key: value for key, value in options.items() if key == "decoder_workers"}
    theirs: dict[str, Any] = {key: value for key, value in options.items() if key not in own}
    if theirs:
        theirs["multiprocessing_context"] = "fork"
    packs = kind(pair.refs, source_root=pair.roots, **own)
    assert_alike(batches(kind(pair.tokens), **theirs), batches(packs, **theirs))
    packs.references.close()


def test_a_cache_too_small_for_anything_gives_the_same(pair: Pair) -> None:
    for workers in (0, 2):
        packs = PackStream(pair.refs, source_root=pair.roots, decode_cache="1kB",
                           decoder_workers=workers)  # fmt: skip
        assert_alike(batches(PackStream(pair.tokens)), batches(packs))
        packs.references.close()


def test_drops_masks_and_epochs_are_drawn_alike(pair: Pair) -> None:
    options: dict[str, Any] = {"mask": "random:0.5", "drop": "random:0.2", "padded": False}
    loaders = [
        PackLoader(packs, collate_fn=lambda one: one[0], shuffle=False)
        for packs in (PackDataset(pair.tokens, **options), pair.load(**options))
    ]
    for _ in range(2):
        assert_alike(*map(iter, loaders))


def test_workers_of_both_kinds_are_refused(pair: Pair) -> None:
    packs = pair.load(decoder_workers=1)
    with pytest.raises(ValueError, match="num_workers is 2: its workers decode themselves"):
        PackLoader(packs, num_workers=2)
    with pytest.raises(ValueError, match="num_workers is 1: its workers decode themselves"):
        PackLoader(PackMix({"a": (packs, 1)}), num_workers=1)
    with pytest.raises(ConfigError, match="decoder_workers: a worker of a DataLoader decodes"):
        list(
            DataLoader(
                packs, batch_size=None, sampler=[0], num_workers=1, multiprocessing_context="fork"
            )
        )


# --- mixes and resume ---------------------------------------------------------------------------


def test_a_mix_of_references_is_the_mix_of_their_tokens(pair: Pair) -> None:
    stored = PackDataset(pair.tokens, token_order="random")

    def mix(packs: PackDataset) -> PackMix:
        return PackMix({"a": (packs, 2), "b": (stored, 1)}, num_packs=24)

    for workers in (0, 2):
        packs = pair.load(decoder_workers=workers)
        assert_alike(batches(mix(PackDataset(pair.tokens))), batches(mix(packs)))
        packs.references.close()


def test_references_that_make_other_tensors_make_other_batches(pair: Pair, tmp_path: Path) -> None:
    # What their packs hold on disk is the same: segments.npy and pack.json.
    static = make_pair(pair.sources, tmp_path, drop="static", **SETTINGS)
    mixed = PackMix({"a": (pair.load(), 1), "b": (static.load(), 1)})
    seen = {"run_lengths" in batch for batch in PackLoader(mixed, batch_size=2)}
    assert seen == {True, False}


@pytest.mark.parametrize("options", [{}, {"num_workers": 2}, {"decoder_workers": 2}])
@pytest.mark.parametrize("kind", [PackDataset, PackStream])
def test_a_loader_goes_on_where_it_was_left(pair: Pair, kind: Any, options: dict[str, int]) -> None:
    own = {key: value for key, value in options.items() if key == "decoder_workers"}
    theirs: dict[str, Any] = {"batch_size": 2} | {
        key: value for key, value in options.items() if key not in own
    }
    if "num_workers" in theirs:
        theirs["multiprocessing_context"] = "fork"
    reference = [alike(batch) for batch in PackLoader(kind(pair.tokens), **theirs)]
    first = PackLoader(kind(pair.refs, source_root=pair.roots, **own), **theirs)
    for place, batch in enumerate(first):
        assert ids_of_batch(batch) == ids_of_batch(reference[place])
        if place == 2:
            break
    again = PackLoader(kind(pair.refs, source_root=pair.roots, **own), **theirs)
    again.load_state_dict(as_json(first.state_dict()))
    assert_alike(reference[3:], again)
    # Whoever left it may also go on itself.
    assert_alike(reference[3:], first)


def ids_of_batch(batch: dict[str, Any]) -> list[list[str]]:
    return [ids_of({"segments": segments}) for segments in batch["segments"]]


def test_a_state_of_tokens_is_none_of_references(pair: Pair) -> None:
    """They have plans of their own, as they have other shards."""
    loader = PackLoader(PackDataset(pair.tokens))
    next(iter(loader))
    with pytest.raises(ValueError, match="the state is of another stream: plan_id"):
        PackLoader(pair.load()).load_state_dict(loader.state_dict())


# --- the whole corpus ---------------------------------------------------------------------------


def test_all_of_the_corpus_is_the_same_byte_by_byte(corpus: Path, tmp_path: Path) -> None:
    few = {"num_frames": 4, "clip_seconds": 1.5, "clip_stride": 30, "workers": 2}
    whole = make_pair([str(corpus)], tmp_path, **few)
    assert verify(whole.refs) == []
    stored = PackDataset(whole.tokens)
    assert len(stored) > 20
    assert_alike(stored, whole.load())
    options = {"num_workers": 4 if (os.cpu_count() or 1) > 4 else 2}
    assert_alike(
        batches(PackStream(whole.tokens), multiprocessing_context="fork", **options),
        batches(PackStream(whole.refs, source_root=corpus), multiprocessing_context="fork",
                **options),
    )  # fmt: skip
