"""Encode (and decode) a clip with a VAE or VQ model. torch is imported with the first encoder."""

from spacepatch.framerules import FrameRule, parse_rule
from spacepatch.latents.encoders import ENCODERS, MAX_LATENT, LatentEncoder, load_encoder

__all__ = ["ENCODERS", "MAX_LATENT", "FrameRule", "LatentEncoder", "load_encoder", "parse_rule"]
