"""Find a model that diffusers saved, its config and its weight files, here or on a hub."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

from spacepatch.errors import ConfigError, EncodeError, MissingDependencyError
from spacepatch.latents.weight_files import PICKLED

CONFIG = "config.json"
STEM = "diffusion_pytorch_model"
_HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)+")


def find_folder(where: str, *, allow_download: bool) -> Path:
    """The folder of config.json: `where` itself, or what a hub has by that id.

    Raises:
        ConfigError: there is none, or the hub does not give it.
        MissingDependencyError: huggingface_hub is not installed.
    """
    path = Path(where).expanduser()
    if path.is_file():
        raise ConfigError(f"--encoder diffusers:{where}: is a file; give the folder of {CONFIG}")
    if path.is_dir():
        _check_folder(where, path)
        return path
    if not _HUB_ID.fullmatch(where):
        raise ConfigError(f"--encoder diffusers:{where}: no such folder")
    if not allow_download:
        raise ConfigError(
            f"--encoder diffusers:{where}: no such folder; if it is the id of a hub, give "
            "--allow-download, or download it yourself and give its folder"
        )
    # A worker may write no large file: what is there already is taken as it is.
    return _in_cache(where) or download(where)


def download(where: str) -> Path:
    """The folder of config.json of an id of a hub, as the hub has it now; errors as of
    `find_folder`."""
    found = _snapshot(where, only_local=False)
    assert found is not None, "it raises where there is none"
    return found


def _in_cache(where: str) -> Path | None:
    return _snapshot(where, only_local=True)


def read_config(folder: Path) -> dict[str, Any]:
    """config.json as it is written there.

    Raises:
        EncodeError: it is no JSON object.
    """
    path = folder / CONFIG
    try:
        config = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise EncodeError(f"{path}: cannot be read ({type(error).__name__})") from None
    if not isinstance(config, dict):
        raise EncodeError(f"{path}: is no JSON object")
    return config


def find_weights(folder: Path, *, allow_pickle: bool) -> list[Path]:
    """The weight files of the model: one, or the parts that an index lists.

    Raises:
        ConfigError: there is none, more than one could be meant, or only pickles are there.
        EncodeError: a part is missing, or the index is damaged.
    """
    index = folder / f"{STEM}.safetensors.index.json"
    if index.is_file():
        return _parts(index)
    found = sorted(folder.glob("*.safetensors"))
    usual = folder / f"{STEM}.safetensors"
    if usual in found or len(found) == 1:
        return [usual if usual in found else found[0]]
    if found:
        raise ConfigError(
            f"{folder}: holds {len(found)} weight files ({', '.join(f.name for f in found[:3])}"
            f"{', ...' if len(found) > 3 else ''}) and no {usual.name}; keep one of them"
        )
    pickles = sorted(file for file in folder.iterdir() if file.suffix in PICKLED)
    if not pickles:
        raise ConfigError(f"{folder}: holds no *.safetensors; download the weights too")
    if not allow_pickle:
        raise ConfigError(
            f"{folder}: its weights are pickles ({pickles[0].name}), which can run code: "
            "convert them to safetensors, or give --allow-pickle-weights"
        )
    usual = folder / f"{STEM}.bin"
    if usual not in pickles and len(pickles) > 1:
        raise ConfigError(f"{folder}: holds {len(pickles)} pickles and no {usual.name}; keep one")
    return [usual if usual in pickles else pickles[0]]


def _check_folder(where: str, path: Path) -> None:
    if (path / CONFIG).is_file():
        return
    inner = sorted(file.parent.name for file in path.glob(f"*vae*/{CONFIG}"))
    inner += sorted(file.parent.name for file in path.glob(f"*vq*/{CONFIG}"))
    hint = f"; did you mean diffusers:{path / inner[0]}?" if inner else ""
    raise ConfigError(f"--encoder diffusers:{where}: holds no {CONFIG}{hint}")


def _parts(index: Path) -> list[Path]:
    try:
        places = json.loads(index.read_bytes())["weight_map"].values()
        names = sorted(set(places))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise EncodeError(f"{index}: is no index of weights ({type(error).__name__})") from None
    for name in names:
        # A name with folders in it could lead out of the model's own.
        if Path(name).name != name or not (index.parent / name).is_file():
            raise EncodeError(f"{index}: lists {name}, which is not beside it; download it again")
    return [index.parent / name for name in names]


def _snapshot(where: str, *, only_local: bool) -> Path | None:
    """From the hub, or where `only_local` from what was downloaded before; None: it was not."""
    try:
        import huggingface_hub
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError:
        raise MissingDependencyError(
            "huggingface_hub is not installed: pip install 'spacepatch[diffusers]'"
        ) from None
    if not sys.stderr.isatty():
        disable_progress_bars()
    parts = where.split("/")
    model, inside = "/".join(parts[:2]), "/".join(parts[2:])
    prefix = f"{inside}/" if inside else ""
    names = (CONFIG, f"{STEM}.safetensors", f"{STEM}.safetensors.index.json")
    wanted = [prefix + name for name in (*names, f"{STEM}-*-of-*.safetensors")]
    try:
        folder = huggingface_hub.snapshot_download(
            model, allow_patterns=wanted, local_files_only=only_local
        )
    except Exception as error:  # of the hub's client, of its transport, of the system
        if only_local:
            return None
        raise ConfigError(
            f"--encoder diffusers:{where}: the hub does not give it ({type(error).__name__}): "
            "download it yourself and give its folder"
        ) from None
    found = Path(folder) / inside
    if only_local and not (found / CONFIG).is_file():
        return None
    _check_folder(where, found)
    return found
