"""Presets: each cuts a clip as its model's paper or processor does, and is data that flags change.

The clip is 1280 x 720, 10 s long, of 300 frames.
"""

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
from settings_files import needed_by

from spacepatch.config import RunConfig, load_config
from spacepatch.data import ClipSpec
from spacepatch.pipeline import make_plan
from spacepatch.presets import describe_preset, load_preset, preset_names
from spacepatch.resize import fit_frame
from spacepatch.tubelets import token_width

DOCS = Path(__file__).resolve().parents[1] / "docs"

# (t, h, w) of the grid and values in a token.
EXPECTED = {
    "vit": ((1, 14, 14), 768),
    "mae": ((1, 14, 14), 768),
    "videomae": ((8, 14, 14), 1536),
    "vivit": ((16, 14, 14), 1536),
    "vjepa2": ((32, 16, 16), 1536),
    "vtn": ((63, 14, 14), 768),
    "rlt": ((30, 14, 14), 1536),
    "image-transformer": ((1, 32, 32), 3),
    "vitgan": ((1, 8, 8), 768),
    "siglip2-naflex": ((1, 12, 21), 768),
    "timm-naflex": ((1, 18, 32), 768),
    "qwen2-vl": ((10, 52, 92), 1176),
    "qwen2.5-vl": ((10, 40, 72), 1176),
    "qwen3-vl": ((10, 44, 80), 1536),
}
NEED_ENCODER = {"videogpt": 4096, "vqgan": 256, "wan": 32_760, "sora": None}
DRAWN = {"flexivit", "navit", "transgan"}


@pytest.fixture(scope="session")
def clip_720p(tmp_path_factory: pytest.TempPathFactory, ffmpeg: str) -> Path:
    """1280 x 720, 10 s, 30 frames a second."""
    path = tmp_path_factory.mktemp("720p") / "clip.mp4"
    source = ["-f", "lavfi", "-i", "testsrc=s=1280x720:r=30:d=10"]
    subprocess.run([ffmpeg, "-v", "error", *source, "-c:v", "mpeg4", path], check=True)
    return path


def planned(path: Path, preset: str, **flags: Any) -> tuple[list[ClipSpec], RunConfig]:
    """The clips of one video with a preset."""
    config = load_config({"workers": 1, **flags}, preset=preset)
    plan = make_plan([str(path)], config=config).whole()
    return [clip for task in plan.tasks for clip in task.clips], config


def width(clip: ClipSpec, config: RunConfig) -> int:
    return token_width(clip.tubelet_size, clip.patch_size, halo=config.halo)


# --- what they cut -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", EXPECTED)
def test_a_720p_clip_has_the_grid_and_the_width_of_the_model(clip_720p: Path, name: str) -> None:
    clips, config = planned(clip_720p, name)
    assert len(clips) == (5 if name == "rlt" else 1)  # windows of 2 s, or all of the 10 s
    for clip in clips:
        assert (clip.grid_thw, width(clip, config)) == EXPECTED[name]
        # One segment: a pack of the preset holds it.
        assert clip.num_tokens <= config.pack_length


@pytest.mark.parametrize(
    ("most", "grid"),
    [(128, (8, 15)), (256, (12, 21)), (576, (18, 32)), (784, (21, 37)), (1024, (24, 42))],
)
def test_siglip2_at_each_length_it_was_trained_at(
    clip_720p: Path, most: int, grid: tuple[int, int]
) -> None:
    (clip,), _ = planned(clip_720p, "siglip2-naflex", max_tokens_per_frame=most)
    assert clip.grid_thw == (1, *grid)


def test_flexivit_has_ten_grids_at_240_pixels(clip_720p: Path) -> None:
    clips, config = planned(clip_720p, "flexivit", views="all")
    grids = [5, 6, 8, 10, 12, 15, 16, 20, 24, 30]
    cut = sorted((clip.num_tokens, width(clip, config)) for clip in clips)
    assert cut == [(grid**2, 3 * (240 // grid) ** 2) for grid in grids]
    assert (cut[0], cut[-1]) == ((25, 6912), (900, 192))


def test_flexivit_alone_draws_one_of_them(clip_720p: Path) -> None:
    drawn = set()
    for seed in range(8):
        (clip,), _ = planned(clip_720p, "flexivit", seed=seed)
        assert clip.size == (240, 240)
        drawn.add(clip.patch_size)
    assert len(drawn) > 2


def test_transgan_has_three_scales_of_one_picture(clip_720p: Path) -> None:
    clips, config = planned(clip_720p, "transgan")
    assert sorted((clip.num_tokens, width(clip, config)) for clip in clips) == [
        (256, 768),
        (1024, 192),
        (4096, 48),
    ]
    assert {clip.frame_indices.tolist()[0] for clip in clips} == {0}


def test_navit_draws_sizes_of_one_aspect_ratio_and_drops_tokens(clip_720p: Path) -> None:
    sizes, kept = set(), set()
    for seed in range(8):
        (clip,), config = planned(clip_720p, "navit", seed=seed)
        assert len(clip.frame_pts) == 20
        assert clip.num_tokens <= config.pack_length
        assert width(clip, config) == 768
        h, w = clip.size
        assert 48**2 <= h * w <= 400**2
        assert abs(w / h - 16 / 9) < 0.45  # whole patches of pictures as small as 48 x 80
        sizes.add(clip.size)
        kept.add(round(clip.num_kept / clip.num_tokens, 3))
    assert len(sizes) > 3
    assert len(kept) > 5
    assert max(kept) < 1


@pytest.mark.parametrize(
    ("name", "begins", "last"),
    [
        ("qwen2-vl", [0, 15, 30, 45], 285),
        ("qwen2.5-vl", [0, 15, 30, 45], 285),
        ("qwen3-vl", [0, 16, 31, 47, 63, 79], 299),
        ("videomae", [0, 18, 37, 56], 281),
        ("vjepa2", [0, 4, 9, 14, 18], 295),
    ],
)
def test_the_frames_are_those_of_the_peers_rule(
    clip_720p: Path, name: str, begins: list[int], last: int
) -> None:
    (clip,), _ = planned(clip_720p, name)
    indices = clip.frame_indices.tolist()
    assert (indices[: len(begins)], indices[-1]) == (begins, last)


@pytest.mark.parametrize(
    ("name", "scaled", "corner"),
    [
        ("videomae", (224, 398), (0, 87)),
        ("vivit", (256, 455), (16, 115)),
        ("vjepa2", (292, 519), (18, 131)),
    ],
)
def test_square_frames_are_cut_from_the_middle_of_a_short_side(
    clip_720p: Path, name: str, scaled: tuple[int, int], corner: tuple[int, int]
) -> None:
    (clip,), _ = planned(clip_720p, name)
    assert clip.fit.scaled == scaled
    assert clip.fit.crop is not None
    assert clip.fit.crop[:2] == corner


@pytest.mark.parametrize("size", [(720, 1280), (1280, 720), (60, 80)])
@pytest.mark.parametrize("name", ["vit", "mae", "videomae", "vivit", "vjepa2", "vtn", "flexivit"])
def test_square_frames_are_square_whatever_the_picture(name: str, size: tuple[int, int]) -> None:
    config = load_config({}, preset=name)
    assert config.crop_size is not None
    fit = fit_frame(
        size,
        patch=(1, 1),
        policy="short-side",
        value=config.short_side,
        crop=config.crop_size,
        upscale=config.upscale,
    )
    assert fit.size == config.crop_size


# --- with an encoder ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEED_ENCODER)
def test_the_grid_of_codes_or_latents_is_the_models(name: str) -> None:
    needs = describe_preset(name)["needs_encoder"]
    config = load_config(needed_by(name), preset=name)
    t, h, w = map(int, needs["stride"].split("x"))
    (patch,) = config.patches
    value = config.size_policy[1]
    fit = fit_frame(
        (720, 1280),
        patch=(h * patch[1], w * patch[2]),
        policy=config.size_policy[0],
        value=512 if config.resolution == "uniform:256..512" else int(value),
        fit=config.fit,
        crop=config.crop_size,
        buckets=config.bucket_ratios,
        upscale=config.upscale,
    )
    # A video of 81 frames is a first latent frame and 20 of four frames each.
    frames = {"videogpt": 16 // t, "vqgan": 1, "wan": 1 + 80 // t, "sora": 1 + 236 // t}[name]
    tokens = frames * (fit.size[0] // h // patch[1]) * (fit.size[1] // w // patch[2])
    assert NEED_ENCODER[name] in (tokens, None)
    assert tokens <= config.pack_length
    assert needs["kind"] == ("latents" if name in ("sora", "wan") else "codes")


@pytest.mark.parametrize("name", NEED_ENCODER)
def test_a_preset_without_its_encoder_is_a_wrong_command_that_names_it(
    spacepatch_cli, sample_clips: Path, name: str
) -> None:
    done = spacepatch_cli("plan", sample_clips, "--preset", name)
    assert done.returncode == 2
    assert "needs --encoder" in done.stderr


def test_windows_of_wan_are_81_frames_of_832_by_480() -> None:
    config = load_config(needed_by("wan"), preset="wan")
    assert config.clip_seconds == "81/16"
    assert config.fps == "16"
    for size, expected in [((720, 1280), (480, 832)), ((1920, 1080), (832, 480))]:
        fit = fit_frame(
            size,
            patch=(16, 16),
            policy="resolution",
            value=632,
            buckets=config.bucket_ratios,
            fit=config.fit,
            upscale=config.upscale,
        )
        assert fit.size == expected


# --- as data -----------------------------------------------------------------------------------


def test_every_model_of_the_list_has_a_preset() -> None:
    assert set(preset_names()) == {*EXPECTED, *NEED_ENCODER, *DRAWN}


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_says_what_it_reproduces_and_from_where(name: str) -> None:
    about = describe_preset(name)
    assert set(about) - {"needs_encoder"} == {"reproduces", "source"}
    assert all("\n" not in about[key] for key in ("reproduces", "source"))
    assert re.search(r"arXiv \d{4}\.\d{5}|transformers 5\.23|timm 1\.0\.31|OpenAI", about["source"])
    assert ("needs_encoder" in about) == (name in NEED_ENCODER)


@pytest.mark.parametrize("name", sorted(set(preset_names()) - {"sora", "wan"}))
def test_peers_enlarge_what_is_smaller(name: str) -> None:
    assert load_config(needed_by(name), preset=name).upscale


@pytest.mark.parametrize("name", preset_names())
def test_the_page_of_presets_has_its_numbers(name: str) -> None:
    table = (DOCS / "presets.md").read_text().partition("\n## ")[0]
    rows = [line.split("|") for line in table.splitlines() if line.startswith("|")]
    (row,) = [row for row in rows if row[1].strip() == f"`{name}`"]
    tokens, token_width = row[3].strip(), row[4].strip()
    if name in EXPECTED:
        (t, h, w), values = EXPECTED[name]
        bound = "at most " * (name == "rlt")
        assert tokens == f"{bound}{t * h * w:,} = {t} x {h} x {w}"
        assert token_width == f"{values:,}"
    if name in NEED_ENCODER:
        kind = describe_preset(name)["needs_encoder"]["kind"]
        assert f"`{kind}`" in row[5]


# --- on the command line -----------------------------------------------------------------------


def test_presets_are_listed_with_what_they_reproduce(spacepatch_cli) -> None:
    done = spacepatch_cli("presets")
    assert (done.returncode, done.stderr) == (0, "")
    for name in preset_names():
        about = describe_preset(name)
        assert re.search(
            rf"^{re.escape(name)} +{re.escape(about['reproduces'])}$", done.stdout, re.M
        )
        assert about["source"] in done.stdout
    assert done.stdout.count("needs --encoder") == len(NEED_ENCODER)


def test_presets_as_json_have_their_settings(spacepatch_cli) -> None:
    done = spacepatch_cli("presets", "--json")
    presets = {preset["name"]: preset for preset in json.loads(done.stdout)}
    assert list(presets) == preset_names()
    assert presets["mae"]["settings"] == load_preset("mae")
    assert presets["sora"]["needs_encoder"] == describe_preset("sora")["needs_encoder"]


@pytest.mark.parametrize("name", ["flexivit", "qwen3-vl", "sora", "vtn"])
def test_a_shown_preset_is_a_file_of_settings(spacepatch_cli, tmp_path: Path, name: str) -> None:
    done = spacepatch_cli("presets", "show", name)
    assert (done.returncode, done.stderr) == (0, "")
    assert tomllib.loads(done.stdout) == load_preset(name)
    file = tmp_path / "settings.toml"
    file.write_text(done.stdout)
    needs = needed_by(name)
    assert load_config(needs, file=file) == load_config(needs, preset=name)


def test_an_unknown_preset_is_exit_2_with_the_nearest(spacepatch_cli) -> None:
    done = spacepatch_cli("presets", "show", "videmae")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "no preset 'videmae'; did you mean videomae?" in done.stderr


@pytest.mark.parametrize("arguments", [["presets"], ["presets", "show"]])
def test_help_ends_with_an_example(spacepatch_cli, arguments: list[str]) -> None:
    done = spacepatch_cli(*arguments, "--help")
    assert done.stdout.rstrip().splitlines()[-1].strip().startswith("Example:  spacepatch presets")


@pytest.mark.parametrize(
    ("name", "flags", "grid"),
    [
        ("videomae", {"num_frames": 32}, (16, 14, 14)),
        ("videomae", {"fps": "2"}, (10, 14, 14)),
        ("vivit", {"patch": "2x32x32"}, (16, 7, 7)),
        ("vit", {"max_tokens_per_frame": 256}, (1, 12, 21)),
        ("qwen2-vl", {"num_frames": 8, "sampler": "display"}, (4, 52, 92)),
    ],
)
def test_any_flag_overrides_a_preset(
    clip_720p: Path, name: str, flags: dict[str, Any], grid: tuple[int, int, int]
) -> None:
    (clip,), _ = planned(clip_720p, name, **flags)
    assert clip.grid_thw == grid
