"""Receipts: the proof that a shard is whole, written last."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from spacepatch.errors import ShardError, StoreError
from spacepatch.shards.version import FORMAT_VERSION, check_version
from spacepatch.storage import publish_bytes


@dataclass(frozen=True, slots=True)
class ShardReceipt:
    """What a task made; a shard is complete exactly when its receipt exists and agrees."""

    task: int
    task_id: str
    plan_id: str
    split: str
    packs: int
    """0: the task lost everything, and there is no tar."""
    segments: int
    tokens: int
    members: list[str]
    token_dtype: str
    token_width: int | None
    """Of every pack; None where they differ."""
    pack_token_widths: list[int]
    """Of each pack; those of one width lie together, the widest first."""
    pack_length: int
    files: dict[str, dict[str, Any]]
    """Of each file of the shard: bytes and sha256."""
    pack_crc32c: list[int]
    """Of each pack: crc32c over the data of its members, in order."""
    losses: list[dict[str, Any]]
    observed: dict[str, dict[str, Any]]
    """By source_id, what only a decoded picture tells: rotation, mirrored."""
    encoder: dict[str, Any] | None = None
    """What a shard alone must say of its encoder: name, kind, rule, stride, channels, codebook_size
    and is_local; None for pixels."""
    channel_sums: list[list[float]] | None = None
    """Of latents: the values of each channel that were written, then their sums, then the sums of
    their squares."""
    pixel_tokens: int = 0
    """Pixel tokens beside those of an encoder."""
    pack_pixel_tokens: int = 0
    """The most of them in one pack."""
    unbalanced: list[int] | None = None
    """With `balance`, of the attention costs of the packs as the packer made them: how many, the
    highest, their sum, and the sum of their squares."""
    format_version: int = field(default=FORMAT_VERSION)

    @property
    def store(self) -> str:
        """tokens | refs | compressed: what its packs hold."""
        stores = {"tokens.npy": "tokens", "tokens.bin": "compressed"}
        return next((store for name, store in stores.items() if name in self.members), "refs")

    @property
    def num_bytes(self) -> int:
        return sum(entry["bytes"] for entry in self.files.values())


def receipt_path(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.json"


def write_receipt(folder: Path, stem: str, receipt: ShardReceipt) -> None:
    text = json.dumps(asdict(receipt), sort_keys=True, indent=1, ensure_ascii=False)
    publish_bytes(receipt_path(folder, stem), text.encode() + b"\n")


def read_receipt(path: Path) -> ShardReceipt:
    """Read one receipt.

    Raises:
        ShardError: it is missing, torn, of a newer version, or no receipt.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ShardError(f"{path}: no receipt") from None
    except StoreError:
        raise  # which says nothing of the receipt
    except (ValueError, OSError) as error:
        raise ShardError(f"{path}: torn receipt ({error})") from None
    if not isinstance(document, dict):
        raise ShardError(f"{path}: no receipt")
    check_version(document, str(path))
    known = ShardReceipt.__dataclass_fields__
    # Fields may be added within a version: a reader takes those it knows.
    values = {key: value for key, value in document.items() if key in known}
    if "pack_token_widths" not in values and isinstance(values.get("pack_crc32c"), list):
        # Before there were several widths, the receipt named the one.
        values["pack_token_widths"] = [values.get("token_width")] * len(values["pack_crc32c"])
    try:
        return ShardReceipt(**values)
    except TypeError as error:
        raise ShardError(f"{path}: not a receipt ({error})") from None


def missing_files(
    folder: Path, receipt: ShardReceipt, sizes: Mapping[str, int] | None = None
) -> list[str]:
    """Files that the receipt names and that are absent or of another size.

    Args:
        sizes: of the files of the folder, as of `sizes_in`; None: ask for each.
    """
    wrong = []
    for name, entry in sorted(receipt.files.items()):
        if sizes is not None:
            size = sizes.get(name)
        else:
            path = folder / name
            size = path.stat().st_size if path.is_file() else None
        if size != entry["bytes"]:
            wrong.append(name)
    return wrong
