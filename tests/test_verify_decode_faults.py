"""What `spacepatch verify --decode` finds: other tokens, sources and encoders than there were."""

from __future__ import annotations

import json
import re
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("threadpoolctl")

from conftest import SpacepatchCli
from decoded_datasets import (
    Change,
    assert_sound,
    copy_clips,
    decode,
    make_codecs,
    make_latents,
    make_pixels,
    shuffled,
    spoil,
)
from fitted_codecs import written
from small_runs import run
from spoiled_shards import Shard, edit_json, edit_rows

from spacepatch.config import load_config
from spacepatch.errors import ConfigError, EncodeError
from spacepatch.inspection.decoded import Decoded
from spacepatch.inspection.decoding import decode_segments
from spacepatch.pipeline import read_plan
from spacepatch.shards import SEGMENTS
from spacepatch.source_roots import ANY, SourceRoots, parse_roots


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


@pytest.fixture(scope="module")
def codes(clips: Path, codecs: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("codes") / "out"
    run([clips], out, encoder=codecs["codes"], also="pixels")
    return out


# --- what is not -------------------------------------------------------------------------------


LATENT_FAULTS: dict[str, Change] = {
    "scaled twice": lambda values: values * np.float32(0.18215),
    "shuffled": shuffled,
    "the last bit": lambda values: np.nextafter(values, np.float32(np.inf)),
    "not a number": lambda values: np.full_like(values, np.nan),
}


@pytest.mark.parametrize("change", LATENT_FAULTS.values(), ids=LATENT_FAULTS)
def test_latents_that_are_others_are_found(
    latents: Path, clips: Path, codecs: dict[str, str], tmp_path: Path, change: Change
) -> None:
    out = spoil(latents, tmp_path / "copy", change)
    problems = decode(out, clips, 100, codecs["latents"]).problems
    assert problems
    for problem in problems:
        assert "not what linear:codec.safetensors makes of its source" in problem.what
        assert problem.where.split(": ")[1].startswith("pack ")


def test_latents_scaled_twice_stand_out_in_their_channels_and_decibels(
    latents: Path, clips: Path, codecs: dict[str, str], tmp_path: Path
) -> None:
    out = spoil(latents, tmp_path / "copy", lambda values: values * np.float32(0.18215))
    before = decode(latents, clips, 100, codecs["latents"])
    after = decode(out, clips, 100, codecs["latents"])
    assert before.psnr is not None
    assert after.psnr is not None
    assert after.psnr < before.psnr - 3
    assert after.std is not None
    assert after.dataset_std == before.dataset_std == pytest.approx(before.std)
    assert max(after.std) < max(before.std or [])


@pytest.mark.parametrize(
    ("member", "what"),
    [("tokens.npy", "of its codes are not what"), ("pixels.npy", "pixel tokens are not")],
)
def test_other_codes_and_pixels_are_found(
    codes: Path, clips: Path, codecs: dict[str, str], tmp_path: Path, member: str, what: str
) -> None:
    def change(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[len(values) // 2, 0] ^= 1
        return values

    found = decode(spoil(codes, tmp_path / "copy", change, member), clips, 100, codecs["codes"])
    (problem,) = found.problems
    assert what in problem.what


def test_codes_beyond_the_codebook_are_a_problem_and_no_crash(
    codes: Path, clips: Path, codecs: dict[str, str], tmp_path: Path
) -> None:
    out = spoil(codes, tmp_path / "copy", lambda values: np.full_like(values, 200))
    problems = decode(out, clips, 100, codecs["codes"]).problems
    assert problems
    assert all("codes 200 .. 200, must be 0 .. 63" in problem.what for problem in problems)


def test_pixels_of_one_bit_are_found(pixels: Path, clips: Path, tmp_path: Path) -> None:
    def change(values: np.ndarray) -> np.ndarray:
        values = values.copy()
        values[-1, -1] ^= 1
        return values

    (problem,) = decode(spoil(pixels, tmp_path / "copy", change), clips, 100).problems
    assert "its pixels are not its source's: 1 apart at most" in problem.what


def test_other_versions_are_noted_and_given_their_last_bits(
    latents: Path, clips: Path, codecs: dict[str, str], tmp_path: Path
) -> None:
    def of_another_version(folder: Path) -> Decoded:
        edit_json(folder / "plan.json", lambda plan: plan["environment"].update(ffmpeg="6.0"))
        return decode(folder, clips, 100, codecs["latents"])

    near = of_another_version(spoil(latents, tmp_path / "near", lambda x: x * np.float32(1.001)))
    assert near.problems == []
    assert near.num_same < near.num_sound == len(near.segments)
    assert "made with ffmpeg 6.0" in near.notes[0]
    far = of_another_version(spoil(latents, tmp_path / "far", LATENT_FAULTS["scaled twice"]))
    assert far.problems


def test_a_damaged_shard_is_a_problem_of_its_segments(
    pixels: Path, clips: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(pixels, tmp_path / "copy")
    shard = Shard.of(out)
    info, content = shard.members[shard.place("tokens.npy")]
    data = bytearray(shard.tar.read_bytes())
    data[info.offset_data + len(content) - 1] ^= 1
    shard.tar.write_bytes(data)
    problems = decode(out, clips, 100).problems
    assert problems
    assert all("crc32c differs" in problem.what for problem in problems)


# --- sources -----------------------------------------------------------------------------------


def test_sources_that_are_gone_or_others_are_problems(
    pixels: Path, clips: Path, tmp_path: Path
) -> None:
    moved = shutil.copytree(clips, tmp_path / "moved")
    (moved / "square_320x320.mp4").unlink()
    shutil.copy(clips / "square_320x320.mp4", moved / "rotated_90_phone.mp4")
    found = decode(pixels, moved, 100)
    said = {segment.source: segment.problem for segment in found.segments}
    assert said["below/landscape_640x360.mp4"] == ""
    assert f"its source is not in {moved}: restore it" in said["square_320x320.mp4"]
    assert "source_changed: the file is not the one" in said["rotated_90_phone.mp4"]
    assert found.num_sound < len(found.segments)


def test_a_root_that_is_not_said_or_not_there_is_wrong_usage(pixels: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--source-root 0=DIR"):
        decode(pixels, None)
    with pytest.raises(ConfigError, match=r"--source-root: .*nowhere: no such file or folder"):
        decode(pixels, tmp_path / "nowhere")


def test_roots_are_numbered(tmp_path: Path) -> None:
    assert parse_roots(["a=b"]) == {ANY: "a=b"}
    assert parse_roots(["1=a", "b", "12=c=d"]) == {1: "a", ANY: "b", 12: "c=d"}
    with pytest.raises(ConfigError, match=r"lie in a already.*1=b"):
        parse_roots(["a", "b"])
    with pytest.raises(ConfigError, match=r"lie in a already.*4=b"):
        parse_roots(["3=a", "3=b"])


def test_whatever_the_source_argument_was_it_is_a_root_and_so_is_its_folder(
    clips: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(clips, tmp_path / "all")
    with tarfile.open(folder / "part.tar", "w") as tar:
        tar.add(clips / "square_320x320.mp4", "deep/one.mp4")
        tar.add(clips / "rotated_90_phone.mp4", "two.mp4")
    (folder / "list.txt").write_text("square_320x320.mp4\nbelow/landscape_640x360.mp4\n")
    (folder / "list.csv").write_text("uri,start,end\nsquare_320x320.mp4,0.5,1.5\n")
    arguments = [
        str(folder / "part.tar"),
        str(folder / "square_320x320.mp4"),
        f"@{folder / 'list.txt'}",
        str(folder / "list.csv"),
        str(folder / "*"),
    ]
    out = tmp_path / "out"
    run(arguments, out)
    config = load_config({"workers": 1})
    for places in (arguments, [str(folder)] * len(arguments)):
        found = decode_segments(out, num_segments=100, config=config, roots=dict(enumerate(places)))
        assert_sound(found, len(found.segments))
    names = {segment.source for segment in found.segments}
    assert {"part.tar/deep/one.mp4", "square_320x320.mp4"} <= names


@pytest.mark.parametrize("name", ["../secret.mp4", "/secret.mp4", "below/../../secret.mp4", "."])
def test_a_name_that_leads_out_of_its_root_is_not_followed(
    pixels: Path, clips: Path, tmp_path: Path, name: str
) -> None:
    shutil.copy(clips / "square_320x320.mp4", tmp_path / "secret.mp4")
    root = shutil.copytree(clips, tmp_path / "clips")
    source = read_plan(pixels).sources[0].source
    roots = SourceRoots({0: str(root)})
    assert roots.find(source) is not None
    assert roots.find(replace(source, name=name)) is None


# --- encoders ----------------------------------------------------------------------------------


def test_the_encoder_must_be_that_of_the_dataset(
    latents: Path, pixels: Path, clips: Path, codecs: dict[str, str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="say where it lies with --encoder linear:WHERE"):
        decode(latents, clips)
    with pytest.raises(ConfigError, match="these are pixels: leave it out"):
        decode(pixels, clips, 3, codecs["latents"])
    with pytest.raises(EncodeError, match=r"not the encoder of this dataset.*weights was \['"):
        decode(latents, clips, 3, f"linear:{written(tmp_path, channels=11)}")
    with pytest.raises(EncodeError, match=r"these are latents of linear:codec\.safetensors"):
        decode(latents, clips, 3, f"tae:{tiny(tmp_path / 'tiny')}")


def tiny(folder: Path) -> Path:
    pytest.importorskip("torch")
    from tiny_models import image_model, save_parts

    return save_parts(folder, *image_model(4))


def test_a_network_is_compared_and_must_be_used_as_it_was(clips: Path, tmp_path: Path) -> None:
    model, out = tiny(tmp_path / "tiny"), tmp_path / "out"
    # torch is imported once, not twice.
    run([clips / "square_320x320.mp4"], out, encoder=f"tae:{model}", encode_batch=3, workers=1)
    assert_sound(decode(out, clips, 1, f"tae:{model}"), 1)
    with pytest.raises(EncodeError, match="batch was 3, is 2; dtype was 'float32', is 'bfloat16'"):
        decode(out, clips, 1, f"tae:{model}", encoder_dtype="bfloat16", encode_batch=2)
    # What another processor's sums come to is no fault; what another model makes is.
    near = spoil_only(out, tmp_path / "near", 1.0005)
    found = decode(near, clips, 1, f"tae:{model}")
    assert (found.num_same, found.num_sound) == (0, 1)
    far = spoil_only(out, tmp_path / "far", 1.15)
    (problem,) = decode(far, clips, 1, f"tae:{model}").problems
    assert "standard deviations off" in problem.what
    (model / "decoder.safetensors").unlink()
    with pytest.raises(ConfigError, match="has no decoder"):
        decode(out, clips, 1, f"tae:{model}")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        (
            "AutoencoderKLWan",
            {"posterior": "sample", "clip_seconds": "1", "fps": "8", "also": "pixels"},
        ),
        ("VQModel", {"encode_batch": 3}),
    ],
)
def test_whatever_an_encoder_draws_is_drawn_again(
    clips: Path, tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    pytest.importorskip("diffusers")
    from tiny_autoencoders import save_tiny

    save_tiny(name, tmp_path / "model")
    encoder = f"diffusers:{tmp_path / 'model'}"
    # diffusers is imported once, not twice.
    run([clips], tmp_path / "out", encoder=encoder, limit=6, workers=1, **settings)
    found = decode(tmp_path / "out", clips, 4, encoder)
    assert_sound(found, 4)
    assert found.psnr is not None


def spoil_only(folder: Path, copy: Path, factor: float) -> Path:
    """A copy of a dataset of one pack whose float16 tokens are scaled, its checksums mended."""
    shutil.copytree(folder, copy)
    (tar,) = copy.glob("*.tar")
    names = json.loads(tar.with_suffix(".json").read_text())["members"]
    with tarfile.open(tar) as archive:
        members = [(info, archive.extractfile(info).read()) for info in archive]
    shard = Shard(copy, tar, 0, members, names)
    shard.put("tokens.npy", (shard.array("tokens.npy") * factor).astype(np.float16))
    shard.seal()
    return copy


# --- damaged datasets ---------------------------------------------------------------------------


def test_a_dataset_that_cannot_be_decoded_is_checked_all_the_same(
    spacepatch_cli: SpacepatchCli, pixels: Path, clips: Path, tmp_path: Path
) -> None:
    out = shutil.copytree(pixels, tmp_path / "copy")
    (out / "segments.parquet").write_bytes(b"PAR1 and no more")
    done = spacepatch_cli("verify", out, "--decode", "2", "--source-root", clips)
    assert done.returncode == 1
    assert "segments.parquet: " in done.stdout
    assert "not decoded: " in done.stdout


ROWS: dict[str, dict[str, Any]] = {
    "pack": {"pack": 10**6},
    "offset": {"offset": 1},
    "grid": {"grid_thw": [1, 1, 1]},
    "frames": {"frame_pts": []},
    "times": {"clip_start_pts": 10**9},
}


@pytest.mark.parametrize("values", ROWS.values(), ids=ROWS)
def test_rows_that_do_not_agree_with_their_packs_are_problems(
    pixels: Path, clips: Path, tmp_path: Path, values: dict[str, Any]
) -> None:
    out = shutil.copytree(pixels, tmp_path / "copy")
    edit_rows(out / "segments.parquet", SEGMENTS, lambda rows: rows[0].update(values))
    (problem,) = decode(out, clips, 100).problems
    assert re.search("do not agree|segments.parquet says|cannot be made again", problem.what)
