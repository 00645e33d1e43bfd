"""`spacepatch preview`: the frames of sources above those of tokens, in one picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("safetensors")
pytest.importorskip("threadpoolctl")

from conftest import SpacepatchCli
from fitted_codecs import written
from loaded_packs import read_plainly
from PIL import Image
from small_runs import copied, run
from stored_segments import Stored, pictures_of, scaled_frames, segments_of

from spacepatch.config import load_config
from spacepatch.errors import ConfigError
from spacepatch.inspection.decoded import Decoded
from spacepatch.latents import load_encoder
from spacepatch.preview import preview

CLIPS = ("square_320x320.mp4", "landscape_640x360.mp4")


@pytest.fixture(scope="module")
def clips(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(sample_clips, tmp_path_factory.mktemp("clips"), CLIPS)


@pytest.fixture(scope="module")
def pixels(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pixels") / "out"
    run([clips], out)
    return out


def draw(folder: Path, out: Path, root: Path | None = None, **more) -> Decoded:
    config = load_config({"encoder": more.pop("encoder", None), "workers": 1})
    more.setdefault("grid", False)
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


def enlarged(frame: np.ndarray) -> np.ndarray:
    """As frames below 128 pixels are shown."""
    factor = max(1, 128 // max(frame.shape[:2]))
    return frame.repeat(factor, 0).repeat(factor, 1)


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
        ((above, left),) = places_of(picture, enlarged(true[middle]))
        ((below, other),) = places_of(picture, enlarged(decoded[middle]))
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


def picture_of(stored: Stored) -> np.ndarray:
    """(T, H, W, 3): the frames of a segment, with -1 where no token is."""
    t, h, w = stored.grid
    tubelet, (p, q) = stored.row["tubelet_size"], stored.row["patch_size"]
    frames = np.full((t, tubelet, h, p, w, q, 3), -1)
    for token, (row, i, j) in zip(stored.tokens, stored.positions, strict=True):
        frames[row, :, i, :, j] = token.reshape(3, tubelet, p, q).transpose(1, 2, 3, 0)
    return frames.reshape(t * tubelet, h * p, w * q, 3)


def checkered(frame: np.ndarray) -> np.ndarray:
    """Squares of 4 pixels where it is -1."""
    down, across = np.indices(frame.shape[:2]) // 4
    squares = np.where((down + across) % 2, 216, 176)[..., None]
    return np.where(frame < 0, squares, frame).astype(np.uint8)


def test_dropped_tokens_are_checkered(clips: Path, tmp_path: Path) -> None:
    run([clips / "square_320x320.mp4"], tmp_path / "out", drop="random:0.5")
    out = tmp_path / "preview.png"
    draw(tmp_path / "out", out, num_segments=1, num_frames=1)
    (stored,) = segments_of(tmp_path / "out").values()
    middle = len(stored.row["frame_pts"]) // 2
    assert len(places_of(read(out), checkered(picture_of(stored)[middle]))) == 1


def test_the_grid_is_drawn_where_tokens_meet(clips: Path, tmp_path: Path) -> None:
    run([clips / "square_320x320.mp4"], tmp_path / "out", patch="1x32x16", multiple=1)
    (stored,) = segments_of(tmp_path / "out").values()
    for name, grid in (("with.png", True), ("without.png", False)):
        draw(tmp_path / "out", tmp_path / name, num_segments=1, num_frames=1, grid=grid)
    middle = pictures_of(stored)[len(stored.row["frame_pts"]) // 2]
    height, width = middle.shape[:2]
    ((top, left),) = places_of(read(tmp_path / "without.png"), middle)
    shown = read(tmp_path / "with.png")[top : top + height, left : left + width]
    lines = np.zeros((height, width), bool)
    lines[32::32] = True
    lines[:, 16::16] = True
    np.testing.assert_array_equal(shown[~lines], middle[~lines])
    before = middle[lines].mean(axis=1)
    after = shown[lines].mean(axis=1)
    assert ((after > before) == (before < 128)).all()
    assert np.abs(after - before).min() > 20


def test_masked_tokens_are_dark(clips: Path, tmp_path: Path) -> None:
    run([clips / "square_320x320.mp4"], tmp_path / "out", mask="random:0.5", store_mask=True)
    draw(tmp_path / "out", tmp_path / "a.png", num_segments=1, num_frames=1)
    (stored,) = segments_of(tmp_path / "out").values()
    (pack,) = read_plainly(tmp_path / "out")
    middle = len(stored.row["frame_pts"]) // 2
    t, h, w = stored.grid
    p, q = stored.row["patch_size"]
    visible = np.zeros((t, h, w), bool)
    visible[tuple(stored.positions.T.astype(int))] = pack["visible"] != 0
    cells = visible[middle // stored.row["tubelet_size"]].repeat(p, 0).repeat(q, 1)[..., None]
    frame = pictures_of(stored)[middle]
    expected = np.where(cells, frame, (frame * 0.35).astype(np.uint8))
    assert 0 < visible.sum() < visible.size
    assert len(places_of(read(tmp_path / "a.png"), expected)) == 1


def test_small_frames_are_shown_larger(clips: Path, tmp_path: Path) -> None:
    run([clips / "square_320x320.mp4"], tmp_path / "out", max_tokens_per_frame=9)
    draw(tmp_path / "out", tmp_path / "a.png", num_segments=1, num_frames=1)
    (stored,) = segments_of(tmp_path / "out").values()
    frame = pictures_of(stored)[len(stored.row["frame_pts"]) // 2]
    assert frame.shape[:2] == (48, 48)
    large = frame.repeat(2, 0).repeat(2, 1)
    assert len(places_of(read(tmp_path / "a.png"), large)) == 1


def test_latents_with_gaps_are_decoded_around_them(clips: Path, tmp_path: Path) -> None:
    codec = f"linear:{written(tmp_path)}"
    clip = clips / "square_320x320.mp4"
    for name, drop in (("out", "random:0.3"), ("whole", None)):
        run([clip], tmp_path / name, encoder=codec, drop=drop, latent_dtype="float32")
    draw(tmp_path / "out", tmp_path / "a.png", encoder=codec, num_segments=1, num_frames=1)
    found = draw(
        tmp_path / "whole", tmp_path / "b.png", encoder=codec, num_segments=1, num_frames=1
    )
    (whole,) = found.segments
    assert whole.found.decoded_frames is not None
    (stored,) = segments_of(tmp_path / "out").values()
    t = next(t for t in range(stored.grid[0]) if whole.row_starts[t + 1] > whole.found.shown[0])
    cells = stored.keep.reshape(stored.grid)[t]
    there = cells.repeat(whole.patch[0], 0).repeat(whole.patch[1], 1)[..., None]
    # This codec decodes each block by itself.
    frame = np.where(there, whole.found.decoded_frames[0].astype(int), -1)
    expected = checkered(enlarged(frame))
    assert len(places_of(read(tmp_path / "a.png"), expected)) == 1


def test_pixels_beside_latents_are_shown_without_the_encoder(clips: Path, tmp_path: Path) -> None:
    codec = f"linear:{written(tmp_path)}"
    clip = clips / "square_320x320.mp4"
    run([clip], tmp_path / "out", encoder=codec, also="pixels")
    found = draw(tmp_path / "out", tmp_path / "a.png", clips, num_segments=1, num_frames=1)
    assert any("latents are not decoded, only pixels are shown" in note for note in found.notes)
    (segment,) = found.segments
    (true,) = scaled_frames(clip, segment.row)[list(segment.found.shown)]
    true = enlarged(true)
    assert len(places_of(read(tmp_path / "a.png"), true)) == 2, "source, and stored"
    draw(tmp_path / "out", tmp_path / "b.png", encoder=codec, num_segments=1, num_frames=1)
    assert len(places_of(read(tmp_path / "b.png"), true)) == 1, "above what is decoded"


def test_a_named_segment_is_shown_whole_in_lines_of_rows(clips: Path, tmp_path: Path) -> None:
    clip = clips / "square_320x320.mp4"
    run([clip], tmp_path / "out", patch="2x16x16", fps="8", pack_length=2048)
    stored = max(
        segments_of(tmp_path / "out").values(), key=lambda stored: len(stored.row["frame_pts"])
    )
    out = tmp_path / "a.png"
    draw(tmp_path / "out", out, segment=stored.row["segment_id"][:12])
    picture = read(out)
    num_frames = len(stored.row["frame_pts"])
    places = [
        place for frame in pictures_of(stored)[:num_frames] for place in places_of(picture, frame)
    ]
    assert len(places) == num_frames > 6
    assert places == sorted(places), "from left to right, line by line"
    tops = [top for top, _ in places]
    assert len(set(tops)) > 1
    assert all(tops.count(top) % 2 == 0 for top in tops if top < tops[-1]), "no row is divided"
    assert picture.shape[1] < 2000


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
        ("a.jpg", {}, r"let it end in \.png, \.mp4, \.gif"),
        ("a.mp4", {"num_frames": 3}, "--frames is for .png: a.mp4 has all frames"),
        ("a.png", {"pack": "7"}, r"has no pack 7: there are 1, numbers 0 to 0, or by key, such as"),
        ("a.png", {"segment": "x"}, r"has no segment x: there are 2, such as [0-9a-f]{32}"),
        ("a.png", {"segment": "x", "pack": "0"}, "give one of them"),
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


def test_the_command_draws_and_notes(
    spacepatch_cli: SpacepatchCli, pixels: Path, clips: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.png"
    options = ["--segments", "1", "--frames", "1", "--no-grid"]
    done = spacepatch_cli("preview", pixels, "--out", out, *options)
    assert (done.returncode, done.stdout) == (0, f"{out}: 1 frame of 1 segment\n")
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
