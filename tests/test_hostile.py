"""Files made to do harm, through the command line: typed refusals, and no other file opened."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from hostile_files import avi_with_subtitles, box, chunk, mp4, playlists, track

SETTINGS = "--num-frames 4 --max-tokens-per-frame 16 --workers 1".split()
LOST_SOURCES = 3


def run(*command: str | Path, **more: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=300, **more
    )


def rows(path: Path) -> list[dict[str, Any]]:
    return parquet.read_table(path).to_pylist()


def reasons(out: Path) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in rows(out / "losses.parquet"):
        found.setdefault(row["source"], set()).add(row["reason"])
    return found


def written(out: Path) -> set[str]:
    return {row["source"] for row in rows(out / "segments.parquet")}


def make_video(ffmpeg: str, path: Path, source: str, *how: str) -> None:
    done = run(ffmpeg, "-v", "error", "-f", "lavfi", "-i", source, "-threads", "1", *how, path)
    assert done.returncode == 0, done.stderr


# --- B11: a video that is a playlist -----------------------------------------------------------


@pytest.fixture(scope="module")
def strace(tmp_path_factory: pytest.TempPathFactory) -> str:
    program = shutil.which("strace")
    if program is None:
        pytest.skip("strace is not on the PATH")
    log = tmp_path_factory.mktemp("strace") / "log"
    if run(program, "-f", "-o", log, "true").returncode:
        pytest.skip("strace may not trace here")
    return program


def write_traps(folder: Path, ffmpeg: str, secret: Path, url: str) -> None:
    """Playlists of all kinds; an AVI and a MOV that point at a file; all with names of videos."""
    folder.mkdir()
    for name, content in playlists(secret.name, str(secret.parent), url).items():
        (folder / name).write_bytes(content)
    source = "-f lavfi -i testsrc2=s=64x48 -frames:v 1 -f image2pipe -c:v mjpeg -"
    jpeg = subprocess.run([ffmpeg, "-v", "error", *source.split()], capture_output=True).stdout
    subtitles = playlists(secret.name, str(secret.parent), url)["hls.mp4"]
    avi = avi_with_subtitles(jpeg, subtitles, width=64, height=48)
    (folder / "gab2.avi").write_bytes(avi)
    (folder / "reference.mov").write_bytes(mp4(track(1, data=os.fsencode(secret))))


@pytest.mark.parametrize("decoder", ["pyav", "torchcodec", "decord"])
def test_nothing_but_the_named_files_is_opened_and_nobody_is_called(
    tmp_path: Path, ffmpeg: str, strace: str, sample_clips: Path, decoder: str
) -> None:
    if decoder != "pyav" and run(sys.executable, "-c", f"import {decoder}").returncode:
        pytest.skip(f"{decoder} cannot be imported here")
    secret = tmp_path / "secret" / "victim.mp4"
    secret.parent.mkdir()
    shutil.copy(sample_clips / "square_320x320.mp4", secret)
    os.mkfifo(secret.parent / "fifo.mp4")
    folder, out, log = tmp_path / "in", tmp_path / "out", tmp_path / "log"
    write_traps(folder, ffmpeg, secret, "http://127.0.0.1:9/a.ts")
    shutil.copy(secret, folder / "beside.mp4")
    archive = write_evil_tar(tmp_path / "evil.tar", sample_clips / "square_320x320.mp4", secret)
    before = sorted(tmp_path.rglob("*"))
    trace = [strace, "-f", "-qq", "-s", "4096", "-e", "trace=open,openat,connect,sendto", "-o", log]
    done = run(*trace, sys.executable, "-m", "spacepatch", "tokenize", folder, archive,
               "--out", out, "--decoder", decoder, *SETTINGS, cwd=tmp_path)  # fmt: skip
    assert done.returncode == LOST_SOURCES, done.stderr
    calls = log.read_text(errors="replace")
    for path in folder.iterdir():
        assert f'"{path}"' in calls, "the trace does not show what is opened"
    assert str(secret.parent) not in calls
    assert "AF_INET" not in calls
    created = [path for path in sorted(tmp_path.rglob("*")) if out not in path.parents]
    assert created == sorted([*before, out, log]), "something was extracted"
    found = reasons(out)
    for name in playlists("", "", ""):
        assert found[name] == {"forbidden_format"}, name
    assert found["reference.mov"] <= {"unreadable", "no_decoder", "fewer_frames_than_planned"}
    good = {"beside.mp4", "gab2.avi"} | {f"evil.tar/{name}" for name in REGULAR_MEMBERS}
    assert written(out) == good
    assert_keys_are_plain(out)


def test_a_fifo_as_bait_is_never_touched(tmp_path: Path, ffmpeg: str) -> None:
    # Whoever opens a FIFO to read waits for a writer: the run would hang.
    bait = tmp_path / "bait" / "bait.mp4"
    bait.parent.mkdir()
    os.mkfifo(bait)
    write_traps(tmp_path / "in", ffmpeg, bait, "http://127.0.0.1:9/a.ts")
    done = run(sys.executable, "-m", "spacepatch", "probe", *(tmp_path / "in").iterdir())
    assert "forbidden_format" in done.stdout
    with pytest.raises(OSError, match="No such device or address"):
        os.open(bait, os.O_WRONLY | os.O_NONBLOCK)  # ENXIO: nobody has it open


def test_no_connection_is_made(tmp_path: Path, ffmpeg: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        url = f"http://127.0.0.1:{server.getsockname()[1]}/a.ts"
        write_traps(tmp_path / "in", ffmpeg, tmp_path / "none.mp4", url)
        done = run(sys.executable, "-m", "spacepatch", "probe", *(tmp_path / "in").iterdir())
        assert "forbidden_format" in done.stdout
        with pytest.raises(TimeoutError):
            server.accept()


@pytest.mark.parametrize(
    "name",
    [
        "subfile,,start,0,end,0,,:{}",
        "concat:{}|{}",
        "file:{}",
        "data:video/mp4;base64,AAAA",
        "http:{}",
        "crypto:{}",
        "async:cache:{}",
        "pipe:0",
        "fd:0",
        "%03d.png",
    ],
)
@pytest.mark.parametrize("kind", ["list", "csv", "jsonl"])
def test_a_url_in_a_list_is_the_name_of_a_file_that_is_not_there(
    tmp_path: Path, name: str, kind: str, sample_clips: Path
) -> None:
    from spacepatch.sources import list_sources

    secret = tmp_path / "victim.mp4"
    shutil.copy(sample_clips / "square_320x320.mp4", secret)
    uri = name.format("victim.mp4", "victim.mp4")
    path = tmp_path / f"names.{kind}"
    content = {"list": uri, "csv": f'uri\n"{uri}"', "jsonl": json.dumps({"uri": uri})}[kind]
    path.write_text(content + "\n")
    listing = list_sources([f"@{path}" if kind == "list" else str(path)])
    assert [source.name for source in listing.missing] == [uri]
    assert not listing.sources


# --- B14: tars and keys ------------------------------------------------------------------------

REGULAR_MEMBERS = ("../../climbs.mp4", "/absolute.mp4", "good.mp4", "a\0b.mp4")


def write_evil_tar(path: Path, video: Path, secret: Path) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("good.mp4", "../../climbs.mp4", "/absolute.mp4"):
            info = tarfile.TarInfo(name)
            info.size = video.stat().st_size
            archive.addfile(info, io.BytesIO(video.read_bytes()))
        for name, kind in (
            ("symbolic.mp4", tarfile.SYMTYPE),
            ("hard.mp4", tarfile.LNKTYPE),
            ("device.mp4", tarfile.CHRTYPE),
            ("block.mp4", tarfile.BLKTYPE),
            ("fifo.mp4", tarfile.FIFOTYPE),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, str(secret)
            archive.addfile(info)
        info = tarfile.TarInfo("short.mp4")
        info.size = video.stat().st_size
        info.pax_headers = {"path": "a\0b.mp4"}
        archive.addfile(info, io.BytesIO(video.read_bytes()))
    return path


def assert_keys_are_plain(out: Path) -> None:
    for shard in out.glob("*.tar"):
        with tarfile.open(shard) as archive:
            for member in archive:
                assert member.isreg()
                assert re.fullmatch(r"[A-Za-z0-9_-]{1,100}\.[a-z0-9_.]+", member.name), member.name


def test_pictures_without_a_picture_are_losses_and_the_run_goes_on(
    tmp_path: Path, sample_clips: Path
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    shutil.copy(sample_clips / "square_320x320.mp4", folder)
    files = {
        "a.avif": box(b"ftyp", b"avif\0\0\0\0avifmif1miaf") + mp4()[28:],
        "b.avif": box(b"ftyp", b"avis\0\0\0\0avisavif"),
        "c.webp": chunk(b"RIFF", b"WEBP"),
        "d.gif": b"GIF89a\x40\0\x40\0\0\0\0\x3b",
        "e.png": b"\x89PNG\r\n\x1a\n",
    }
    for name, content in files.items():
        (folder / name).write_bytes(content)
    done = run(sys.executable, "-m", "spacepatch", "tokenize", folder, "--out", out, *SETTINGS)
    assert done.returncode == LOST_SOURCES, done.stderr
    assert set(reasons(out)) == set(files)
    assert written(out) == {"square_320x320.mp4"}


# --- a disk that fails


@pytest.mark.parametrize("first", [1, 3, 4, 5, 6, 8])
def test_a_disk_that_fails_while_a_video_opens_is_no_damaged_video(
    tmp_path: Path, ffmpeg: str, strace: str, first: int
) -> None:
    path = tmp_path / "a.mp4"
    # Its tables are at the end, far from what is read first.
    make_video(ffmpeg, path, "testsrc2=s=640x480:r=25:d=4", "-c:v", "mpeg4", "-q:v", "2")
    assert path.stat().st_size > 1_000_000
    fail = [
        "-P",
        path,
        "-e",
        f"inject=read,pread64:error=EIO:when={first}+",
        "-o",
        tmp_path / "log",
    ]
    command = [sys.executable, "-m", "spacepatch", "probe", path]
    done = run(strace, "-f", "-qq", *fail, *command)
    assert "EIO" in (tmp_path / "log").read_text()
    assert "io" in done.stdout.split(), done.stdout
    assert "unreadable" not in done.stdout


# --- B15: poisoned shards ----------------------------------------------------------------------


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


@pytest.fixture(scope="module")
def dataset(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("dataset") / "out"
    clip = sample_clips / "square_320x320.mp4"
    run(sys.executable, "-m", "spacepatch", "tokenize", clip, "--out", out, *SETTINGS)
    return out


@pytest.mark.parametrize("extension", ["pyd", "pickle", "pkl", "pth", "npy", "npz"])
@pytest.mark.parametrize("place", ["instead", "beside"])
def test_a_poisoned_member_runs_nothing(
    tmp_path: Path, dataset: Path, extension: str, place: str
) -> None:
    import pickle

    import torch

    from spacepatch.errors import ShardError
    from spacepatch.loader import PackDataset

    out, touched = tmp_path / "out", tmp_path / "touched"
    shutil.copytree(dataset, out)
    poison = io.BytesIO()
    if extension == "pth":
        torch.save(Payload(touched), poison)
    elif extension == "npy":
        np.save(poison, np.array([Payload(touched)], object), allow_pickle=True)
    elif extension == "npz":
        np.savez(poison, a=np.array([Payload(touched)], object))
    else:
        pickle.dump(Payload(touched), poison)
    (shard,) = out.glob("*.tar")
    with tarfile.open(shard) as archive:
        members = [(info.name, archive.extractfile(info).read()) for info in archive]  # type: ignore[union-attr]
    key = members[0][0].split(".")[0]
    with tarfile.open(shard, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, content in [*members, (f"{key}.poison.{extension}", b"")]:
            if (name.endswith("tokens.npy") and place == "instead") or not content:
                content = poison.getvalue()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    with pytest.raises(ShardError):
        for _ in PackDataset(out):  # type: ignore[attr-defined]
            pass
    assert not touched.exists()
    # It is a poison: whoever unpickles it is caught.
    if extension in ("pyd", "pickle", "pkl"):
        pickle.loads(poison.getvalue())
        assert touched.exists()
