"""Fingerprints: which settings are in which, however they are spelled."""

import hashlib
import json
from typing import Any

import pytest

from spacepatch.config import RunConfig, fingerprint, fingerprint_of, load_config
from spacepatch.config.encoders import EncodeFields

SPELLINGS = [
    ("fps", ["8", "8.0", "16/2", "8e0", " 8 ", 8, 8.0]),
    ("fps", ["30000/1001", "60000/2002"]),
    ("clip_seconds", ["2.5", "5/2", 2.5]),
    ("min_seconds", ["0", "0.0", 0]),
    ("pixels", ["100..2000", "0100..2000"]),
]


@pytest.mark.parametrize(("key", "values"), SPELLINGS)
def test_one_value_has_one_fingerprint_however_it_is_spelled(key: str, values: list) -> None:
    prints = {fingerprint(load_config({key: value}).part("token")) for value in values}
    assert len(prints) == 1


def test_a_default_that_is_given_is_no_other_setting() -> None:
    given = load_config({"fps": "8", "max_tokens_per_frame": 256, "pack_length": 8192})
    parts = ("token", "layout", "selection", "seed", "run")
    assert given.part(*parts) == load_config({}).part(*parts)


OTHER = {
    "fps": "9",
    "every_frame": True,
    "num_frames": 3,
    "clip_seconds": "3",
    "clip_stride": "3",
    "min_seconds": "3",
    "max_tokens_per_frame": 3,
    "pixels": "3..4",
    "short_side": 3,
    "long_side": 3,
    "native": True,
    "upscale": True,
    "resampler": "area",
    "decoder": "decord",
    "trust_input": True,
    "stream": "v:1",
    "untagged": "auto",
    "hdr": "raw",
    "interlaced": "keep",
    "background": "00ff00",
    "alpha": True,
    "allow_corrupt": True,
    "on_error": "skip-video",
    "max_pixels": 3000,
    "worker_memory": "3GB",
    "allow_network": True,
    "cache_bytes": "1GB",
    "cache_dir": "blocks",
    "patch": "3x3x3",
    "stride": 3,
    "keyframes": True,
    "sampler": "nearest",
    "random_offset": True,
    "video_pixels": "3..4",
    "resolution": "3",
    "multiple": 3,
    "fit": "pad",
    "crop": "32x48",
    "buckets": "4:3",
    "random_crop": "0.3",
    "recut": "1x3x3@3",
    "halo": 3,
    "views": "3",
    "drop": "tokens:3",
    "kind": "codes",
    "encoder": "linear:vq",
    "posterior": "sample",
    "encoder_stride": "4x8x8",
    "encoder_dtype": "bfloat16",
    "encode_batch": 3,
    "encode_tiles": True,
    "latent_dtype": "float32",
    "also": "pixels",
    "pixel_patch": "3x3x3",
    "device": "cuda",
    "allow_download": True,
    "trust_encoder": True,
    "allow_pickle_weights": True,
    "expect_sha256": "3" * 64,
    "order": "merge 3 x 3",
    "mask": "tube:0.3",
    "store_mask": True,
    "normalize": "clip",
    "layout": "t p q c",
    "tail": "pad",
    "pack_length": 3,
    "long": "skip",
    "packer": "next-fit",
    "window": 3,
    "max_segments": 3,
    "balance": "attention",
    "repacked": "3",
    "cut_to_fit": True,
    "shard_size": "3MB",
    "index": "full",
    "store": "compressed:42",
    "checked": True,
    "name": "three",
    "seed": 3,
    "sample": "3",
    "limit": 3,
    "split": "a=1",
    "workers": 3,
    "executor": "ray",
    "address": "ray:1",
    "cpus_per_task": 3,
    "gpus_per_task": 0.5,
    "probe": "header",
    "timeout": 3.0,
    "max_losses": "3",
}
NEEDS: dict[str, dict[str, Any]] = {
    "clip_stride": {"clip_seconds": "9"},
    "window": {"packer": "first-fit"},
    "crop": {"short_side": 48},
    "buckets": {"resolution": "64"},
    "order": {"multiple": 3},
    "store_mask": {"mask": "tube:0.9"},
    "checked": {"store": "refs"},
    "kind": {"kind": "latents", "encoder": "tae:vae"},
    "encoder": {"kind": "latents", "encoder": "tae:vae"},
    "pixel_patch": {"encoder": "tae:vae", "also": "pixels"},
    **{key: {"executor": "ray"} for key in ("address", "cpus_per_task", "gpus_per_task")},
    **{
        key: {"encoder": "tae:vae"}
        for key in EncodeFields.model_fields.keys() - {"kind", "encoder", "pixel_patch"}
    },
}
PARTS = ("token", "layout", "selection", "seed")


@pytest.mark.parametrize("key", sorted(RunConfig.model_fields))
def test_a_setting_changes_the_fingerprint_it_belongs_to_and_no_other(key: str) -> None:
    needs = NEEDS.get(key, {})
    before, after = load_config(needs), load_config(needs | {key: OTHER[key]})
    changed = [
        part for part in PARTS if fingerprint(before.part(part)) != fingerprint(after.part(part))
    ]
    assert changed == ([] if fingerprint_of(key) == "run" else [fingerprint_of(key)])


@pytest.mark.parametrize(
    "key",
    "workers probe timeout worker_memory max_losses executor address allow_network cache_bytes "
    "cache_dir".split(),
)
def test_what_shapes_no_byte_is_in_no_fingerprint(key: str) -> None:
    assert fingerprint_of(key) == "run"


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("fps", "token"),
        ("patch", "token"),
        ("multiple", "token"),
        ("drop", "token"),
        ("layout", "layout"),
        ("order", "layout"),
        ("mask", "layout"),
        ("normalize", "layout"),
        ("resampler", "token"),
        ("tail", "token"),
        ("pack_length", "layout"),
        ("packer", "layout"),
        ("shard_size", "layout"),
        ("store", "layout"),
        ("checked", "layout"),
        ("name", "layout"),
        ("seed", "seed"),
        ("sample", "selection"),
        ("limit", "selection"),
        ("split", "selection"),
    ],
)
def test_settings_are_in_the_fingerprint_that_the_design_says(key: str, part: str) -> None:
    assert fingerprint_of(key) == part


def test_a_fingerprint_is_blake2b_of_sorted_json() -> None:
    values = {"b": [1, "ä"], "a": None}
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
    assert text == '{"a":null,"b":[1,"\\u00e4"]}'
    assert fingerprint(values) == hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
