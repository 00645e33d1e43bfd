"""The output folder: whose it is, and how a former run is removed from it and nothing else."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from spacepatch.config import SHARD_NAME
from spacepatch.errors import ConfigError, ResumeError, ShardError
from spacepatch.pipeline.generations import PLAN_FILE
from spacepatch.pipeline.planfile import read_plan_document
from spacepatch.shards import DATASET, SHARD_ENDINGS, TABLES
from spacepatch.storage import PRIVATE, remove, remove_private


def check_folder(out: Path) -> None:
    """Refuse a folder that holds something else than a run of ours; --overwrite changes nothing.

    A run of ours is a plan.json that we can read, or, where one was killed before its plan was
    whole, nothing but a plan.parquet beside our private folder.

    Raises:
        ConfigError: `out` is a file.
        ResumeError: it is a folder of something else.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file; --out takes a folder")
    if not out.is_dir() or our_plan(out) is not None:
        return
    names = sorted(path.name for path in out.iterdir())
    allowed = {PRIVATE, "plan.parquet"} if PRIVATE in names else set()
    foreign = [name for name in names if name not in allowed]
    if foreign:
        raise ResumeError(
            f"{out}: is not empty and holds no spacepatch run ({', '.join(foreign[:3])}"
            f"{', ...' if len(foreign) > 3 else ''}); give a new or empty folder to --out"
        )


def check_file(out: Path, *, option: str = "--out") -> None:
    """Refuse a file that cannot be written, before the work that is to go into it.

    Args:
        option: that named it.

    Raises:
        ConfigError: it is a folder, or there is none for it, or that may not be written.
    """
    if out.is_dir():
        raise ConfigError(f"{out}: is a folder; {option} takes a file here")
    if not out.parent.is_dir():
        raise ConfigError(f"{out}: there is no folder {out.parent}")
    if not os.access(out.parent, os.W_OK):
        raise ConfigError(f"{out}: may not be written in {out.parent}; give another {option}")


def our_plan(out: Path) -> dict[str, Any] | None:
    """plan.json of `out` if it is one of ours, whatever its version; None otherwise.

    Raises:
        ShardError: it is ours, and of a newer version.
    """
    if not (out / "plan.json").is_file():
        return None
    try:
        document = read_plan_document(out)
    except ShardError as error:
        if "format version" in str(error):
            raise
        return None
    plan_id, name = document.get("plan_id"), document.get("name")
    is_ours = (
        isinstance(plan_id, str)
        and re.fullmatch(r"[0-9a-f]{32}", plan_id)
        and isinstance(name, str)
        and re.fullmatch(SHARD_NAME, name)
    )
    return document if is_ours else None


def clear_folder(out: Path) -> None:
    """Remove a former run: what completes it first, so that no torn dataset is ever whole."""
    document = our_plan(out)
    if document is not None:
        endings = "|".join(re.escape(ending) for ending in SHARD_ENDINGS)
        plans = [path for path in out.iterdir() if PLAN_FILE.fullmatch(path.name)]
        plans.sort(key=lambda path: path.stem)
        ours = re.compile(
            rf"{re.escape(document['name'])}(-[0-9A-Za-z_]+)?-\d{{6}}\.(json|{endings})"
        )
        shards = sorted(path for path in out.iterdir() if ours.fullmatch(path.name))
        receipts = [path for path in shards if path.suffix == ".json"]
        remove([out / DATASET, *(out / table for table in TABLES)])
        remove(receipts + [path for path in shards if path not in receipts])
        # The last generation first: those before it are a whole plan without it.
        remove([path for path in reversed(plans) if path.suffix == ".json"])
        remove([path for path in plans if path.suffix != ".json"])
    remove([out / "plan.parquet"])
    remove_private(out)
