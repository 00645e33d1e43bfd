"""`spacepatch verify --decode`: tokens are what their sources make, and nothing else passes."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("threadpoolctl")

from conftest import SpacepatchCli
from decoded_datasets import (
    assert_sound,
    copy_clips,
    decode,
    make_codecs,
    make_latents,
    make_pixels,
    shuffled,
    spoil,
)
from einops import rearrange
from fitted_codecs import BLOCK
from small_runs import run
from stored_segments import scaled_frames, segments_of

from spacepatch.config import load_config
from spacepatch.errors import ShardError
from spacepatch.inspection.decoding import choose_segments, decode_segments
from spacepatch.latents import load_encoder
from spacepatch.pipeline import convert, read_plan


@pytest.fixture(scope="module")
def codecs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return make_codecs(tmp_path_factory.mktemp("codecs"))


@pytest.fixture(scope="module")
def clips(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_clips(sample_clips, tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def pixels(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pixels(clips, tmp_path_factory.mktemp("pixels") / "out")


@pytest.fixture(scope="module")
def latents(clips: Path, codecs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_latents(clips, tmp_path_factory.mktemp("latents") / "out", codecs["latents"])


# --- what is as it was made --------------------------------------------------------------------

PIXELS: dict[str, dict[str, Any]] = {
    "plain": {"resampler": "area"},
    "windows, merged": {
        "clip_seconds": "1",
        "tail": "drop",
        "order": "merge 2 x 2",
        "multiple": 2,
        "layout": "t p q c",
    },
    "zeros at the end, halo": {"tail": "pad", "patch": "4x16x16", "halo": 2},
    "views": {"views": 2, "random_crop": "0.5", "fps": "1,2,4", "patch": "2x16x16,4x8x8"},
    "cut to fit": {"cut_to_fit": True, "pack_length": 256, "max_tokens_per_frame": 32, "fps": "8"},
    "dropped": {"drop": "random:0.5"},
    "static dropped": {"drop": "static", "fps": "8"},
    "alpha": {"alpha": True, "drop": "tokens:20", "order": "merge 2 x 2", "multiple": 2},
}


@pytest.mark.parametrize("settings", PIXELS.values(), ids=PIXELS)
def test_pixels_are_those_of_their_sources(clips: Path, tmp_path: Path, settings) -> None:
    run([clips], tmp_path / "out", **settings)
    found = decode(tmp_path / "out", clips, 100)
    assert_sound(found, len(found.segments))
    assert len(found.segments) >= 4
    assert found.notes == ()
    rows = {one.row["segment_id"]: one.row for one in segments_of(tmp_path / "out").values()}
    for segment in found.segments:
        row = rows[segment.segment_id]
        if row["num_kept"] < row["num_tokens"]:
            assert (segment.psnr, segment.found.ssim) == (None, None)
        else:
            assert segment.psnr == math.inf
            assert segment.found.ssim == pytest.approx(1)


ENCODED: dict[str, tuple[str, dict[str, Any]]] = {
    "float16": ("latents", {"drop": "random:0.4"}),
    "float32": ("latents", {"latent_dtype": "float32", "layout": "t p q c", "tail": "drop"}),
    "bfloat16": (
        "latents",
        {"latent_dtype": "bfloat16", "order": "merge 2 x 2", "multiple": 2, "fps": "8"},
    ),
    "cut to fit": ("latents", {"cut_to_fit": True, "pack_length": 200, "fps": "8"}),
    "codes": ("codes", {"tail": "drop"}),
    "codes with pixels": ("codes", {"also": "pixels", "order": "merge 2 x 2", "multiple": 2}),
}


@pytest.mark.parametrize(("kind", "settings"), ENCODED.values(), ids=ENCODED)
def test_latents_and_codes_are_those_of_their_sources(
    clips: Path, codecs: dict[str, str], tmp_path: Path, kind: str, settings: dict[str, Any]
) -> None:
    run([clips], tmp_path / "out", encoder=codecs[kind], **settings)
    found = decode(tmp_path / "out", clips, 4, codecs[kind])
    # A still image has too few frames for a latent of two, where none is repeated.
    assert_sound(found, 3 if settings.get("tail") == "drop" else 4)
    assert (found.psnr is None) == ("drop" in settings)
    assert (found.mean is None) == (kind == "codes")


def test_psnr_is_that_of_the_stored_numbers_decoded_and_the_true_frames(
    latents: Path, clips: Path, codecs: dict[str, str]
) -> None:
    found = decode(latents, clips, 100, codecs["latents"])
    encoder = load_encoder(codecs["latents"])
    stored = segments_of(latents)
    for segment in found.segments:
        if segment.source == "rotated_90_phone.mp4" or segment.source.endswith("png"):
            continue  # not upright as they are read; one frame that is repeated
        one = stored[segment.source, segment.clip, segment.view]
        t, h, w = one.grid
        p, q = one.row["patch_size"]
        cells = rearrange(
            one.tokens, "(t h w) (c k p q) -> (t k) (h p) (w q) c", t=t, h=h, w=w, c=12, p=p, q=q
        )
        frames = scaled_frames(clips / segment.source, one.row)
        decoded = encoder.decode(cells)
        assert decoded is not None
        error = np.square(decoded[: len(frames)].astype(np.float64) - frames).mean()
        assert segment.psnr == pytest.approx(10 * math.log10(255**2 / error), rel=1e-9)
        assert segment.found.num_frames == len(frames)
    values = np.concatenate(
        [rearrange(one.tokens, "n (c v) -> (n v) c", c=12) for one in stored.values()]
    ).astype(np.float64)
    assert found.mean == pytest.approx(values.mean(axis=0), abs=1e-9)
    assert found.std == pytest.approx(values.std(axis=0))
    # All segments: so the dataset's own.
    assert found.dataset_mean == pytest.approx(found.mean)
    assert found.dataset_std == pytest.approx(found.std)


def test_frames_that_only_fill_the_last_row_do_not_count(
    clips: Path, codecs: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run([clips / "still_picture_400x300.png"], out, encoder=codecs["latents"])
    (segment,) = decode(out, clips, 5, codecs["latents"]).segments
    assert segment.found.num_frames == 1
    assert segment.found.num_values == 3 * math.prod(
        segments_of(out)[segment.source, 0, 0].row["size"]
    )
    assert BLOCK[0] == 2


def test_another_layout_or_patch_of_converted_datasets_is_verified_too(
    pixels: Path, latents: Path, clips: Path, codecs: dict[str, str], tmp_path: Path
) -> None:
    convert(pixels, out=tmp_path / "patch", patch="1x8x8")
    assert_sound(decode(tmp_path / "patch", clips))
    convert(latents, out=tmp_path / "layout", layout="t p q c")
    assert_sound(decode(tmp_path / "layout", clips, 3, codecs["latents"]))


def test_segments_with_lost_rows_are_passed_over_and_named(
    part_damaged: list[Path], codecs: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(part_damaged, out, fps="8", encoder=codecs["latents"])
    rows = [one.row for one in segments_of(out).values()]
    num_whole = sum(row["num_kept"] == row["num_tokens"] for row in rows)
    assert num_whole < len(rows)
    roots = {number: str(folder) for number, folder in enumerate(part_damaged)}
    config = load_config({"encoder": codecs["latents"], "workers": 1})
    found = decode_segments(out, num_segments=100, config=config, roots=roots)
    assert_sound(found, num_whole)
    assert f"{len(rows) - num_whole} of {len(rows)} segments are passed over" in found.notes[0]


def test_rows_that_are_there_are_compared_where_no_segment_is_whole(
    part_damaged: list[Path], codecs: dict[str, str], tmp_path: Path
) -> None:
    for encoder in (None, codecs["latents"]):
        out = tmp_path / str(encoder is None)
        run(part_damaged[1:], out, fps="8", encoder=encoder)
        found = decode(out, part_damaged[1], 2, encoder)
        assert_sound(found, 2)
        assert found.psnr is None


# --- which segments ----------------------------------------------------------------------------


def test_segments_are_spread_and_always_the_same(pixels: Path) -> None:
    plan = read_plan(pixels)
    every, notes = choose_segments(pixels, plan, 10**6)
    ids = [row["segment_id"] for row in every]
    assert len(set(ids)) == len(ids) == len(segments_of(pixels))
    assert notes == []
    for wanted in (1, 2, 5):
        chosen, _ = choose_segments(pixels, plan, wanted)
        assert chosen == choose_segments(pixels, plan, wanted)[0]
        places = [ids.index(row["segment_id"]) for row in chosen]
        for part, place in enumerate(places):
            assert part * len(ids) // wanted <= place < (part + 1) * len(ids) // wanted


def test_only_a_finished_dataset_is_decoded(pixels: Path, clips: Path, tmp_path: Path) -> None:
    out = shutil.copytree(pixels, tmp_path / "copy")
    (out / "dataset.json").unlink()
    with pytest.raises(ShardError, match="no finished dataset"):
        decode(out, clips)
    with pytest.raises(ShardError, match="no finished dataset"):
        decode(next(pixels.glob("*.tar")), clips)


# --- the command -------------------------------------------------------------------------------


def test_the_command_says_how_many_are_what_their_sources_make(
    spacepatch_cli: SpacepatchCli, latents: Path, clips: Path, codecs: dict[str, str]
) -> None:
    options = ["--decode", "2", "--source-root", clips, "--encoder", codecs["latents"]]
    done = spacepatch_cli("verify", latents, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 segments are what linear:codec.safetensors makes of their sources" in done.stdout
    assert done.stdout.rstrip().endswith("verified, clean")
    done = spacepatch_cli("verify", latents, *options, "--json")
    document = json.loads(done.stdout)
    assert document["problems"] == []
    decoded = document["decoded"]
    assert (decoded["num_segments"], decoded["num_same"], decoded["equal"]) == (2, 2, False)
    assert len(decoded["mean"]) == len(decoded["dataset_std"]) == 12
    assert 5 < decoded["psnr"] < 60


def test_the_command_fails_on_what_is_not_its_source(
    spacepatch_cli: SpacepatchCli, pixels: Path, clips: Path, tmp_path: Path
) -> None:
    out = spoil(pixels, tmp_path / "copy", shuffled)
    done = spacepatch_cli("verify", out, "--decode", "100", "--source-root", f"0={clips}", "--json")
    assert done.returncode == 1
    document = json.loads(done.stdout)
    assert any("pixels are not its source's" in found["what"] for found in document["problems"])
    assert "error" not in done.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--encoder", "linear:x"], "encoder is for --decode N"),
        (["--source-root", "x"], "source_root is for --decode N"),
        (["--decode", "2"], "--source-root 0=DIR"),
        (["--decode", "2", "--device", "cuda"], "device cuda is for an encoder"),
    ],
)
def test_options_that_lack_another_are_wrong_usage(
    spacepatch_cli: SpacepatchCli, pixels: Path, options: list[str], message: str
) -> None:
    done = spacepatch_cli("verify", pixels, *options)
    assert done.returncode == 2
    assert message in done.stderr
