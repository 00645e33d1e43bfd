"""The presets that need an encoder, with encoders of their strides."""

import json
from pathlib import Path
from typing import Any

import pytest
from encoded_runs import codec, stored_clips
from small_runs import rows
from tiny_autoencoders import save_tiny

from spacepatch.config import load_config
from spacepatch.pipeline import tokenize


def tokenized(sources: list[Path], out: Path, preset: str, **settings: Any) -> dict[str, Any]:
    config = load_config({"workers": 1} | settings, preset=preset)
    tokenize(list(map(str, sources)), out=out, config=config)
    return json.loads((out / "dataset.json").read_text())


@pytest.fixture(scope="module")
def clips(sample_clips: Path) -> list[Path]:
    return [sample_clips / "portrait_270x480.mp4", sample_clips / "ultrawide_960x270.mp4"]


def test_videogpt_has_4_x_32_x_32_codes(clips: list[Path], tmp_path: Path) -> None:
    out, spec = tmp_path / "out", codec(tmp_path, (4, 4, 4), codebook=300)
    document = tokenized(clips, out, "videogpt", encoder=spec)
    made = stored_clips(out)
    assert {codes.shape for _, codes in made.values()} == {(4, 32, 32, 1)}
    assert (document["kind"], document["token_dtype"]) == ("codes", "uint16")


def test_vqgan_has_16_x_16_codes(clips: list[Path], tmp_path: Path) -> None:
    five = {"block_out_channels": (8,) * 5, "num_vq_embeddings": 1024}
    blocks = {f"{way}_block_types": (name,) * 5 for way, name in
              (("down", "DownEncoderBlock2D"), ("up", "UpDecoderBlock2D"))}  # fmt: skip
    save_tiny("VQModel", tmp_path / "vq", **five, **blocks)
    out = tmp_path / "out"
    document = tokenized(clips, out, "vqgan", encoder=f"diffusers:{tmp_path / 'vq'}")
    assert {codes.shape for _, codes in stored_clips(out).values()} == {(1, 16, 16, 1)}
    assert (document["encoder"]["codebook_size"], document["token_dtype"]) == (1024, "uint16")


@pytest.mark.parametrize("preset", ["sora", "wan"])
def test_causal_latents_of_any_shape(clips: list[Path], tmp_path: Path, preset: str) -> None:
    save_tiny("AutoencoderKLWan", tmp_path / "vae")
    # A quarter of their sides: what the grids are is the same arithmetic.
    size = {"sora": "uniform:64..128", "wan": "158"}[preset]
    out = tmp_path / "out"
    document = tokenized(
        clips, out, preset, encoder=f"diffusers:{tmp_path / 'vae'}", resolution=size
    )
    assert (document["kind"], document["encoder"]["rule"]) == ("latents", "1+4k")
    for row in rows(out, "segments.parquet"):
        grid_t, grid_h, grid_w = row["grid_thw"]
        assert len(row["frame_pts"]) + row["padded_frames"] == 1 + 4 * (grid_t - 1)
        assert row["size"] == [grid_h * 16, grid_w * 16]
        assert row["seconds"] == [
            pytest.approx(row["frame_pts"][0 if t == 0 else 4 * t - 3] * eval_fraction(row))
            for t in range(grid_t)
        ]
    portrait = next(row for row in rows(out, "segments.parquet") if "portrait" in row["source"])
    assert portrait["size"][0] > portrait["size"][1]


def eval_fraction(row: dict[str, Any]) -> float:
    numerator, denominator = row["time_base"].split("/")
    return int(numerator) / int(denominator)
