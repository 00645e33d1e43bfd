"""Which frames the rows of latents cover, for every number of frames, and what is lost of them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from encoded_runs import codec, stored_clips
from fitted_codecs import video
from small_runs import rows, run
from tiny_autoencoders import save_tiny

from spacepatch.config import load_config
from spacepatch.errors import SpacepatchError
from spacepatch.framerules import FrameRule, Lattice
from spacepatch.latents.encoders import load_encoder
from spacepatch.latents.linear import LinearCodec, codec_bytes
from spacepatch.pipeline import tokenize_frames
from spacepatch.tubelets import join_tubelets

RULES = [FrameRule(0, 1), FrameRule(0, 4), FrameRule(1, 4), FrameRule(1, 6), FrameRule(1, 8)]


@pytest.mark.parametrize("tubelet", [1, 2, 3])
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_rows_are_the_fewest_that_hold_the_frames_or_the_most_that_they_fill(
    rule: FrameRule, tubelet: int
) -> None:
    lattice = Lattice(rule, (8, 8))
    for num_frames in range(1, 41):
        fitting = [n for n in range(1, 80) if rule.fits(n) and rule.num_latents(n) % tubelet == 0]
        filled = lattice.num_rows(num_frames, tubelet_size=tubelet, tail="repeat")
        least = min(n for n in fitting if n >= num_frames)
        assert filled * tubelet == rule.num_latents(least)
        left = lattice.num_rows(num_frames, tubelet_size=tubelet, tail="drop")
        most = max((n for n in fitting if n <= num_frames), default=0)
        assert left * tubelet == (rule.num_latents(most) if most else 0)
        starts = lattice.row_starts(filled, tubelet_size=tubelet).tolist()
        sources = rule.sources(least)
        assert starts == [first for first, _ in sources[::tubelet]] + [least]


@pytest.fixture(scope="module")
def encoder_specs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    folder = tmp_path_factory.mktemp("encoders")

    def spec(name: str) -> str:
        if name == "linear":
            return codec(folder)
        if not (folder / name).exists():
            save_tiny(name, folder / name)
        return f"diffusers:{folder / name}"

    return spec


@pytest.mark.parametrize("tail", ["repeat", "drop"])
@pytest.mark.parametrize("tubelet", [1, 2])
@pytest.mark.parametrize("name", ["linear", "AutoencoderKL", "VQModel", "AutoencoderKLWan"])
def test_of_1_to_40_frames_each_latent_is_that_of_its_frames(
    encoder_specs: Callable[[str], str], name: str, tubelet: int, tail: str
) -> None:
    spec = encoder_specs(name)
    encoder = load_encoder(spec)
    rule, (height, width) = encoder.rule, encoder.multiple
    clip = video(40, 2 * height, 2 * width)
    settings = {"encoder": spec, "every_frame": True, "native": True}
    settings |= {"latent_dtype": "float32"} if encoder.kind == "latents" else {}
    config = load_config(settings | {"patch": f"{tubelet}x1x1", "tail": tail})
    for num_frames in range(1, 41, 1 if tubelet == 1 else 3):
        frames = clip[:num_frames]
        used = [n for n in range(1, 80) if rule.fits(n) and rule.num_latents(n) % tubelet == 0]
        if tail == "repeat":
            num_used = min(n for n in used if n >= num_frames)
        else:
            num_used = max((n for n in used if n <= num_frames), default=0)
        if not num_used:
            with pytest.raises(Exception, match="encoder_trim"):
                tokenize_frames(frames, config)
            continue
        (made,) = tokenize_frames(frames, config)
        assert made.clip.grid_thw[0] * tubelet == rule.num_latents(num_used)
        added = max(0, num_used - num_frames)
        padded = np.concatenate([frames, np.repeat(frames[-1:], added, axis=0)])
        cells = join_tubelets(
            made.tokens,
            grid_thw=made.clip.grid_thw,
            tubelet_size=tubelet,
            patch_size=(1, 1),
        )
        np.testing.assert_array_equal(cells, encoder.encode(padded[:num_used]))


def damaged_run(sources: list[Path], out: Path, **settings: Any) -> dict[str, Any]:
    run(sources, out, fps="8", max_tokens_per_frame=16, **settings)
    (source,) = [
        row for row in rows(out, "sources.parquet") if row["source"].startswith("damaged_sq")
    ]
    assert source["frames_selected"] == source["frames_written"] + source["frames_lost"]
    return source


def test_a_damaged_frame_takes_its_row_or_the_rest_of_its_clip_by_the_encoder(
    part_damaged: list[Path], encoder_specs: Callable[[str], str], tmp_path: Path
) -> None:
    def segment_of(out: Path) -> dict[str, Any]:
        (row,) = [
            row for row in rows(out, "segments.parquet") if row["source"].startswith("damaged_sq")
        ]
        return row

    # What pixels lose says which frames are damaged.
    damaged_run(part_damaged[1:], tmp_path / "pixels", patch="1x16x16")
    pixels = segment_of(tmp_path / "pixels")
    assert 0 < pixels["corrupt_frames"] < pixels["grid_thw"][0]
    whole = stored_positions(tmp_path / "pixels", pixels["source"])
    first_lost = next(t for t in range(len(pixels["frame_pts"])) if t not in whole)

    local = tmp_path / "local"
    damaged_run(part_damaged[1:], local, encoder=codec(tmp_path, (2, 8, 8)), patch="1x2x2")
    row = segment_of(local)
    lost = sorted({t // 2 for t in range(len(pixels["frame_pts"])) if t not in whole})
    assert stored_positions(local, row["source"]) == set(range(row["grid_thw"][0])) - set(lost)
    assert row["corrupt_frames"] == sum(min(2, len(row["frame_pts"]) - 2 * t) for t in lost)

    for name, settings in (
        ("causal", {"encoder": encoder_specs("AutoencoderKLWan"), "patch": "1x1x1"}),
        ("also", {"encoder": codec(tmp_path, (2, 8, 8)), "patch": "1x2x2", "also": "pixels"}),
    ):
        out = tmp_path / name
        damaged_run(part_damaged[1:], out, **settings)
        row = segment_of(out)
        assert row["frame_pts"] == pixels["frame_pts"][:first_lost]
        assert row["corrupt_frames"] == 0
        (loss,) = [
            loss
            for loss in rows(out, "losses.parquet")
            if loss["source"] == row["source"] and loss["reason"] == "corrupt_frames"
        ]
        assert loss["num_frames"] == len(pixels["frame_pts"]) - first_lost


def stored_positions(out: Path, source: str) -> set[int]:
    """The grid rows that are there, of the only clip of a source."""
    from spacepatch.shards import ShardReader

    for tar in out.glob("*.tar"):
        with ShardReader(tar) as reader:
            for number in range(len(reader)):
                pack = reader.read(number)
                for row, segment in zip(pack.segments, pack.document["segments"], strict=True):
                    if segment["source"] == source:
                        places = pack.positions[row[0] : row[0] + row[1]]
                        return set(places[:, 0].tolist())
    raise AssertionError(source)


@pytest.fixture
def half_white(tmp_path: Path) -> Path:
    """Eight black frames and eight white ones, lossless, at 8 a second."""
    path = tmp_path / "half_white.mkv"
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "bgr0"
        for number in range(16):
            picture = np.full((64, 64, 3), 255 * (number >= 8), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


def test_values_beyond_the_limit_are_lost_and_never_written(
    half_white: Path, encoder_specs: Callable[[str], str], tmp_path: Path
) -> None:
    block = (2, 8, 8)
    depth = 3 * 2 * 8 * 8
    basis = np.zeros((depth, 2))
    basis[[0, 1], [0, 1]] = 1
    # White comes to 255 / 0.25 = 1020, above the limit of 1000.
    wild = LinearCodec(block, np.zeros(depth), basis, np.full(2, 0.25))
    (tmp_path / "wild.safetensors").write_bytes(codec_bytes(wild))
    out = tmp_path / "rows"
    run([half_white], out, encoder=f"linear:{tmp_path / 'wild.safetensors'}", fps="8")
    (loss,) = rows(out, "losses.parquet")
    assert (loss["stage"], loss["reason"], loss["num_frames"]) == ("encode", "nonfinite_latent", 8)
    assert "NaN" in loss["message"] and "wild.safetensors" in loss["message"]
    (row,) = rows(out, "segments.parquet")
    assert (row["valid_frames"], row["corrupt_frames"]) == (8, 8)
    assert stored_positions(out, "half_white.mkv") == {0, 1, 2, 3}

    import torch

    model = save_tiny("AutoencoderKLWan", tmp_path / "nan")
    # Pixels of -1 leave it sound, those of 1 make it Inf - Inf.
    with torch.no_grad():
        model.encoder.conv_in.weight.fill_(3e38)
    model.save_pretrained(tmp_path / "nan")
    out = tmp_path / "clip"
    summary = run([half_white], out, encoder=f"diffusers:{tmp_path / 'nan'}", fps="8")
    (loss,) = rows(out, "losses.parquet")
    assert (loss["reason"], loss["num_frames"]) == ("nonfinite_latent", 16)
    assert summary.lost_sources == ("half_white.mkv",)
    assert not list(out.glob("*.tar"))


def test_a_clip_that_needs_more_memory_is_lost_and_the_run_goes_on(
    sample_clips: Path, tmp_path: Path
) -> None:
    from tiny_autoencoders import save_tiny

    save_tiny("AutoencoderKL", tmp_path / "vae", block_out_channels=(64, 64, 64))
    out = tmp_path / "out"
    wide = {"native": True, "max_tokens_per_frame": None, "pack_length": 2**16, "fps": "1"}
    run(
        [sample_clips / "ultrawide_960x270.mp4", sample_clips / "odd_size_321x179_vp9.webm"],
        out,
        encoder=f"diffusers:{tmp_path / 'vae'}",
        encode_batch=4,
        worker_memory="1GB",
        workers=1,
        **wide,
    )
    reasons = {row["source"]: row["reason"] for row in rows(out, "losses.parquet")}
    assert reasons == {"ultrawide_960x270.mp4": "out_of_memory"}
    (loss,) = rows(out, "losses.parquet")
    assert loss["retryable"]
    assert "--encode-batch" in loss["message"] or "--worker-memory" in loss["message"]
    assert {row["source"] for row in rows(out, "segments.parquet")} == {"odd_size_321x179_vp9.webm"}


def test_the_losses_of_trimmed_frames_are_the_users_wish(tmp_path: Path, half_white: Path) -> None:
    out = tmp_path / "out"
    summary = run([half_white], out, encoder=codec(tmp_path, (3, 8, 8)), fps="8", tail="drop")
    (loss,) = rows(out, "losses.parquet")
    assert (loss["stage"], loss["reason"], loss["num_frames"]) == ("encode", "encoder_trim", 1)
    assert summary.lost_sources == ()
    document = json.loads((out / "dataset.json").read_text())
    assert document["encoder"]["rule"] == "3k"
    assert [segment["num_tokens"] for segment, _ in stored_clips(out).values()]


def test_a_clip_that_just_fits_a_pack_is_not_cut_for_the_frames_that_are_trimmed(
    encoder_specs: Callable[[str], str],
) -> None:
    settings = {"encoder": encoder_specs("AutoencoderKLWan"), "every_frame": True, "native": True}
    exact = load_config(
        settings | {"patch": "1x2x2", "tail": "drop", "pack_length": 4, "long": "error"}
    )
    # 1 + 3 x 4 frames are 4 latents, of one token each; 3 frames more fill none.
    (made,) = tokenize_frames(video(16, 16, 16), exact)
    assert made.clip.grid_thw == (4, 1, 1)


def test_frames_in_memory_are_not_lost_in_silence(tmp_path: Path) -> None:
    depth = 3 * 8 * 8
    basis = np.eye(depth, 1)
    wild = LinearCodec((1, 8, 8), np.zeros(depth), basis, np.full(1, 0.25))
    (tmp_path / "wild.safetensors").write_bytes(codec_bytes(wild))
    config = load_config({"encoder": f"linear:{tmp_path / 'wild.safetensors'}"})
    white = np.full((4, 32, 32, 3), 255, np.uint8)
    with pytest.raises(SpacepatchError, match="nonfinite_latent"):
        tokenize_frames(white, config)
    tokenize_frames(white // 2, config)


@pytest.mark.parametrize("key", range(4))
def test_pixels_stay_beside_the_one_token_that_is_kept_of_a_clip_cut_short(
    tmp_path: Path, key: int
) -> None:
    from spacepatch.clipwriter import TokenSettings
    from spacepatch.data import Picture
    from spacepatch.encoding import facts_of
    from spacepatch.jobs import own_memory, writing
    from spacepatch.latents.encoders import EncoderSettings

    encoder = EncoderSettings(codec(tmp_path, (2, 8, 8)))
    config = load_config(
        {"encoder": encoder.spec, "patch": "1x1x1", "every_frame": True, "native": True}
        | {"drop": "tokens:1", "also": "pixels"}
    )
    (whole,) = tokenize_frames(video(16, 32, 32), config)
    settings = TokenSettings(
        "c t p q",
        "repeat",
        "bicubic",
        token_dtype="float32",
        encoder=encoder,
        facts=facts_of(encoder),
        pixel_tubelet=(2, 8, 8),
    )
    frames = video(16, 32, 32)
    with writing([whole.clip], [f"key {key}"], settings, own_memory) as (writer,):
        for index in range(5):
            rgb = av.VideoFrame.from_ndarray(frames[index], format="rgb24")
            picture = Picture(rgb, index, index, rotation=0, mirrored=False, is_corrupt=False)
            writer.add(picture, frames[index], "pyav")
        made = writer.finish()
    assert (made.num_kept, made.grid_t, made.num_pixel_tokens) == (1, 3, 3 * 16)


def test_clips_that_find_no_memory_are_lost_without_the_others(
    sample_clips: Path, tmp_path: Path
) -> None:
    # Windows that overlap 24 times hold as many clips: of 960 x 272 pixels 450 MB.
    out = tmp_path / "out"
    run(
        [sample_clips / "ultrawide_960x270.mp4", sample_clips / "square_320x320.mp4"],
        out,
        encoder=codec(tmp_path),
        worker_memory="450MB",
        workers=1,
        native=True,
        max_tokens_per_frame=None,
        pack_length=2**16,
        fps="24",
        clip_seconds="1",
        clip_stride="1/24",
    )
    losses = rows(out, "losses.parquet")
    assert {(row["source"], row["stage"], row["reason"]) for row in losses} == {
        ("ultrawide_960x270.mp4", "encode", "out_of_memory")
    }
    written = {row["source"] for row in rows(out, "segments.parquet")}
    assert "square_320x320.mp4" in written
    assert "ultrawide_960x270.mp4" in written
