"""Mutation testing of `verify`: widths, patches, views and crops, and runs of many settings."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_runs import make_dataset
from spoiled_shards import (
    Mutations,
    Shard,
    alone,
    assert_found,
    assert_found_alone,
    cases,
    in_document,
    in_pack,
    in_receipt,
    in_row,
    tars,
)

from spacepatch.inspection import verify
from spacepatch.shards import read_table

SETTINGS: dict[str, dict[str, Any]] = {
    "patches": {"fps": "2", "patch": "2x16x16,1x32x32", "views": "all", "shard_size": "64MB"},
    "random": {
        "fps": "4",
        "drop": "random:uniform:0.3..0.7",
        "order": "merge 2 x 2",
        "multiple": 2,
        "index": "compact",
        "mask": "random:0.75",
        "store_mask": True,
    },
    "static": {"fps": "8", "drop": "static"},
    "crops": {
        "fps": "2,4",
        "resolution": "uniform:64..192",
        "fit": "pad",
        "buckets": "16:9,1:1",
        "views": 2,
        "random_crop": "uniform:0.3..0.9",
        "random_offset": True,
    },
    "masked pieces": {
        "fps": "4",
        "mask": "multi-block",
        "store_mask": True,
        "cut_to_fit": True,
        "pack_length": 1000,
    },
    "one token": {"fps": "8", "drop": "tokens:1", "clip_seconds": "0.5", "tail": "drop"},
    "halo": {"fps": "2", "halo": 3, "alpha": True, "patch": "1x16x16", "mask": "tube:0.9"},
    "length": {"fps": "4", "drop": "random:length:0.2..0.6:64..1024", "patch": "3x16x16"},
    "static pictures": {
        "every_frame": True,
        "patch": "1x32x32",
        "drop": "static:0.3",
        "index": "compact",
        "order": "merge 2 x 2",
        "multiple": 2,
    },
}
DAMAGED = (
    "decord__corrupted.mp4",
    "derived__resolution_change_midstream.ts",
    "derived__truncated_faststart_half.mp4",
    "mediabunny__missing-keyframe-labels.ts",
    "qt__corrupt_end.ogg",
)


@pytest.fixture(scope="module")
def datasets(
    part_damaged: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], Path]:
    """A function that makes a dataset of damaged videos by the name of its settings, once."""
    folder = tmp_path_factory.mktemp("geometry")

    def make(name: str) -> Path:
        out = folder / name.replace(" ", "_")
        return out if out.exists() else make_dataset(part_damaged, out, **SETTINGS[name])

    return make


# --- clean -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETTINGS)
def test_damaged_videos_verify_clean_whatever_is_kept_of_them(
    datasets: Callable[[str], Path], tmp_path: Path, name: str
) -> None:
    out = datasets(name)
    assert verify(out) == []
    assert any(row["corrupt_frames"] for row in read_table(out / "segments.parquet"))
    for tar in tars(alone(out, tmp_path)):
        assert verify(tar) == []


@pytest.mark.parametrize("name", ["random", "static"])
def test_videos_that_end_before_the_plan_verify_clean(
    corpus: Path, tmp_path: Path, name: str
) -> None:
    (tmp_path / "sources").mkdir()
    for file in DAMAGED:
        shutil.copyfile(corpus / file, tmp_path / "sources" / file)
    out = make_dataset([tmp_path / "sources"], tmp_path / "out", **SETTINGS[name])
    assert {row["reason"] for row in read_table(out / "losses.parquet")} >= {
        "corrupt_frames",
        "truncated",
    }
    assert verify(out) == []
    (tmp_path / "alone").mkdir()
    for tar in tars(alone(out, tmp_path / "alone")):
        assert verify(tar) == []


# --- mutations ---------------------------------------------------------------------------------


PATCHES: Mutations = {
    "pack.json of another width": (
        in_pack(lambda d: d.update(token_width=7)),
        ".tar: pack",
        "pack.json: token_width is 7",
    ),
    "tokens of another width": (
        lambda shard: (
            shard.put("tokens.npy", shard.array("tokens.npy")[:, 1:].copy()),
            shard.seal(),
        )[1],
        ".tar: pack",
        "tokens.npy is uint8",
    ),
    "widths of another order": (
        in_receipt(lambda d: d["pack_token_widths"].reverse()),
        ".json",
        "not the widest first",
    ),
    "too few widths": (
        in_receipt(lambda d: d["pack_token_widths"].pop()),
        ".json",
        "not one number of values a pack",
    ),
    "widths that no patch has": (
        in_receipt(lambda d: d.update(pack_token_widths=[99] * d["packs"])),
        ".json",
        "packs of token width 99",
    ),
    "the width of another patch": (
        in_receipt(lambda d: d.update(pack_token_widths=[1536] * d["packs"])),
        ".parquet: row",
        "tokens of 1536 values, not of patch 1x32x32",
    ),
    "one width for all": (
        in_receipt(lambda d: d.update(token_width=1536)),
        ".json",
        "token_width is 1536",
    ),
    "view_of changed": (in_row(view_of=99), ".parquet: row", "view_of is 99, the plan says"),
    "view changed": (in_row(view=99), ".parquet: row", "is of no clip that the plan has"),
    "another patch of the list": (
        in_row(tubelet_size=2, patch_size=[16, 16]),
        ".parquet: row",
        "not of patch 2x16x16",
    ),
    "a patch that is not in the list": (
        in_row(patch_size=[16, 8]),
        ".parquet: row",
        "patch is '1x16x8', the settings say",
    ),
    "another halo": (in_row(halo=1), ".parquet: row", "halo is 1, the settings say 0"),
    "another layout": (
        in_row(layout="t p q c"),
        ".segments.parquet",
        "layout is not the same in every row",
    ),
    "more padding than a tubelet has": (
        in_row(padded_frames=1),
        ".parquet: row",
        "has 1 padded frames, with tubelets of 1",
    ),
    "widths of the dataset": (
        in_document("dataset.json", lambda d: d.update(token_widths=[1536])),
        "dataset.json",
        "token_widths is [1536]",
    ),
    "widths of a listed shard": (
        in_document("dataset.json", lambda d: d["shards"][0].update(token_widths=[[1536, 1]])),
        "dataset.json",
        "shards is not",
    ),
    "constants of the dataset": (
        in_document("dataset.json", lambda d: d["constants"]["normalize"].update(scale=127.5)),
        "dataset.json",
        "constants is",
    ),
    "kind of the dataset": (
        in_document("dataset.json", lambda d: d.update(kind="latents")),
        "dataset.json",
        "kind is 'latents'",
    ),
    "a setting of the dataset gone": (
        in_document("dataset.json", lambda d: d["settings"].pop("normalize")),
        "dataset.json",
        "lack some",
    ),
}

CROPS: Mutations = {
    "a crop moved": (
        in_row(crop=lambda row: [row["crop"][0], row["crop"][1] + 1, *row["crop"][2:]]),
        ".parquet: row",
        "crop is",
    ),
    "a crop of another size": (
        in_row(crop=lambda row: [0.0, 0.0, row["size"][0] - 1.0, row["size"][1]]),
        ".parquet: row",
        "do not make up size",
    ),
    "a crop outside the picture": (
        in_row(crop=lambda row: [-1.0, 0.0, *row["crop"][2:]]),
        ".parquet: row",
        "crop is [-1",
    ),
    "a crop without sides": (in_row(crop=[0.0, 0.0]), ".parquet: row", "crop has 2 entries"),
    "padding that is not there": (
        in_row(pad=[16, 0]),
        ".parquet: row",
        "pad is [16, 0], the plan says",
    ),
    "another aspect_error": (
        in_row(aspect_error=0.25),
        ".parquet: row",
        "aspect_error 0.25 is not that of scale",
    ),
    "no scale": (in_row(scale=[0.0, 1.0]), ".parquet: row", "scale is [0.0, 1.0]"),
}

ALL = cases(patches=PATCHES, crops=CROPS)


@pytest.mark.parametrize(("name", "mutate", "where", "what"), ALL)
def test_a_defect_of_what_tokens_are_is_found(
    datasets: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    mutate: Callable[[Shard], None],
    where: str,
    what: str,
) -> None:
    assert_found(datasets(name), tmp_path, mutate, where, what)


SEEN_ALONE = {
    "patches: pack.json of another width",
    "patches: another patch of the list",
    "patches: another layout",
    "crops: a crop of another size",
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
