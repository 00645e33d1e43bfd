"""`--probe header`: MP4 and MOV are planned without reading their pictures, and as they were."""

import json
import subprocess
import sys
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from conftest import SpacepatchCli
from small_runs import SMALL, rows

from spacepatch.config import load_config
from spacepatch.pipeline import Watch, tokenize
from spacepatch.probes import Probed, ProbeJob, probe_source
from spacepatch.sources import list_sources

X264 = ["-c:v", "libx264", "-preset", "ultrafast", "-bf", "2", "-g", "10"]
SLICES = ["-x264-params", "slices=4"]
VARIED = ["-vf", "setpts='N*(2+mod(N,3))'", "-fps_mode", "passthrough"]
REFRESHED = ["-x264-params", "intra-refresh=1:keyint=10:bframes=0"]
CLIPS = {
    "last.mp4": X264,
    "first.mp4": [*X264, "-movflags", "faststart"],
    "slices.mp4": [*X264, *SLICES],
    "varied.mov": [*VARIED, *X264],
    "refreshed.mp4": [*X264, *REFRESHED],
    "hevc.mp4": ["-c:v", "libx265", "-x265-params", "log-level=none:keyint=10:open-gop=1"],
    "mpeg4.mp4": ["-c:v", "mpeg4", "-bf", "2", "-g", "10"],
    "prores.mov": ["-c:v", "prores_ks"],
    "mjpeg.mov": ["-c:v", "mjpeg"],
}
SCANNED = {
    "fragments.mp4": [*X264, "-movflags", "frag_keyframe+empty_moov"],
    "vp9.mp4": ["-c:v", "libvpx-vp9", "-g", "10", "-b:v", "300k", "-cpu-used", "8"],
    "clip.mkv": X264,
    "clip.ts": X264,
}
"""Those whose header does not tell all."""
SIZE = (96, 160)


def encode(ffmpeg: str, path: Path, options: list[str], num_frames: int = 40) -> Path:
    source = f"testsrc2=size={SIZE[1]}x{SIZE[0]}:rate=25,trim=end_frame={num_frames}"
    command = [ffmpeg, "-v", "error", "-y", "-f", "lavfi", "-i", source, "-pix_fmt"]
    pixels = "yuv422p10le" if "prores_ks" in options else "yuvj420p" if "mjpeg" in options else None
    subprocess.run([*command, pixels or "yuv420p", *options, str(path)], check=True)
    return path


def copy(
    ffmpeg: str,
    source: Path,
    path: Path,
    *,
    before: tuple[str, ...] = (),
    after: tuple[str, ...] = (),
) -> None:
    command = [ffmpeg, "-v", "error", *before, "-i", str(source), "-c", "copy", *after]
    subprocess.run([*command, str(path)], check=True)


@pytest.fixture(scope="module")
def clips(ffmpeg: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clips")
    for name, options in (CLIPS | SCANNED).items():
        encode(ffmpeg, folder / name, options)
    turned = ("-metadata:s:v", "rotate=90")
    copy(ffmpeg, folder / "first.mp4", folder / "rotated.mp4", after=turned)
    copy(ffmpeg, folder / "first.mp4", folder / "edit_list.mp4", before=("-ss", "0.6"))
    for name, percent in (("cut_inside.mp4", 63), ("cut_early.mp4", 31)):
        content = (folder / "first.mp4").read_bytes()
        (folder / name).write_bytes(content[: len(content) * percent // 100])
    return folder


def probe(path: Path, *, header: bool) -> Probed:
    return probe_source(ProbeJob(list_sources([str(path)]).sources[0], header=header))


def plain(found: Probed) -> dict[str, Any]:
    """What was found, without which way, in values that can be compared."""
    document = asdict(found)
    assert not document.pop("scanned") or found.info is not None
    for key in ("frame_pts", "keyframes") if found.info is not None else ():
        document["info"][key] = document["info"][key].tolist()
    return document


def test_a_header_tells_what_the_packets_tell(clips: Path) -> None:
    for path in sorted(clips.iterdir()):
        by_header = probe(path, header=True)
        assert plain(by_header) == plain(probe(path, header=False)), path.name
        assert by_header.info is not None
        assert by_header.scanned == (path.name in SCANNED), path.name
    assert probe(clips / "cut_inside.mp4", header=True).info.cut_off  # type: ignore[union-attr]


def test_a_header_tells_of_real_files_what_the_packets_tell(corpus: Path) -> None:
    endings = {".mp4", ".mov", ".m4v", ".3gp"}
    paths = [path for path in sorted(corpus.iterdir()) if path.suffix.lower() in endings]
    found = {path.name: probe(path, header=True) for path in paths if path.stat().st_size}
    for path in paths:
        if path.name in found:
            assert plain(found[path.name]) == plain(probe(path, header=False)), path.name
    by_header = [one for one in found.values() if one.info is not None and not one.scanned]
    assert len(by_header) > 50


def test_a_member_of_a_tar_is_probed_by_its_header(clips: Path, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(tmp_path / "videos.tar", "w") as tar:
        for name in ("hevc.mp4", "last.mp4"):
            tar.add(clips / name, name)
    for source in list_sources([str(tmp_path / "videos.tar")]).sources:
        by_header, by_packets = (
            probe_source(ProbeJob(source, header=header)) for header in (True, False)
        )
        assert plain(by_header) == plain(by_packets)
        assert not by_header.scanned


READS = """
import json, re, sys
from spacepatch.probes import ProbeJob, probe_source
from spacepatch.sources import list_sources

def num_read():
    return int(re.search(r"rchar: (\\d+)", open("/proc/self/io").read())[1])

figures = []
jobs = [ProbeJob(list_sources([sys.argv[1]]).sources[0], header=header) for header in (True, False)]
probe_source(ProbeJob(list_sources([sys.argv[2]]).sources[0]))  # imports what it needs
for job in jobs:
    before = num_read()
    found = probe_source(job)
    figures.append((num_read() - before, len(found.info.frame_pts)))
print(json.dumps(figures))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what a process has read")
@pytest.mark.parametrize("name", ["last.mp4", "mjpeg.mov"])
def test_a_header_probe_of_a_large_file_reads_a_part_of_it(
    name: str, clips: Path, tmp_path: Path, ffmpeg: str
) -> None:
    large = tmp_path / name
    noise = "color=size=640x360:rate=25,trim=end_frame=200,format=yuv420p,noise=alls=99:allf=t"
    codec = (
        ["-c:v", "mjpeg", "-q", "1", "-pix_fmt", "yuvj420p"] if name == "mjpeg.mov" else X264
    ) + (["-qp", "1"] if name == "last.mp4" else [])
    subprocess.run(
        [ffmpeg, "-v", "error", "-f", "lavfi", "-i", noise, *codec, str(large)], check=True
    )
    listing = [sys.executable, "-c", READS, str(large), str(clips / name)]
    (header, frames), (packets, _) = json.loads(subprocess.check_output(listing))
    assert frames == 200
    assert large.stat().st_size > 40_000_000
    assert header < 1_000_000
    assert packets > large.stat().st_size


def test_the_same_bytes_are_written_and_those_that_were_scanned_counted(
    clips: Path, sample_clips: Path, tmp_path: Path
) -> None:
    chosen = [clips / name for name in ("first.mp4", "cut_inside.mp4", "clip.mkv", "clip.ts")]
    arguments = [str(path) for path in (sample_clips, *chosen)]
    written, notes = [], []
    for word in ("packets", "header"):
        out = tmp_path / word
        config = load_config(SMALL | {"probe": word})
        tokenize(arguments, out=out, config=config, watch=Watch(on_note=notes.append))
        files = [path for path in sorted(out.rglob("*")) if path.is_file()]
        written.append(
            {
                str(path.relative_to(out)): path.read_bytes()
                for path in files
                if ".spacepatch" not in path.parts
            }
        )
    # Of the sample clips, one is a WebM and one a GIF.
    assert notes == ["the headers of 4 of 15 sources do not tell enough: their packets were read"]
    assert written[0].keys() == written[1].keys()
    assert [name for name in written[0] if written[0][name] != written[1][name]] == []


def test_plan_says_how_many_were_scanned(clips: Path, spacepatch_cli: SpacepatchCli) -> None:
    chosen = [clips / name for name in ("first.mp4", "clip.mkv")]
    ran = spacepatch_cli("plan", *chosen, "--probe", "header", "--json")
    assert json.loads(ran.stdout)["totals"]["scanned"] == 1
    assert "note: the headers of 1 of 2 sources" in ran.stderr


def mux_two_sizes(path: Path, *, listed: bool) -> Path:
    """An MP4 whose H.264 changes its size within the stream; `listed`: at a keyframe in its
    index."""
    random = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height = SIZE[1], SIZE[0]
        stream.pix_fmt, stream.time_base = "yuv420p", Fraction(1, 25)
        for number, factor in enumerate((1, 2)):
            encoder = av.CodecContext.create("libx264", "w")
            assert isinstance(encoder, av.VideoCodecContext)
            height, width = SIZE[0] * factor, SIZE[1] * factor
            encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
            encoder.time_base, encoder.framerate = Fraction(1, 25), Fraction(25)
            # Noise: a small file would be read as a whole before a header can be all there is.
            encoder.options = {"bf": "0", "preset": "ultrafast", "qp": "4"}
            packets = []
            for k in range(20):
                noise = random.integers(16, 235, (height * 3 // 2, width), np.uint8)
                frame = av.VideoFrame.from_ndarray(noise, "yuv420p")
                frame.pts, frame.time_base = k, Fraction(1, 25)
                packets += encoder.encode(frame)
            for packet in [*packets, *encoder.encode(None)]:
                packet.pts += number * 20
                packet.dts += number * 20
                packet.stream, packet.time_base = stream, Fraction(1, 25)
                packet.is_keyframe = packet.is_keyframe and (listed or number == 0)
                container.mux(packet)
    return path


def test_a_change_of_size_at_a_listed_keyframe_is_found(tmp_path: Path) -> None:
    path = mux_two_sizes(tmp_path / "sizes.mp4", listed=True)
    found = probe(path, header=True)
    assert found.info is not None
    assert [part.coded_size for part in found.info.parts] == [SIZE, (2 * SIZE[0], 2 * SIZE[1])]
    assert found.scanned


def test_a_change_of_size_that_no_index_lists_is_a_loss(tmp_path: Path) -> None:
    path = mux_two_sizes(tmp_path / "sizes.mp4", listed=False)
    found = probe(path, header=True)
    assert found.info is not None
    assert (len(found.info.parts), found.scanned) == (1, False)
    by_packets = probe(path, header=False)
    assert by_packets.info is not None
    assert len(by_packets.info.parts) == 2
    out = tmp_path / "out"
    settings = {"every_frame": True, "max_tokens_per_frame": 64, "probe": "header"}
    tokenize([str(path)], out=out, config=load_config(settings))
    assert {(row["reason"], row["num_frames"]) for row in rows(out, "losses.parquet")} == {
        ("size_changed", 20)
    }
