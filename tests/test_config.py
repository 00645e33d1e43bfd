"""Settings: layers, contradictions, errors that name key and value, and fingerprints."""

import hashlib
import json
import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from spacepatch.config import (
    RunConfig,
    choices_of,
    fingerprint,
    fingerprint_of,
    load_config,
    parse_bytes,
    to_toml,
)
from spacepatch.config.settings import WORDS
from spacepatch.errors import ConfigError
from spacepatch.presets import load_preset, preset_names


def written(folder: Path, text: str) -> Path:
    path = folder / "run.toml"
    path.write_text(text, "utf-8")
    return path


def failure(flags: dict[str, Any], **layers: Any) -> str:
    with pytest.raises(ConfigError) as error:
        load_config(flags, **layers)
    assert "\n" not in str(error.value)
    return str(error.value)


# --- layers ----------------------------------------------------------------------------------


def test_a_flag_beats_the_file_the_file_the_preset_and_the_preset_the_default(
    tmp_path: Path,
) -> None:
    preset = load_preset("navit")
    assert {"fps", "pack_length", "patch"} <= set(preset)
    file = written(tmp_path, "pack_length = 999\nfps = 3\n")
    config = load_config({"fps": "5"}, file=file, preset="navit")
    assert config.fps == "5"
    assert config.pack_length == 999
    assert config.patch == preset["patch"] != RunConfig().patch
    assert config.shard_size == RunConfig().shard_size


def test_a_flag_that_was_not_given_hides_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, "pack_length = 999\n")
    assert load_config({"pack_length": None}, file=file).pack_length == 999


@pytest.mark.parametrize(
    ("flags", "sampler"),
    [
        ({"num_frames": 16}, ("num-frames", Fraction(16))),
        ({"every_frame": True}, ("every-frame", Fraction(0))),
        ({"fps": "3"}, ("fps", Fraction(3))),
        ({}, ("fps", Fraction(2))),
    ],
)
def test_a_flag_displaces_the_other_way_of_sampling_of_a_preset(
    flags: dict[str, Any], sampler: tuple[str, Fraction]
) -> None:
    assert load_preset("navit")["fps"] == 2
    assert load_config(flags, preset="navit").sampler == sampler


@pytest.mark.parametrize(
    ("text", "policy"),
    [
        ("native = true", ("native", None)),
        ('pixels = "100..2000"', ("pixels", (100, 2000))),
        ("short_side = 224", ("short-side", 224)),
        ("long_side = 448", ("long-side", 448)),
        ("max_tokens_per_frame = 64", ("max-tokens-per-frame", 64)),
    ],
)
def test_a_file_displaces_the_other_way_to_choose_a_size_of_a_preset(
    tmp_path: Path, text: str, policy: tuple[str, Any]
) -> None:
    assert "max_tokens_per_frame" in load_preset("navit")
    assert load_config({}, file=written(tmp_path, text), preset="navit").size_policy == policy


def test_a_choice_that_is_switched_off_displaces_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, "num_frames = 16\n")
    assert load_config({"every_frame": False}, file=file).sampler == ("num-frames", Fraction(16))


def test_a_flag_can_switch_off_what_a_file_switched_on(tmp_path: Path) -> None:
    file = written(tmp_path, "every_frame = true\n")
    assert load_config({"every_frame": False}, file=file).sampler == ("fps", Fraction(8))


def test_another_packer_takes_the_presets_window_with_it() -> None:
    assert "window" in load_preset("navit")
    config = load_config({"packer": "best-fit-decreasing"}, preset="navit")
    assert (config.packer, config.window) == ("best-fit-decreasing", None)


def test_without_any_choice_it_is_8_fps_and_256_tokens_a_frame() -> None:
    config = load_config({})
    assert config.sampler == ("fps", Fraction(8))
    assert config.size_policy == ("max-tokens-per-frame", 256)


# --- presets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_changes_something(name: str) -> None:
    assert load_config({}, preset=name) != load_config({})


def test_an_unknown_preset_is_an_error_with_the_nearest_and_all_names() -> None:
    message = failure({}, preset="navitt")
    assert "'navitt'; did you mean navit?" in message
    assert all(name in message for name in preset_names())


@pytest.mark.parametrize("name", ["../config", "/etc/passwd", ""])
def test_a_preset_is_a_name_and_no_path(name: str) -> None:
    with pytest.raises(ConfigError, match="no preset"):
        load_preset(name)


# --- what is refused -------------------------------------------------------------------------


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
    ("patch", "16x16"),
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
]


@pytest.mark.parametrize(("key", "value"), BAD)
def test_a_bad_value_is_one_line_with_the_key_and_the_value(key: str, value: Any) -> None:
    message = failure({key: value})
    assert message.startswith(f"{key}: ")
    assert repr(value) in message


def test_there_is_a_bad_value_for_every_setting_that_is_no_switch() -> None:
    switches = {key for key, field in RunConfig.model_fields.items() if field.annotation is bool}
    assert {key for key, _ in BAD} | switches == set(RunConfig.model_fields)


@pytest.mark.parametrize("key", WORDS)
def test_a_wrong_word_is_answered_with_all_words(key: str) -> None:
    message = failure({key: "zzz"})
    assert all(word in message for word in choices_of(key))
    for word in choices_of(key):
        assert getattr(load_config({key: word, "patch": "1x16x16"}), key) == word


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


# --- round trip ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "flags",
    [
        {},
        {"num_frames": 7, "native": True, "limit": 3, "name": "my_set-1"},
        {"every_frame": True, "pixels": "100..200", "split": "a=1/2,b=0.5", "sample": "1%"},
        {"fps": "30000/1001", "clip_seconds": "2.5", "clip_stride": "0.1", "min_seconds": "0.04"},
        {"layout": "p q c", "patch": "1x14x14", "packer": "first-fit", "window": 9, "workers": 2},
        {"short_side": 224, "cut_to_fit": True, "shard_size": "1GiB", "max_losses": "5%"},
        {"timeout": 0.25, "seed": 2**40, "max_segments": 8, "upscale": True},
    ],
)
def test_effective_settings_read_back_as_themselves(tmp_path: Path, flags: dict[str, Any]) -> None:
    config = load_config(flags)
    text = to_toml(config.effective())
    again = load_config({}, file=written(tmp_path, text))
    assert again.effective() == config.effective()
    assert tomllib.loads(text).keys() == {k for k, v in config.effective().items() if v is not None}


@pytest.mark.parametrize("name", preset_names())
def test_the_effective_settings_of_a_preset_need_no_preset(tmp_path: Path, name: str) -> None:
    config = load_config({}, preset=name)
    again = load_config({}, file=written(tmp_path, to_toml(config.effective())))
    assert again.effective() == config.effective()


def test_a_file_may_say_numbers_as_numbers(tmp_path: Path) -> None:
    text = "fps = 12.5\nclip_seconds = 2\nsample = 100\nmax_losses = 3\nshard_size = 64000000\n"
    config = load_config({}, file=written(tmp_path, text))
    assert config.sampler == ("fps", Fraction(25, 2))
    assert (config.clip_seconds, config.sample, config.max_losses) == ("2", "100", "3")
    assert config.shard_bytes == 64_000_000


# --- fingerprints ----------------------------------------------------------------------------

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
    "patch": "3x3x3",
    "layout": "t p q c",
    "tail": "pad",
    "pack_length": 3,
    "long": "skip",
    "packer": "next-fit",
    "window": 3,
    "max_segments": 3,
    "cut_to_fit": True,
    "shard_size": "3MB",
    "index": "full",
    "name": "three",
    "seed": 3,
    "sample": "3",
    "limit": 3,
    "split": "a=1",
    "workers": 3,
    "timeout": 3.0,
    "max_losses": "3",
}
NEEDS = {"clip_stride": {"clip_seconds": "9"}, "window": {"packer": "first-fit"}}
PARTS = ("token", "layout", "selection", "seed")


@pytest.mark.parametrize("key", sorted(RunConfig.model_fields))
def test_a_setting_changes_the_fingerprint_it_belongs_to_and_no_other(key: str) -> None:
    needs = NEEDS.get(key, {})
    before, after = load_config(needs), load_config(needs | {key: OTHER[key]})
    changed = [
        part for part in PARTS if fingerprint(before.part(part)) != fingerprint(after.part(part))
    ]
    assert changed == ([] if fingerprint_of(key) == "run" else [fingerprint_of(key)])


@pytest.mark.parametrize("key", ["workers", "timeout", "worker_memory", "max_losses"])
def test_what_shapes_no_byte_is_in_no_fingerprint(key: str) -> None:
    assert fingerprint_of(key) == "run"


@pytest.mark.parametrize(
    ("key", "part"),
    [
        ("fps", "token"),
        ("patch", "token"),
        ("resampler", "token"),
        ("tail", "token"),
        ("pack_length", "layout"),
        ("packer", "layout"),
        ("shard_size", "layout"),
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


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [
        ("1", 1),
        ("64MB", 64_000_000),
        ("1GiB", 2**30),
        ("1.5 kB", 1500),
        ("2K", 2000),
        ("0.5GB", 500_000_000),
        ("1TiB", 2**40),
    ],
)
def test_sizes_are_decimal_or_with_an_i_binary(text: str, num_bytes: int) -> None:
    assert parse_bytes(text) == num_bytes


# --- the command line ------------------------------------------------------------------------


def test_show_config_prints_settings_that_config_reads_back(tmp_path: Path, spacepatch_cli) -> None:
    options = ["--preset", "navit", "--num-frames", "12", "--min-seconds", "1/2", "--upscale"]
    shown = spacepatch_cli("tokenize", "nowhere.mp4", *options, "--show-config")
    assert (shown.returncode, shown.stderr) == (0, "")
    settings = tomllib.loads(shown.stdout)
    assert (settings["num_frames"], settings["min_seconds"]) == (12, "1/2")
    assert "fps" not in settings
    file = written(tmp_path, shown.stdout)
    again = spacepatch_cli("tokenize", "x", "--config", file, "--show-config")
    assert again.stdout == shown.stdout


def test_an_unknown_flag_is_exit_2_with_the_nearest(spacepatch_cli) -> None:
    done = spacepatch_cli("tokenize", "x", "--out", "y", "--pack-lenght", "3")
    assert done.returncode == 2
    assert "--pack-lenght" in done.stderr
    assert "--pack-length" in done.stderr


def test_an_unknown_key_in_a_file_is_exit_2_on_one_line(tmp_path: Path, spacepatch_cli) -> None:
    file = written(tmp_path, "pack_lenght = 3\n")
    done = spacepatch_cli("tokenize", "x", "--out", tmp_path / "y", "--config", file)
    assert (done.returncode, done.stdout) == (2, "")
    expected = f"error: {file}: unknown setting pack_lenght; did you mean pack_length?\n"
    assert done.stderr == expected
    assert not (tmp_path / "y").exists()


def test_a_bad_value_of_a_flag_is_exit_2_on_one_line(spacepatch_cli) -> None:
    done = spacepatch_cli("tokenize", "x", "--out", "y", "--tail", "repaet")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "tail: " in done.stderr
    assert "did you mean repeat? (got 'repaet')" in done.stderr


def test_every_setting_is_a_flag(spacepatch_cli) -> None:
    text = spacepatch_cli("tokenize", "--help").stdout
    assert all(f"--{key.replace('_', '-')}" in text for key in RunConfig.model_fields)


def test_a_colour_and_a_stream_have_one_spelling_a_value() -> None:
    assert load_config({"background": "#FFEEDD"}).background == "ffeedd"
    assert load_config({"stream": 2}).stream == "2"
    assert (load_config({"alpha": True}).channels, load_config({}).channels) == (4, 3)
