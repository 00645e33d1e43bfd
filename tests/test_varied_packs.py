"""Packs of references whose segments differ from epoch to epoch, as loaders give them."""

from __future__ import annotations

import math
import re
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from loaded_packs import assert_same, segments_of
from tiny_packs import as_json, batch_keys, epoch_steps, one_epoch, rank_loaders, step_keys
from varied_packs import ALL, NAMES, segments_in, written

from spacepatch.loader import (
    PackDataset,
    PackLoader,
    PackMix,
    PackStream,
    Variation,
    visible_packs,
)


@pytest.fixture(scope="module")
def refs(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(sample_clips, tmp_path_factory.mktemp("varied") / "refs", store="refs")


@pytest.fixture(scope="module")
def stored(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(sample_clips, tmp_path_factory.mktemp("varied") / "tokens")


@pytest.fixture(scope="module")
def opened(refs: Path, sample_clips: Path):
    def make(kind: type = PackDataset, folder: Path = refs, **options: Any) -> Any:
        return kind(folder, source_root=sample_clips, **options)

    return make


# --- budgets and figures -----------------------------------------------------------------------


def test_every_varied_segment_stays_within_its_tokens_and_the_fill_is_that_of_its_packs(
    opened, stored
) -> None:
    planned = {
        key: one[0]["num_kept"] for key, one in next(segments_in(PackDataset(stored), 0)).items()
    }
    packs = opened(vary=ALL, seed=1)
    assert math.isnan(packs.fill)
    for epoch in range(3):
        packs.set_epoch(epoch)
        tokens = 0
        for pack in packs:
            tokens += pack["num_tokens"]
            for place, (segment, own) in enumerate(segments_of(pack)):
                assert 1 <= own.stop - own.start <= planned[segment["segment_id"]]
                assert pack["grid_thw"][place].tolist() == segment["grid_thw"]
                assert pack["patch"][place].tolist() == segment["varied"]["patch"]
                assert segment["tokens_crc32c"] is None
                assert (pack["positions"][own] < pack["grid_thw"][place]).all()
                assert len(segment["seconds"]) == segment["grid_thw"][0]
                assert pack["segment_ids"][own].unique().tolist() == [place + 1]
        assert packs.fill == pytest.approx(tokens / len(packs) / packs.pack_length)
        assert 0 < packs.fill < 1


def test_the_fill_of_a_batch_is_that_of_its_tokens(opened) -> None:
    packs = opened(vary={"fps": "uniform:1..4"})
    for batch in islice(PackLoader(packs, batch_size=2), 3):
        fill = sum(batch["num_tokens"]) / batch["segment_ids"].numel()
        assert fill == pytest.approx(float((batch["segment_ids"] > 0).float().mean()))


# --- the same whoever makes them ---------------------------------------------------------------


def by_epoch_and_segment(batches: Any, epoch: int) -> dict[tuple[int, str], tuple]:
    found = {}
    for batch in batches:
        for number, segments in enumerate(batch["segments"]):
            pack = {key: batch[key][number] for key in (*NAMES, "cu_seqlens")}
            pack["segments"] = segments
            for segment, own in segments_of(pack):
                tensors = tuple(pack[name][own].numpy().tobytes() for name in NAMES)
                said = {k: v for k, v in segment.items() if k != "offset"}
                found[epoch, segment["segment_id"]] = (said, *tensors)
    return found


@pytest.fixture(scope="module")
def by_hand(opened) -> dict[tuple[int, str], tuple]:
    """Two epochs, pack by pack in the order of the shards."""
    found = {}
    packs = opened(vary=ALL, seed=4)
    for epoch in (0, 1):
        packs.set_epoch(epoch)
        one = ({key: [value] for key, value in pack.items()} for pack in packs)
        found |= by_epoch_and_segment(one, epoch)
    assert len(found) % 2 == 0
    return found


@pytest.mark.parametrize(
    ("kind", "loading", "decoding"),
    [
        (PackDataset, {"batch_size": 3}, {}),
        (PackDataset, {"batch_size": 2, "num_workers": 2}, {}),
        (PackDataset, {"batch_size": 2}, {"decoder_workers": 2}),
        (PackStream, {"batch_size": 2}, {}),
        (PackStream, {"batch_size": 1, "num_workers": 2}, {}),
        (PackStream, {"batch_size": 2}, {"decoder_workers": 2, "decode_cache": "8MB"}),
    ],
    ids=["batches", "workers", "decoders", "stream", "stream-workers", "stream-decoders"],
)
def test_a_segment_is_the_same_in_any_worker_batch_and_order(
    opened, by_hand, kind, loading, decoding
) -> None:
    packs = opened(kind, vary=ALL, seed=4, **decoding)
    loader = PackLoader(packs, **loading)
    found = {}
    for epoch in (0, 1):
        assert loader.epoch == epoch
        found |= by_epoch_and_segment(loader, epoch)
    packs.references.close()
    assert found.keys() == by_hand.keys()
    for key, made in found.items():
        assert made == by_hand[key], key


@pytest.mark.parametrize("kind", [PackDataset, PackStream])
def test_what_is_expected_is_that_of_its_epoch_so_that_nothing_is_made_for_nobody(
    opened, kind
) -> None:
    packs = opened(kind, vary=ALL)
    loader = PackLoader(packs, batch_size=2)
    loader.set_epoch(2)
    assert len(list(loader)) > 4
    assert packs.references._maker._groups == {}


@pytest.mark.parametrize("kind", [PackDataset, PackStream])
@pytest.mark.parametrize("uneven", ["pad", "drop"])
def test_packs_of_one_drawn_patch_make_batches_and_all_ranks_have_the_same_steps(
    opened, kind, uneven
) -> None:
    plain = opened()
    loaders = rank_loaders(
        lambda: opened(kind, vary={"patch": ALL["patch"]}, seed=2),
        3,
        batch_size=2,
        uneven=uneven,
    )
    widths = []
    for epoch in range(2):
        [counts] = {loader.counts for loader in loaders}
        steps = list(epoch_steps(loaders))
        assert len(steps) == counts.steps
        for batches in steps:
            assert len({batch["tokens"].shape for batch in batches}) == 1
            widths.append((epoch, batches[0]["tokens"].shape[2]))
            for batch in batches:
                drawn = {tuple(row) for pack in batch["patch"] for row in pack.tolist()}
                assert all(3 * math.prod(patch) == widths[-1][1] for patch in drawn)
        given = Counter(key for batches in steps for key in step_keys(batches))
        assert sum(number - 1 for number in given.values()) == counts.repeated
        assert len(given) == len(plain) - counts.dropped
        if uneven == "pad":
            assert len(given) == len(plain)
    assert {width for _, width in widths} == {768, 1536, 3072}


def test_the_patch_of_a_pack_differs_from_epoch_to_epoch(opened) -> None:
    packs = opened(vary={"patch": ALL["patch"]}, seed=2).packs
    assert packs.widths() == [3072, 1536, 768]
    drawn = [packs.each_width(epoch).tolist() for epoch in range(8)]
    assert len(set(map(tuple, drawn))) == 8
    share = np.mean(np.array(drawn) == 768)
    assert 0.2 < share < 0.46
    groups = opened(vary={"patch": ALL["patch"]}, seed=2).groups(3, shuffle=True)
    assert sorted(np.concatenate([rows[:, 2] for rows in groups.values()])) == list(
        range(len(packs))
    )


@pytest.mark.parametrize("kind", [PackDataset, PackStream])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_loop_that_is_resumed_goes_on_with_the_very_tensors(opened, kind, steps) -> None:
    options = {"vary": ALL, "seed": 7}
    unbroken = PackLoader(opened(kind, **options), batch_size=2)
    unbroken.set_epoch(3)
    loop = iter(unbroken)
    list(islice(loop, steps))
    state = as_json(unbroken.state_dict())
    rest = list(loop)
    resumed = PackLoader(opened(kind, **options), batch_size=2)
    resumed.load_state_dict(state)
    again = list(resumed)
    assert len(again) == len(rest) > 0
    for one, other in zip(again, rest, strict=True):
        assert batch_keys(one) == batch_keys(other)
        assert torch.equal(one.pop("tokens"), other.pop("tokens"))
        assert one["segments"] == other["segments"]
    other = PackLoader(opened(kind, vary=ALL | {"fps": "2"}, seed=7), batch_size=2)
    with pytest.raises(ValueError, match=r"another stream: vary.*uniform:1..6.*here.*'fps': '2'"):
        other.load_state_dict(state)


def test_a_mix_varies_each_pass_and_batches_by_width(opened, stored) -> None:
    def make() -> PackMix:
        varied = opened(vary={"patch": "1x16x16,2x16x16"}, seed=1)
        return PackMix({"varied": (varied, 3), "stored": (PackDataset(stored), 1)}, num_packs=60)

    loader = PackLoader(make(), batch_size=3)
    passes: dict[str, set] = {}
    for _ in range(2):
        for batch in loader:
            assert batch["tokens"].shape[2] in (768, 1536)
            for segments in batch["segments"]:
                for segment in segments:
                    known = passes.setdefault(segment["segment_id"], set())
                    known.add(str(segment.get("varied")))
    assert any(len(known) > 2 for known in passes.values()), "two patches, and as it is stored"
    assert one_epoch(PackLoader(make(), batch_size=3)) == one_epoch(
        PackLoader(make(), batch_size=3)
    )


def test_masks_drops_and_fixed_shapes_go_on_top(opened) -> None:
    more = {"mask": "random:0.75", "drop": "random:0.5", "fixed_shapes": True, "pad_multiple": 4}
    packs = opened(vary=ALL, seed=1, **more)
    plain = opened(vary=ALL, seed=1)
    for number in range(4):
        pack, whole = packs.read(number, epoch=2), plain.read(number, epoch=2)
        for segment, before in zip(pack["segments"], whole["segments"], strict=True):
            assert segment["varied"] == before["varied"]
            assert segment["num_kept"] == max(1, int(before["num_kept"] * 0.5))
        assert len(pack["tokens"]) == packs.padded_length
        assert_same(pack, packs.read(number, epoch=2))


# --- what is refused, and what goes wrong ------------------------------------------------------


def test_what_cannot_be_had_is_refused_with_the_way_out(opened, stored, refs) -> None:
    with pytest.raises(ValueError, match=r"vary: .* store tokens: .* spacepatch convert"):
        PackDataset(stored, vary={"fps": "2"})
    with pytest.raises(ValueError, match="vary: speed: it takes"):
        PackDataset(refs, vary={"speed": "2"})
    with pytest.raises(ValueError, match="token_width 768: with vary patch"):
        opened(vary={"patch": "1x16x16,1x8x8"}, token_width=768)
    with pytest.raises(ValueError, match=r"visible_packs sizes its sequence .* vary"):
        visible_packs(opened(vary={"fps": "2"}), 0.75)
    assert opened(vary={}).is_varied is False


@pytest.mark.parametrize("kind", [PackDataset, PackStream])
def test_a_pack_without_sources_is_replaced_by_one_of_its_drawn_width(
    refs, sample_clips, tmp_path, kind
) -> None:
    clips = shutil.copytree(sample_clips, tmp_path / "clips")
    for name in ("landscape_640x360.mp4", "portrait_270x480.mp4", "ultrawide_960x270.mp4"):
        (clips / name).unlink()
    packs = kind(refs, source_root=clips, vary=ALL, seed=2, on_bad_source="skip")
    loader = PackLoader(packs, batch_size=2)
    for epoch in range(2):
        assert loader.epoch == epoch
        for batch in loader:
            assert torch.is_tensor(batch["tokens"]), "packs of one width, which stack"
    assert packs.num_bad_packs > 2


def test_damaged_and_awkward_clips_make_fewer_tokens_and_no_error(
    corpus: Path, tmp_path: Path
) -> None:
    names = (
        "decord__corrupted.mp4",
        "derived__resolution_change_midstream.ts",
        "derived__start_3600s.mkv",
        "derived__truncated_faststart_half.mp4",
        "derived__ultra_tall_24x1024.mp4",
        "derived__single_frame_real.mp4",
        "lilliput__party-discord.gif",
        "mediabunny__cursed-vfr.mp4",
    )
    sources = [corpus / name for name in names]
    out = written(sources, tmp_path / "refs", store="refs", patch="2x16x16", clip_seconds="3")
    roots = {number: str(source) for number, source in enumerate(sources)}
    packs = PackDataset(out, source_root=roots, vary=ALL, on_bad_source="skip")
    seen = set()
    for epoch in range(2):
        for number in range(len(packs)):
            pack = packs.read(number, epoch=epoch)
            seen |= {segment["source"] for segment in pack["segments"]}
            assert pack["num_tokens"] <= 512
            for segment, own in segments_of(pack):
                assert 1 <= segment["num_kept"] == own.stop - own.start
    assert {"derived__resolution_change_midstream.ts", "mediabunny__cursed-vfr.mp4"} < seen
    assert len(seen) > 5


def test_the_example_of_the_page_on_epochs_that_differ_runs(
    refs, sample_clips, tmp_path, monkeypatch
) -> None:
    (tmp_path / "refs").symlink_to(refs)
    (tmp_path / "videos").symlink_to(sample_clips)
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).resolve().parents[1] / "docs" / "varying.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    assert names["tokens"].dtype == torch.float32
    assert 0 < names["fill"] < 1
    (segment, *_) = names["batch"]["segments"][0]
    for key in segment["varied"]:
        assert f"| `{key}` |" in page
    for key in Variation.__dataclass_fields__:
        assert f"| `{key}` |" in page
