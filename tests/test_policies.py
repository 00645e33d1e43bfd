"""What the settings of decoding do to a run: recorded in the tables, counted where it costs."""

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest

from spacepatch.loader import PackDataset
from spacepatch.tubelets import join_tubelets

Cli = Callable[..., subprocess.CompletedProcess[str]]
SHAPE = ("--every-frame", "--native", "--patch", "1x8x8")


def make(ffmpeg: str, path: Path, *more: str, source: str = "testsrc2") -> Path:
    """Eight frames of 64 x 48."""
    lavfi = f"{source}=size=64x48:rate=8,trim=end_frame=8"
    command = [ffmpeg, "-v", "error", "-y", "-f", "lavfi", "-i", lavfi, *more, str(path)]
    subprocess.run(command, check=True)
    return path


def tokenize(
    cli: Cli, path: Path, out: Path, *more: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The row of the only source, and the losses; the dataset verifies."""
    cli("tokenize", path, "--out", out, *SHAPE, *more)
    checked = cli("verify", out)
    assert checked.returncode == 0, checked.stdout
    (source,) = parquet.read_table(out / "sources.parquet").to_pylist()
    return source, parquet.read_table(out / "losses.parquet").to_pylist()


def frames(out: Path) -> np.ndarray:
    """(T, 48, 64, C): the only segment, turned back."""
    (pack,) = PackDataset(out, padded=False)
    return join_tubelets(
        pack["tokens"].numpy(), grid_thw=(8, 6, 8), tubelet_size=1, patch_size=(8, 8)
    )


HLG = ["-c:v", "libx264", "-pix_fmt", "yuv420p10le", "-color_trc", "arib-std-b67",
       "-colorspace", "bt2020nc", "-color_primaries", "bt2020"]  # fmt: skip
TFF = ["-vf", "tinterlace=interleave_top,setfield=tff", "-c:v", "mpeg2video", "-flags",
       "+ildct+ilme", "-top", "1"]  # fmt: skip


def test_hdr_is_tone_mapped_left_raw_or_skipped(
    tmp_path: Path, ffmpeg: str, spacepatch_cli: Cli
) -> None:
    path = make(ffmpeg, tmp_path / "hlg.mp4", *HLG)
    pictures = {}
    for policy, word in (("tonemap", "hlg, tone mapped to BT.709"), ("raw", "hlg, raw")):
        source, losses = tokenize(spacepatch_cli, path, tmp_path / policy, "--hdr", policy)
        assert (source["hdr"], losses) == (word, [])
        pictures[policy] = frames(tmp_path / policy).astype(int)
    # Tone mapping is a curve: it moves the colours, and leaves black and the places of edges.
    assert np.abs(pictures["tonemap"] - pictures["raw"]).max() > 20
    source, (loss,) = tokenize(spacepatch_cli, path, tmp_path / "skip", "--hdr", "skip")
    assert (loss["reason"], loss["num_frames"]) == ("skipped_by_policy", 8)
    assert (source["frames_selected"], source["frames_lost"]) == (8, 8)
    plain = make(ffmpeg, tmp_path / "plain.mp4", "-pix_fmt", "yuv420p")
    source, losses = tokenize(spacepatch_cli, plain, tmp_path / "plain", "--hdr", "skip")
    assert (source["hdr"], source["frames_written"], losses) == ("", 8, [])


def test_interlaced_video_is_deinterlaced_kept_or_skipped(
    tmp_path: Path, ffmpeg: str, spacepatch_cli: Cli
) -> None:
    # Upright bars that run sideways: rows differ only where two fields are woven together.
    bars = "geq=lum='16+219*mod(floor((X+5*N)/8),2)':cb=128:cr=128"
    lavfi = f"color=size=64x48:rate=16,{bars},trim=end_frame=16"
    path = tmp_path / "tff.ts"
    subprocess.run([ffmpeg, "-v", "error", "-f", "lavfi", "-i", lavfi, *TFF, path], check=True)
    found = {}
    for policy in ("deinterlace", "keep"):
        out = tmp_path / policy
        source, losses = tokenize(spacepatch_cli, path, out, "--interlaced", policy)
        word = {"deinterlace": "deinterlaced", "keep": "kept"}[policy]
        assert (source["interlaced"], losses) == (f"tff, {word}", [])
        found[policy] = frames(out).astype(int)
    # Combing is what neighbouring rows differ by more than rows of one field do.
    combing = {policy: np.abs(np.diff(clip, axis=1)).mean() for policy, clip in found.items()}
    assert combing["deinterlace"] < 0.3 * combing["keep"]
    _, (loss,) = tokenize(spacepatch_cli, path, tmp_path / "skip", "--interlaced", "skip")
    assert (loss["reason"], loss["num_frames"]) == ("skipped_by_policy", 8)


def test_alpha_is_composited_on_the_background_or_kept(
    tmp_path: Path, ffmpeg: str, spacepatch_cli: Cli
) -> None:
    # Left half transparent, right half red and opaque.
    alpha = "format=rgba,geq=r=255:g=0:b=0:a='if(lt(X,32),0,255)'"
    path = make(ffmpeg, tmp_path / "a.mkv", "-vf", alpha, "-c:v", "ffv1", "-pix_fmt", "bgra")
    for colour, expected in (("000000", (0, 0, 0)), ("00ff80", (0, 255, 128))):
        out = tmp_path / colour
        source, _ = tokenize(spacepatch_cli, path, out, "--background", colour)
        assert source["alpha"] == f"composited on {colour}"
        assert (frames(out)[:, :, :31] == expected).all()
        assert (frames(out)[:, :, 33:] == (255, 0, 0)).all()
    source, _ = tokenize(spacepatch_cli, path, tmp_path / "kept", "--alpha")
    kept = frames(tmp_path / "kept")
    assert (source["alpha"], kept.shape) == ("kept", (8, 48, 64, 4))
    assert (kept[:, :, :31, 3] == 0).all()
    assert (kept[:, :, 33:] == (255, 0, 0, 255)).all()


def test_vp9_with_alpha_beside_the_picture_is_transparent(
    tmp_path: Path, ffmpeg: str, spacepatch_cli: Cli
) -> None:
    alpha = "format=yuva420p,geq=lum=235:cb=128:cr=128:a='if(lt(X,32),0,255)'"
    path = make(
        ffmpeg, tmp_path / "a.webm", "-vf", alpha, "-c:v", "libvpx-vp9", "-pix_fmt", "yuva420p",
        "-lossless", "1", "-auto-alt-ref", "0",
    )  # fmt: skip
    source, losses = tokenize(spacepatch_cli, path, tmp_path / "out")
    assert (source["alpha"], losses) == ("composited on 000000", [])
    clip = frames(tmp_path / "out")
    assert (clip[:, :, :31] == 0).all()
    assert (clip[:, :, 33:] >= 254).all()


def test_a_file_without_a_matrix_is_read_by_the_rule_that_was_asked_for(
    tmp_path: Path, ffmpeg: str, spacepatch_cli: Cli
) -> None:
    path = make(
        ffmpeg, tmp_path / "a.mkv", "-c:v", "ffv1", "-pix_fmt", "yuv444p", source="rgbtestsrc"
    )
    colours = {}
    for rule, matrix in (("bt601", "smpte170m"), ("bt709", "bt709"), ("auto", "smpte170m")):
        source, _ = tokenize(spacepatch_cli, path, tmp_path / rule, "--untagged", rule)
        assert (source["colour_matrix"], source["colour_tagged"]) == (matrix, "assumed")
        colours[rule] = frames(tmp_path / rule).astype(int)
    # 48 lines: auto takes it for standard definition.
    assert (colours["auto"] == colours["bt601"]).all()
    assert np.abs(colours["bt709"] - colours["bt601"]).max() > 10


@pytest.mark.parametrize("pixels", [64 * 48, 64 * 48 - 1])
def test_pictures_above_max_pixels_are_refused_with_the_way_out(
    tmp_path: Path, ffmpeg: str, spacepatch_cli: Cli, pixels: int
) -> None:
    path = make(ffmpeg, tmp_path / "a.mp4", "-pix_fmt", "yuv420p")
    _, losses = tokenize(spacepatch_cli, path, tmp_path / "out", "--max-pixels", str(pixels))
    if pixels == 64 * 48:
        assert losses == []
        return
    (loss,) = losses
    assert loss["reason"] == "too_large"
    assert loss["message"] == "pictures of 64 x 48 pixels; --max-pixels allows 3071"


@pytest.mark.parametrize("decoder", ["decord", "torchcodec"])
def test_the_decoder_that_read_a_clip_is_recorded_and_so_is_why_not(
    tmp_path: Path, ffmpeg: str, spacepatch_cli: Cli, decoder: str
) -> None:
    try:
        __import__(decoder)
    except (ImportError, OSError, RuntimeError) as error:
        pytest.skip(f"{decoder} does not load here: {error}")
    videos = tmp_path / "videos"
    videos.mkdir()
    make(ffmpeg, videos / "plain.mp4", "-pix_fmt", "yuv420p")
    make(ffmpeg, videos / "ten_bit.mp4", *HLG)
    out = tmp_path / "out"
    done = spacepatch_cli("tokenize", videos, "--out", out, *SHAPE, "--decoder", decoder)
    assert done.returncode == 0, done.stderr
    assert spacepatch_cli("verify", out).returncode == 0
    read_by = {
        row["source"]: row["decoder"]
        for row in parquet.read_table(out / "segments.parquet").to_pylist()
    }
    assert read_by == {"plain.mp4": decoder, "ten_bit.mp4": "pyav"}
    rows = {row["source"]: row for row in parquet.read_table(out / "sources.parquet").to_pylist()}
    assert rows["plain.mp4"]["declined"] == ""
    assert rows["ten_bit.mp4"]["declined"].startswith(f"{decoder}: ")
    colour = [rows["plain.mp4"][f"colour_{key}"] for key in ("matrix", "range", "tagged")]
    assert colour == ["smpte170m", "tv", "assumed"]
