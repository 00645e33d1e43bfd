"""Conversion: to another layout, order or patch size and back, without decoding."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_runs import rows, run

from spacepatch.errors import ConfigError, ResumeError, ShardError
from spacepatch.inspection import verify
from spacepatch.loader import PackDataset
from spacepatch.pipeline import convert
from spacepatch.tubelets import LAYOUTS, join_tubelets, merge_of


def digests(folder: Path) -> dict[str, str]:
    """sha256 of every file of a dataset."""
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
        if path.is_file()
    }


def tokenized(clips: Path, out: Path, **settings: Any) -> Path:
    run([clips], out, **({"multiple": 2} | settings))
    return out


def frames_of(folder: Path) -> dict[tuple[str, int, int], np.ndarray]:
    """The frames of each segment, put together from what the loader gives."""
    layouts = {row["segment_id"]: row for row in rows(folder, "segments.parquet")}
    joined = {}
    for pack in PackDataset(folder, padded=False):
        borders = pack["cu_seqlens"].tolist()
        for start, stop, segment in zip(borders, borders[1:], pack["segments"], strict=False):
            row = layouts[segment["segment_id"]]
            joined[row["source"], row["clip"], row["view"]] = join_tubelets(
                pack["tokens"][start:stop].numpy(),
                grid_thw=tuple(row["grid_thw"]),
                tubelet_size=row["tubelet_size"],
                patch_size=tuple(row["patch_size"]),
                layout=row["layout"],
                merge=merge_of(row["order"]),
                halo=row["halo"],
            )
    return joined


@pytest.fixture(scope="module")
def dataset(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dataset") / "a"
    return tokenized(sample_clips, out, patch="1x16x16", multiple=1)


# --- layout and order --------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_there_and_back_gives_the_same_bytes(
    dataset: Path, tmp_path: Path, layout: str
) -> None:
    there, back = tmp_path / "there", tmp_path / "back"
    convert(dataset, out=there, layout=layout)
    assert verify(there) == []
    convert(there, out=back, layout="c t p q")
    assert digests(back) == digests(dataset)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"drop": "random:0.5"},
        {"drop": "static", "patch": "2x16x16"},
        {"index": "compact", "mask": "random:0.75", "store_mask": True},
        {"halo": 3, "cut_to_fit": True},
        {"views": "all", "patch": "1x32x32,1x16x16,2x8x8"},
    ],
)
def test_a_conversion_is_byte_by_byte_what_tokenizing_so_would_have_written(
    sample_clips: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    wanted = {"layout": "t p q c", "order": "merge 2 x 2"}
    before = tokenized(sample_clips, tmp_path / "before", **settings)
    expected = tokenized(sample_clips, tmp_path / "expected", **settings, **wanted)
    convert(before, out=tmp_path / "found", **wanted)
    assert digests(tmp_path / "found") == digests(expected)
    assert verify(tmp_path / "found") == []


def test_shards_with_lost_rows_are_converted_too(corpus: Path, tmp_path: Path) -> None:
    names = sorted(path for path in corpus.iterdir() if path.name.startswith("derived__"))
    run(names, tmp_path / "a", multiple=2, every_frame=True, fps=None, long="skip")
    assert rows(tmp_path / "a", "losses.parquet")
    convert(tmp_path / "a", out=tmp_path / "b", layout="t p q c", order="merge 2 x 2")
    assert verify(tmp_path / "b") == []
    convert(tmp_path / "b", out=tmp_path / "c", layout="c t p q", order="raster")
    assert digests(tmp_path / "c") == digests(tmp_path / "a")


def test_a_source_that_is_cut_off_keeps_its_place_among_the_losses(
    corpus: Path, tmp_path: Path
) -> None:
    # What there is of it is a clip, so that it comes before sources of which nothing is there.
    names = ["derived__html_error_page.mp4", "derived__truncated_faststart_half.mp4"]
    names.append("derived__truncated_no_moov.mp4")
    sources = [corpus / name for name in names]
    run(sources, tmp_path / "a", pack_length=4096)
    assert [row["source"] for row in rows(tmp_path / "a", "losses.parquet")] == names
    assert len(rows(tmp_path / "a", "segments.parquet")) == 1
    run(sources, tmp_path / "expected", pack_length=4096, layout="t p q c")
    convert(tmp_path / "a", out=tmp_path / "b", layout="t p q c")
    assert digests(tmp_path / "b") == digests(tmp_path / "expected")


# --- patches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("patch", ["1x8x8", "2x16x16", "4x8x16", "1x1x1"])
def test_another_patch_holds_the_same_pixels(dataset: Path, tmp_path: Path, patch: str) -> None:
    convert(dataset, out=tmp_path / "cut", patch=patch)
    assert verify(tmp_path / "cut") == []
    before, after = frames_of(dataset), frames_of(tmp_path / "cut")
    assert before.keys() == after.keys()
    for key, frames in before.items():
        found = after[key]
        np.testing.assert_array_equal(found[: len(frames)], frames)
        # What fills the last tubelet is its last frame.
        assert (found[len(frames) :] == frames[-1]).all()


def test_a_patch_there_and_back_gives_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    for number, patch in enumerate(["1x8x8", "1x4x16"]):
        there, back = tmp_path / f"there{number}", tmp_path / f"back{number}"
        convert(dataset, out=there, patch=patch)
        convert(there, out=back, patch="1x16x16")
        assert digests(back) == digests(dataset)


def test_one_stored_set_serves_every_size_of_flexivit(sample_clips: Path, tmp_path: Path) -> None:
    square = {"short_side": 240, "crop": "240x240", "upscale": True, "num_frames": 1, "fps": None}
    square |= {"max_tokens_per_frame": None, "multiple": 1, "pack_length": 1024}
    stored = tokenized(sample_clips, tmp_path / "16", **square, patch="1x16x16")
    frames = frames_of(stored)
    for patch in (48, 40, 30, 24, 20, 15, 12, 10, 8):
        out = tmp_path / str(patch)
        convert(stored, out=out, patch=f"1x{patch}x{patch}")
        assert verify(out) == []
        made = rows(out, "segments.parquet")
        assert {row["num_tokens"] for row in made} == {(240 // patch) ** 2}
        for key, found in frames_of(out).items():
            np.testing.assert_array_equal(found, frames[key])


def test_another_tubelet_size_and_back_gives_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    # Rows of two frames are not half as many as rows of one: the packs that were full are longer.
    convert(dataset, out=tmp_path / "there", patch="2x16x16")
    longer = PackDataset(tmp_path / "there").pack_length
    assert longer > PackDataset(dataset).pack_length // 2
    convert(tmp_path / "there", out=tmp_path / "further", patch="1x8x8")
    convert(tmp_path / "further", out=tmp_path / "back", patch="1x16x16")
    assert digests(tmp_path / "back") == digests(dataset)


def test_recut_frames_are_other_segments_than_tokenized_ones(
    sample_clips: Path, tmp_path: Path
) -> None:
    """The size was chosen for other patches, so that they are not what tokenize would make."""
    before = tokenized(sample_clips, tmp_path / "a", patch="1x16x16", multiple=1)
    convert(before, out=tmp_path / "cut", patch="1x8x8")
    other = tokenized(sample_clips, tmp_path / "b", patch="1x8x8", multiple=1, pack_length=4096)
    found, made = rows(tmp_path / "cut", "segments.parquet"), rows(other, "segments.parquet")
    assert not {row["segment_id"] for row in found} & {row["segment_id"] for row in made}
    with pytest.raises(ResumeError, match="recut was"):
        tokenized(sample_clips, tmp_path / "cut", patch="1x8x8", multiple=1, pack_length=4096)


@pytest.mark.parametrize(("tail", "fps"), [("drop", "2")])
def test_a_tail_that_was_dropped_is_refused_before_anything_is_written(
    sample_clips: Path, tmp_path: Path, tail: str, fps: str
) -> None:
    before = tokenized(sample_clips, tmp_path / "a", patch="2x16x16", tail=tail, fps=fps)
    with pytest.raises(ConfigError, match="tail is drop"):
        convert(before, out=tmp_path / "x", patch="1x16x16")
    convert(before, out=tmp_path / "y", patch="2x8x8")
    assert verify(tmp_path / "y") == []


def test_lost_rows_are_refused_before_anything_is_written(corpus: Path, tmp_path: Path) -> None:
    run(
        [corpus / "decord__corrupted.mp4"],
        tmp_path / "a",
        patch="1x16x16",
        every_frame=True,
        fps=None,
    )
    with pytest.raises(ConfigError, match="has lost rows of 1 frames"):
        convert(tmp_path / "a", out=tmp_path / "x", patch="2x16x16")
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("patches", [("2x16x16", "1x16x16"), ("1x16x16", "2x16x16")])
def test_a_clip_that_ended_within_a_tubelet_is_accounted_for_in_smaller_ones(
    corpus: Path, tmp_path: Path, patches: tuple[str, str]
) -> None:
    before, after = patches
    settings = {"patch": before, "num_frames": 32, "fps": None, "max_tokens_per_frame": 16}
    run([corpus / "derived__truncated_faststart_half.mp4"], tmp_path / "a", **settings)
    reasons = {(row["stage"], row["reason"]) for row in rows(tmp_path / "a", "losses.parquet")}
    assert ("decode", "truncated") in reasons
    convert(tmp_path / "a", out=tmp_path / "b", patch=after)
    assert verify(tmp_path / "b") == []
    convert(tmp_path / "b", out=tmp_path / "c", patch=before)
    assert digests(tmp_path / "c") == digests(tmp_path / "a")


def test_what_was_mended_since_is_converted_again(sample_clips: Path, tmp_path: Path) -> None:
    """A worker that was stopped, as by a slow disk; then --retry-lost."""
    clip = sample_clips / "square_320x320.mp4"
    run([clip], tmp_path / "whole", workers=1)
    convert(tmp_path / "whole", out=tmp_path / "expected", layout="t p q c")
    shutil.copytree(tmp_path / "expected", tmp_path / "x")
    # As it would be after a conversion of the lost state: a receipt with a loss and no packs.
    (receipt,) = (tmp_path / "x").glob("*-000000.json")
    document = json.loads(receipt.read_text())
    lost = {"source": clip.name, "source_id": next(iter(document["observed"])), "clip": 0}
    lost |= {"stage": "decode", "reason": "timeout", "num_frames": 1, "num_tokens": 1}
    lost |= {"message": "", "split": "", "source_root": 0}
    document |= {"packs": 0, "segments": 0, "tokens": 0, "files": {}, "losses": [lost]}
    receipt.write_text(json.dumps(document | {"pack_crc32c": [], "pack_token_widths": []}))
    convert(tmp_path / "whole", out=tmp_path / "x", layout="t p q c")
    assert digests(tmp_path / "x") == digests(tmp_path / "expected")


def test_a_pack_length_that_packs_exceed_is_refused(dataset: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pack_length 1024: a pack has 4"):
        convert(dataset, out=tmp_path / "x", patch="1x8x8", pack_length=1024)


def test_a_patch_keeps_the_pixels_of_a_pack(dataset: Path, tmp_path: Path) -> None:
    convert(dataset, out=tmp_path / "cut", patch="1x8x8")
    before, after = PackDataset(dataset), PackDataset(tmp_path / "cut")
    assert (len(after), after.pack_length) == (len(before), 4 * before.pack_length)


# --- what cannot be had ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "words"),
    [
        ({}, "nothing to convert to"),
        ({"layout": "q p c t"}, "must be one of c t p q"),
        ({"order": "merge 3 x 3"}, "multiple 3, not 1"),
        ({"patch": "1x7x7"}, "no multiple of 7x7"),
        ({"patch": "1x8x8,1x16x16"}, "give one"),
        ({"patch": "16"}, "not frames x height x width"),
    ],
)
def test_a_wish_that_cannot_be_met_is_one_line(
    dataset: Path, tmp_path: Path, wish: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        convert(dataset, out=tmp_path / "x", **wish)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x" / "dataset.json").exists()


def test_dropped_tokens_cannot_be_cut_again(sample_clips: Path, tmp_path: Path) -> None:
    before = tokenized(sample_clips, tmp_path / "a", drop="tokens:20")
    with pytest.raises(ConfigError, match="tokens were dropped"):
        convert(before, out=tmp_path / "x", patch="2x8x8")


def test_an_unfinished_dataset_and_no_dataset_are_refused(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "half")
    (tmp_path / "half" / "dataset.json").unlink()
    for folder in (tmp_path / "half", tmp_path):
        with pytest.raises(ShardError, match=r"no dataset\.json"):
            convert(folder, out=tmp_path / "x", layout="t p q c")


def test_the_folder_of_another_run_is_not_written_to(dataset: Path, tmp_path: Path) -> None:
    convert(dataset, out=tmp_path / "x", layout="t p q c")
    before = digests(tmp_path / "x")
    with pytest.raises(ResumeError, match="holds another dataset"):
        convert(dataset, out=tmp_path / "x", layout="p q c")
    with pytest.raises(ConfigError, match="is the dataset itself"):
        convert(dataset, out=dataset, layout="p q c")
    assert digests(tmp_path / "x") == before
    convert(dataset, out=tmp_path / "x", layout="p q c", overwrite=True)
    assert verify(tmp_path / "x") == []


def test_an_interrupted_conversion_goes_on_to_the_same_bytes(dataset: Path, tmp_path: Path) -> None:
    convert(dataset, out=tmp_path / "x", layout="t p q c")
    whole = digests(tmp_path / "x")
    (tmp_path / "x" / "dataset.json").unlink()
    next((tmp_path / "x").glob("*-000000.json")).unlink()
    next((tmp_path / "x").glob("*-000000.tar")).unlink()
    convert(dataset, out=tmp_path / "x", layout="t p q c")
    assert digests(tmp_path / "x") == whole


def test_a_damaged_pack_is_not_converted(dataset: Path, tmp_path: Path) -> None:
    shutil.copytree(dataset, tmp_path / "bad")
    tar = next((tmp_path / "bad").glob("*.tar"))
    content = bytearray(tar.read_bytes())
    content[5000] ^= 1
    tar.write_bytes(content)
    with pytest.raises(ShardError, match="pack 0 is damaged"):
        convert(tmp_path / "bad", out=tmp_path / "x", layout="t p q c")


def test_the_command_says_what_it_made(spacepatch_cli, dataset: Path, tmp_path: Path) -> None:
    done = spacepatch_cli("convert", dataset, "--to", "t p q c", "--out", tmp_path / "x")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{tmp_path / 'x'}: " in done.stdout
    wrong = spacepatch_cli("convert", dataset, "--to", "tpqc", "--out", tmp_path / "y")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: layout: must be one of")
