"""`spacepatch preview`: the frames of sources above those of tokens, in one picture."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("threadpoolctl")

from conftest import SpacepatchCli
from fitted_codecs import written
from PIL import Image
from small_runs import run
from stored_segments import pictures_of, scaled_frames, segments_of

from spacepatch.config import load_config
from spacepatch.errors import ConfigError, SpacepatchError
from spacepatch.inspection.decoded import Decoded
from spacepatch.latents import load_encoder
from spacepatch.preview import preview


@pytest.fixture(scope="module")
def clips(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name in ("square_320x320.mp4", "landscape_640x360.mp4"):
        shutil.copy(sample_clips / name, folder)
    return folder


@pytest.fixture(scope="module")
def pixels(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pixels") / "out"
    run([clips], out)
    return out


def draw(folder: Path, out: Path, root: Path | None = None, **more) -> Decoded:
    config = load_config({"encoder": more.pop("encoder", None), "workers": 1})
    return preview(
        folder, out=out, config=config, roots={} if root is None else {0: str(root)}, **more
    )


def places_of(picture: np.ndarray, frame: np.ndarray) -> list[tuple[int, int]]:
    """(top, left) of every place where a picture shows a frame, to the bit."""
    height, width = frame.shape[:2]
    rows = np.lib.stride_tricks.sliding_window_view(picture, (width, 3), axis=(1, 2))[:, :, 0]
    found = np.argwhere((rows == frame[0]).all(axis=(2, 3)))
    return [
        (int(top), int(left))
        for top, left in found
        if np.array_equal(picture[top : top + height, left : left + width], frame)
    ]


def read(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        assert (image.format, image.mode) == ("PNG", "RGB")
        return np.asarray(image)


def test_what_is_stored_lies_below_its_source(pixels: Path, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "preview.png"
    draw(pixels, out, clips, num_segments=2, num_frames=3)
    picture = read(out)
    stored = segments_of(pixels)
    assert len(stored) == 2
    for segment in stored.values():
        frames = pictures_of(segment)[: len(segment.row["frame_pts"])]
        n = len(frames)
        lefts = []
        for k in range(3):
            places = places_of(picture, frames[(2 * k + 1) * n // 6])
            assert len(places) == 2, "source and stored are equal"
            (above, left), (below, other) = places
            assert left == other
            assert below - above >= frames.shape[1]
            lefts.append(left)
        assert lefts == sorted(lefts)
    assert [path.name for path in tmp_path.iterdir()] == ["preview.png"]


def test_the_same_dataset_gives_the_same_picture(pixels: Path, clips: Path, tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        draw(pixels, tmp_path / name, clips, num_segments=1)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_latents_are_shown_decoded_below_the_true_frames(clips: Path, tmp_path: Path) -> None:
    codec = written(tmp_path)
    run([clips], tmp_path / "out", encoder=f"linear:{codec}", latent_dtype="float32")
    out = tmp_path / "preview.png"
    found = draw(
        tmp_path / "out",
        out,
        clips,
        encoder=f"linear:{codec}",
        num_segments=2,
        num_frames=1,
    )
    picture = read(out)
    encoder = load_encoder(f"linear:{codec}")
    for segment in found.segments:
        row = segments_of(tmp_path / "out")[segment.source, segment.clip, segment.view].row
        middle = len(row["frame_pts"]) // 2
        true = scaled_frames(clips / segment.source, row)
        padding = np.repeat(true[-1:], row["padded_frames"], axis=0)
        decoded = encoder.decode(encoder.encode(np.concatenate([true, padding])))
        assert decoded is not None
        ((above, left),) = places_of(picture, true[middle])
        ((below, other),) = places_of(picture, decoded[middle])
        assert left == other
        assert above + true.shape[1] <= below
        assert segment.psnr is not None


def test_without_sources_what_is_stored_is_shown_alone(
    pixels: Path, clips: Path, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    for name, root in (("none", None), ("gone", empty)):
        out = tmp_path / f"{name}.png"
        found = draw(pixels, out, root, num_segments=2, num_frames=1)
        picture = read(out)
        for segment in segments_of(pixels).values():
            frames = pictures_of(segment)
            middle = len(segment.row["frame_pts"]) // 2
            assert len(places_of(picture, frames[middle])) == 1
        said = [problem.what for problem in found.problems]
        assert len(said) == (0 if root is None else 2)
        assert all("its source is not in" in what for what in said)


def test_dropped_tokens_are_grey(clips: Path, tmp_path: Path) -> None:
    run([clips / "square_320x320.mp4"], tmp_path / "out", drop="random:0.5")
    out = tmp_path / "preview.png"
    draw(tmp_path / "out", out, num_segments=1, num_frames=1)
    (stored,) = segments_of(tmp_path / "out").values()
    t, h, w = stored.grid
    tubelet, (p, q) = stored.row["tubelet_size"], stored.row["patch_size"]
    frames = np.full((t, tubelet, h, p, w, q, 3), 128, np.uint8)
    for token, (row, i, j) in zip(stored.tokens, stored.positions, strict=True):
        frames[row, :, i, :, j] = token.reshape(3, tubelet, p, q).transpose(1, 2, 3, 0)
    frames = frames.reshape(t * tubelet, h * p, w * q, 3)
    middle = len(stored.row["frame_pts"]) // 2
    assert len(places_of(read(out), frames[middle])) == 1


def test_large_frames_are_shown_smaller(clips: Path, tmp_path: Path) -> None:
    run(
        [clips / "landscape_640x360.mp4"],
        tmp_path / "out",
        short_side=360,
        max_tokens_per_frame=None,
        pack_length=8192,
    )
    out = tmp_path / "preview.png"
    draw(tmp_path / "out", out, num_segments=1, num_frames=2)
    (stored,) = segments_of(tmp_path / "out").values()
    frames = pictures_of(stored)
    half = np.asarray(Image.fromarray(frames[len(stored.row["frame_pts"]) // 4]).reduce(2))
    assert len(places_of(read(out), half)) == 1


def test_a_file_is_not_overwritten_unasked(pixels: Path, clips: Path, tmp_path: Path) -> None:
    out = tmp_path / "mine.png"
    out.write_text("mine")
    with pytest.raises(ConfigError, match=r"mine\.png: is there already.*--overwrite"):
        draw(pixels, out, clips)
    assert out.read_text() == "mine"
    draw(pixels, out, num_segments=1, num_frames=1, overwrite=True)
    assert read(out).size


@pytest.mark.parametrize(
    ("name", "more", "message"),
    [
        ("a.jpg", {}, "not the name of a PNG"),
        ("nowhere/a.png", {}, "there is no folder"),
        ("a.png", {"num_segments": 100, "num_frames": 100}, "too many for one picture"),
        ("a.png", {"encoder": "linear:x"}, "these are pixels"),
    ],
)
def test_what_cannot_be_drawn_is_wrong_usage(
    pixels: Path, tmp_path: Path, name: str, more: dict, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        draw(pixels, tmp_path / name, **more)
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_decode_is_said(clips: Path, tmp_path: Path) -> None:
    codec = written(tmp_path)
    encoder = f"linear:{codec}"
    run([clips], tmp_path / "out", encoder=encoder, drop="random:0.5")
    with pytest.raises(SpacepatchError, match="nothing to show: tokens were dropped"):
        draw(tmp_path / "out", tmp_path / "a.png", encoder=encoder)
    assert not (tmp_path / "a.png").exists()


def test_the_command_draws_and_notes(
    spacepatch_cli: SpacepatchCli, pixels: Path, clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.png"
    options = ["--segments", "1", "--frames", "1"]
    done = spacepatch_cli("preview", pixels, "--out", out, *options)
    assert (done.returncode, done.stdout) == (0, f"{out}: 1 segments\n")
    assert "no --source-root" in done.stderr
    alone = read(out)
    done = spacepatch_cli("preview", pixels, "--out", out, "--source-root", clips, *options)
    assert done.returncode == 2
    assert "--overwrite" in done.stderr
    options += ["--overwrite", "--source-root", str(clips)]
    done = spacepatch_cli("preview", pixels, "--out", out, *options)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(read(out)) > len(alone)
    done = spacepatch_cli("preview", "--help")
    assert "Example:  spacepatch preview" in done.stdout.rstrip().splitlines()[-1]
