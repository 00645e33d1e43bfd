"""What the autoencoders of diffusers make of a clip: tiny ones at random, saved by the tests."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_autoencoders import (
    CONFIGS,
    IMAGES,
    VIDEOS,
    as_input,
    as_input_codes,
    as_input_latents,
    as_latents,
    noise,
    save_tiny,
)

from spacepatch.errors import ConfigError, EncodeError
from spacepatch.framerules import parse_rule

pytest.importorskip("diffusers", reason="diffusers is not installed")

# By hand, from the papers' words and the configs in `tiny_autoencoders`: rule, stride, channels.
KNOWN = {
    "AutoencoderKL": ("k", (1, 4, 4), 4),
    "AutoencoderKLTemporalDecoder": ("k", (1, 4, 4), 4),
    "AutoencoderTiny": ("k", (1, 8, 8), 4),
    "AutoencoderDC": ("k", (1, 4, 4), 4),
    "VQModel": ("k", (1, 4, 4), 1),
    "AutoencoderKLWan": ("1+4k", (4, 8, 8), 4),
    "AutoencoderKLHunyuanVideo": ("1+4k", (4, 8, 8), 4),
    "AutoencoderKLCogVideoX": ("1+4k", (4, 8, 8), 4),
    "AutoencoderKLLTXVideo": ("1+8k", (8, 32, 32), 8),
    "AutoencoderKLMochi": ("1+6k", (6, 8, 8), 4),
    "AutoencoderKLCosmos": ("1+8k", (8, 8, 8), 4),
    "AutoencoderKLMagvit": ("1+4k", (4, 8, 8), 4),
}
# Their normalizations take all frames of a clip together (CogVideoX: of 8 frames), so that every
# frame tints every latent, however little. What the rest passes on in time is causal.
TINTED = ("AutoencoderKLHunyuanVideo", "AutoencoderKLCogVideoX")

Load = Callable[..., Any]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Folder and model of each class; the models are called directly, as the reference."""
    root = tmp_path_factory.mktemp("models")
    return {name: (root / name, save_tiny(name, root / name)) for name in CONFIGS}


@pytest.fixture(scope="module")
def load(saved: dict[str, tuple[Path, Any]]) -> Load:
    from spacepatch.latents import load_encoder

    return lambda name, **options: load_encoder(f"diffusers:{saved[name][0]}", **options)


@pytest.fixture
def by_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch normalizes each frame of a clip by itself."""
    import torch

    whole = torch.nn.functional.group_norm

    def group_norm(x: torch.Tensor, *args: Any) -> torch.Tensor:
        if x.ndim == 3:
            # Before an attention, frames lie in a row: those of `noise` have 2 x 4 latents.
            return group_norm(x.unflatten(2, (-1, 8, 1)), *args).flatten(2)
        if x.ndim == 5:
            return torch.stack([whole(frame, *args) for frame in x.unbind(2)], 2)
        return whole(x, *args)

    monkeypatch.setattr(torch.nn.functional, "group_norm", group_norm)


def changed(encoder: Any, before: np.ndarray, frames: np.ndarray, which: Any) -> list[int]:
    """The latents of which any bit changes with `which` frames."""
    other = frames.copy()
    other[which] = 255 - other[which]
    return np.flatnonzero((encoder.encode(other) != before).any((1, 2, 3))).tolist()


@pytest.mark.parametrize("name", CONFIGS)
def test_rule_stride_and_channels_are_those_of_the_config(load: Load, name: str) -> None:
    encoder = load(name)
    rule, stride, channels = KNOWN[name]
    assert (str(encoder.rule), encoder.stride, encoder.channels) == (rule, stride, channels)
    assert encoder.multiple == stride[1:]
    assert encoder.is_local == (name in IMAGES)


@pytest.mark.parametrize(
    ("name", "changes", "stride"),
    [
        # As Wan 2.2 has it, and LTX-Video 0.9.1 and 0.9.5.
        (
            "AutoencoderKLWan",
            {"is_residual": True, "patch_size": 2, "in_channels": 12, "out_channels": 12},
            (4, 16, 16),
        ),
        (
            "AutoencoderKLLTXVideo",
            {"timestep_conditioning": True, "decoder_inject_noise": (True,) * 5},
            (8, 32, 32),
        ),
        (
            "AutoencoderKLLTXVideo",
            {
                "block_out_channels": (8, 16, 32, 64, 64),
                "down_block_types": ("LTXVideo095DownBlock3D",) * 4,
                "spatio_temporal_scaling": (True,) * 4,
                "downsample_type": ("spatial", "temporal", "spatiotemporal", "spatiotemporal"),
                "temporal_compression_ratio": 8,
                "spatial_compression_ratio": 32,
            },
            (8, 32, 32),
        ),
        ("AutoencoderKLCogVideoX", {"temporal_compression_ratio": 8}, (8, 8, 8)),
        ("AutoencoderKLMochi", {"temporal_expansions": (1, 2, 2)}, (4, 8, 8)),
        (
            "AutoencoderKLCosmos",
            {"temporal_compression_ratio": 4, "spatial_compression_ratio": 16},
            (4, 16, 16),
        ),
        (
            "AutoencoderKLMagvit",
            {
                "down_block_types": ["SpatialDownBlock3D"] * 3 + ["SpatialTemporalDownBlock3D"],
                "up_block_types": ["SpatialUpBlock3D"] * 3 + ["SpatialTemporalUpBlock3D"],
            },
            (1, 8, 8),
        ),
        # As Kandinsky's MoVQ has it; such normalizations have 32 groups.
        (
            "VQModel",
            {
                "norm_type": "spatial",
                "lookup_from_codebook": True,
                "block_out_channels": (32, 32, 32),
                "norm_num_groups": 32,
            },
            (1, 4, 4),
        ),
    ],
)
def test_variants_of_a_class_encode_and_decode_by_their_config(
    tmp_path: Path, name: str, changes: dict[str, Any], stride: tuple[int, int, int]
) -> None:
    from spacepatch.latents import load_encoder

    save_tiny(name, tmp_path, **changes)
    encoder = load_encoder(f"diffusers:{tmp_path}")
    assert encoder.stride == stride
    frames = noise(encoder, 17)
    latents = encoder.encode(frames)
    assert latents.shape == (encoder.rule.num_latents(17), 2, 4, encoder.channels)
    made = encoder.decode(latents)
    assert made is not None
    assert np.array_equal(made, encoder.decode(latents))
    assert made.shape == frames.shape


@pytest.mark.parametrize("name", CONFIGS)
def test_every_number_of_frames_gives_the_latents_of_the_rule_or_is_refused(
    load: Load, name: str
) -> None:
    encoder, rule = load(name), parse_rule(KNOWN[name][0])
    for num_frames in range(1, 41):
        frames = noise(encoder, num_frames)
        if (num_frames - rule.first) % rule.step:
            with pytest.raises(EncodeError, match=f"{num_frames} frames do not fit the rule"):
                encoder.encode(frames)
        else:
            made = encoder.encode(frames)
            assert made.shape == (rule.num_latents(num_frames), 2, 4, KNOWN[name][2])


@pytest.mark.parametrize("name", VIDEOS)
@pytest.mark.usefixtures("by_frame")
def test_each_frame_first_changes_the_latent_whose_source_it_is(load: Load, name: str) -> None:
    encoder = load(name)
    for num_frames in filter(encoder.rule.fits, range(1, 41)):
        frames = noise(encoder, num_frames)
        before = encoder.encode(frames)
        for index, (start, stop) in enumerate(encoder.rule.sources(num_frames)):
            for frame in range(start, stop):
                assert changed(encoder, before, frames, frame)[0] == index, (num_frames, frame)


@pytest.mark.parametrize("name", IMAGES)
def test_each_frame_changes_its_own_latent_and_no_other(load: Load, name: str) -> None:
    encoder = load(name)
    for num_frames in range(1, 41):
        frames = noise(encoder, num_frames)
        before = encoder.encode(frames)
        for odd in (0, 1):
            own = range(odd, num_frames, 2)
            assert changed(encoder, before, frames, own) == list(own)


@pytest.mark.parametrize("name", VIDEOS)
def test_a_frame_of_a_video_changes_latents_of_other_frames(load: Load, name: str) -> None:
    encoder = load(name)
    frames = noise(encoder, 1 + 2 * encoder.rule.step)
    assert changed(encoder, encoder.encode(frames), frames, 0) == [0, 1, 2]


@pytest.mark.parametrize("name", TINTED)
def test_normalization_over_frames_is_left_as_the_model_has_it(load: Load, name: str) -> None:
    encoder = load(name)
    frames = noise(encoder, 9)
    assert changed(encoder, encoder.encode(frames), frames, 8) == [0, 1, 2]


@pytest.mark.parametrize("name", [name for name in CONFIGS if name != "VQModel"])
def test_latents_are_those_of_diffusers_called_directly(
    load: Load, saved: dict[str, tuple[Path, Any]], name: str
) -> None:
    import torch

    encoder, model = load(name), saved[name][1]
    frames = noise(encoder, 13 if encoder.rule.fits(13) else 9)
    made = model.encode(as_input(frames, video=name in VIDEOS), return_dict=False)[0]
    expected = as_latents(made if isinstance(made, torch.Tensor) else made.mode())
    np.testing.assert_allclose(encoder.encode(frames), expected, rtol=0, atol=1e-5)


def test_codes_are_those_of_diffusers_called_directly(
    load: Load, saved: dict[str, tuple[Path, Any]]
) -> None:
    encoder, model = load("VQModel"), saved["VQModel"][1]
    frames = noise(encoder, 24)
    vectors = model.encode(as_input(frames, video=False)).latents
    expected = model.quantize(vectors)[2][2].reshape(24, 2, 4, 1).numpy()
    made = encoder.encode(frames)
    assert made.dtype == np.int64
    assert len(np.unique(made)) > 8
    assert np.array_equal(made, expected)
    assert (encoder.kind, encoder.codebook_size) == ("codes", 64)


@pytest.mark.parametrize("name", CONFIGS)
def test_decoded_frames_are_as_many_and_those_of_diffusers(
    load: Load, saved: dict[str, tuple[Path, Any]], name: str
) -> None:
    encoder, model = load(name), saved[name][1]
    for num_frames in filter(encoder.rule.fits, (1, 5, 7, 9, 13)):
        frames = noise(encoder, num_frames)
        latents = encoder.encode(frames)
        made = encoder.decode(latents)
        assert made.shape == frames.shape
        assert made.dtype == np.uint8
        if name == "VQModel":
            z = model.quantize.get_codebook_entry(
                as_input_codes(latents), (num_frames, 2, 4, model.config.latent_channels)
            )
        else:
            z = as_input_latents(latents, video=name in VIDEOS)
        options = {"num_frames": num_frames} if name == "AutoencoderKLTemporalDecoder" else {}
        pixels = as_latents(model.decode(z, **options).sample)[-num_frames:]
        expected = np.clip(np.round((pixels + 1) * 127.5), 0, 255)
        assert np.abs(made - expected).max() <= 1


@pytest.mark.parametrize("plan", [[1, 4, 4, 4], [1, 8, 4], [1, 12]])
def test_wan_chunked_by_its_own_cache_is_wan_unchunked(
    load: Load, saved: dict[str, tuple[Path, Any]], plan: list[int]
) -> None:
    import torch

    encoder, model = load("AutoencoderKLWan"), saved["AutoencoderKLWan"][1]
    frames = noise(encoder, 13)
    model.clear_cache()
    parts = [
        model.encoder(some, feat_cache=model._enc_feat_map, feat_idx=[0])
        for some in as_input(frames, video=True).split(plan, dim=2)
    ]
    expected = as_latents(model.quant_conv(torch.cat(parts, 2)).chunk(2, 1)[0])
    np.testing.assert_allclose(encoder.encode(frames), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch", [8, 12])
def test_magvit_chunked_by_its_own_cache_is_magvit_in_longer_chunks(
    load: Load, saved: dict[str, tuple[Path, Any]], batch: int
) -> None:
    encoder, model = load("AutoencoderKLMagvit"), saved["AutoencoderKLMagvit"][1]
    frames = noise(encoder, 25)
    own, model.num_sample_frames_batch_size = model.num_sample_frames_batch_size, batch
    try:
        expected = as_latents(model.encode(as_input(frames, video=True)).latent_dist.mode())
    finally:
        model.num_sample_frames_batch_size = own
    np.testing.assert_allclose(encoder.encode(frames), expected, rtol=0, atol=1e-5)


def test_hunyuan_encodes_long_clips_whole_not_as_tiles_blended_in_time(
    load: Load, saved: dict[str, tuple[Path, Any]]
) -> None:
    encoder, model = load("AutoencoderKLHunyuanVideo"), saved["AutoencoderKLHunyuanVideo"][1]
    frames = noise(encoder, 33)
    x = as_input(frames, video=True)
    made = encoder.encode(frames)
    whole = as_latents(model.quant_conv(model.encoder(x)).chunk(2, 1)[0])
    np.testing.assert_allclose(made, whole, rtol=0, atol=1e-5)
    # What diffusers does unasked: this is the difference that the user is spared.
    blended = as_latents(model.encode(x).latent_dist.mode())
    assert np.abs(made - blended).max() > 0.01


# Long and short clip: CogVideoX reads 9 frames, then 8, so that these two begin alike.
PREFIXES = dict.fromkeys(IMAGES, (17, 9)) | {
    "AutoencoderKLWan": (17, 5),
    "AutoencoderKLMagvit": (17, 5),
    "AutoencoderKLCogVideoX": (17, 9),
}


@pytest.mark.parametrize("name", PREFIXES)
def test_latents_of_a_prefix_are_to_the_bit_those_of_the_whole(load: Load, name: str) -> None:
    encoder, (long, short) = load(name), PREFIXES[name]
    frames = noise(encoder, long)
    made = encoder.encode(frames[:short])
    assert np.array_equal(made, encoder.encode(frames)[: len(made)])


@pytest.mark.parametrize(
    "name", ["AutoencoderKLLTXVideo", "AutoencoderKLMochi", "AutoencoderKLCosmos"]
)
def test_latents_of_a_prefix_are_nearly_those_of_the_whole(load: Load, name: str) -> None:
    encoder = load(name)
    step = encoder.rule.step
    frames = noise(encoder, 1 + 4 * step)
    made = encoder.encode(frames[: 1 + step])
    np.testing.assert_allclose(made, encoder.encode(frames)[:2], rtol=0, atol=1e-5)


def test_another_batch_is_part_of_the_identity_and_clips_of_video_have_none(load: Load) -> None:
    assert load("AutoencoderKL").identity() != load("AutoencoderKL", batch=3).identity()
    with pytest.raises(ConfigError, match="--encode-batch 3: AutoencoderKLWan encodes a clip at"):
        load("AutoencoderKLWan", batch=3)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderKLWan", "VQModel"])
def test_half_precision_is_near_and_named(load: Load, name: str, dtype: str) -> None:
    exact, half = load(name), load(name, dtype=dtype)
    frames = noise(exact, 9)
    expected, made = exact.encode(frames), half.encode(frames)
    if name == "VQModel":
        assert (made == expected).mean() > 0.9
    else:
        assert made.dtype == np.float32
        assert 0 < np.abs(made - expected).max() < 0.1
    assert half.decode(made).shape == frames.shape
    assert half.identity() == exact.identity() | {"dtype": dtype}


def test_autocast_around_it_changes_nothing(load: Load) -> None:
    import torch

    encoder = load("AutoencoderKL")
    frames = noise(encoder, 4)
    expected = encoder.encode(frames)
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(encoder.encode(frames), expected)
