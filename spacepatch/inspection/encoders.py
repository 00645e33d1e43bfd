"""What the documents at hand say of a dataset's encoder, and whether they agree about it."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from spacepatch.config import RunConfig
from spacepatch.data import EncoderFacts
from spacepatch.errors import ConfigError
from spacepatch.framerules import Lattice, parse_rule
from spacepatch.inspection.findings import Report
from spacepatch.pipeline.encoded import measured
from spacepatch.pipeline.encoders import settle
from spacepatch.token_dtypes import LATENT_DTYPES, code_dtype

SHA256 = re.compile(r"[0-9a-f]{64}")

DESCRIBED = "name kind rule stride channels codebook_size dtype is_local weights constants".split()
"""What is shown of an encoder as it is recorded."""


@dataclass(frozen=True, slots=True)
class KnownEncoder:
    """Of an encoder what its tokens can be held against."""

    kind: str
    """`latents` or `codes`."""
    lattice: Lattice
    channels: int
    codebook_size: int | None
    is_local: bool | None
    """As of `EncoderFacts`; None: a shard alone does not say."""

    @property
    def token_dtypes(self) -> tuple[str, ...]:
        """Words of those that its tokens can have."""
        return LATENT_DTYPES if self.codebook_size is None else (code_dtype(self.codebook_size),)


def known_encoder(values: Any) -> KnownEncoder | None:
    """What plan.json, dataset.json or a receipt says; None: pixels are cut.

    Raises:
        ValueError: it is damaged; says what.
    """
    if values is None:
        return None
    if not isinstance(values, dict):
        raise ValueError("encoder is no object")
    kind, size, stride = (values.get(key) for key in ("kind", "codebook_size", "stride"))
    if not isinstance(values.get("name"), str) or kind not in ("latents", "codes"):
        raise ValueError(f"encoder: name is {values.get('name')!r}, kind is {kind!r}")
    if not isinstance(stride, list) or len(stride) != 3 or not all(map(_is_count, stride)):
        raise ValueError(f"encoder: stride is {stride!r}")
    if not _is_count(values.get("channels")):
        raise ValueError(f"encoder: channels is {values.get('channels')!r}")
    if (size is None) != (kind == "latents") or not (size is None or _is_count(size)):
        raise ValueError(f"encoder: codebook_size of {kind} is {size!r}")
    if size is not None and size > 1 << 32:
        raise ValueError(f"encoder: codebook_size {size} is beyond uint32")
    rule = parse_rule(str(values.get("rule")))
    if rule.step != stride[0]:
        raise ValueError(f"encoder: rule {rule} is not that of stride {stride}")
    is_local = values.get("is_local")
    # Where the first latent covers one frame, the others look back at it.
    return KnownEncoder(
        kind=kind,
        lattice=Lattice(rule, (stride[1], stride[2])),
        channels=values["channels"],
        codebook_size=size,
        is_local=False if rule.first and is_local is None else is_local,
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 1


def check_facts(facts: EncoderFacts | None, config: RunConfig, report: Report) -> None:
    """Report where the encoder of plan.json contradicts itself or the settings."""
    if facts is None:
        if config.encoder is not None:
            report(f"encoder is null, the settings say {config.encoder!r}")
        return
    if config.encoder != facts.name:
        report(f"encoder: name is {facts.name!r}, the settings say {config.encoder!r}")
        return
    try:
        known_encoder(facts.to_json())
        sides = zip(facts.multiple, facts.stride[1:], strict=True)
        if any(size < 1 or size % side for size, side in sides):
            raise ValueError(f"encoder: multiple {facts.multiple} is none of stride {facts.stride}")
        settle(config, facts)
    except (ConfigError, ValueError) as error:
        report(str(error))
        return
    if facts.is_local and facts.lattice.rule.first:
        report(f"encoder: is_local is true, though its rule is {facts.rule}")
    if facts.identity.get("posterior") != config.posterior:
        report(
            f"encoder: posterior is {facts.identity.get('posterior')!r}, the settings say "
            f"{config.posterior!r}"
        )
    for name, sha256 in facts.weights.items():
        if not SHA256.fullmatch(str(sha256)):
            report(f"encoder: the hash of {name} is {sha256!r}")


def describe_encoder(
    values: Any, sums: Sequence[list[list[float]] | None]
) -> dict[str, Any] | None:
    """What is shown of an encoder; what is not known is None.

    Args:
        values: as of `known_encoder`.
        sums: of the channels, from receipts.

    Raises:
        ValueError: as of `known_encoder`.
    """
    if known_encoder(values) is None:
        return None
    identity = values.get("identity")
    identity = identity if isinstance(identity, dict) else {}
    described = {key: values.get(key) for key in DESCRIBED}
    described |= {key: identity.get(key) for key in ("posterior", "device")}
    return described | measure(sums)


def measure(sums: Sequence[list[list[float]] | None]) -> dict[str, Any]:
    """`measured`, of sums that may be those of a spoiled dataset."""
    if len({len(entry[0]) for entry in sums if entry is not None}) > 1:
        return {"mean": None, "std": None}
    with np.errstate(all="ignore"):
        return measured(sums)


def sums_fault(sums: Any, channels: int) -> str | None:
    """What makes the `channel_sums` of a receipt unusable."""
    if sums is None:
        return None
    is_table = isinstance(sums, list) and len(sums) == 3
    if not is_table or not all(isinstance(row, list) and len(row) == channels for row in sums):
        return f"channel_sums is no table of 3 x {channels}"
    values = [value for row in sums for value in row]
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        return "channel_sums has values that are no numbers"
    return None
