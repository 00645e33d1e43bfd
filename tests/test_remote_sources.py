"""Sources at URLs: the same bytes as from files, few bytes read, and faults that cost nothing."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import SpacepatchCli
from listings import listed, make_tar
from s3_server import Fault, S3Server
from small_runs import SMALL, rows, run

from spacepatch.probes import ProbeJob, probe_source
from spacepatch.remote import configure, open_source
from spacepatch.sources import content_id

FLAGS = [
    f"--{key.replace('_', '-')}={value}" for key, value in SMALL.items() if key != "workers"
] + ["--workers=2"]

KINDS = [
    Fault("status", count=2, status=503, target="list-type"),
    Fault("status", count=2, status=429, code="TooManyRequests", method="HEAD", target=r"\.tar$"),
    Fault("status", count=2, status=500, code="InternalError", method="GET", target=r"\.png$"),
    Fault("reset", count=2, method="GET", target=r"\.webm$"),
    Fault("slow", count=2, seconds=0.3, target=r"\.csv$"),
    Fault("truncate", count=2, method="GET", target=r"\.mp4$"),
    Fault("short", count=2, method="GET", target=r"\.tar$"),
]


@pytest.fixture(scope="module")
def videos(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of clips in folders, a tar, a list and a manifest of them, and what is no media."""
    base = tmp_path_factory.mktemp("videos")
    folder = base / "in"
    (folder / "deep" / ".hidden").mkdir(parents=True)
    for name in ("square_320x320.mp4", "broken_on_purpose.mp4", "still_picture_400x300.png"):
        (folder / name).write_bytes((sample_clips / name).read_bytes())
    webm = (sample_clips / "odd_size_321x179_vp9.webm").read_bytes()
    (folder / "deep" / "a b+c.webm").write_bytes(webm)
    for name in ("notes.txt", "deep/.hidden/x.mp4", "deep/.hidden/y.mp4", ".z.mp4"):
        (folder / name).write_bytes(b"no video")
    make_tar(base / "some.tar", [("k/one.mp4", (folder / "square_320x320.mp4").read_bytes())])
    (base / "list.txt").write_text("# two\nin/square_320x320.mp4\nin/deep/a b+c.webm\n")
    table = "uri,start,end,label\nin/square_320x320.mp4,0,0.5,x\nin/square_320x320.mp4,0.5,1,y\n"
    (base / "rows.csv").write_text(table + "in/missing.mp4,,,z\n")
    return base


def arguments(base: str) -> list[str]:
    return [
        f"{base}/in",
        f"{base}/in/deep/a b+c.webm",
        f"{base}/in/**/*.mp4",
        f"{base}/some.tar",
        f"@{base}/list.txt",
        f"{base}/rows.csv",
    ]


def published(out: Path) -> dict[str, str]:
    """sha256 of all files of a dataset but for what is private."""
    return {
        path.relative_to(out).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(out.rglob("*"))
        if path.is_file() and ".spacepatch" not in path.parts
    }


def test_a_store_makes_the_dataset_that_files_make_whatever_goes_wrong(
    s3: S3Server,
    bucket: str,
    videos: Path,
    spacepatch_cli: SpacepatchCli,
    tmp_path: Path,
) -> None:
    s3.upload(videos, bucket, "some/prefix/")
    s3.forget()
    for base, out in ((str(videos), "files"), (f"s3://{bucket}/some/prefix", "objects")):
        done = spacepatch_cli(
            *("tokenize", *arguments(base), "--out", tmp_path / out, *FLAGS),
            env={"XDG_CACHE_HOME": str(tmp_path / "cache")},
        )
        assert done.returncode == 3, done.stderr
        s3.inject(*KINDS)
    assert published(tmp_path / "objects") == published(tmp_path / "files")
    hit = [(request.fault, request.status) for request in s3.requests()]
    assert {("status", 503), ("status", 429), ("status", 500), ("reset", 0)} <= set(hit)
    assert {"slow", "truncate", "short"} <= {kind for kind, _ in hit}


def test_names_ids_and_order_are_those_of_files(s3: S3Server, bucket: str, videos: Path) -> None:
    s3.upload(videos, bucket)
    for number, argument in enumerate(arguments(str(videos))):
        here, there = listed(argument), listed(arguments(f"s3://{bucket}")[number])
        for part in ("sources", "missing"):
            told = [
                [(s.name, s.source_id, s.num_bytes, s.ranges) for s in getattr(listing, part)]
                for listing in (here, there)
            ]
            assert told[0] == told[1]
        assert (here.num_ignored, here.ignored) == (there.num_ignored, there.ignored)


@pytest.mark.parametrize(
    "fault",
    [
        Fault("status", count=2, status=503),
        Fault("status", count=2, status=429, code="TooManyRequests"),
        Fault("status", count=2, status=500, code="InternalError"),
        Fault("reset", count=2, method="GET"),
        Fault("truncate", count=2, method="GET"),
        Fault("short", count=2, method="GET"),
    ],
    ids=lambda fault: f"{fault.kind}{fault.status if fault.kind == 'status' else ''}",
)
def test_bytes_come_whole_through_each_kind_of_fault(
    s3: S3Server, bucket: str, fault: Fault
) -> None:
    content = os.urandom(300_000)
    s3.client().put_object(Bucket=bucket, Key="k", Body=content)
    with s3.faults(fault), open_source(f"s3://{bucket}/k") as file:
        file.seek(1000)
        assert file.read() == content[1000:]
    assert fault.kind in {request.fault for request in s3.requests()}


def test_any_way_of_reading_gives_the_bytes_of_the_object(
    s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    import random

    content = random.Random(1).randbytes(3_000_000)
    s3.client().put_object(Bucket=bucket, Key="k", Body=content)
    draw = random.Random(2)
    for cache in (0, 100_000_000):
        configure(str(tmp_path), cache)
        s3.forget()
        for _ in range(2):
            with open_source(f"s3://{bucket}/k") as file:
                for _ in range(100):
                    start = file.seek(draw.choice([draw.randrange(3_100_000), file.tell()]))
                    size = draw.choice([1, 4096, 32768, 700_000])
                    assert file.read(size) == content[start : start + size]
                    assert file.tell() == max(start, min(start + size, len(content)))
        assert sum(r.sent for r in s3.requests() if r.method == "GET") <= len(content)
        content = bytes(reversed(content))
        s3.client().put_object(Bucket=bucket, Key="k", Body=content)
        content_id(f"s3://{bucket}/k", num_bytes=len(content))  # looks anew


@pytest.fixture(scope="module")
def large(ffmpeg: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two videos of some MB, with the index at the beginning and at the end."""
    folder = tmp_path_factory.mktemp("large")
    for name, flags in (("first.mp4", ["-movflags", "+faststart"]), ("last.mp4", [])):
        command = (
            f"{ffmpeg} -v error -f lavfi -i testsrc2=size=640x360:rate=25:duration=4,noise=alls=20"
            ":allf=t -c:v libx264 -preset ultrafast -b:v 10M -g 25 -threads 1 -pix_fmt yuv420p"
        )
        subprocess.run([*command.split(), *flags, folder / name], check=True)
    return folder


def test_few_more_bytes_are_read_than_there_are(
    s3: S3Server, bucket: str, large: Path, spacepatch_cli: SpacepatchCli, tmp_path: Path
) -> None:
    s3.upload(large, bucket)
    there = sum(path.stat().st_size for path in large.iterdir())

    def share(command: str, out: str, *flags: str | Path) -> float:
        """Of the bytes that are there, those that a program reads; it remembers none before."""
        s3.forget()
        done = spacepatch_cli(command, f"s3://{bucket}", "--out", tmp_path / out, *FLAGS, *flags)
        assert done.returncode == 0, done.stderr
        return sum(request.sent for request in s3.requests() if request.method == "GET") / there

    none, some = ("--cache-bytes", "0"), ("--cache-dir", tmp_path / "cache")
    header = share("plan", "a", *none)
    packets = share("plan", "b", "--probe", "packets", *none)
    kept = share("plan", "c", "--probe", "packets", *some)
    decoding = share("tokenize", "a", *none)
    decoding_kept = share("tokenize", "c", *some)
    assert decoding >= 1 and header + decoding <= 1.1
    assert 1 <= packets <= 1.01 and packets + decoding <= 2.1
    assert 1 <= kept + decoding_kept <= 1.1
    assert published(tmp_path / "a") == published(tmp_path / "c")


def test_what_is_gone_or_denied_after_the_plan_is_a_loss(
    s3: S3Server, bucket: str, sample_clips: Path, spacepatch_cli: SpacepatchCli, tmp_path: Path
) -> None:
    for name in ("square_320x320.mp4", "portrait_270x480.mp4", "still_picture_400x300.png"):
        s3.upload(sample_clips / name, bucket)
    s3.inject(
        Fault("status", status=403, code="403", after=1, target="square"),
        Fault("status", status=404, code="404", after=1, target="portrait"),
    )
    out = tmp_path / "out"
    command = "tokenize", f"s3://{bucket}", "--out", out, "--cache-bytes", "0", *FLAGS
    done = spacepatch_cli(*command)
    assert done.returncode == 3, done.stderr
    assert {
        (row["source"], row["stage"], row["reason"], row["message"])
        for row in rows(out, "losses.parquet")
    } == {
        ("square_320x320.mp4", "decode", "io", "cannot be read: the store denies access"),
        ("portrait_270x480.mp4", "decode", "io", "cannot be read: no such object"),
    }
    s3.inject()
    again = spacepatch_cli(*command, "--retry-lost")
    assert (again.returncode, rows(out, "losses.parquet")) == (0, []), again.stderr


def test_an_object_that_changed_is_never_mixed_with_its_former_self(
    s3: S3Server, bucket: str, sample_clips: Path, tmp_path: Path
) -> None:
    configure(str(tmp_path), 100_000_000)
    s3.upload(sample_clips / "square_320x320.mp4", bucket)
    (source,) = listed(f"s3://{bucket}").sources
    before = probe_source(ProbeJob(source))
    assert before.info is not None
    content = (sample_clips / "square_320x320.mp4").read_bytes()
    s3.client().put_object(Bucket=bucket, Key=source.name, Body=bytes(reversed(content)))
    after = probe_source(ProbeJob(source))
    assert after.content_id not in ("", before.content_id) and after.info is None


def test_blocks_take_no_more_room_than_they_may_and_damage_is_seen(
    s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    content = os.urandom(4_000_000)
    s3.client().put_object(Bucket=bucket, Key="k", Body=content)
    configure(str(tmp_path), 2_500_000)

    def read() -> int:
        s3.forget()
        script = (
            "import sys; from spacepatch.remote import configure, open_source;"
            "configure(sys.argv[1], 2_500_000); import hashlib;"
            "print(hashlib.sha256(open_source(sys.argv[2]).read()).hexdigest())"
        )
        command = [sys.executable, "-c", script, str(tmp_path), f"s3://{bucket}/k"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert printed.strip() == hashlib.sha256(content).hexdigest()
        return sum(request.sent for request in s3.requests() if request.method == "GET")

    assert read() == len(content)
    kept = [path for path in (tmp_path / "blocks").rglob("*-*") if path.is_file()]
    assert 1_000_000 < sum(path.stat().st_size for path in kept) <= 2_500_000
    for path in kept:
        path.write_bytes(bytes(path.stat().st_size))
    assert read() == len(content)


def test_a_process_that_forks_reads_on_in_both(s3: S3Server, bucket: str) -> None:
    for key in ("a", "b"):
        s3.client().put_object(Bucket=bucket, Key=key, Body=key.encode() * 10)
    script = (
        "import os, sys, warnings; warnings.simplefilter('ignore')\n"
        "from spacepatch.remote import open_source\n"
        "first, second = (f's3://{sys.argv[1]}/{key}' for key in 'ab')\n"
        "assert open_source(first).read() == b'a' * 10\n"
        "child = os.fork()\n"
        "assert open_source(second).read() == b'b' * 10\n"
        "assert child == 0 or os.waitpid(child, 0)[1] == 0\n"
    )
    subprocess.run([sys.executable, "-c", script, bucket], check=True, timeout=60)


def test_what_lies_in_memory_reaches_the_workers(sample_clips: Path, tmp_path: Path) -> None:
    import fsspec

    clips = ("square_320x320.mp4", "still_picture_400x300.png")
    memory = fsspec.filesystem("memory")
    for name in clips:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes((sample_clips / name).read_bytes())
        memory.pipe_file(f"/clips/{name}", (sample_clips / name).read_bytes())
    run([tmp_path / "in"], tmp_path / "files")
    run(["memory://clips"], tmp_path / "memory")
    assert published(tmp_path / "memory") == published(tmp_path / "files")


def test_decoders_that_open_files_themselves_decline_what_is_no_file(
    s3: S3Server, bucket: str, sample_clips: Path, tmp_path: Path
) -> None:
    for name in ("square_320x320.mp4", "still_picture_400x300.png"):
        s3.upload(sample_clips / name, bucket)
    run([f"s3://{bucket}"], tmp_path / "out", decoder="decord")
    for row in rows(tmp_path / "out", "sources.parquet"):
        assert row["declined"] == "decord: it is no file here: it is read from a store"
        assert row["frames_lost"] == 0 < row["num_segments"]
