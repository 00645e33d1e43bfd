"""Every knob of a run: checked, layered (flags > file > preset > defaults) and fingerprinted."""

from spacepatch.config.fields import Fingerprint
from spacepatch.config.layers import load_config
from spacepatch.config.packs import MAX_NAME, SHARD_NAME
from spacepatch.config.settings import EXCLUSIVE, RunConfig, fingerprint_of
from spacepatch.config.values import (
    choices_of,
    fingerprint,
    parse_bytes,
    parse_colour,
    to_toml,
)

__all__ = [
    "EXCLUSIVE",
    "MAX_NAME",
    "SHARD_NAME",
    "Fingerprint",
    "RunConfig",
    "choices_of",
    "fingerprint",
    "fingerprint_of",
    "load_config",
    "parse_bytes",
    "parse_colour",
    "to_toml",
]
