"""Every knob of a run: checked, layered (flags > file > preset > defaults) and fingerprinted."""

from spacepatch.config.layers import load_config
from spacepatch.config.settings import (
    EXCLUSIVE,
    MAX_NAME,
    SHARD_NAME,
    Fingerprint,
    RunConfig,
    fingerprint_of,
)
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
