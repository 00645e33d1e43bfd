"""Every autoencoder class of diffusers that is read here, as small as it can be, at random."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import torch

_IMAGE: dict[str, Any] = {
    "block_out_channels": (8, 8, 8),
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "norm_num_groups": 2,
    "latent_channels": 4,
}
_VIDEO: dict[str, Any] = {
    "block_out_channels": (8, 8, 8, 8),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "latent_channels": 4,
}
_FOUR: dict[str, Any] = {"latents_mean": [0.5, -0.25, 0.0, 1.0], "latents_std": [1.5] * 4}

CONFIGS: dict[str, dict[str, Any]] = {
    "AutoencoderKL": {**_IMAGE, "scaling_factor": 0.13025, "shift_factor": 0.0609},
    "AutoencoderKLTemporalDecoder": {
        # Its decoder has normalizations of 32 groups, whatever the config says.
        "block_out_channels": (32, 32, 32),
        "down_block_types": ("DownEncoderBlock2D",) * 3,
        "latent_channels": 4,
    },
    "AutoencoderTiny": {
        "encoder_block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8),
        "num_encoder_blocks": (1, 1, 1, 1),
        "num_decoder_blocks": (1, 1, 1, 1),
    },
    "AutoencoderDC": {
        "latent_channels": 4,
        "attention_head_dim": 4,
        **{
            f"{part}_{key}": value
            for part in ("encoder", "decoder")
            for key, value in {
                "block_types": ("ResBlock", "ResBlock", "EfficientViTBlock"),
                "block_out_channels": (8, 8, 8),
                "layers_per_block": (1, 1, 1),
                "qkv_multiscales": ((), (), (5,)),
            }.items()
        },
    },
    "VQModel": {**_IMAGE, "num_vq_embeddings": 64},
    "AutoencoderKLWan": {
        "base_dim": 4,
        "z_dim": 4,
        "dim_mult": [1, 1, 1, 1],
        "num_res_blocks": 1,
        "temperal_downsample": [False, True, True],
        **_FOUR,
    },
    "AutoencoderKLHunyuanVideo": _VIDEO,
    "AutoencoderKLCogVideoX": _VIDEO,
    "AutoencoderKLLTXVideo": {
        "latent_channels": 8,
        "block_out_channels": (8, 8, 8, 8),
        "decoder_block_out_channels": (8, 8, 8, 8),
        "layers_per_block": (1, 1, 1, 1, 1),
        "decoder_layers_per_block": (1, 1, 1, 1, 1),
    },
    "AutoencoderKLMochi": {
        # Its normalizations have 32 groups.
        "encoder_block_out_channels": (32, 32, 32, 32),
        "decoder_block_out_channels": (32, 32, 32, 32),
        "latent_channels": 4,
        "layers_per_block": (1, 1, 1, 1, 1),
        **_FOUR,
    },
    "AutoencoderKLCosmos": {
        "latent_channels": 4,
        "encoder_block_out_channels": (8, 8, 8, 8),
        "decode_block_out_channels": (8, 8, 8, 8),
        "num_layers": 1,
        "attention_resolutions": (2,),
        "resolution": 16,
        **_FOUR,
    },
    "AutoencoderKLMagvit": _VIDEO,
}

IMAGES = list(CONFIGS)[:5]
VIDEOS = [name for name in CONFIGS if name not in IMAGES]


def save_tiny(name: str, folder: Path, **changes: Any) -> "torch.nn.Module":
    """Make the model of class `name`, save it in `folder`, and return it, ready to be called."""
    import diffusers
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(diffusers, name)(**CONFIGS[name] | changes)
        if name == "VQModel":
            # The codes that it is made with are far from all that it sees: one wins everywhere.
            codebook = model.quantize.embedding.weight.data
            side = 2 ** (len(model.config.block_out_channels) - 1) * math.isqrt(len(codebook))
            seen = model.encode(torch.rand(1, 3, side, side) * 2 - 1).latents
            codebook[:] = seen[0].flatten(1).T.detach()
    model.save_pretrained(folder)
    return model.eval().requires_grad_(False)


def noise(encoder: Any, num_frames: int, *, seed: int = 0) -> np.ndarray:
    """``(T, H, W, 3)`` uint8: two latents high, four wide."""
    rows, columns = encoder.multiple
    shape = (num_frames, 2 * rows, 4 * columns, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def as_input(frames: np.ndarray, *, video: bool) -> Any:
    """What diffusers takes: -1 to 1, channels first."""
    import torch

    x = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 255 * 2 - 1
    return x.transpose(0, 1)[None] if video else x


def as_latents(x: Any) -> np.ndarray:
    """``(T, H, W, C)`` of ``(1, C, T, H, W)`` or ``(T, C, H, W)``."""
    x = x[0].transpose(0, 1) if x.ndim == 5 else x
    return x.permute(0, 2, 3, 1).numpy()


def as_input_latents(latents: np.ndarray, *, video: bool) -> Any:
    import torch

    z = torch.from_numpy(latents).permute(0, 3, 1, 2)
    return z.transpose(0, 1)[None] if video else z


def as_input_codes(codes: np.ndarray) -> Any:
    import torch

    return torch.from_numpy(codes).flatten()
