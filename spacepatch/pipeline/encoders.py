"""What the encoder of a run is, and what its settings come to once it is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from spacepatch.config import RunConfig
from spacepatch.data import EncoderFacts
from spacepatch.encoding import facts_of
from spacepatch.errors import ConfigError, EncodeError, SourceError
from spacepatch.framerules import PIXELS, Lattice
from spacepatch.latents.encoders import EncoderSettings
from spacepatch.workers import Fault, WorkerPool

DEFAULT_PATCHES = {"latents": "1x2x2", "codes": "1x1x1"}


@dataclass(frozen=True, slots=True)
class Encoded:
    """A run's settings with its encoder, if it has one."""

    config: RunConfig
    """`kind` and `patch` are those that the encoder decides on, `encoder` is its name."""
    settings: EncoderSettings | None = None
    facts: EncoderFacts | None = None


def resolve_encoder(config: RunConfig, pool: WorkerPool) -> Encoded:
    """Load the encoder of a run, in a worker, which has it at hand then.

    Raises:
        ConfigError: there is none of that name, or it contradicts other settings.
        EncodeError: it cannot be loaded.
        MissingDependencyError: a package is missing; the message says what to install.
    """
    settings = encoder_settings(config)
    if settings is None:
        return Encoded(config)
    facts = load_facts(settings, pool)
    return Encoded(settle(config, facts), settings, facts)


def load_facts(settings: EncoderSettings, pool: WorkerPool) -> EncoderFacts:
    """What an encoder is, loaded in a worker; errors as of `resolve_encoder`."""
    where = Path(settings.where).expanduser()
    if settings.kind == "diffusers" and settings.allow_download and not where.exists():
        from spacepatch.latents.diffusers_files import download

        # Here, for a worker may write no large file; it finds what is there then.
        download(settings.where)
    try:
        ((_, facts),) = pool.map(facts_of, iter([(0, settings)]))
    except SourceError as error:
        raise EncodeError(str(error)) from None
    if isinstance(facts, Fault):
        raise EncodeError(f"--encoder {settings.spec}: cannot be loaded: {facts.message}")
    found: EncoderFacts = facts
    return found


def encoder_settings(config: RunConfig) -> EncoderSettings | None:
    if config.encoder is None:
        return None
    return EncoderSettings(
        spec=config.encoder,
        device=config.device,
        dtype=config.encoder_dtype,
        batch=config.encode_batch,
        posterior=config.posterior,
        tiles=config.encode_tiles,
        allow_download=config.allow_download,
        trust=config.trust_encoder,
        allow_pickle=config.allow_pickle_weights,
        expect_sha256=tuple((config.expect_sha256 or "").split(","))
        if config.expect_sha256
        else (),
    )


def settle(config: RunConfig, facts: EncoderFacts) -> RunConfig:
    """The settings as they are with this encoder.

    Raises:
        ConfigError: they contradict it.
    """
    if config.kind not in (None, facts.kind):
        raise ConfigError(
            f"kind: {facts.name} makes {facts.kind}, not {config.kind}: give another --encoder, or "
            f"--kind {facts.kind}"
        )
    default = RunConfig.model_fields["latent_dtype"].default
    if facts.kind == "codes" and config.latent_dtype != default:
        raise ConfigError(
            f"latent_dtype: {facts.name} makes codes, which are stored in the smallest type that "
            "holds them: leave it out"
        )
    given = {key: getattr(config, key) for key in config.model_fields_set}
    given.setdefault("patch", DEFAULT_PATCHES[facts.kind])
    settled = RunConfig(**(given | {"encoder": facts.name, "kind": facts.kind}))
    if settled.cut_to_fit and facts.lattice.rule.first:
        raise ConfigError(
            f"cut_to_fit: the first latent of {facts.name} covers one frame, which a segment that "
            "is cut off has none of: leave cut_to_fit out"
        )
    tubelet = pixel_tubelet_of(settled, facts)
    if tubelet is not None and tubelet[0] > 1 and "t" not in settled.layout.split():
        raise ConfigError(
            f"pixel_patch: layout {settled.layout!r} has no t: give one of 1xHxW, not {tubelet[0]}"
        )
    for _, height, width in settled.patches:
        unit = frame_unit(settled, (height, width), facts)
        size = settled.crop_size
        if size is not None and (size[0] % unit[0] or size[1] % unit[1]):
            raise ConfigError(
                f"crop {settled.crop} is no multiple of {unit[0]}x{unit[1]} pixels, which a patch "
                f"of {facts.name} covers: give a crop that is, or another patch"
            )
    return settled


def stride_note(config: RunConfig, facts: EncoderFacts | None) -> str:
    """What to tell a user whose encoder has another stride than the settings were made for."""
    if facts is None or config.encoder_stride is None:
        return ""
    stride = "x".join(map(str, facts.stride))
    if stride == config.encoder_stride:
        return ""
    return (
        f"{facts.name} has a stride of {stride}, the preset's model {config.encoder_stride}: grids "
        "and lengths are not those of the preset"
    )


def lattice_of(facts: EncoderFacts | None) -> Lattice:
    """What tubelets are cut of."""
    return PIXELS if facts is None else facts.lattice


def frame_unit(
    config: RunConfig, patch_size: tuple[int, int], facts: EncoderFacts | None
) -> tuple[int, int]:
    """(h, w) in pixels that frames are multiples of."""
    if facts is None:
        return patch_size[0] * config.multiple, patch_size[1] * config.multiple
    beside = pixel_tubelet_of(config, facts) or (1, 1, 1)
    height, width = (
        math.lcm(
            patch_size[side] * config.multiple * facts.stride[1 + side],
            facts.multiple[side],
            beside[1 + side] * (config.merge if config.also else 1),
        )
        for side in range(2)
    )
    return height, width


def pixel_tubelet_of(config: RunConfig, facts: EncoderFacts | None) -> tuple[int, int, int] | None:
    """(frames, height, width) of the pixel tokens beside those of the encoder, if there are any."""
    if facts is None or config.also is None:
        return None
    if config.pixel_tubelet is not None:
        return config.pixel_tubelet
    frames, height, width = config.patches[0]
    rule = facts.lattice.rule
    # Where the first latent stands for one frame, no tubelet of pixels begins where latents do.
    frames = 1 if rule.first or "t" not in config.layout.split() else frames * rule.step
    return frames, height * facts.stride[1], width * facts.stride[2]
