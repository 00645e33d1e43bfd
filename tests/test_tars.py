"""Tars as SOURCE: their members are read where they lie."""

import io
import json
import subprocess
import tarfile
import tracemalloc
from pathlib import Path

import pytest
from listings import listed, make_tar, names, put

from spacepatch.errors import ConfigError
from spacepatch.tars import read_tar

MEMBERS = [
    ("0002.mp4", b"second" * 300),
    ("0001.mp4", b"first"),
    ("0001.vtt", b"{}"),
    ("deep/er/0003.webm", bytes(range(256)) * 7),
    ("deep/" + "n" * 150 + ".mkv", b"a name longer than a ustar header holds"),
    ("./0004.mp4", b"."),
    ("naïve 视频.mp4", b"unicode"),
    ("empty.mp4", b""),
]


@pytest.mark.parametrize("format_", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_the_bytes_of_a_member_are_those_that_tarfile_reads(tmp_path: Path, format_: int) -> None:
    path = make_tar(tmp_path / "x.tar", MEMBERS, format_)
    sources = listed(path).sources
    assert len(sources) == 7
    with tarfile.open(path) as archive:
        for source in sources:
            member = archive.extractfile(source.name.removeprefix("x.tar/"))
            with Path(source.uri).open("rb") as file:
                file.seek(source.member_offset)
                assert file.read(source.num_bytes) == member.read()


def test_members_are_sorted_named_after_their_tar_and_nothing_is_extracted(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.tar", MEMBERS[:4])
    listing = listed(path)
    assert names(listing) == ["x.tar/0001.mp4", "x.tar/0002.mp4", "x.tar/deep/er/0003.webm"]
    assert listing.num_ignored == 1
    assert list(tmp_path.iterdir()) == [path]


def test_links_folders_hidden_and_other_members_are_no_videos(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in [
            ("a.mp4", tarfile.REGTYPE),
            ("symbolic.mp4", tarfile.SYMTYPE),
            ("hard.mp4", tarfile.LNKTYPE),
            ("pipe.mp4", tarfile.FIFOTYPE),
            ("folder.mp4", tarfile.DIRTYPE),
            ("._a.mp4", tarfile.REGTYPE),
            (".cache/b.mp4", tarfile.REGTYPE),
            ("notes.txt", tarfile.REGTYPE),
        ]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            archive.addfile(info)
    listing = listed(path)
    assert (names(listing), listing.num_ignored) == (["x.tar/a.mp4"], 6)


def test_a_member_named_to_climb_out_is_only_a_name(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "in.tar", [("../../evil.mp4", b"evil"), ("/etc/evil.mp4", b"evil")])
    sources = listed(path).sources
    assert {source.uri for source in sources} == {str(path)}
    assert list(tmp_path.iterdir()) == [path]


def test_equal_names_inside_a_tar_get_two_ids_in_the_order_of_the_tar(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.tar", [("a.mp4", b"old"), ("a.mp4", b"newer")])
    sources = listed(path).sources
    assert [source.num_bytes for source in sources] == [3, 5]
    assert len({source.source_id for source in sources}) == 2


def test_a_glob_of_tars_reads_their_members(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    make_tar(tmp_path / "d" / "2.tar", [("a.mp4", b"2")])
    make_tar(tmp_path / "d" / "1.tar", [("a.mp4", b"1"), ("a.nfo", b"1")])
    listing = listed(tmp_path / "*" / "*.tar")
    assert names(listing) == ["d/1.tar/a.mp4", "d/2.tar/a.mp4"]
    assert listing.num_ignored == 1


@pytest.mark.parametrize("damage", ["compressed", "text", "cut in a member", "header overwritten"])
def test_a_tar_that_cannot_be_read_whole_is_refused_by_name(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "x.tar"
    make_tar(path, [("a.mp4", b"1" * 2000), ("b.mp4", b"2" * 2000), ("c.mp4", b"3" * 2000)])
    content = bytearray(path.read_bytes())
    if damage == "compressed":
        with tarfile.open(path, "w:gz"):
            pass
    elif damage == "text":
        path.write_bytes(b"this is no tar at all " * 100)
    elif damage == "cut in a member":
        path.write_bytes(content[: 2560 + 512 + 700])
    else:
        content[2560:2660] = b"\xff" * 100
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"x\.tar: not a plain tar that can be read"):
        listed(path)


def test_a_video_inside_a_tar_is_planned_like_the_file_itself(
    tmp_path: Path, sample_clips: Path, spacepatch_cli
) -> None:
    content = (sample_clips / "odd_size_321x179_vp9.webm").read_bytes()
    put(tmp_path, "a.webm", content=content)
    make_tar(tmp_path / "x.tar", [("z.txt", b"before"), ("a.webm", content), ("b.txt", b"after")])
    done = [spacepatch_cli("plan", "--json", tmp_path / name) for name in ("a.webm", "x.tar")]
    plain, member = (json.loads(run.stdout)["sources"] for run in done)
    assert member[0].pop("source") == "x.tar/a.webm"
    assert plain[0].pop("source") == "a.webm"
    assert plain == member


@pytest.mark.parametrize("name", ["x.tar.gz", "x.tgz", "x.TAR.bz2", "x.tar.xz", "x.tar"])
def test_a_compressed_tar_is_refused_by_name(tmp_path: Path, name: str) -> None:
    kind = {"bz2": "bz2", ".xz": "xz"}.get(name[-3:], "gz")
    with tarfile.open(tmp_path / name, f"w:{kind}") as archive:
        archive.addfile(tarfile.TarInfo("a.mp4"))
    with pytest.raises(ConfigError) as error:
        listed(tmp_path / name)
    assert f"{name}: not a plain tar that can be read: it is compressed" in str(error.value)
    assert "\n" not in str(error.value)


class Counted(io.FileIO):
    """Counts the bytes that are read."""

    num_bytes = 0

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self.num_bytes += len(content)
        return content


def test_videos_are_skipped_and_not_read(tmp_path: Path) -> None:
    video = bytes(1_000_000)
    members = [(f"{n}.{x}", c) for n in range(30) for x, c in (("mp4", video), ("txt", b"t"))]
    path = make_tar(tmp_path / "x.tar", members)
    with Counted(path) as file:
        videos, _ = read_tar(file, is_media=lambda name: name.endswith(".mp4"))
        assert [video.extra for video in videos] == [{"caption": "t"}] * 30
        assert file.num_bytes < 60 * 3 * tarfile.BLOCKSIZE


def test_members_that_are_no_videos_take_no_memory(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "x.tar", [(f"{n}.npy", b"") for n in range(5000)])
    with path.open("rb") as file:
        tracemalloc.start()
        assert read_tar(file, is_media=lambda name: False) == ([], 5000)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
    assert peak < 500_000  # of each, a twentieth of what tarfile has of one


def header(name: str, size: bytes | int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """One block, with any size."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size if isinstance(size, bytes) else b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


NEGATIVE = b"\xff" * 10 + (-512).to_bytes(2, "big", signed=True)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (header("a.mp4", NEGATIVE) * 3, ""),
        (header("a", NEGATIVE, tarfile.XHDTYPE) * 3, ""),
        (header("a.mp4", b"\x80" + b"\x7f" * 11) * 3, ""),
        (header("a", 300_000, tarfile.XHDTYPE) + bytes(300_000), "claims 300,032 bytes"),
        (header("a", 300_000, tarfile.GNUTYPE_LONGNAME) + bytes(300_000), "claims 300,032 bytes"),
        (
            b"".join(header("a", 0, tarfile.XHDTYPE) for _ in range(5000)),
            "header inside is damaged",
        ),
    ],
    ids=["back", "back, pax", "beyond", "large pax", "long name", "pax of pax"],
)
def test_headers_that_lie_are_refused(tmp_path: Path, content: bytes, why: str) -> None:
    (tmp_path / "x.tar").write_bytes(content + bytes(1024))
    with pytest.raises(ConfigError, match=rf"x\.tar: not a plain tar that can be read: .*{why}"):
        listed(tmp_path / "x.tar")


def test_sparse_and_hard_linked_members_are_ignored_and_what_follows_is_found(
    tmp_path: Path,
) -> None:
    folder = put(tmp_path / "in", "a.mp4", "z.mp4")
    with (folder / "m.mp4").open("wb") as file:
        file.seek(1_000_000)
        file.write(b"end")
    (folder / "n.mp4").hardlink_to(folder / "a.mp4")
    for kind in ("gnu", "posix"):
        path = tmp_path / f"{kind}.tar"
        made = subprocess.run(
            ["tar", f"--format={kind}", "-S", "--sort=name", "-cf", path, "-C", folder, "."],
            capture_output=True,
            check=False,
        )
        if made.returncode:
            pytest.skip("needs GNU tar")
        assert path.stat().st_size < 100_000, "sparse"
        listing = listed(path)
        assert names(listing) == [f"{kind}.tar/./a.mp4", f"{kind}.tar/./z.mp4"]
        assert listing.num_ignored == 2
