"""What the tests of decoding share: the corpus, pictures as lists, numbers in pictures."""

import csv
import json
import subprocess
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest

from spacepatch.data import Picture, VideoInfo
from spacepatch.decode import decode_pictures, probe_video
from spacepatch.errors import ProbeError
from spacepatch.resize import make_frame

CORPUS = Path(__file__).resolve().parent.parent.parent / "shared" / "corpus"


def corpus_index() -> dict[str, dict[str, str]]:
    path = CORPUS / "INDEX.tsv"
    if not path.exists():
        return {}
    with path.open(newline="", encoding="utf-8") as file:
        return {row["file"]: row for row in csv.DictReader(file, delimiter="\t")}


INDEX = corpus_index()
needs_corpus = pytest.mark.skipif(not INDEX, reason="../shared is not beside this checkout")


def in_corpus(name: str) -> str:
    if not INDEX:
        pytest.skip("../shared is not beside this checkout")
    return str(CORPUS / name)


def run(*command: str | Path) -> bytes:
    return subprocess.run(list(map(str, command)), capture_output=True, check=True).stdout


def pictures(
    uri: str | Path, info: VideoInfo, indices: Iterable[int] | None = None
) -> list[Picture]:
    wanted = (
        np.arange(len(info.frame_pts)) if indices is None else np.array(list(indices), np.int64)
    )
    return list(decode_pictures(str(uri), info=info, indices=wanted, pts=info.frame_pts[wanted]))


def ffprobe_times(uri: str, stream: int) -> list[int]:
    show = ["-select_streams", str(stream), "-show_entries", "frame=best_effort_timestamp"]
    text = run("ffprobe", "-v", "quiet", *show, "-of", "json", f"file:{uri}")
    return [frame["best_effort_timestamp"] for frame in json.loads(text)["frames"]]


@needs_corpus
def small(picture: Picture) -> np.ndarray:
    return make_frame(picture, size=(48, 64))


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    error = np.mean((one.astype(np.float64) - other) ** 2)
    return float("inf") if error == 0 else 10 * float(np.log10(255**2 / error))


def reason(uri: str | Path) -> str:
    with pytest.raises(ProbeError) as error:
        probe_video(str(uri))
    assert str(uri) not in str(error.value)  # messages go to files that name no absolute path
    return error.value.reason


BITS = 10
BARS = f"geq=lum='if(mod(floor(N/pow(2,floor(X/8))),2),235,16)':cb=128:cr=128,scale={BITS * 8}:32"


def number_in(picture: Picture) -> int:
    frame = make_frame(picture, size=(32, BITS * 8)).mean(axis=(0, 2))
    return sum(int(frame[8 * bit + 2 : 8 * bit + 6].mean() > 128) << bit for bit in range(BITS))


MAKERS = {
    "open_gop.mp4": "-c:v libx264 -preset veryfast -bf 3 -x264-params open-gop=1:keyint=60",
    "open_gop.mkv": "-c:v libx264 -preset veryfast -bf 3 -x264-params open-gop=1:keyint=60",
    "open_gop.ts": "-c:v libx264 -preset veryfast -bf 3 -x264-params open-gop=1:keyint=60",
    "one_keyframe.mp4": "-c:v libx264 -preset veryfast -bf 3 -x264-params keyint=9999",
    "hevc.mp4": "-c:v libx265 -preset ultrafast"
    " -x265-params open-gop=1:bframes=4:keyint=60:log-level=none",
    "vp8.webm": "-c:v libvpx -b:v 300k -deadline realtime -cpu-used 8 -auto-alt-ref 1"
    " -lag-in-frames 10",
    "vp9.webm": "-c:v libvpx-vp9 -b:v 300k -deadline realtime -cpu-used 8",
    "b_frames.avi": "-c:v mpeg4 -bf 2 -g 30 -q:v 3",
    "mpeg2.mpg": "-c:v mpeg2video -bf 2 -g 30 -q:v 3",
    "mpeg2.mxf": "-c:v mpeg2video -bf 2 -g 30 -q:v 3",
    "wmv2.wmv": "-c:v wmv2 -g 30 -q:v 3",
    "flv1.flv": "-c:v flv -g 30 -q:v 3",
    "no_index.mkv": "-c:v libx264 -preset veryfast -bf 3 -x264-params keyint=60 -live 1",
    "fragments.mp4": "-c:v libx264 -preset veryfast -x264-params keyint=60"
    " -movflags frag_keyframe+empty_moov",
    "raw.h264": "-c:v libx264 -preset veryfast -bf 3",
    "frames.gif": "-c:v gif",
}
