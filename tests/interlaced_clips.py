"""Interlaced clips made with ffmpeg, and a measure of the combs in them."""

import subprocess
from pathlib import Path

import numpy as np

FIELDS = "testsrc2=s=320x240:r=50:d=2.4,noise=alls=4:all_seed=1"
"""60 pictures with 50 fields a second, where everything moves."""
MPEG2 = ["-c:v", "mpeg2video", "-flags", "+ildct+ilme", "-b:v", "3M", "-bf", "2"]
X264 = ["-c:v", "libx264", "-preset", "veryfast", "-qp", "12", "-flags", "+ildct+ilme"]
CLIPS = {
    "mpeg2_tff.ts": ("interleave_top", [*MPEG2, "-top", "1"]),
    "mpeg2_bff.ts": ("interleave_bottom", [*MPEG2, "-top", "0"]),
    "mbaff_tff.mp4": ("interleave_top", [*X264, "-top", "1"]),
    "mbaff_bff.mp4": ("interleave_bottom", [*X264, "-top", "0"]),
}


def run(*command: str | Path) -> bytes:
    return subprocess.run(list(map(str, command)), capture_output=True, check=True).stdout


def make_interlaced(ffmpeg: str, folder: Path) -> Path:
    """Make `CLIPS`, and mixed.ts: 20 progressive pictures, 20 flagged ones, and both again."""
    for name, (how, codec) in CLIPS.items():
        source = ["-f", "lavfi", "-i", f"{FIELDS},tinterlace={how}"]
        run(ffmpeg, "-v", "error", *source, *codec, folder / name)
    for name, source, codec in (
        ("flagged.h264", f"{FIELDS},tinterlace=interleave_top", [*X264, "-top", "1"]),
        ("plain.h264", "testsrc2=s=320x240:r=25:d=1", ["-c:v", "libx264"]),
    ):
        source = ["-f", "lavfi", "-i", source, *codec, "-bf", "0", "-frames:v", "20"]
        run(ffmpeg, "-v", "error", *source, folder / name)
    parts = [(folder / name).read_bytes() for name in ("plain.h264", "flagged.h264")]
    (folder / "mixed.h264").write_bytes(b"".join(parts * 2))
    source = ["-fflags", "+genpts", "-r", "25", "-i", folder / "mixed.h264", "-c", "copy"]
    run(ffmpeg, "-v", "error", *source, folder / "mixed.ts")
    return folder


def combing(planes: np.ndarray, height: int) -> float:
    """Mean over the luma of how far a row lies beyond both its neighbours, on the same side."""
    luma = planes[:height].astype(np.int32)
    above, middle, below = luma[:-2], luma[1:-1], luma[2:]
    same_side = (middle - above) * (middle - below) > 0
    depth = np.minimum(abs(middle - above), abs(middle - below))
    # What the fields of a still picture differ by is noise.
    return float(np.where(same_side & (depth > 12), depth, 0).mean())
