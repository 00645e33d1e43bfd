"""The clips of numbered frames: of every container and codec, and with every sort of times."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import numpy as np
from frame_numbers import copy_clip, make_clip, pack_clip, read_number

from spacepatch.data import Picture

FRAMES = 640
"""More than decoders read before they seek (500)."""
X264 = ["-c:v", "libx264", "-preset", "veryfast", "-x264-params"]
B_FRAMES = [*X264, "bframes=3:b-adapt=0:keyint=50:scenecut=0"]
OPEN_GOP = [*X264, "bframes=3:b-adapt=0:open-gop=1:keyint=48:scenecut=0"]
X265 = ["-c:v", "libx265", "-preset", "ultrafast", "-x265-params"]
OPEN_HEVC = [*X265, "bframes=3:b-adapt=0:open-gop=1:keyint=48:scenecut=0:log-level=error"]
MPEG2 = ["-c:v", "mpeg2video", "-bf", "2", "-g", "15", "-q:v", "3"]
MPEG4 = ["-c:v", "mpeg4", "-bf", "2", "-g", "50", "-q:v", "3"]
VPX = ["-auto-alt-ref", "1", "-lag-in-frames", "16", "-g", "100", "-b:v", "600k", "-cpu-used", "5"]

VARIED = [4] * 10 + [2] * 10 + [1] * 10
"""60ths of a second that each of 30 frames lasts: 15, 30 and 60 frames a second."""
N = "mod(N,30)"
VARY = (
    f"setpts='floor(N/30)*{sum(VARIED)}"
    f"+if(lt({N},10),4*{N},if(lt({N},20),40+2*({N}-10),60+{N}-20))'"
)
VFR = ["-vf", VARY, "-vsync", "passthrough"]

ENCODED = {
    "h264_b_frames.mp4": B_FRAMES,
    "h264_open_gop.mp4": OPEN_GOP,
    "h264_open_gop.mkv": OPEN_GOP,
    "h264_open_gop.ts": OPEN_GOP,
    "h264_open_gop.flv": OPEN_GOP,
    "h264_open_gop.h264": OPEN_GOP,
    "live.mkv": [*OPEN_GOP, "-live", "1"],
    "refreshed.mp4": [*X264, "intra-refresh=1:keyint=60:bframes=0"],
    "refreshed.ts": [*X264, "intra-refresh=1:keyint=60:bframes=0"],
    "mpeg4.ts": MPEG4,
    "h264_two_keyframes.mp4": [*X264, "bframes=3:keyint=400:min-keyint=400:scenecut=0"],
    "h264_b_frames.avi": B_FRAMES,
    "h264_no_b_frames.avi": ["-c:v", "libx264", "-bf", "0", "-g", "50"],
    "hevc_open_gop.mp4": OPEN_HEVC,
    "hevc_open_gop.ts": OPEN_HEVC,
    "hevc_open_gop.hevc": OPEN_HEVC,
    "mpeg2.ts": MPEG2,
    "mpeg2.mpg": [*MPEG2, "-f", "vob"],
    "mpeg2.mxf": MPEG2,
    "mpeg4.avi": MPEG4,
    "mpeg4.mp4": MPEG4,
    "vp8_altref.webm": ["-c:v", "libvpx", *VPX],
    "vp9_altref.webm": ["-c:v", "libvpx-vp9", *VPX],
    "av1.mkv": ["-c:v", "libsvtav1", "-preset", "12", "-g", "100"],
    "theora.ogv": ["-c:v", "libtheora", "-q:v", "8", "-g", "50"],
    "wmv2.wmv": ["-c:v", "wmv2", "-q:v", "3", "-g", "50"],
    "flv1.flv": ["-c:v", "flv", "-q:v", "3", "-g", "50"],
    "frames.gif": [],
    "vfr.mp4": [*VFR, *B_FRAMES],
    "vfr.mkv": [*VFR, *B_FRAMES],
    "vfr.ts": [*VFR, *OPEN_GOP],
    "ntsc.mp4": B_FRAMES,
    "ntsc.ts": OPEN_GOP,
    "late.mp4": [*B_FRAMES, "-output_ts_offset", "100"],
    "late.mkv": [*B_FRAMES, "-output_ts_offset", "3600"],
    "fragmented.mp4": [*B_FRAMES, "-movflags", "frag_keyframe+empty_moov"],
    # 2**33 ticks of 90 kHz are 95443.7 s. FFmpeg counts up to the wrap from below zero.
    "wrap_h264.ts": [*OPEN_GOP, "-output_ts_offset", "95434", "-muxdelay", "0"],
    "wrap_mpeg2.ts": [*MPEG2, "-output_ts_offset", "95436", "-muxdelay", "0"],
}
RATES = {"vfr": "60", "ntsc": "30000/1001"}
DERIVED = (
    "edit_list.mp4",
    "stream_copy.mkv",
    "no_cues.mkv",
    "packed.avi",
    "jump_forward.ts",
    "jump_back.ts",
    "cut_h264.ts",
    "cut_hevc.ts",
    "cut_mpeg2.ts",
)
NAMES = (*ENCODED, *DERIVED)
REPAIRED = {
    **dict.fromkeys(("h264_open_gop.h264", "hevc_open_gop.hevc"), "missing"),
    **dict.fromkeys(("h264_b_frames.avi", "h264_no_b_frames.avi", "packed.avi"), "unordered"),
    **dict.fromkeys(("jump_forward.ts", "jump_back.ts"), "discontinuous"),
}
"""Where the times of packets are not those of pictures, and what is the matter."""

ClipOf = Callable[[str], Path]


def make_numbered(ffmpeg: str, name: str, path: Path, clip_of: ClipOf) -> None:
    """Make one of `NAMES`; `clip_of` gives those that it is made from."""
    if name in ENCODED:
        rate = RATES.get(name.partition(".")[0], "30")
        make_clip(ffmpeg, path, *ENCODED[name], numbers=range(FRAMES), rate=rate)
    else:
        _derive(ffmpeg, name, path, clip_of)


def _derive(ffmpeg: str, name: str, path: Path, clip_of: ClipOf) -> None:
    """Make one of `DERIVED`."""
    if name in ("edit_list.mp4", "stream_copy.mkv"):
        # 99 frames are not shown, or the 50 before the keyframe: an MP4 tells, Matroska cannot.
        long = make_clip(ffmpeg, path.with_name(f"long_{name}"), *B_FRAMES, numbers=range(800))
        copy_clip(ffmpeg, long, path, skip="3.3")
    elif name == "no_cues.mkv":
        with path.open("wb") as file:
            command = [ffmpeg, "-v", "error", "-i", clip_of("h264_open_gop.mp4"), "-c", "copy"]
            subprocess.run([*command, "-f", "matroska", "pipe:"], stdout=file, check=True)
    elif name == "packed.avi":
        single = ["-c:v", "mpeg4", "-bf", "1", "-b_strategy", "0", "-g", "49", "-q:v", "3"]
        plain = make_clip(ffmpeg, path.with_name("plain.avi"), *single, numbers=range(FRAMES))
        pack_clip(plain, path)
    elif name.startswith("jump"):
        parts = []
        for start, offset in ((0, "200"), (320, "900" if name == "jump_forward.ts" else "100")):
            part = path.with_name(f"{start}_{name}")
            numbers = range(start, start + 320)
            make_clip(ffmpeg, part, *B_FRAMES, "-output_ts_offset", offset, numbers=numbers)
            parts.append(part.read_bytes())
        path.write_bytes(b"".join(parts))
    else:
        # From the middle of a group of pictures on.
        source = {"cut_h264.ts": "h264_open_gop.ts", "cut_hevc.ts": "hevc_open_gop.ts"}
        content = clip_of(source.get(name, "mpeg2.ts")).read_bytes()
        path.write_bytes(content[len(content) // 188 // 30 * 188 :])


def shown_at(name: str, number: int) -> Fraction:
    """Second at which a frame is shown, by the way the clip was made."""
    kind = name.partition(".")[0]
    if kind == "vfr":
        return Fraction(number // 30 * sum(VARIED) + sum(VARIED[: number % 30]), 60)
    return number / Fraction(RATES.get(kind, "30"))


def number_of(picture: Picture) -> int:
    frame = picture.frame
    if frame.format.name.startswith("yuv"):
        # Luma as it lies there: to make RGB of it takes longer than to decode it.
        luma = frame.planes[0]
        rows = np.frombuffer(memoryview(luma), np.uint8).reshape(frame.height, luma.line_size)
        return read_number(rows[:, : frame.width])
    return read_number(frame.to_ndarray(format="rgb24"))
