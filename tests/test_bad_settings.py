"""Settings that are refused: errors that name key, value and the nearest that is right."""

from pathlib import Path
from typing import Any

import pytest
from settings_files import failure, written

from spacepatch.config import RunConfig, choices_of, load_config
from spacepatch.config.encoders import EncodeFields
from spacepatch.config.settings import WORDS


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("pack_lenght", "pack_length"),
        ("fsp", "fps"),
        ("max-tokens-per-frame", "max_tokens_per_frame"),
        ("patch_size", "patch"),
        ("every_frames", "every_frame"),
    ],
)
def test_an_unknown_key_names_itself_the_file_and_the_nearest_key(
    tmp_path: Path, key: str, nearest: str
) -> None:
    file = written(tmp_path, f"{key} = 1\n")
    message = failure({}, file=file)
    assert message == f"{file}: unknown setting {key}; did you mean {nearest}?"


def test_a_key_like_no_other_is_refused_without_a_guess(tmp_path: Path) -> None:
    assert failure({}, file=written(tmp_path, "zzzzzz = 1\n")).endswith("unknown setting zzzzzz")


def test_a_table_in_a_settings_file_is_an_unknown_key(tmp_path: Path) -> None:
    assert "unknown setting tokens" in failure({}, file=written(tmp_path, "[tokens]\nfps = 8\n"))


BAD = [
    ("fps", "0"),
    ("fps", "-8"),
    ("fps", "eight"),
    ("fps", "1/0"),
    ("fps", "nan"),
    ("num_frames", 0),
    ("name", "plan"),
    ("num_frames", "many"),
    ("clip_seconds", "0"),
    ("clip_stride", "x"),
    ("min_seconds", "-1"),
    ("max_tokens_per_frame", 0),
    ("pixels", "200..100"),
    ("pixels", "0..100"),
    ("pixels", "100"),
    ("short_side", -1),
    ("long_side", 0),
    ("resampler", "bicubik"),
    ("decoder", "opencv"),
    ("probe", "headers"),
    ("stream", "first"),
    ("stream", "-1"),
    ("untagged", "bt2020"),
    ("hdr", "tone-map"),
    ("interlaced", "bob"),
    ("background", "black"),
    ("background", "fffff"),
    ("on_error", "ignore"),
    ("max_pixels", 0),
    ("max_pixels", 2**31),
    ("worker_memory", "lots"),
    ("sampler", "qwen"),
    ("stride", 0),
    ("fps", "uniform:0..4"),
    ("fps", "2,x"),
    ("video_pixels", "9..1"),
    ("resolution", "uniform:64"),
    ("resolution", "100000"),
    ("multiple", 0),
    ("fit", "cover"),
    ("crop", "224"),
    ("buckets", "16x9"),
    ("random_crop", "1.5"),
    ("random_crop", "0"),
    ("patch", "16x16"),
    ("patch", "1x8x8,1x8x8"),
    ("recut", "16"),
    ("repacked", "16x16"),
    ("balance", "memory"),
    ("halo", -1),
    ("views", "0"),
    ("views", "most"),
    ("drop", "half"),
    ("drop", "random:1"),
    ("kind", "voxels"),
    ("posterior", "mode"),
    ("encoder_stride", "8x8"),
    ("encoder_dtype", "float64"),
    ("encode_batch", 0),
    ("latent_dtype", "uint8"),
    ("also", "codes"),
    ("pixel_patch", "16x16"),
    ("device", "gpu"),
    ("expect_sha256", "abc"),
    ("order", "zigzag"),
    ("mask", "random:1"),
    ("mask", "cube"),
    ("normalize", "imagenet1k"),
    ("patch", "0x16x16"),
    ("patch", "2x16x16x3"),
    ("layout", "t c p q"),
    ("tail", "repaet"),
    ("pack_length", 0),
    ("pack_length", 1.5),
    ("long", "cut"),
    ("packer", "best-fit"),
    ("window", 0),
    ("max_segments", 0),
    ("cut_to_fit", "perhaps"),
    ("shard_size", "0MB"),
    ("shard_size", "many"),
    ("shard_size", "-5MB"),
    ("index", "none"),
    ("store", "pixels"),
    ("store", "refs:42"),
    ("store", "compressed:"),
    ("store", "compressed:best"),
    ("store", "compressed:29.9"),
    ("store", "compressed:61"),
    ("name", "a b"),
    ("name", "x" * 33),
    ("name", "../x"),
    ("seed", -1),
    ("seed", 1.5),
    ("sample", "some"),
    ("sample", "101%"),
    ("limit", 0),
    ("split", "train=0.5"),
    ("split", "a/b=1"),
    ("workers", 0),
    ("timeout", 0),
    ("timeout", float("nan")),
    ("timeout", float("inf")),
    ("max_losses", "few"),
    ("max_losses", "-1"),
    ("executor", "rya"),
    ("cpus_per_task", 0),
    ("gpus_per_task", -1),
    ("cache_bytes", "lots"),
]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_a_bad_value_is_one_line_with_the_key_and_the_value(key: str, value: Any) -> None:
    message = failure({key: value})
    assert message.startswith(f"{key}: ")
    assert repr(value) in message


def test_there_is_a_bad_value_for_every_setting_that_is_no_switch() -> None:
    switches = {key for key, field in RunConfig.model_fields.items() if field.annotation is bool}
    # Names and paths: what is wrong with them is known when they are used.
    free = {"encoder", "address", "cache_dir"}
    assert {key for key, _ in BAD} | switches | free == set(RunConfig.model_fields)


@pytest.mark.parametrize("key", WORDS)
def test_a_wrong_word_is_answered_with_all_words(key: str) -> None:
    message = failure({key: "zzz"})
    assert all(word in message for word in choices_of(key))
    for word in choices_of(key):
        is_of_encoder = key in EncodeFields.model_fields and word != "pixels"
        needs = {"encoder": "tae:vae"} if is_of_encoder or key == "also" else {}
        assert getattr(load_config({key: word, "patch": "1x16x16"} | needs), key) == word


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"fps": "8", "num_frames": 4}, ["fps", "num_frames"]),
        ({"fps": "8", "every_frame": True}, ["fps", "every_frame"]),
        ({"native": True, "short_side": 224}, ["native", "short_side"]),
        ({"pixels": "1..2", "long_side": 224}, ["pixels", "long_side"]),
        ({"clip_stride": "1"}, ["clip_stride", "clip_seconds"]),
        ({"layout": "c p q"}, ["layout", "patch", "2x16x16"]),
        ({"window": 8}, ["window", "first-fit", "best-fit-decreasing"]),
        ({"cut_to_fit": True, "packer": "next-fit"}, ["cut_to_fit", "next-fit"]),
        ({"checked": True}, ["checked", "refs"]),
        ({"store": "refs", "encoder": "tae:vae"}, ["store refs", "encoder"]),
        ({"store": "compressed", "encoder": "tae:vae"}, ["store compressed", "encoder"]),
        ({"store": "refs", "drop": "static:0.1"}, ["static", "--checked"]),
        ({"cut_to_fit": True, "drop": "tokens:9"}, ["cut_to_fit", "drop"]),
        ({"cut_to_fit": True, "balance": "attention"}, ["cut_to_fit", "balance"]),
        ({"stride": 2, "keyframes": True}, ["stride", "keyframes"]),
        ({"resolution": "64", "native": True}, ["resolution", "native"]),
        ({"sampler": "nearest", "stride": 2}, ["sampler", "nearest", "fps", "num_frames"]),
        ({"sampler": "qwen2-vl", "num_frames": 2}, ["sampler", "qwen2-vl", "num_frames"]),
        ({"random_offset": True, "sampler": "nearest"}, ["random_offset", "display", "nearest"]),
        ({"random_offset": True, "every_frame": True}, ["random_offset", "fps"]),
        ({"crop": "32x32"}, ["crop", "short_side"]),
        ({"crop": "64x64", "short_side": 48}, ["crop", "64x64", "short_side", "48"]),
        ({"crop": "40x40", "short_side": 48}, ["crop", "40x40", "16x16"]),
        ({"crop": "32x32", "short_side": 48, "fit": "pad"}, ["crop", "fit", "pad"]),
        ({"buckets": "1:1"}, ["buckets", "resolution"]),
        ({"video_pixels": "1..9", "patch": "1x8x9"}, ["video_pixels", "8x9"]),
        ({"views": "all"}, ["views", "patch"]),
        ({"order": "merge 2 x 2"}, ["order", "merge 2 x 2", "multiple"]),
        ({"store_mask": True}, ["store_mask", "mask"]),
        ({"kind": "latents"}, ["kind", "latents", "--encoder"]),
        ({"encoder": "vae", "kind": "pixels"}, ["encoder", "kind", "pixels"]),
        ({"latent_dtype": "float32"}, ["latent_dtype", "float32", "--encoder"]),
        ({"device": "cuda"}, ["device", "cuda", "--encoder"]),
        ({"encoder": "vae", "pixel_patch": "1x8x8"}, ["pixel_patch", "also"]),
        ({"encoder": "vae", "alpha": True}, ["alpha", "encoder"]),
        ({"encoder": "vae", "halo": 2}, ["halo", "latent"]),
        ({"encoder": "vae", "tail": "pad"}, ["tail", "encoder", "repeat", "drop"]),
        ({"encoder": "vae", "drop": "static:0.1"}, ["drop", "static", "encoder"]),
        ({"encoder": "vae", "also": "pixels", "cut_to_fit": True}, ["cut_to_fit", "also"]),
        ({"worker_memory": "100MB"}, ["worker_memory", "100MB", "200MB"]),
        (
            {"worker_memory": "300MB", "resampler": "torch-bicubic"},
            ["worker_memory", "300MB", "with torch", "500MB"],
        ),
    ],
)
def test_settings_that_contradict_each_other_are_both_named(
    flags: dict[str, Any], words: list[str]
) -> None:
    message = failure(flags)
    assert all(word in message for word in words)


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"fps = = 8\n", "cannot be read as TOML"), (b"name = '\xff'\n", "cannot be read as TOML")],
)
def test_a_broken_settings_file_is_named(tmp_path: Path, content: bytes, words: str) -> None:
    file = tmp_path / "run.toml"
    file.write_bytes(content)
    message = failure({}, file=file)
    assert message.startswith(f"{file}: {words}")


def test_a_missing_settings_file_is_named(tmp_path: Path) -> None:
    assert failure({}, file=tmp_path / "no.toml") == f"{tmp_path}/no.toml: no such settings file"
