"""Read tars: where their videos lie, and what the members beside them say. Nothing is extracted."""

from __future__ import annotations

import tarfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import IO, Any, cast

from spacepatch.metadata import MOST_TEXT_BYTES, TEXTS, sample_extra

COMPRESSED = (
    b"\x1f\x8b",
    b"BZh",
    b"\xfd7zXZ",
    b"\x28\xb5\x2f\xfd",
    b"\x04\x22\x4d\x18",
    b"\x1f\x9d",
)
"""What files of gzip, bzip2, xz, zstd, lz4 and compress begin with."""

MOST_HEADER_BYTES = 128 * 1024
"""Of a long name or of a pax header: `tarfile` reads whatever size a damaged one claims."""


@dataclass(slots=True)
class TarVideo:
    """A video in a tar, and what the json and txt in its sample say."""

    name: str
    """As the tar has it; bytes that are no UTF-8 as lone surrogates."""
    offset: int
    """Where its data begins in the tar."""
    num_bytes: int
    extra: dict[str, Any] = field(default_factory=dict)
    metadata_lost: str = ""
    """What `extra` lacks, and why."""


@dataclass(slots=True)
class _Sample:
    """Adjacent members whose names are the same up to the first dot of the base name."""

    key: str
    extensions: set[str] = field(default_factory=set)
    videos: list[TarVideo] = field(default_factory=list)
    texts: dict[str, bytes | None] = field(default_factory=dict)
    num_ignored: int = 0


def read_tar(
    file: IO[bytes], metas: IO[bytes] | None = None, *, is_media: Callable[[str], bool]
) -> tuple[list[TarVideo], int]:
    """List the videos of a tar in one pass over its headers.

    Members of one sample (WebDataset's rule) belong together: a ``.json`` and a ``.txt`` speak of
    all its videos. Nothing else in the tar is read, and nothing is ever unpickled.

    Args:
        file: the tar, at any place; it must be able to seek.
        metas: a tar with the ``.json`` of videos that have none beside them, see `metas_path`.
        is_media: whether a member of this name is a video.

    Returns:
        The videos in the order of the tar, and how many members are neither those nor about them.

    Raises:
        tarfile.TarError, OSError, ValueError: it is no plain tar, compressed, damaged or cut off.
    """
    videos: list[TarVideo] = []
    bare: dict[str, list[TarVideo]] = defaultdict(list)
    """By key, videos that nothing speaks of."""
    apart: set[str] = set()
    """Keys of what speaks of no video."""
    num_ignored = 0
    for sample in _samples(file, is_media):
        num_ignored += sample.num_ignored
        videos += sample.videos
        if sample.videos and sample.texts:
            _describe(sample.videos, sample.texts)
        elif sample.videos:
            bare[sample.key] += sample.videos
        elif sample.texts:
            # A download that failed leaves its json without a video: nothing is lost by it.
            num_ignored += len(sample.texts)
            apart.add(sample.key)
    if metas is not None:
        for sample in _samples(metas, lambda name: False):
            if sample.texts and sample.key in bare:
                _describe(bare.pop(sample.key), sample.texts)
    for key in apart & bare.keys():
        for video in bare[key]:
            video.metadata_lost = (
                "its json or txt is not next to it in the tar; pack with tar --sort=name"
            )
    return videos, num_ignored


def metas_path(path: str) -> str | None:
    """Where cosmos-curate puts the json of the videos in the tar `path`.

    It writes three tars with the same keys, `video/part_000000/000000.tar` and the same below
    `metas` and `t5_xxl`; the last holds pickles and is left alone. None: `path` is no such tar.
    """
    parts = path.rsplit("/", 3)
    if len(parts) == 4 and parts[1] == "video" and parts[2].startswith("part_"):
        return "/".join((parts[0], "metas", *parts[2:]))
    return None


def _describe(videos: list[TarVideo], texts: dict[str, bytes | None]) -> None:
    extra, lost = sample_extra(texts)
    for video in videos:
        video.extra, video.metadata_lost = extra, lost


def _samples(file: IO[bytes], is_media: Callable[[str], bool]) -> Iterator[_Sample]:
    sample = _Sample("")
    for member in _members(file):
        folder, slash, base = member.name.rpartition("/")
        stem, _, extension = base.partition(".")
        key, extension = f"{folder}{slash}{stem}", extension.lower()
        if member.isdir():
            continue
        if not stem:
            # Hidden: whatever wrote it beside the others, it belongs to no sample.
            sample.num_ignored += 1
            continue
        if key != sample.key or extension in sample.extensions:
            # What is there already begins another sample of the same name.
            yield sample
            sample = _Sample(key)
        sample.extensions.add(extension)
        if not member.isreg() or member.issparse():
            sample.num_ignored += 1
        elif is_media(member.name):
            sample.videos.append(TarVideo(member.name, member.offset_data, member.size))
        elif extension in TEXTS:
            sample.texts[extension] = None
            if member.size <= MOST_TEXT_BYTES:
                # At once and not when a video has come: files are read forwards.
                file.seek(member.offset_data)
                sample.texts[extension] = file.read(member.size)
        else:
            sample.num_ignored += 1
    yield sample


def _members(file: IO[bytes]) -> Iterator[tarfile.TarInfo]:
    """The members of a tar one by one: of hundreds of thousands none is kept."""
    file.seek(0)
    if file.read(6).startswith(COMPRESSED):
        raise tarfile.ReadError("it is compressed, and videos are read where they lie; unpack it")
    file.seek(0)
    headers = cast("IO[bytes]", _Headers(file))
    try:
        with tarfile.open(fileobj=headers, mode="r:", encoding="utf-8") as archive:
            end = 0
            while (member := archive.next()) is not None:
                archive.members.clear()  # type: ignore[attr-defined]
                if archive.offset <= end:
                    raise tarfile.ReadError("a header inside is damaged")
                end = archive.offset
                yield member
            # tarfile takes a damaged header for the end.
            file.seek(archive.offset)
    except (RecursionError, OverflowError):
        raise tarfile.ReadError("a header inside is damaged") from None
    if file.read(tarfile.BLOCKSIZE).strip(b"\0"):
        raise tarfile.ReadError("a header inside is damaged")


class _Headers:
    """A tar as `tarfile` may read it: no more at once than a header has."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if not 0 <= size <= MOST_HEADER_BYTES:
            raise tarfile.ReadError(f"a header inside claims {size:,} bytes")
        return self._file.read(size)
