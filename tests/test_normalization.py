"""Normalized tokens, number by number against the peers' formulas."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from spacepatch.normalization import NORMALIZATIONS, Normalization, normalize_tokens
from spacepatch.tubelets import LAYOUTS, cut_tubelets

LEVELS = np.arange(256, dtype=np.uint8)
MEANS = {
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "half": ([0.5] * 3, [0.5] * 3),
    "clip": ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]),
}


def fused(word, channel):
    """`_fuse_mean_std_and_rescale_factor` and `normalize` of transformers 5.23, restated."""
    mean, std = (np.float32(values[channel]) for values in MEANS[word])
    scale = np.float32(1.0 / (1 / 255))
    return (LEVELS.astype(np.float32) - mean * scale) / (std * scale)


def unit(word, channel):
    """`to_tensor` of torchvision, restated."""
    return LEVELS.astype(np.float32) / np.float32(255)


def vivit(word, channel):
    """`rescale` with its offset, and `normalize`, of transformers' numpy processors, restated."""
    rescaled = (LEVELS.astype(np.float64) * (1 / 127.5)).astype(np.float32) - 1
    return (rescaled - np.float32(0.5)) / np.float32(0.5)


FORMULAS = {"unit": unit, "imagenet": fused, "half": fused, "clip": fused, "vivit": vivit}


def normalize(tokens, word, *, channels=3, layout="p q c"):
    made = normalize_tokens(
        torch.from_numpy(tokens), constants=NORMALIZATIONS[word], channels=channels, layout=layout
    )
    assert (made.dtype, made.shape) == (torch.float32, tokens.shape)
    return made.numpy()


@pytest.mark.parametrize("word", NORMALIZATIONS)
def test_every_level_of_every_channel_equals_the_formula_of_the_peers(word):
    made = normalize(np.repeat(LEVELS[:, None], 3, axis=1), word)
    for channel in range(3):
        assert np.array_equal(made[:, channel], FORMULAS[word](word, channel))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("word", NORMALIZATIONS)
def test_each_channel_has_its_own_constants_in_any_layout(word, layout, channels):
    rng = np.random.default_rng(0)
    tubelet_size = 2 if "t" in layout else 1
    frames = rng.integers(0, 256, (2, 8, 12, channels), np.uint8)
    wanted = np.empty(frames.shape, np.float32)
    for channel in range(channels):
        table = FORMULAS[word](word, channel) if channel < 3 else unit(word, channel)
        wanted[..., channel] = table[frames[..., channel]]
    cut = {"tubelet_size": tubelet_size, "patch_size": (4, 3), "layout": layout}
    made = normalize(cut_tubelets(frames, **cut), word, channels=channels, layout=layout)
    assert np.array_equal(made, cut_tubelets(wanted, **cut))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_tokens_become_no_numbers(layout):
    assert normalize(np.empty((0, 12), np.uint8), "clip", layout=layout).shape == (0, 12)


@pytest.mark.parametrize("word", NORMALIZATIONS)
def test_constants_survive_json(word):
    fields = json.loads(json.dumps(asdict(NORMALIZATIONS[word])))
    tokens = torch.from_numpy(np.repeat(LEVELS[:, None], 3, axis=1))
    made = normalize_tokens(tokens, constants=Normalization(**fields), channels=3, layout="p q c")
    assert np.array_equal(made.numpy(), normalize(tokens.numpy(), word))


def test_an_unknown_way_is_refused():
    constants = replace(NORMALIZATIONS["clip"], how="guessed")
    tokens = torch.zeros((1, 3), dtype=torch.uint8)
    with pytest.raises(ValueError, match="'guessed'"):
        normalize_tokens(tokens, constants=constants, channels=3, layout="p q c")


def test_the_tokens_stay_as_they_are():
    tokens = np.repeat(LEVELS[:, None], 3, axis=1)
    normalize(tokens, "clip")
    assert np.array_equal(tokens, np.repeat(LEVELS[:, None], 3, axis=1))


def test_the_constants_need_no_torch():
    program = "import sys, spacepatch.normalization; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
