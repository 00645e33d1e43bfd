"""Tiny autoencoders of video, against a model that takes frame by frame in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_models import image_model, run_frames, save, save_whole, video_model
from torch.nn import functional

from spacepatch.errors import EncodeError
from spacepatch.latents import load_encoder
from spacepatch.latents.encoders import CONSTANTS

WAN21 = {"channels": 16, "patch": 1, "pools": (2, 2, 1), "grows": (1, 2, 2)}
HUNYUAN15 = {"channels": 32, "patch": 2, "pools": (2, 2, 1), "grows": (1, 2, 2)}
WAN22 = {"channels": 48, "patch": 2, "pools": (2, 2, 1), "grows": (1, 2, 2)}
LTX2 = {"channels": 128, "patch": 4, "pools": (2, 2, 2), "grows": (2, 2, 2)}
FAMILIES = pytest.mark.parametrize(
    "family", [WAN21, HUNYUAN15, WAN22, LTX2], ids=["wan2.1", "hunyuan1.5", "wan2.2", "ltx2"]
)
TIGHT = {"rtol": 1e-5, "atol": 1e-5}


def speed_of(family) -> int:
    return int(np.prod(family["pools"]))


def noise(num: int, side: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, side, 2 * side, 3), np.uint8)


def reference(models, family, frames: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Latents and reconstruction as the authors do: the end repeated, the start trimmed."""
    speed, patch = speed_of(family), family["patch"]
    x = torch.from_numpy(frames).permute(0, 3, 1, 2).double() / 255
    clip = list(functional.pixel_unshuffle(x, patch).split(1))
    clip += [clip[-1]] * (-len(clip) % speed)
    latents = run_frames(models[0], clip)
    made = run_frames(models[1], latents)[speed - 1 :]
    pixels = functional.pixel_shuffle(torch.cat(made), patch).clamp(0, 1) * 255
    return tuple(some.permute(0, 2, 3, 1).numpy() for some in (torch.cat(latents), pixels))


def encoder_of(family, tmp_path: Path, **settings):
    return load_encoder(
        f"tae:{save_whole(tmp_path / 'tiny.safetensors', *video_model(**family))}", **settings
    )


@FAMILIES
def test_latents_and_frames_are_those_of_a_model_that_takes_frame_by_frame(family, tmp_path):
    models, encoder = video_model(**family), encoder_of(family, tmp_path)
    for latents_wanted in (1, 2, 4):
        frames = noise(1 + (latents_wanted - 1) * speed_of(family), 8 * family["patch"])
        latents, pixels = reference(models, family, frames)
        made = encoder.encode(frames)
        assert (made.dtype, len(made)) == (np.float32, latents_wanted)
        np.testing.assert_allclose(made, latents, **TIGHT)
        again = encoder.decode(made)
        assert (again.dtype, again.shape) == (np.uint8, frames.shape)
        assert np.abs(again - pixels).max() < 0.51


@FAMILIES
def test_it_says_what_it_is(family, tmp_path: Path) -> None:
    encoder = encoder_of(family, tmp_path)
    speed, side = speed_of(family), 8 * family["patch"]
    assert (encoder.name, encoder.kind, encoder.codebook_size) == ("tae:tiny", "latents", None)
    assert (str(encoder.rule), encoder.stride) == (f"1+{speed}k", (speed, side, side))
    assert (encoder.multiple, encoder.channels) == ((side, side), family["channels"])
    assert list(encoder.weights) == ["tiny.safetensors"]
    assert encoder.constants == dict.fromkeys(CONSTANTS) | {"scaling_factor": 1.0}
    # What a layer remembers of a frame goes on into all later latents.
    assert not encoder.is_local


@pytest.mark.parametrize("family", [WAN21, LTX2], ids=["wan2.1", "ltx2"])
def test_of_1_to_40_frames_those_that_fit_are_encoded_and_no_others(family, tmp_path) -> None:
    encoder, speed = encoder_of(family, tmp_path), speed_of(family)
    for num in range(1, 41):
        frames = noise(num, 8 * family["patch"])
        if (num - 1) % speed:
            with pytest.raises(EncodeError, match=f"{num} frames do not fit the rule 1\\+{speed}k"):
                encoder.encode(frames)
        else:
            latents = encoder.encode(frames)
            assert len(latents) == 1 + (num - 1) // speed
            assert len(encoder.decode(latents)) == num


def test_a_later_frame_changes_no_earlier_latent(tmp_path: Path) -> None:
    encoder, frames = encoder_of(WAN21, tmp_path), noise(17)
    latents = encoder.encode(frames)
    for changed in (5, 8, 16):
        other = frames.copy()
        other[changed] = 255 - other[changed]
        made = encoder.encode(other)
        # Each latent is computed from the frames up to the third after those it stands for.
        same = changed // 4
        assert np.array_equal(made[:same], latents[:same])
        assert not np.array_equal(made[same], latents[same])
    assert np.array_equal(encoder.encode(frames[:13])[:3], latents[:3])


@pytest.mark.parametrize("batch", [2, 3, 5, 8])
def test_a_clip_in_pieces_is_encoded_as_a_whole(tmp_path: Path, batch: int) -> None:
    frames = noise(17)
    one, some = encoder_of(WAN21, tmp_path), encoder_of(WAN21, tmp_path, batch=batch)
    latents = one.encode(frames)
    np.testing.assert_allclose(some.encode(frames), latents, **TIGHT)
    apart = one.decode(latents).astype(int) - some.decode(latents)
    assert np.abs(apart).max() <= 1
    assert one.identity() != some.identity()


def test_clips_do_not_remember_each_other(tmp_path: Path) -> None:
    encoder = encoder_of(WAN21, tmp_path)
    latents = encoder.encode(noise(5))
    frames = encoder.decode(latents)
    encoder.decode(encoder.encode(noise(9, seed=1)))
    assert np.array_equal(encoder.encode(noise(5)), latents)
    assert np.array_equal(encoder.decode(latents), frames)


def test_bytes_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    encoder, before = encoder_of(WAN21, tmp_path), torch.get_num_threads()
    made = set()
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            made.add(encoder.encode(noise(5, 64)).tobytes())
    finally:
        torch.set_num_threads(before)
    assert len(made) == 1


def test_of_a_layer_that_grows_too_much_the_last_frames_are_taken(tmp_path: Path) -> None:
    encode, decode = video_model(**{**WAN21, "grows": (2, 2, 2)})
    long = load_encoder(f"tae:{save_whole(tmp_path / 'long.safetensors', encode, decode)}")
    keys = {
        f"{name}.{key}": tensor
        for name, part in (("encoder", encode), ("decoder", decode))
        for key, tensor in part.state_dict().items()
    }
    assert keys["decoder.7.conv.weight"].shape == (64, 32, 1, 1)
    keys["decoder.7.conv.weight"] = keys["decoder.7.conv.weight"][32:]
    short = load_encoder(f"tae:{save(keys, tmp_path / 'short.safetensors')}")
    latents = long.encode(noise(9))
    assert long.decode(latents).shape == noise(9).shape
    assert np.array_equal(long.decode(latents), short.decode(latents))


def test_a_decoder_that_makes_too_few_frames_is_refused(tmp_path: Path) -> None:
    models = video_model(**{**WAN21, "grows": (1, 1, 2)})
    path = save_whole(tmp_path / "few.safetensors", *models)
    with pytest.raises(EncodeError, match="its decoder makes 2 frames of a latent, must be 4"):
        load_encoder(f"tae:{path}")


@pytest.mark.parametrize("channels", [4, 24, 48])
def test_a_video_model_of_an_unknown_frame_rule_is_refused(tmp_path: Path, channels: int) -> None:
    path = save_whole(tmp_path / "h3.safetensors", *video_model(**{**WAN21, "channels": channels}))
    with pytest.raises(EncodeError, match=f"of {channels} latent channels and 1 x 1 pixel blocks"):
        load_encoder(f"tae:{path}")


@pytest.mark.parametrize(
    "key", ["encoder.0.weight", "encoder.7.conv.weight", "decoder.7.conv.weight"]
)
def test_a_missing_key_or_one_of_another_shape_is_named(tmp_path: Path, key: str) -> None:
    parts = zip(("encoder", "decoder"), video_model(**WAN21), strict=True)
    weights = {f"{name}.{k}": v for name, part in parts for k, v in part.state_dict().items()}
    where, number = key.split(".", 1)
    spoilt = [{k: v for k, v in weights.items() if k != key}]
    spoilt += [{**weights, key: torch.zeros(shape)} for shape in ((), (3,), (8, 5, 1, 1))]
    for tensors in spoilt:
        path = save(tensors, tmp_path / "spoilt.safetensors")
        with pytest.raises(EncodeError, match=f"in (the|its) {where}, {number} is ") as caught:
            load_encoder(f"tae:{path}")
        assert "\n" not in str(caught.value)


def test_sides_are_multiples_of_the_pixel_blocks(tmp_path: Path) -> None:
    with pytest.raises(EncodeError, match="multiples of 16 and 16"):
        encoder_of(WAN22, tmp_path).encode(noise(1, 8))


def test_an_image_model_is_none_of_video(tmp_path: Path) -> None:
    path = save_whole(tmp_path / "image.safetensors", *image_model(16))
    assert str(load_encoder(f"tae:{path}").rule) == "k"
