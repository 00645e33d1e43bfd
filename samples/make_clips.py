"""Make the sample clips: small synthetic videos, each showing something that real collections hold.

    python samples/make_clips.py [FOLDER]

The pictures are integer arithmetic (floating-point sines differ between CPUs) and every encoder
runs in one thread, so the same PyAV version writes the same bytes on every run.
"""

import argparse
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

WHITE = 1020
"""Pictures are drawn in ten bits, 255 * 4 being white, so that one drawing serves both depths."""

X264 = {
    "crf": "24",
    "preset": "faster",
    # With assembly, x264's macroblock tree differs from run to run, even in one thread.
    "x264-params": "threads=1:no-asm=1:mbtree=0",
}
X265 = {
    "crf": "28",
    # info=0: the stream would otherwise name the CPU that it was made on.
    "x265-params": "info=0:log-level=error:pools=none:frame-threads=1:wpp=0",
}
VP9 = {"crf": "36", "b": "0", "cpu-used": "2", "threads": "1", "row-mt": "0"}


class Matrix(NamedTuple):
    """A YUV matrix, by the weights of red and blue in luma and by its number in the file."""

    red: float
    blue: float
    number: int


BT709 = Matrix(red=0.2126, blue=0.0722, number=1)
BT601 = Matrix(red=0.299, blue=0.114, number=5)


@dataclass(frozen=True, kw_only=True)
class Clip:
    """What one sample is and how it is encoded."""

    name: str
    size: tuple[int, int]
    """Coded (h, w) in pixels: before rotation and pixel aspect ratio."""
    time_base: Fraction
    """Seconds a tick of `pts`."""
    pts: Sequence[int]
    """When each frame is shown, in ticks: the motion follows these, not the frame's number."""
    codec: str = "libx264"
    codec_options: dict[str, str] = field(default_factory=lambda: X264)
    pixel_format: str = "yuv420p"
    pixel_aspect_ratio: Fraction = Fraction(1)
    """Width of a pixel / its height."""
    degrees_clockwise: int = 0
    """How far a player must turn the coded picture; a multiple of 90."""
    matrix: Matrix = BT709
    tint: int = 0
    """Rotates the colours, so that no two clips look alike."""


def screen_recorder_pts() -> list[int]:
    """Return uneven times in 1/600 s: 30 fps, a pause, 15 fps, a pause, 60 fps (3.3 s in all)."""
    steps = [20] * 30 + [300] + [40] * 15 + [180] + [10] * 30
    return list(accumulate(steps, initial=0))


CLIPS = (
    Clip(name="landscape_640x360.mp4", size=(360, 640), time_base=Fraction(1, 30), pts=range(120)),
    Clip(
        name="portrait_270x480.mp4",
        size=(480, 270),
        time_base=Fraction(1, 25),
        pts=range(75),
        tint=1,
    ),
    Clip(
        name="square_320x320.mp4",
        size=(320, 320),
        time_base=Fraction(1001, 24000),
        pts=range(72),
        tint=2,
    ),
    Clip(
        name="ultrawide_960x270.mp4",
        size=(270, 960),
        time_base=Fraction(1, 24),
        pts=range(72),
        tint=3,
    ),
    Clip(
        name="odd_size_321x179_vp9.webm",
        size=(179, 321),
        time_base=Fraction(1, 25),
        pts=range(75),
        codec="libvpx-vp9",
        codec_options=VP9,
        tint=4,
    ),
    Clip(
        name="variable_frame_rate_480x270.mp4",
        size=(270, 480),
        time_base=Fraction(1, 600),
        pts=screen_recorder_pts(),
        tint=5,
    ),
    Clip(
        name="rotated_90_phone.mp4",
        size=(270, 480),
        time_base=Fraction(1, 30),
        pts=range(90),
        degrees_clockwise=90,
        tint=1,
    ),
    Clip(
        name="anamorphic_352x288_sar_16x11.mp4",
        size=(288, 352),
        time_base=Fraction(1, 25),
        pts=range(75),
        pixel_aspect_ratio=Fraction(16, 11),
        matrix=BT601,
        tint=2,
    ),
    Clip(
        name="ten_bit_432x240_hevc.mp4",
        size=(240, 432),
        time_base=Fraction(1, 24),
        pts=range(60),
        codec="libx265",
        codec_options=X265,
        pixel_format="yuv420p10le",
        tint=3,
    ),
)
PICTURE_NAME, PICTURE_SIZE = "still_picture_400x300.png", (300, 400)
BROKEN_NAME, BROKEN_BYTES = "broken_on_purpose.mp4", 16_000

SKIES = ("blue", "red", "green", "yellow", "cyan", "magenta")
"""The colour of the sky by `Clip.tint`: what a model can learn to tell, the label."""
SUNS = ("far left", "left", "right", "far right")
"""Where the sun is by the second of the video: it crosses the picture in five."""


def draw_scene(
    *,
    size: tuple[int, int],
    pixel_aspect_ratio: Fraction,
    seconds: Fraction,
    number: int,
    tint: int,
) -> np.ndarray:
    """Draw a sun over scrolling ground, a bouncing box and a frame counter.

    Args:
        size: (h, w) in pixels of the upright picture, before pixel aspect ratio.
        seconds: when the picture is shown: everything but the counter follows it.
        number: the frame's number, burned in as 8 binary blocks, highest bit first.

    Returns:
        ``(H, W, 3)`` int32 RGB, 0 to `WHITE`.
    """
    height, num_columns = size
    width = int(num_columns * pixel_aspect_ratio)  # in square pixels: the sun stays round
    y = np.arange(height, dtype=np.int32)[:, None]
    x = (2 * np.arange(num_columns, dtype=np.int32)[None, :] + 1) * width // (2 * num_columns)
    unit = min(height, width)

    picture = np.empty((height, num_columns, 3), np.int32)
    picture[..., 0] = 160 + 400 * x // width
    picture[..., 1] = 240 + 400 * y // height
    picture[..., 2] = 880 - 320 * x // width

    scrolled = int(seconds * unit / 2)
    stripes = ((x + scrolled) // (unit // 6)) % 2 == 0
    ground = y >= height - height // 4
    picture[ground & stripes] = (240, 520, 160)
    picture[ground & ~stripes] = (120, 360, 120)

    sun_x, sun_y = int(width * (1 + seconds) / 6), height // 3
    picture[(x - sun_x) ** 2 + (y - sun_y) ** 2 < (unit // 7) ** 2] = (WHITE, 880, 240)

    side = unit // 5
    bounce = abs(int(seconds * 1000) % 1000 - 500)  # 500 .. 0 .. 500 within each second
    box_y, box_x = height - side - bounce * unit // 1000, width * 3 // 4 - side // 2
    picture[(y >= box_y) & (y < box_y + side) & (x >= box_x) & (x < box_x + side)] = (880, 160, 160)

    picture = np.roll(picture, tint % 3, axis=2)
    if tint >= 3:
        picture = WHITE - picture

    block = unit // 18
    for bit in range(8):
        cell = (y >= block) & (y < 2 * block) & (x >= (bit + 1) * block) & (x < (bit + 2) * block)
        picture[cell] = WHITE if number >> (7 - bit) & 1 else 0
    return picture


def convert_to_yuv(picture: np.ndarray, *, matrix: Matrix, bit_depth: int) -> list[np.ndarray]:
    """Convert RGB to limited-range 4:2:0 planes in 16-bit fixed point.

    Args:
        picture: ``(H, W, 3)`` int32 RGB, 0 to `WHITE`; H and W may be odd.

    Returns:
        Y ``(H, W)``, Cb and Cr ``(ceil(H / 2), ceil(W / 2))``, int32, `bit_depth` bits.
    """
    weights = np.array([matrix.red, 1 - matrix.red - matrix.blue, matrix.blue])
    luma = weights * 876 / WHITE
    blue = (np.array([0, 0, 1]) - weights) / (1 - matrix.blue) * 448 / WHITE
    red = (np.array([1, 0, 0]) - weights) / (1 - matrix.red) * 448 / WHITE
    rows = np.rint(np.stack([luma, blue, red]) * 65536).astype(np.int32)

    shift = 10 - bit_depth
    planes = []
    for row, offset in zip(rows, (64, 512, 512), strict=True):
        plane = row[0] * picture[..., 0] + row[1] * picture[..., 1] + row[2] * picture[..., 2]
        planes.append(offset + ((plane + 32768) >> 16))
    for index in (1, 2):
        height, width = planes[index].shape
        even = np.pad(planes[index], ((0, height % 2), (0, width % 2)), mode="edge")
        quad = even[0::2, 0::2] + even[0::2, 1::2] + even[1::2, 0::2] + even[1::2, 1::2]
        planes[index] = (quad + 2) >> 2
    return [(plane + (1 << shift >> 1)) >> shift for plane in planes]


def make_video_frame(planes: Sequence[np.ndarray], *, pixel_format: str) -> av.VideoFrame:
    """Copy planes into a frame, row by padded row (`from_ndarray` takes no odd sizes)."""
    height, width = planes[0].shape
    frame = av.VideoFrame(width, height, pixel_format)
    dtype = np.dtype("<u2") if pixel_format.endswith("10le") else np.dtype("u1")
    for plane, values in zip(frame.planes, planes, strict=True):
        padded = np.zeros((plane.height, plane.line_size // dtype.itemsize), dtype)
        padded[:, : values.shape[1]] = values
        plane.update(padded.tobytes())
    return frame


def encode_clip(clip: Clip) -> bytes:
    """Encode one clip; returns the bytes of the file."""
    file = io.BytesIO()
    container_format = Path(clip.name).suffix.removeprefix(".")
    # bitexact: no random ids and no muxer version in the file.
    options = {"fflags": "+bitexact"}
    with av.open(file, "w", format=container_format, options=options) as container:
        stream = container.add_stream(
            clip.codec, rate=round(1 / clip.time_base), options=dict(clip.codec_options)
        )
        context = stream.codec_context
        context.height, context.width = clip.size
        context.pix_fmt = clip.pixel_format
        context.time_base = clip.time_base
        context.framerate = 1 / clip.time_base
        context.sample_aspect_ratio = clip.pixel_aspect_ratio
        context.color_range = 1
        context.colorspace = context.color_primaries = context.color_trc = clip.matrix.number
        if clip.degrees_clockwise:
            stream.set_display_rotation(-clip.degrees_clockwise)
        for number, pts in enumerate(clip.pts):
            sideways = clip.degrees_clockwise % 180 != 0
            picture = draw_scene(
                size=clip.size[::-1] if sideways else clip.size,
                pixel_aspect_ratio=clip.pixel_aspect_ratio,
                seconds=pts * clip.time_base,
                number=number,
                tint=clip.tint,
            )
            # np.rot90 turns anticlockwise; the player turns the picture back.
            picture = np.rot90(picture, clip.degrees_clockwise // 90)
            bit_depth = 10 if clip.pixel_format.endswith("10le") else 8
            planes = convert_to_yuv(picture, matrix=clip.matrix, bit_depth=bit_depth)
            frame = make_video_frame(planes, pixel_format=clip.pixel_format)
            frame.pts, frame.time_base = pts, clip.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return file.getvalue()


def encode_picture() -> bytes:
    """Encode the still picture as PNG; returns the bytes of the file."""
    picture = draw_scene(
        size=PICTURE_SIZE, pixel_aspect_ratio=Fraction(1), seconds=Fraction(2), number=0, tint=0
    )
    context = av.CodecContext.create("png", "w")
    context.height, context.width = PICTURE_SIZE
    context.pix_fmt = "rgb24"
    context.time_base = Fraction(1)
    frame = av.VideoFrame.from_ndarray((picture // 4).astype(np.uint8), format="rgb24")
    frame.pts = 0
    packets = [*context.encode(frame), *context.encode(None)]
    return b"".join(bytes(packet) for packet in packets)


def upright_size(clip: Clip) -> tuple[int, int]:
    """(h, w) as it is shown, in square pixels."""
    height, width = clip.size[0], int(clip.size[1] * clip.pixel_aspect_ratio)
    return (width, height) if clip.degrees_clockwise % 180 else (height, width)


def manifest_rows() -> list[dict[str, str]]:
    """What is seen in each whole second of each sample, and in the still picture.

    Returns:
        uri below the folder, start and end in seconds, and columns that travel to the segments:
        label (the sky's colour), sun (where it is) and caption (both, and the picture's shape).
    """
    rows = []
    for clip in CLIPS:
        for second in range(int((clip.pts[-1] + 1) * clip.time_base)):
            row = {"uri": clip.name, "start": str(second), "end": str(second + 1)}
            rows.append(row | described(clip.tint, SUNS[second], upright_size(clip)))
    picture = {"uri": PICTURE_NAME, "start": "", "end": ""}
    rows.append(picture | described(0, "right", PICTURE_SIZE))
    return rows


def described(tint: int, sun: str, size: tuple[int, int]) -> dict[str, str]:
    """The columns of one row that a model may learn."""
    height, width = size
    shape = "square" if height == width else "tall" if height > width else "wide"
    caption = f"a {shape} picture of a {SKIES[tint]} sky with the sun {sun}"
    return {"label": SKIES[tint], "sun": sun, "caption": caption}


def make_manifest(folder: Path) -> Path:
    """Write manifest.csv beside `folder`, which holds the samples; returns its path."""
    path = folder.parent / "manifest.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [row | {"uri": f"{folder.name}/{row['uri']}"} for row in manifest_rows()]
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def make_clips(folder: Path) -> list[Path]:
    """Write all samples into `folder`; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    contents = {clip.name: encode_clip(clip) for clip in CLIPS}
    contents[PICTURE_NAME] = encode_picture()
    # An mp4's index is written last: a file cut short, as by a broken download, has none.
    contents[BROKEN_NAME] = contents[CLIPS[0].name][:BROKEN_BYTES]
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in sorted(contents)]


def main() -> None:
    """Parse the command line, make the clips and their manifest, print their sizes."""
    parser = argparse.ArgumentParser(description="Make the sample clips.")
    parser.add_argument(
        "folder", nargs="?", type=Path, default=Path(__file__).resolve().parent / "clips"
    )
    folder = parser.parse_args().folder.resolve()
    paths = make_clips(folder)
    for path in paths:
        print(f"{path.stat().st_size:>9,} bytes  {path.name}")
    print(f"{sum(path.stat().st_size for path in paths):>9,} bytes  in all")
    print(make_manifest(folder))


if __name__ == "__main__":
    main()
