"""The encoder that a user gives to decode a dataset, once it is known to be that of the dataset."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from spacepatch.config import RunConfig
from spacepatch.data import EncoderFacts
from spacepatch.errors import ConfigError, EncodeError
from spacepatch.latents.encoders import EncoderSettings
from spacepatch.pipeline.encoders import encoder_settings, load_facts
from spacepatch.workers import WorkerPool


def given_encoder(
    facts: EncoderFacts | None, asked: Mapping[str, Any], config: RunConfig, pool: WorkerPool
) -> EncoderSettings | None:
    """The encoder that `config` names; None: these are pixels.

    Args:
        facts, asked: of the dataset: its encoder, and its settings, which hold where `config` says
            nothing.

    Raises:
        ConfigError: none is given for an encoder's tokens, or one for pixels.
        EncodeError: it is not the encoder of the dataset.
    """
    given = encoder_settings(config)
    if facts is None:
        if given is not None:
            raise ConfigError(f"--encoder {given.spec}: these are pixels: leave it out")
        return None
    if given is None:
        kind = facts.name.partition(":")[0]
        raise ConfigError(
            f"these are {facts.kind} of {facts.name}: say where it lies with --encoder {kind}:WHERE"
        )
    settings = replace(
        given,
        dtype=given.dtype if "encoder_dtype" in config.model_fields_set else asked["encoder_dtype"],
        batch=given.batch or asked["encode_batch"],
        posterior=asked["posterior"],
        tiles=asked["encode_tiles"],
    )
    _check_identity(facts, load_facts(settings, pool))
    return settings


def _check_identity(facts: EncoderFacts, found: EncoderFacts) -> None:
    if facts.name.partition(":")[0] != found.name.partition(":")[0]:
        raise EncodeError(f"{found.name}: these are {facts.kind} of {facts.name}: give that one")
    before, now = facts.identity, found.identity
    changed = [
        f"{key} was {_short(before.get(key))}, is {_short(now.get(key))}"
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    ]
    if changed:
        raise EncodeError(
            f"{found.name}: is not the encoder of this dataset ({facts.name}): "
            f"{'; '.join(changed)}. Give the one that it was made with, as it was used"
        )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:36]}...{text[-1]}"
