"""Raw latents as diffusion models take them, held against the formulas of diffusers' pipelines."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from encoded_runs import codec
from loaded_packs import read_plainly
from small_runs import run
from tiny_autoencoders import save_tiny
from tiny_models import image_model, save_parts

from spacepatch.loader import PackDataset
from spacepatch.loader.model_space import scale_of_config
from spacepatch.tubelets import cut_tubelets, join_tubelets

CLIP = "square_320x320.mp4"
SETTINGS = {"fps": "4", "max_tokens_per_frame": 16, "workers": 1}
FOUR = {"latents_mean": [0.5, -0.25, 0.0, 1.0], "latents_std": [1.5, 0.5, 2.0, 1.25]}

Make = Callable[..., tuple[PackDataset, Any]]


@pytest.fixture(scope="module")
def make(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A dataset of the latents of a tiny model of diffusers, and the model; each made once."""
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    folder, made = tmp_path_factory.mktemp("models"), {}

    def dataset(name: str, changes: Any = None, **settings: Any) -> tuple[PackDataset, Any]:
        key = str((name, changes, sorted(settings.items())))
        if key not in made:
            where = folder / f"{len(made)}"
            model = save_tiny(name, where, **changes or {})
            if name == "AutoencoderKLLTXVideo":
                # Its mean and deviation lie among the weights.
                generator = torch.Generator().manual_seed(1)
                model.latents_mean.copy_(torch.randn(8, generator=generator))
                model.latents_std.copy_(torch.rand(8, generator=generator) + 0.5)
                model.save_pretrained(where)
            out = where / "out"
            run([sample_clips / CLIP], out, encoder=f"diffusers:{where}", **SETTINGS | settings)
            made[key] = PackDataset(out, padded=False), model
        return made[key]

    return dataset


def cells_of(pack: dict[str, Any], layout: str, tokens: np.ndarray) -> np.ndarray:
    """``(T, H, W, C)`` of the tokens of a pack of one whole segment, read by numpy."""
    ((_, _, *grid, size, rows, columns),) = pack["segments"].tolist()
    return join_tubelets(
        tokens, grid_thw=tuple(grid), tubelet_size=size, patch_size=(rows, columns), layout=layout
    )


def tokens_of(cells: np.ndarray, layout: str) -> np.ndarray:
    return cut_tubelets(cells, tubelet_size=1, patch_size=(2, 2), layout=layout)


# --- the formulas of the pipelines, on (1, C, T, H, W) -------------------------------------------


def stable_diffusion(z: torch.Tensor, vae: Any) -> torch.Tensor:
    """`prepare_latents` of StableDiffusionImg2ImgPipeline."""
    return vae.config.scaling_factor * z


def flux(z: torch.Tensor, vae: Any) -> torch.Tensor:
    """`_encode_vae_image` of FluxImg2ImgPipeline; the same in StableDiffusion3Img2ImgPipeline."""
    return (z - vae.config.shift_factor) * vae.config.scaling_factor


def wan(z: torch.Tensor, vae: Any) -> torch.Tensor:
    """`prepare_latents` of WanImageToVideoPipeline."""
    mean = torch.tensor(vae.config.latents_mean).view(1, vae.config.z_dim, 1, 1, 1)
    std = 1.0 / torch.tensor(vae.config.latents_std).view(1, vae.config.z_dim, 1, 1, 1)
    return (z - mean) * std


def ltx_video(z: torch.Tensor, vae: Any) -> torch.Tensor:
    """`_normalize_latents` of LTXImageToVideoPipeline."""
    mean, std = vae.latents_mean.view(1, -1, 1, 1, 1), vae.latents_std.view(1, -1, 1, 1, 1)
    return (z - mean) * vae.config.scaling_factor / std


def mochi(z: torch.Tensor, vae: Any) -> torch.Tensor:
    """MochiPipeline has the inverse alone: z * std / scaling_factor + mean."""
    mean = torch.tensor(vae.config.latents_mean).view(1, -1, 1, 1, 1)
    std = torch.tensor(vae.config.latents_std).view(1, -1, 1, 1, 1)
    return (z - mean) / std * vae.config.scaling_factor


def unchanged(z: torch.Tensor, vae: Any) -> torch.Tensor:
    """AutoencoderTiny: its config says 1 and 0."""
    assert (vae.config.scaling_factor, vae.config.shift_factor) == (1, 0)
    return z


PIPELINES = {
    "stable diffusion": (stable_diffusion, "AutoencoderKL", {"shift_factor": None}),
    "flux": (flux, "AutoencoderKL", {}),
    "wan": (wan, "AutoencoderKLWan", FOUR),
    "ltx video": (ltx_video, "AutoencoderKLLTXVideo", {"scaling_factor": 0.75}),
    "mochi": (mochi, "AutoencoderKLMochi", {**FOUR, "scaling_factor": 1.25}),
    "tiny": (unchanged, "AutoencoderTiny", {}),
}


@pytest.mark.parametrize("word", PIPELINES)
def test_latents_in_model_space_are_those_of_the_pipeline(make: Make, word: str) -> None:
    formula, name, changes = PIPELINES[word]
    layout = "t p q c" if word in ("flux", "wan") else "c t p q"
    dataset, model = make(name, changes, layout=layout)
    (plain,) = read_plainly(dataset.folder)
    cells = cells_of(plain, layout, plain["tokens"])
    z = torch.from_numpy(cells).float().permute(3, 0, 1, 2)[None]
    expected = formula(z, model)[0].permute(1, 2, 3, 0)
    tokens = dataset[0]["tokens"]
    made = dataset.to_model_space(tokens)
    assert (tokens.dtype, made.dtype) == (torch.float16, torch.float32)
    np.testing.assert_allclose(
        made, tokens_of(expected.contiguous().numpy(), layout), rtol=1e-6, atol=1e-6
    )
    assert word == "tiny" or np.abs(made.numpy() - plain["tokens"]).max() > 0.01
    # A batch, in what a model computes in.
    back = dataset.from_model_space(torch.stack([made, made]))
    assert back.dtype == torch.float32
    np.testing.assert_allclose(back[1], tokens.float(), rtol=1e-5, atol=1e-5)
    rough = dataset.from_model_space(made.to(torch.bfloat16))
    assert torch.equal(rough, dataset.from_model_space(made.to(torch.bfloat16).float()))


@pytest.mark.parametrize("kind", ["tae", "linear"])
def test_latents_that_are_in_model_space_already_stay_as_they_are(
    sample_clips: Path, tmp_path: Path, kind: str
) -> None:
    spec = codec(tmp_path)
    if kind == "tae":
        spec = f"tae:{save_parts(tmp_path / 'tiny', *image_model(4))}"
    run([sample_clips / CLIP], tmp_path / "out", encoder=spec, **SETTINGS)
    dataset = PackDataset(tmp_path / "out")
    tokens = dataset[0]["tokens"]
    assert torch.equal(dataset.to_model_space(tokens), tokens.float())
    assert torch.equal(dataset.from_model_space(tokens), tokens.float())


def test_padding_is_no_obstacle(make: Make) -> None:
    ragged, _ = make("AutoencoderKLWan", FOUR, layout="t p q c")
    pack = PackDataset(ragged.folder)[0]
    made = ragged.to_model_space(pack["tokens"])
    assert made.shape == pack["tokens"].shape
    assert torch.equal(made[: pack["num_tokens"]], ragged.to_model_space(ragged[0]["tokens"]))


# --- nothing is assumed, and nothing scaled twice ------------------------------------------------


def test_a_config_without_constants_is_an_error_that_names_the_way_out(
    make: Make, tmp_path: Path, sample_clips: Path
) -> None:
    pytest.importorskip("diffusers", reason="diffusers is not installed")
    save_tiny("AutoencoderKL", tmp_path / "vae")
    path = tmp_path / "vae" / "config.json"
    config = json.loads(path.read_text())
    del config["scaling_factor"], config["shift_factor"]
    path.write_text(json.dumps(config))
    out = tmp_path / "out"
    run([sample_clips / CLIP], out, encoder=f"diffusers:{tmp_path / 'vae'}", **SETTINGS)
    dataset = PackDataset(out, padded=False)
    tokens = dataset[0]["tokens"]
    for method in (dataset.to_model_space, dataset.from_model_space):
        with pytest.raises(ValueError, match=r"no scaling_factor.* not known; standardize\(\)"):
            method(tokens)
    assert dataset.standardize(tokens).std() == pytest.approx(1, abs=0.01)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_what_is_scaled_is_not_scaled_again(tmp_path: Path, sample_clips: Path, dtype: str) -> None:
    run(
        [sample_clips / CLIP],
        tmp_path / "out",
        encoder=codec(tmp_path),
        latent_dtype=dtype,
        **SETTINGS,
    )
    dataset = PackDataset(tmp_path / "out")
    made = dataset.standardize(dataset[0]["tokens"])
    with pytest.raises(ValueError, match="scaled already"):
        dataset.standardize(made)
    if dtype != "float32":
        # Nor a copy of it, nor raw latents whose dtype does not tell.
        for tokens in (made.clone(), dataset[0]["tokens"].float()):
            with pytest.raises(
                ValueError, match=f"torch.float32.* as they are stored, torch.{dtype}"
            ):
                dataset.standardize(tokens)


def test_tokens_of_another_width_are_refused(make: Make) -> None:
    dataset, _ = make("AutoencoderKL")
    tokens = dataset[0]["tokens"]
    for method, some in (
        (dataset.to_model_space, tokens[:, :12]),
        (dataset.from_model_space, tokens[:, :12]),
        (dataset.from_model_space, tokens.long()),
    ):
        with pytest.raises(ValueError, match=r"must be .*16 values"):
            method(some)


KNOWN: dict[str, Any] = dict.fromkeys(
    ("scaling_factor", "shift_factor", "latents_mean", "latents_std")
)


@pytest.mark.parametrize(
    ("constants", "words"),
    [
        ({}, "no scaling_factor, and no mean and std"),
        ({"shift_factor": 0.1}, "a shift_factor alone"),
        ({"latents_mean": [0.0, 1.0]}, "latents_mean without latents_std"),
        ({"latents_std": [1.0, 1.0], "scaling_factor": 2}, "latents_std without latents_mean"),
        (
            {"latents_mean": [0, 1], "latents_std": [1, 1], "shift_factor": 0.1},
            "latents_mean and shift_factor, and not which",
        ),
        ({"latents_mean": [0.0] * 6, "latents_std": [1.0] * 6}, "has 6 values for 2 channels"),
        ({"scaling_factor": 0}, "scaling_factor of the encoder's config is 0"),
        (
            {"latents_mean": [0, 1], "latents_std": [1, 0]},
            "latents_std of the encoder's config is 0",
        ),
        ({"scaling_factor": "0.18"}, "scaling_factor of the encoder's config is '0.18'"),
        ({"scaling_factor": float("nan")}, "scaling_factor of the encoder's config is nan"),
    ],
)
def test_constants_that_say_too_little_or_too_much_are_refused(constants: Any, words: str) -> None:
    with pytest.raises(ValueError, match=f"^shards: .*{words}"):
        scale_of_config(KNOWN | constants, channels=2, where="shards")


def test_a_shift_of_0_beside_a_mean_says_nothing() -> None:
    constants = KNOWN | {"latents_mean": [3, 4], "latents_std": [1, 2], "shift_factor": 0.0}
    scale = scale_of_config(constants, channels=2, where="shards")
    assert (scale.shift, scale.factor, scale.deviation) == ((3, 4), (1,), (1, 2))


# --- means and variances -------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["c t p q", "t p q c"])
def test_of_means_and_variances_the_means_go_to_model_space(make: Make, layout: str) -> None:
    means, _ = make("AutoencoderKLWan", FOUR, layout=layout)
    pairs, _ = make("AutoencoderKLWan", FOUR, layout=layout, posterior="mean_logvar")
    made = pairs.to_model_space(pairs[0]["tokens"])
    assert made.shape[1] == 16 == pairs[0]["tokens"].shape[1] // 2
    assert torch.equal(made, means.to_model_space(means[0]["tokens"]))
    assert torch.equal(pairs.from_model_space(made), means.from_model_space(made))
    with pytest.raises(ValueError, match="scaled already"):
        pairs.to_model_space(made)
    both = [dataset.standardize(dataset[0]["tokens"]) for dataset in (means, pairs)]
    assert torch.equal(*both)


@pytest.mark.parametrize("layout", ["c t p q", "t p q c"])
def test_a_sample_is_a_draw_from_each_distribution_in_model_space(make: Make, layout: str) -> None:
    dataset, model = make("AutoencoderKLWan", FOUR, layout=layout, posterior="mean_logvar")
    (plain,) = read_plainly(dataset.folder)
    cells = cells_of(plain, layout, plain["tokens"]).astype(np.float32)
    tokens = dataset[0]["tokens"]
    noise = torch.randn((len(tokens), 16), generator=torch.Generator().manual_seed(5))
    drawn = cells[..., :4] + np.exp(cells[..., 4:] / 2) * cells_of(plain, layout, noise.numpy())
    z = torch.from_numpy(drawn).permute(3, 0, 1, 2)[None]
    expected = wan(z, model)[0].permute(1, 2, 3, 0).contiguous().numpy()
    made = dataset.sample_latents(tokens, generator=torch.Generator().manual_seed(5))
    np.testing.assert_allclose(made, tokens_of(expected, layout), rtol=1e-5, atol=1e-5)
    # Without a generator torch's own draws, another time.
    with torch.random.fork_rng():
        assert not torch.equal(dataset.sample_latents(tokens), dataset.sample_latents(tokens))


def test_means_alone_are_not_sampled(make: Make) -> None:
    dataset, _ = make("AutoencoderKL")
    with pytest.raises(ValueError, match="--posterior mean, not mean_logvar"):
        dataset.sample_latents(dataset[0]["tokens"])
