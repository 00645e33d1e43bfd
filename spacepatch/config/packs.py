"""The settings of packs and shards, of which sources are taken, and of how a run is done."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel, ConfigDict, field_validator

from spacepatch.config.fields import setting
from spacepatch.config.stores import spell_store
from spacepatch.config.values import parse_bytes

SHARD_NAME = r"[0-9A-Za-z_-]{1,32}"
MAX_NAME = 32
"""Characters in a shard name: with split and numbers, keys stay within 80."""


class PackFields(BaseModel):
    """How tokens are packed and stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pack_length: int = setting(
        8192,
        "layout",
        "Tokens in a pack. Longer packs fill better and cost more attention.",
        ge=1,
        le=2**24,
    )
    long: str = setting(
        "split", "layout", "Clips longer than a pack: split by time, skip (counted) or error."
    )
    packer: str = setting(
        "best-fit-decreasing",
        "layout",
        "Which segments share a pack. spfhp, nnlshp and optimal go by the histogram of lengths; "
        "the last two need scipy.",
    )
    window: int | None = setting(
        None, "layout", "Open packs of first-fit (NaViT's way); default: no limit.", ge=1
    )
    max_segments: int | None = setting(None, "layout", "Segments in a pack at most.", ge=1)
    balance: str | None = setting(
        None,
        "layout",
        "attention: exchange segments until packs have near-equal sums of squared lengths, in no "
        "more packs.",
    )
    cut_to_fit: bool = setting(
        False, "layout", "Let the packer cut segments between grid rows to fill packs."
    )
    shard_size: str = setting(
        "256MB",
        "layout",
        "Size of a shard at most (64MB, 1GiB), were its tokens stored as they are, so that packs "
        "are the same in every store; a task holds one in memory.",
    )
    index: str = setting(
        "auto",
        "layout",
        "full stores ids and positions for each token, compact rebuilds them; auto: full from 64 "
        "bytes a token up.",
    )
    store: str = setting(
        "tokens",
        "layout",
        "What shards hold: tokens; refs, all but the tokens, which are decoded when they are "
        "loaded; compressed, pixel tokens without loss; compressed:DB, pixel tokens of a PSNR of "
        "so many dB at least.",
    )
    checked: bool = setting(
        False,
        "layout",
        "With store refs: decode once, pack what there really is, and note the checksum of each "
        "segment's tokens.",
    )
    name: str | None = setting(
        None, "layout", "Name of the shards; default: 8 hex digits of the plan's id."
    )

    repacked: str | None = setting(
        None,
        "layout",
        "Set by spacepatch repack alone: the pack_length, and cut_to_fit, that segments were cut "
        "for.",
        pattern=r"^[0-9]+( cut_to_fit)?$",
    )

    @field_validator("name")
    @classmethod
    def _shard_name(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(SHARD_NAME, value):
            raise ValueError(f"must be 1 to {MAX_NAME} of 0-9 A-Z a-z _ -")
        if value == "plan":
            raise ValueError("plan-000001.json is that of an --append; give another name")
        return value

    @field_validator("store")
    @classmethod
    def _store(cls, value: str) -> str:
        return spell_store(value)

    @field_validator("shard_size", mode="before")
    @classmethod
    def _size(cls, value: Any) -> str:
        parse_bytes(str(value))
        return str(value)

    @property
    def shard_bytes(self) -> int:
        return parse_bytes(self.shard_size)


class RunFields(BaseModel):
    """Which sources, and how the run is done."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    seed: int = setting(0, "seed", "Seed of every random choice.", ge=0)
    sample: str | None = setting(
        None, "selection", "Take only this many sources (100), or this share (1%), seeded."
    )
    limit: int | None = setting(None, "selection", "Take only the first N sources.", ge=1)
    split: str | None = setting(
        None, "selection", "Split by source, seeded: train=0.98,val=0.02. A shard holds one."
    )

    workers: int | None = setting(
        None, "run", "Worker processes; default: one a core (cgroup limits respected).", ge=1
    )
    executor: str = setting(
        "local",
        "run",
        "Where sources are probed and shards made: by workers here (local), or by a Ray cluster "
        "(ray).",
    )
    address: str | None = setting(
        None,
        "run",
        "HOST:PORT of the head of a Ray cluster that this machine is a node of, ray://HOST:PORT "
        "where it is none, or local: one is started here. Default: RAY_ADDRESS, else the cluster "
        "that runs here, else local.",
    )
    cpus_per_task: int = setting(
        1,
        "run",
        "CPUs, and worker processes, of a task on Ray: a shard, or some sources to be probed. "
        "With 1 none waits for another at a shard's end; more where there are fewer shards than "
        "CPUs, or little memory.",
        ge=1,
        le=1024,
    )
    gpus_per_task: float | None = setting(
        None,
        "run",
        "GPUs of a task on Ray, such as 0.5. Default: 1 where --device is cuda, else 0.",
        ge=0,
        le=64,
    )
    probe: str | None = setting(
        None,
        "run",
        "What planning reads: packets (each file once), or header: of MP4 and MOV with an index "
        "the header and the first bytes of keyframes, of others the packets. Default: header for "
        "sources at URLs, packets for files.",
    )
    allow_network: bool = setting(
        False,
        "run",
        "Read http:// and https:// addresses, also those in lists. Addresses inside private "
        "networks are refused, unless a SOURCE argument names one as such.",
    )
    cache_bytes: str = setting(
        "10GB",
        "run",
        "What blocks of remote sources may take on the local disk, for all processes together; 0: "
        "none are kept.",
    )
    cache_dir: str | None = setting(
        None, "run", "Folder of these blocks; default: ~/.cache/spacepatch, or in XDG_CACHE_HOME."
    )
    timeout: float = setting(
        60.0, "run", "Seconds without a new frame until a video is given up.", gt=0, le=1e9
    )
    worker_memory: str = setting(
        "4GB", "run", "Memory that a worker may take; a video that needs more is lost (retryable)."
    )
    max_losses: str | None = setting(
        None, "run", "Stop once more than N (or P%) of the sources are lost; resumable."
    )

    @field_validator("sample", "max_losses", "split", mode="before")
    @classmethod
    def _share(cls, value: Any, info: Any) -> str | None:
        from spacepatch.selection import parse_share, parse_split

        if value is not None and info.field_name == "split":
            parse_split(str(value))
        elif value is not None:
            parse_share(info.field_name, str(value), 0)
        return None if value is None else str(value)

    @field_validator("cache_bytes", mode="before")
    @classmethod
    def _cache_size(cls, value: Any) -> str:
        if str(value).strip() != "0":
            parse_bytes(str(value))
        return str(value)

    @property
    def cache_capacity(self) -> int:
        """Bytes."""
        return 0 if self.cache_bytes.strip() == "0" else parse_bytes(self.cache_bytes)

    @field_validator("worker_memory", mode="before")
    @classmethod
    def _memory(cls, value: Any) -> str:
        parse_bytes(str(value))
        return str(value)
