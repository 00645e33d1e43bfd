"""Runs with an encoder: what is stored is what the encoder makes of the frames, whoever runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from encoded_runs import codec, stored_clips
from small_runs import rows, run

from spacepatch.latents.encoders import load_encoder
from spacepatch.token_dtypes import from_stored, to_stored

CLIPS = ("square_320x320.mp4", "variable_frame_rate_480x270.mp4", "rotated_90_phone.mp4")
SIZE = {"short_side": 64, "max_tokens_per_frame": None, "fps": "6", "pack_length": 2**16}


def content(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.iterdir()) if path.is_file()}


@pytest.fixture(scope="module")
def sources(sample_clips: Path) -> list[Path]:
    return [sample_clips / name for name in CLIPS]


@pytest.fixture(scope="module")
def frames_of(
    sources: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[str, int], np.ndarray]:
    """The frames of each clip, from a dataset of pixels."""
    out = tmp_path_factory.mktemp("pixels") / "out"
    run(sources, out, patch="1x8x8", multiple=2, **SIZE)
    return {key: frames for key, (_, frames) in stored_clips(out).items()}


@pytest.mark.parametrize("tail", ["repeat", "drop"])
@pytest.mark.parametrize("block", [(1, 8, 8), (4, 8, 8), (3, 4, 4)])
def test_latents_are_those_of_the_encoder_called_with_the_frames_of_the_clip(
    sources: list[Path],
    frames_of: dict[tuple[str, int], np.ndarray],
    tmp_path: Path,
    block: tuple[int, int, int],
    tail: str,
) -> None:
    spec = codec(tmp_path, block)
    settings: dict[str, Any] = {"multiple": 16 // block[1] // 2} | SIZE
    run(sources, tmp_path / "out", encoder=spec, tail=tail, latent_dtype="float32", **settings)
    encoder = load_encoder(spec)
    made = stored_clips(tmp_path / "out")
    assert made.keys() == frames_of.keys()
    for key, (segment, latents) in made.items():
        frames = frames_of[key]
        over = len(frames) % block[0]
        if tail == "drop":
            frames = frames[: len(frames) - over]
        elif over:
            frames = np.concatenate([frames, np.repeat(frames[-1:], block[0] - over, axis=0)])
        np.testing.assert_array_equal(latents, encoder.encode(frames))
        assert segment["size"] == list(frames.shape[1:3])
    (row,) = {
        (row["tail"], row["tubelet_size"]) for row in rows(tmp_path / "out", "segments.parquet")
    }
    assert row == (tail, 1)
    losses = rows(tmp_path / "out", "losses.parquet")
    trimmed = sum(len(frames) % block[0] for frames in frames_of.values())
    assert sum(loss["num_frames"] for loss in losses) == (trimmed if tail == "drop" else 0)
    assert {(loss["stage"], loss["reason"]) for loss in losses} <= {("encode", "encoder_trim")}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_a_latent_is_stored_as_the_nearest_number_of_the_dtype(
    sources: list[Path], frames_of: Any, tmp_path: Path, dtype: str
) -> None:
    import torch

    spec = codec(tmp_path, (1, 8, 8))
    run(sources[:1], tmp_path / "out", encoder=spec, latent_dtype=dtype, **SIZE)
    ((key, (_, stored)),) = stored_clips(tmp_path / "out").items()
    latents = torch.from_numpy(load_encoder(spec).encode(frames_of[key]))
    assert torch.equal(torch.from_numpy(stored), latents.to(getattr(torch, dtype)).float())


def test_bfloat16_is_rounded_as_torch_does_it() -> None:
    import torch

    bits = np.arange(2**32, step=9973, dtype=np.uint32)
    values = np.concatenate([bits, np.arange(0x3F7F0000, 0x3F810000, dtype=np.uint32)])
    floats = values.view(np.float32)
    floats = floats[~np.isnan(floats)]
    expected = torch.from_numpy(floats).to(torch.bfloat16)
    made = to_stored(floats, "bfloat16")
    np.testing.assert_array_equal(made, expected.view(torch.uint16).numpy())
    np.testing.assert_array_equal(from_stored(made, "bfloat16"), expected.float().numpy())
    lower = np.array([0x7F800001, 0xFF80FFFF], np.uint32).view(np.float32)
    assert np.isnan(from_stored(to_stored(lower, "bfloat16"), "bfloat16")).all()


@pytest.mark.parametrize("size", [2, 256, 257, 300])
def test_codes_are_those_of_the_encoder_in_the_smallest_dtype(
    sources: list[Path], frames_of: Any, tmp_path: Path, size: int
) -> None:
    spec = codec(tmp_path, (4, 8, 8), codebook=size, stages=2)
    run(sources[:1], tmp_path / "out", encoder=spec, **SIZE)
    ((key, (_, codes)),) = stored_clips(tmp_path / "out").items()
    assert codes.dtype == (np.uint8 if size <= 256 else np.uint16)
    frames = frames_of[key]
    frames = np.concatenate([frames, np.repeat(frames[-1:], -len(frames) % 4, axis=0)])
    np.testing.assert_array_equal(codes, load_encoder(spec).encode(frames))
    document = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert document["kind"] == "codes"
    assert document["encoder"]["codebook_size"] == size
    assert document["constants"] == {"channels": 2, "codebook_size": size}


@pytest.mark.parametrize(
    ("size", "dtype"),
    [(1, "uint8"), (4096, "uint16"), (64000, "uint16"), (65536, "uint16"), (65537, "uint32"),
     (2**18, "uint32")],
)  # fmt: skip
def test_the_dtype_of_codes_is_the_smallest_that_holds_the_codebook(size: int, dtype: str) -> None:
    from spacepatch.token_dtypes import code_dtype

    assert code_dtype(size) == dtype
    assert to_stored(np.array([0, size - 1]), dtype).tolist() == [0, size - 1]


def test_pixel_tokens_beside_latents_are_those_of_a_dataset_of_pixels(
    sources: list[Path], frames_of: Any, tmp_path: Path
) -> None:
    from spacepatch.shards import ShardReader
    from spacepatch.tubelets import cut_tubelets

    out = tmp_path / "out"
    run(sources, out, encoder=codec(tmp_path), also="pixels", **(SIZE | {"pack_length": 512}))
    seen = 0
    for tar in sorted(out.glob("*.tar")):
        with ShardReader(tar) as reader:
            for number in range(len(reader)):
                table, pixels = (
                    reader.array(number, "pixel_segments.npy"),
                    reader.array(number, "pixels.npy"),
                )
                segments = reader.document(number)["segments"]
                assert [row[0] for row in table.tolist()] == np.cumsum([0, *table[:-1, 1]]).tolist()
                assert table[:, 1].sum() == len(pixels)
                for row, segment in zip(table.tolist(), segments, strict=True):
                    frames = frames_of[segment["source"], 0]
                    if segment["clip"] or len(frames) > 4 * segment["grid_thw"][0]:
                        continue  # a video that is cut to fit packs
                    # A token of 1 x 2 x 2 latents of 4 x 8 x 8 pixels covers what this one does.
                    assert row[2:] == [*segment["grid_thw"], 4, 16, 16]
                    frames = np.concatenate([frames, *[frames[-1:]] * (-len(frames) % 4)])
                    expected = cut_tubelets(frames, tubelet_size=4, patch_size=(16, 16))
                    np.testing.assert_array_equal(pixels[row[0] : row[0] + row[1]], expected)
                    seen += 1
    assert seen
    document = json.loads((out / "dataset.json").read_text())
    assert document["pixels"]["tubelet"] == [4, 16, 16]
    assert document["pixels"]["token_width"] == 3 * 4 * 16 * 16


def test_workers_resume_and_place_of_the_encoder_change_no_byte(
    sources: list[Path], tmp_path: Path
) -> None:
    settings = {
        "also": "pixels",
        "drop": "random:0.5",
        **SIZE,
        "pack_length": 512,
        "shard_size": "1MB",
    }
    first = tmp_path / "first"
    run(sources, first, encoder=codec(tmp_path / "a", codebook=64), workers=1, **settings)
    assert len(list(first.glob("*.tar"))) > 1
    moved = codec(tmp_path / "elsewhere", codebook=64)
    run(sources, tmp_path / "second", encoder=moved, workers=2, **settings)
    assert content(first) == content(tmp_path / "second")
    text = b"".join(content(first).values())
    assert str(tmp_path).encode() not in text
    # What is missing is done again, with the encoder where it lies now.
    receipt = sorted(first.glob("*-000000.json"))[0]
    before = content(first)
    receipt.unlink()
    run(sources, first, encoder=moved, **settings)
    assert content(first) == before


def test_a_run_that_is_killed_goes_on_to_the_same_bytes(
    sources: list[Path], tmp_path: Path
) -> None:
    spec, out = codec(tmp_path), tmp_path / "killed"
    options = ["--fps", "6", "--short-side", "64", "--pack-length", "256", "--shard-size", "20kB"]
    command = [
        sys.executable,
        "-m",
        "spacepatch",
        "tokenize",
        *map(str, sources),
        "--encoder",
        spec,
    ]
    subprocess.run([*command, *options, "--out", tmp_path / "whole"], check=True)
    process = subprocess.Popen([*command, *options, "--out", out], stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(out.glob("*-000000.json")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    subprocess.run([*command, *options, "--out", out], check=True)
    assert content(out) == content(tmp_path / "whole")


def test_samples_of_a_posterior_are_drawn_by_segment(sources: list[Path], tmp_path: Path) -> None:
    from tiny_autoencoders import save_tiny

    save_tiny("AutoencoderKL", tmp_path / "vae")
    settings = {
        "encoder": f"diffusers:{tmp_path / 'vae'}",
        "posterior": "sample",
        **SIZE,
        "fps": "1",
    }
    # One file twice: other segments, other draws.
    copy = tmp_path / "copy.mp4"
    copy.write_bytes(sources[0].read_bytes())
    for number in (1, 2):
        run([sources[0], copy], tmp_path / str(number), workers=number, **settings)
    assert content(tmp_path / "1") == content(tmp_path / "2")
    (_, one), (_, other) = stored_clips(tmp_path / "1").values()
    assert one.shape == other.shape
    assert not np.array_equal(one, other)


def test_measured_means_and_deviations_are_those_of_what_is_stored(
    sources: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(sources, out, encoder=codec(tmp_path), **(SIZE | {"layout": "c t p q"}))
    cells = np.concatenate([cells.reshape(-1, 6) for _, cells in stored_clips(out).values()])
    encoder = json.loads((out / "dataset.json").read_text())["encoder"]
    np.testing.assert_allclose(encoder["mean"], cells.mean(axis=0, dtype=float), rtol=1e-9)
    np.testing.assert_allclose(encoder["std"], cells.std(axis=0, dtype=float), rtol=1e-9)


def test_plan_counts_what_tokenize_writes(
    spacepatch_cli: Any, sources: list[Path], tmp_path: Path
) -> None:
    options = [*sources, "--encoder", codec(tmp_path), "--fps", "6", "--short-side", "64"]
    planned = spacepatch_cli("plan", *options, "--json")
    assert planned.returncode == 0, planned.stderr
    made = spacepatch_cli("tokenize", *options, "--out", tmp_path / "out", "--json")
    assert made.returncode == 0, made.stderr
    totals = json.loads(planned.stdout)["totals"]
    assert totals["tokens"] == json.loads(made.stdout)["totals"]["tokens"]


def test_a_linear_encoder_needs_no_torch(sources: list[Path], tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from spacepatch.cli import main\n"
        "if __name__ == '__main__': main()\n"
    )
    path = tmp_path / "without.py"
    path.write_text(script)
    command = [sys.executable, path, "tokenize", sources[0], "--encoder", codec(tmp_path)]
    subprocess.run([*command, "--out", tmp_path / "out"], check=True)
