"""Settings: layers, presets, round trips and the command line."""

import tomllib
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from settings_files import failure, needed_by, written

from spacepatch.config import RunConfig, load_config, parse_bytes, to_toml
from spacepatch.errors import ConfigError
from spacepatch.presets import load_preset, preset_names

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
        ({"num_frames": 16}, ("num-frames", "16")),
        ({"every_frame": True}, ("every-frame", "0")),
        ({"fps": "3"}, ("fps", "3")),
        ({}, ("fps", "2")),
    ],
)
def test_a_flag_displaces_the_other_way_of_sampling_of_a_preset(
    flags: dict[str, Any], sampler: tuple[str, Fraction]
) -> None:
    assert load_preset("navit")["fps"] == 2
    assert load_config(flags, preset="navit").sampling() == sampler


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
    assert "resolution" in load_preset("navit")
    assert load_config({}, file=written(tmp_path, text), preset="navit").size_policy == policy


def test_another_size_takes_the_presets_crop_with_it() -> None:
    assert {"short_side", "crop"} <= load_preset("videomae").keys()
    config = load_config({"max_tokens_per_frame": 100}, preset="videomae")
    assert (config.short_side, config.crop) == (None, None)


@pytest.mark.parametrize(
    ("preset", "flags", "key", "value"),
    [
        ("flexivit", {"patch": "1x16x16"}, "views", "1"),
        ("transgan", {"patch": "1x8x8"}, "views", "1"),
        ("transgan", {"patch": "1x8x8,1x4x4"}, "views", "all"),
        ("vit", {"patch": "2x16x16"}, "layout", "c t p q"),
        ("siglip2-naflex", {"patch": "1x14x14"}, "layout", "p q c"),
        ("vit", {"fit": "pad"}, "crop", None),
        ("wan", {"encoder": "vae", "fit": "pad"}, "buckets", "26:15,1:1,15:26"),
        ("qwen2-vl", {"multiple": 1}, "order", "raster"),
        ("navit", {"drop": "none", "cut_to_fit": True}, "window", None),
        ("rlt", {"drop": "none"}, "drop", None),
        ("mae", {"mask": "none"}, "mask", None),
        ("videomae", {"crop": "none"}, "crop", None),
    ],
)
def test_a_flag_goes_over_what_contradicts_it_in_a_preset(
    preset: str, flags: dict[str, Any], key: str, value: Any
) -> None:
    assert getattr(load_config(flags, preset=preset), key) == value


def test_another_way_to_sample_takes_the_presets_rule_with_it() -> None:
    assert {"fps", "sampler"} <= load_preset("qwen2-vl").keys()
    assert load_config({"num_frames": 8}, preset="qwen2-vl").sampling() == ("num-frames", "8")
    assert load_config({"fps": "4"}, preset="qwen2-vl").sampling() == ("qwen2-vl", "4")


def test_a_choice_that_is_switched_off_displaces_nothing(tmp_path: Path) -> None:
    file = written(tmp_path, "num_frames = 16\n")
    assert load_config({"every_frame": False}, file=file).sampling() == ("num-frames", "16")


def test_a_flag_can_switch_off_what_a_file_switched_on(tmp_path: Path) -> None:
    file = written(tmp_path, "every_frame = true\n")
    assert load_config({"every_frame": False}, file=file).sampling() == ("fps", "8")


def test_another_packer_takes_the_presets_window_with_it() -> None:
    assert "window" in load_preset("navit")
    config = load_config({"packer": "best-fit-decreasing"}, preset="navit")
    assert (config.packer, config.window) == ("best-fit-decreasing", None)


def test_without_any_choice_it_is_8_fps_and_256_tokens_a_frame() -> None:
    config = load_config({})
    assert config.sampling() == ("fps", "8")
    assert config.size_policy == ("max-tokens-per-frame", 256)


# --- presets ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_loads_and_changes_something(name: str) -> None:
    assert load_config(needed_by(name), preset=name) != load_config({})


def test_an_unknown_preset_is_an_error_with_the_nearest_and_all_names() -> None:
    message = failure({}, preset="navitt")
    assert "'navitt'; did you mean navit?" in message
    assert all(name in message for name in preset_names())


@pytest.mark.parametrize("name", ["../config", "/etc/passwd", ""])
def test_a_preset_is_a_name_and_no_path(name: str) -> None:
    with pytest.raises(ConfigError, match="no preset"):
        load_preset(name)


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
    config = load_config(needed_by(name), preset=name)
    again = load_config({}, file=written(tmp_path, to_toml(config.effective())))
    assert again.effective() == config.effective()


def test_a_file_may_say_numbers_as_numbers(tmp_path: Path) -> None:
    text = "fps = 12.5\nclip_seconds = 2\nsample = 100\nmax_losses = 3\nshard_size = 64000000\n"
    config = load_config({}, file=written(tmp_path, text))
    assert config.sampling() == ("fps", "12.5")
    assert (config.clip_seconds, config.sample, config.max_losses) == ("2", "100", "3")
    assert config.shard_bytes == 64_000_000


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


def test_a_colour_and_a_stream_have_one_spelling_a_value() -> None:
    assert load_config({"background": "#FFEEDD"}).background == "ffeedd"
    assert load_config({"stream": 2}).stream == "2"
    assert (load_config({"alpha": True}).channels, load_config({}).channels) == (4, 3)


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


def test_every_setting_is_a_flag_but_what_convert_and_repack_write(spacepatch_cli) -> None:
    text = spacepatch_cli("tokenize", "--help").stdout
    missing = {k for k in RunConfig.model_fields if f"--{k.replace('_', '-')}" not in text}
    assert missing == {"recut", "repacked"}
