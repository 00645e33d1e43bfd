"""What is kept of the distributions of diffusers' autoencoders, and with which constants."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_autoencoders import save_tiny

from spacepatch.errors import ConfigError
from spacepatch.latents.posteriors import standard_normal
from spacepatch.randomness import Draws

pytest.importorskip("diffusers", reason="diffusers is not installed")

FRAMES = np.random.default_rng(0).integers(0, 256, (5, 16, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def wan(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("wan")
    return folder, save_tiny("AutoencoderKLWan", folder)


def load(folder: Path, **options: Any) -> Any:
    from spacepatch.latents import load_encoder

    return load_encoder(f"diffusers:{folder}", **options)


def test_a_mean_is_the_default_and_logvar_follows_it(wan: tuple[Path, Any]) -> None:
    import torch

    folder, model = wan
    x = torch.from_numpy(FRAMES).permute(3, 0, 1, 2)[None].float() / 255 * 2 - 1
    posterior = model.encode(x).latent_dist
    mean, log_variance = (
        part[0].permute(1, 2, 3, 0).numpy() for part in (posterior.mean, posterior.logvar)
    )
    both = load(folder, posterior="mean_logvar")
    assert (load(folder).channels, both.channels) == (4, 8)
    np.testing.assert_allclose(load(folder).encode(FRAMES), mean, rtol=0, atol=1e-6)
    made = both.encode(FRAMES)
    np.testing.assert_allclose(made[..., :4], mean, rtol=0, atol=1e-6)
    np.testing.assert_allclose(made[..., 4:], log_variance, rtol=0, atol=1e-6)
    assert np.array_equal(both.decode(made), load(folder).decode(made[..., :4]))


def test_a_sample_is_mean_and_deviation_with_draws_of_the_key_alone(
    wan: tuple[Path, Any],
) -> None:
    import torch

    encoder = load(wan[0], posterior="sample")
    torch.manual_seed(1)
    made = encoder.encode(FRAMES, seed=("segment", 3))
    torch.manual_seed(2)
    assert np.array_equal(made, encoder.encode(FRAMES, seed=("segment", 3)))
    assert not np.array_equal(made, encoder.encode(FRAMES, seed=("segment", 4)))
    both = load(wan[0], posterior="mean_logvar").encode(FRAMES).astype(np.float64)
    draws = (made - both[..., :4]) / np.exp(both[..., 4:] / 2)
    expected = standard_normal(Draws("segment", 3, "posterior"), made.size)
    np.testing.assert_allclose(draws, expected.reshape(made.shape), atol=1e-4)


@pytest.mark.parametrize("name", ["AutoencoderKL", "AutoencoderKLWan", "AutoencoderKLMochi"])
def test_channels_are_those_of_what_is_encoded_and_the_identity_says_of_what(
    tmp_path: Path, name: str
) -> None:
    save_tiny(name, tmp_path)
    found = {word: load(tmp_path, posterior=word) for word in ("mean", "sample", "mean_logvar")}
    frames = FRAMES[:1]
    latents = {word: one.encode(frames, seed=("segment",)) for word, one in found.items()}
    for word, encoder in found.items():
        assert encoder.channels == latents[word].shape[3] == (8 if word == "mean_logvar" else 4)
        assert encoder.identity() == found["mean"].identity() | {"posterior": word}
    decoded = found["mean_logvar"].decode(latents["mean_logvar"])
    assert np.array_equal(decoded, found["mean"].decode(latents["mean"]))
    # Variances are of no use to a decoder.
    latents["mean_logvar"][..., 4:] = np.nan
    assert np.array_equal(found["mean_logvar"].decode(latents["mean_logvar"]), decoded)


def test_a_sample_without_a_key_is_refused(wan: tuple[Path, Any]) -> None:
    with pytest.raises(ValueError, match="needs the seed of its clip"):
        load(wan[0], posterior="sample").encode(FRAMES)


def test_loading_and_encoding_leave_the_draws_of_others_alone(wan: tuple[Path, Any]) -> None:
    import torch

    torch.manual_seed(7)
    expected = torch.rand(4)
    torch.manual_seed(7)
    encoder = load(wan[0], posterior="sample")
    encoder.decode(encoder.encode(FRAMES, seed=("segment",)))
    assert torch.equal(torch.rand(4), expected)


def test_normal_draws_are_normal() -> None:
    drawn = standard_normal(Draws("test"), 200_000)
    assert np.isfinite(drawn).all()
    # Moments of N(0, 1) within five of their standard errors, and its tails.
    for power, moment, spread in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs((drawn**power).mean() - moment) < 5 * (spread / len(drawn)) ** 0.5
    for bound, share in ((1, 0.317311), (2, 0.0455), (3, 0.0027)):
        error = 5 * (share * (1 - share) / len(drawn)) ** 0.5
        assert abs((np.abs(drawn) > bound).mean() - share) < error


@pytest.mark.parametrize("posterior", ["sample", "mean_logvar"])
@pytest.mark.parametrize(
    "name", ["AutoencoderTiny", "AutoencoderDC", "AutoencoderKLCosmos", "VQModel"]
)
def test_a_class_without_variance_has_no_posterior(
    tmp_path: Path, name: str, posterior: str
) -> None:
    save_tiny(name, tmp_path)
    with pytest.raises(ConfigError, match=f"--posterior {posterior}: {name} has no posterior"):
        load(tmp_path, posterior=posterior)


def test_constants_are_those_of_the_models_own_config(tmp_path: Path) -> None:
    save_tiny("AutoencoderKL", tmp_path)
    assert load(tmp_path).constants == {
        "scaling_factor": 0.13025,
        "shift_factor": 0.0609,
        "latents_mean": None,
        "latents_std": None,
    }


def test_constants_that_only_the_class_assumes_are_none(tmp_path: Path) -> None:
    # diffusers would say 0.18215: right for one model, wrong for the next.
    save_tiny("AutoencoderKL", tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({k: v for k, v in config.items() if k != "scaling_factor"}))
    assert load(tmp_path).constants["scaling_factor"] is None


def test_means_and_deviations_are_of_the_config_of_wan(wan: tuple[Path, Any]) -> None:
    constants = load(wan[0]).constants
    assert constants["latents_mean"] == [0.5, -0.25, 0.0, 1.0]
    assert constants["latents_std"] == [1.5] * 4
    assert constants["scaling_factor"] is None


def test_means_and_deviations_of_ltx_video_are_among_its_weights(tmp_path: Path) -> None:
    import torch

    model = save_tiny("AutoencoderKLLTXVideo", tmp_path)
    model.latents_mean.copy_(torch.arange(8) / 4)
    model.save_pretrained(tmp_path)
    constants = load(tmp_path).constants
    assert constants["latents_mean"] == [0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75]
    assert constants["latents_std"] == [1] * 8
    assert constants["scaling_factor"] == 1.0


def test_latents_are_raw_whatever_the_constants_say(wan: tuple[Path, Any], tmp_path: Path) -> None:
    save_tiny("AutoencoderKLWan", tmp_path, latents_mean=[9.0] * 4, latents_std=[0.1] * 4)
    assert np.array_equal(load(tmp_path).encode(FRAMES), load(wan[0]).encode(FRAMES))
