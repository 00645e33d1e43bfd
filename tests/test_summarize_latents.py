"""What `summarize` and `inspect` say of a dataset of an encoder, held against numpy alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SpacepatchCli
from encoded_runs import codec
from loaded_packs import read_plainly
from small_runs import make_dataset
from spoiled_shards import edit_json, tars, unfinish

from spacepatch.errors import ShardError
from spacepatch.inspection import summarize
from spacepatch.shards import read_table

SMALL = {"fps": "4", "max_tokens_per_frame": 24, "pack_length": 512, "shard_size": "400KB"}

SETTINGS: dict[str, dict[str, Any]] = {
    "latents": {"encoder": {"channels": 5}, "drop": "random:0.4"},
    "codes": {"encoder": {"block": (2, 8, 8), "codebook": 40, "stages": 2}},
    "also": {
        "encoder": {"block": (1, 8, 8)},
        "latent_dtype": "bfloat16",
        "also": "pixels",
        "shard_size": "64MB",
    },
}


@pytest.fixture(scope="module")
def datasets(
    part_damaged: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A function that makes a dataset by the name of its settings, once."""
    folder = tmp_path_factory.mktemp("encoded")

    def make(name: str) -> Path:
        out = folder / name
        if not out.exists():
            settings = SMALL | SETTINGS[name]
            spec = codec(folder / "codecs", **settings.pop("encoder"))
            make_dataset(part_damaged, out, encoder=spec, **settings)
        return out

    return make


def packs_of(out: Path) -> list[dict[str, Any]]:
    return [pack for tar in tars(out) for pack in read_plainly(out, tar.stem)]


def test_mean_and_deviation_are_those_of_the_latents_that_are_there(
    datasets: Callable[[str], Path],
) -> None:
    out = datasets("latents")
    encoder = summarize(out)["encoder"]
    # Layout c t p q: the cells of a channel lie together in a token.
    cells = np.concatenate(
        [
            pack["tokens"].astype(np.float64).reshape(len(pack["tokens"]), 5, 4)
            for pack in packs_of(out)
        ]
    )
    np.testing.assert_allclose(encoder["mean"], cells.mean(axis=(0, 2)), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(encoder["std"], cells.std(axis=(0, 2)), rtol=1e-9)
    document = json.loads((out / "dataset.json").read_text())["encoder"]
    assert (encoder["mean"], encoder["std"]) == (document["mean"], document["std"])


def test_the_encoder_is_described_as_it_is_recorded(datasets: Callable[[str], Path]) -> None:
    summary = summarize(datasets("codes"))
    encoder, document = (
        summary["encoder"],
        json.loads((datasets("codes") / "dataset.json").read_text())["encoder"],
    )
    assert {key: encoder[key] for key in encoder if key in document} == {
        key: document[key] for key in encoder if key in document
    }
    assert encoder["name"] == "linear:2x8x8-40.safetensors"
    assert (encoder["rule"], encoder["stride"]) == ("2k", [2, 8, 8])
    assert (encoder["channels"], encoder["codebook_size"]) == (2, 40)
    assert (encoder["posterior"], encoder["device"]) == ("mean", None)
    assert encoder["mean"] is None and summary["pixels"] is None
    assert (summary["tokens"]["kind"], summary["tokens"]["token_dtype"]) == ("codes", "uint8")


def test_dropped_tokens_are_those_of_the_rows_of_latents_that_are_there(
    datasets: Callable[[str], Path],
) -> None:
    kept = there = 0
    for row in read_table(datasets("latents") / "segments.parquet"):
        # A row of a latent stands for four frames; the last one that is lost may be padded.
        rows = row["grid_thw"][0] - -(-row["corrupt_frames"] // 4)
        there += rows * row["grid_thw"][1] * row["grid_thw"][2]
        kept += row["num_kept"]
    drop = summarize(datasets("latents"))["drop"]
    assert drop == {"policy": "random:0.4", "kept_tokens": kept, "dropped_tokens": there - kept}
    assert 0.55 < kept / there < 0.65


def test_pixel_tokens_are_counted(datasets: Callable[[str], Path]) -> None:
    out = datasets("also")
    counts = [pack["pixel_segments"][:, 1].sum() for pack in packs_of(out)]
    expected = {"tubelet": [1, 16, 16], "token_width": 768}
    expected |= {"tokens": sum(counts), "pack_length": max(counts)}
    assert summarize(out)["pixels"] == expected


@pytest.mark.parametrize("name", SETTINGS)
def test_a_shard_alone_and_an_unfinished_run_say_what_they_can(
    datasets: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    out = shutil.copytree(datasets(name), tmp_path / "copy")
    whole = summarize(out)
    (tmp_path / "alone").mkdir()
    tar = tars(out)[0]
    for path in out.glob(f"{tar.stem}.*"):
        shutil.copy(path, tmp_path / "alone")
    found = summarize(tmp_path / "alone" / tar.name)
    assert list(found) == list(whole)
    assert found["tokens"] == whole["tokens"]
    assert found["encoder"].keys() == whole["encoder"].keys()
    for key in ("name", "kind", "rule", "stride", "channels", "codebook_size"):
        assert found["encoder"][key] == whole["encoder"][key]
    if name == "also":
        assert found["pixels"]["tubelet"] == whole["pixels"]["tubelet"]
    unfinish(out)
    unfinished = summarize(out)
    assert unfinished["encoder"] | {"mean": 0, "std": 0} == whole["encoder"] | {"mean": 0, "std": 0}
    json.dumps([found, unfinished])


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "latents",
            (
                "latents 1x2x2, 20 x float16 a token",
                "linear:4x8x8-None.safetensors, frames 4k, stride 4x8x8, 5 channels, float32",
                "measured  mean -",
                "loaded    raw latents (scaling_factor 1)\n",
            ),
        ),
        (
            "codes",
            (
                "codes 1x1x1, 2 x uint8 a token",
                "stride 2x8x8, codebook of 40 in 2 stages",
                "loaded    codes as they are\n",
            ),
        ),
        (
            "also",
            (
                "24 x bfloat16 a token",
                "pixels    1x16x16, ",
                "loaded    raw latents (scaling_factor 1), pixels normalize unit",
            ),
        ),
    ],
)
def test_inspect_shows_the_encoder(
    datasets: Callable[[str], Path], spacepatch_cli: SpacepatchCli, name: str, said: tuple[str, ...]
) -> None:
    shown = spacepatch_cli("inspect", datasets(name)).stdout
    for text in said:
        assert text in shown


def test_a_damaged_encoder_is_named(datasets: Callable[[str], Path], tmp_path: Path) -> None:
    out = shutil.copytree(datasets("codes"), tmp_path / "copy")
    edit_json(out / "dataset.json", lambda d: d["encoder"].update(stride=[2, 8]))
    with pytest.raises(ShardError, match=r"stride is \[2, 8\].*spacepatch verify"):
        summarize(out)


def test_a_dataset_of_pixels_has_no_encoder(pristine: Path) -> None:
    summary = summarize(pristine)
    assert (summary["encoder"], summary["pixels"]) == (None, None)
