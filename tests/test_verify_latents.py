"""Mutation testing of `verify`: latents and codes, what is measured of them, pixels beside them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from encoded_runs import codec
from small_runs import make_dataset, rows
from spoiled_latents import ALSO, CAUSAL, CODES, LATENTS, receipts_with_losses
from spoiled_shards import (
    Shard,
    alone,
    assert_found,
    assert_found_alone,
    cases,
    edit_json,
    found,
    in_tokens,
    tars,
)

from spacepatch.inspection import verify
from spacepatch.latents.linear import LinearCodec, codec_bytes
from spacepatch.pipeline import convert
from spacepatch.shards import read_table
from spacepatch.token_dtypes import to_stored

SMALL = {"fps": "4", "max_tokens_per_frame": 24, "pack_length": 512, "shard_size": "400KB"}

SETTINGS: dict[str, dict[str, Any]] = {
    "latents": {"encoder": {}, "index": "full", "multiple": 2},
    "trimmed": {
        "encoder": {"block": (1, 8, 8)},
        "patch": "3x2x2",
        "tail": "drop",
        "latent_dtype": "bfloat16",
        "layout": "t p q c",
        "order": "merge 2 x 2",
        "multiple": 2,
        "mask": "tube:0.9",
        "store_mask": True,
    },
    "dropped": {
        "encoder": {},
        "fps": "8",
        "patch": "2x1x1",
        "drop": "random:uniform:0.3..0.7",
        "latent_dtype": "float32",
        "multiple": 2,
        "clip_seconds": "1.2",
    },
    "codes": {
        "encoder": {"block": (2, 8, 8), "codebook": 300},
        "tail": "drop",
        "patch": "1x1x1,1x2x2",
        "views": "all",
    },
    "cut": {
        "encoder": {"block": (1, 8, 8), "codebook": 16, "stages": 2},
        "cut_to_fit": True,
        "pack_length": 300,
    },
    "also": {
        "encoder": {},
        "also": "pixels",
        "pixel_patch": "3x16x8",
        "fps": "8",
        "pack_length": 2048,
        "shard_size": "64MB",
    },
    "also dropped": {
        "encoder": {"block": (1, 8, 8)},
        "also": "pixels",
        "drop": "tokens:9",
        "tail": "drop",
        "clip_seconds": "1.1",
        "order": "merge 2 x 2",
        "multiple": 2,
    },
    "causal": {
        "encoder": "AutoencoderKLWan",
        "fps": "8",
        "patch": "1x1x1",
        "drop": "random:0.5",
        "also": "pixels",
        "pack_length": 2048,
        "shard_size": "64MB",
    },
    "causal whole": {"encoder": "AutoencoderKLWan", "fps": "8", "patch": "2x1x1", "tail": "drop"},
}


@pytest.fixture(scope="module")
def datasets(
    part_damaged: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A function that makes a dataset of damaged videos by the name of its settings, once."""
    folder = tmp_path_factory.mktemp("encoded")

    def make(name: str) -> Path:
        out = folder / name.replace(" ", "_")
        if not out.exists():
            settings = SMALL | SETTINGS[name]
            asked = settings.pop("encoder")
            spec = spec_of(asked, folder)
            make_dataset(part_damaged, out, encoder=spec, **settings)
        return out

    return make


def spec_of(asked: Any, folder: Path) -> str:
    if isinstance(asked, dict):
        return codec(folder / "codecs", **asked)
    from tiny_autoencoders import save_tiny

    if not (folder / asked).exists():
        save_tiny(asked, folder / asked)
    return f"diffusers:{folder / asked}"


# --- clean -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_datasets_of_an_encoder_verify_clean_and_so_does_each_shard_alone(
    datasets: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    out = datasets(name)
    assert verify(out) == []
    lost = {row["reason"] for row in rows(out, "losses.parquet")}
    assert lost > {"unreadable"} if "clip_seconds" in SETTINGS[name] else "corrupt_frames" in lost
    for tar in tars(alone(out, tmp_path)):
        assert verify(tar) == []


def test_a_damaged_frame_ends_the_clips_of_some_encoders_only(
    datasets: Callable[[str], Path],
) -> None:
    """Both ways are among the datasets that verify clean."""
    for name, is_local in (("latents", True), ("also", False), ("causal", False)):
        table = read_table(datasets(name) / "segments.parquet")
        assert any(row["corrupt_frames"] for row in table) == is_local


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("latents", {"layout": "t p q c"}),
        ("latents", {"order": "merge 2 x 2"}),
        ("trimmed", {"order": "raster"}),
        ("codes", {"layout": "t p q c"}),
        ("dropped", {"layout": "t p q c"}),
        ("dropped", {"order": "merge 2 x 2"}),
    ],
)
def test_a_conversion_verifies_clean(
    datasets: Callable[[str], Path], tmp_path: Path, name: str, to: dict[str, str]
) -> None:
    convert(datasets(name), out=tmp_path / "out", **to)
    assert verify(tmp_path / "out") == []


def blinking(path: Path, *, white: range) -> None:
    """24 frames of a lossless video of 8 frames a second, some of them white."""
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.width = stream.height = 64
        stream.pix_fmt = "bgr0"
        for number in range(24):
            picture = np.full((64, 64, 3), 255 * (number in white), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


@pytest.fixture(scope="module")
def wild(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A function that makes a dataset of latents that are beyond the limit where it is white."""
    folder = tmp_path_factory.mktemp("wild")
    for number in range(3):
        blinking(folder / f"{number}.mkv", white=range(3 + 2 * number, 10))
    depth = 3 * 2 * 8 * 8
    basis = np.zeros((depth, 2))
    basis[[0, 1], [0, 1]] = 1
    # White comes to 255 / 0.25 = 1020, above the limit of 1000.
    content = codec_bytes(LinearCodec((2, 8, 8), np.zeros(depth), basis, np.full(2, 0.25)))
    (folder / "wild.safetensors").write_bytes(content)

    def make(name: str, **settings: Any) -> Path:
        out = folder / name
        if not out.exists():
            sources = sorted(folder.glob("*.mkv"))
            spec = f"linear:{folder / 'wild.safetensors'}"
            make_dataset(sources, out, encoder=spec, **SMALL | {"fps": "8"} | settings)
        return out

    return make


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("plain", {}),
        ("dropped", {"drop": "random:0.5"}),
        ("also", {"also": "pixels", "drop": "random:0.5"}),
    ],
)
def test_latents_beyond_the_limit_leave_a_clean_dataset(
    wild: Callable[..., Path], tmp_path: Path, name: str, settings: dict[str, Any]
) -> None:
    out = wild(name, **settings)
    reasons = {(row["stage"], row["reason"]) for row in rows(out, "losses.parquet")}
    assert reasons == {("encode", "nonfinite_latent")}
    assert any(row["corrupt_frames"] for row in rows(out, "segments.parquet"))
    assert verify(out) == []
    for tar in tars(alone(out, tmp_path)):
        assert verify(tar) == []


# --- defects -----------------------------------------------------------------------------------


ALL = cases(latents=LATENTS, codes=CODES, also=ALSO, causal=CAUSAL)


@pytest.mark.parametrize(("name", "mutate", "where", "what"), ALL)
def test_a_defect_of_what_an_encoder_made_is_found(
    datasets: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    mutate: Callable[[Shard], None],
    where: str,
    what: str,
) -> None:
    assert_found(datasets(name), tmp_path, mutate, where, what)


SEEN_ALONE = {
    "latents: two values exchanged",
    "latents: a latent beyond the limit",
    "latents: the size in cells",
    "latents: other seconds",
    "latents: a sum that is nearly right",
    "latents: a receipt of integers",
    "codes: a code beyond the codebook",
    "codes: trimmed frames lost at another stage",
    "also: a pixel token fewer",
    "also: another offset",
    "also: another longest pack",
    "also: a lost row within",
    "causal: a lost row within",
    "causal: seconds of rows that are all alike",
}
"""Of the defects, those that a shard shows without its plan."""


@pytest.mark.parametrize(
    ("name", "mutate", "where", "what"), [case for case in ALL if case.id in SEEN_ALONE]
)
def test_a_shard_alone_shows_what_it_can(
    datasets: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    mutate: Callable[[Shard], None],
    where: str,
    what: str,
) -> None:
    assert_found_alone(datasets(name), tmp_path, mutate, where, what)


def test_a_value_of_bfloat16_is_read_as_one(
    datasets: Callable[[str], Path], tmp_path: Path
) -> None:
    """2,000 and Inf are numbers like others where their bits are taken for integers."""
    for value, what in ((2000, "up to 2000"), (np.inf, "not finite")):
        stored = to_stored(np.array([value], np.float32), "bfloat16")[0]
        out = shutil.copytree(datasets("trimmed"), tmp_path / str(value))
        in_tokens(lambda tokens, stored=stored: tokens.__setitem__((0, 0), stored))(Shard.of(out))
        assert found(verify(out), ".tar: pack", what)


def test_rows_lost_in_encoding_are_lost_at_that_stage(
    wild: Callable[..., Path], tmp_path: Path
) -> None:
    out = shutil.copytree(wild("plain"), tmp_path / "copy")
    receipts_with_losses(lambda loss: loss.update(stage="decode"))(Shard.of(out))
    assert found(verify(out), ".json", "nonfinite_latent at stage decode, not encode")


def test_a_dataset_of_pixels_has_nothing_of_an_encoder(spoilable: Path) -> None:
    assert json.loads((spoilable / "dataset.json").read_text())["encoder"] is None
    values = {"name": "linear:a", "kind": "latents", "rule": "4k", "stride": [4, 8, 8]}
    values |= {"channels": 3, "codebook_size": None}
    shard = Shard.of(spoilable)
    edit_json(shard.receipt, lambda d: d.update(encoder=values, channel_sums=[[1.0] * 3] * 3))
    problems = verify(spoilable)
    assert found(problems, ".json", "the plan says None")
    assert found(problems, ".json", "channel_sums is given, without latents")


def test_documents_of_before_there_were_encoders_verify_clean(spoilable: Path) -> None:
    for tar in tars(spoilable):
        edit_json(tar.with_suffix(".json"), forget_encoders)
    for name in ("plan.json", "dataset.json"):
        edit_json(spoilable / name, forget_encoders)
    edit_json(spoilable / "plan.json", lambda d: d["layout"].pop("pixel_tubelet"))
    assert verify(spoilable) == []


def forget_encoders(document: dict[str, Any]) -> None:
    for key in ("encoder", "pixels", "channel_sums", "pixel_tokens", "pack_pixel_tokens"):
        document.pop(key, None)
