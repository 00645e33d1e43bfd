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
