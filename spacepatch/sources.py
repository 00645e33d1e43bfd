"""Find videos: files, folders, globs, lists, manifests and tars become `Source`s."""

from __future__ import annotations

import glob
import hashlib
import io
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np

from spacepatch.data import ClipRange, Source
from spacepatch.errors import ConfigError
from spacepatch.listings import Listing, SourceTable, Tally, key_of
from spacepatch.manifests import EXTENSIONS as MANIFEST_EXTENSIONS
from spacepatch.manifests import ListBase, blaming, manifest_entries
from spacepatch.remote import is_url, open_source, shown, size_of
from spacepatch.remote.errors import explain
from spacepatch.remote.urls import check_url, name_in
from spacepatch.tars import metas_path, read_tar

VIDEO_EXTENSIONS = frozenset(
    "3g2 3gp asf avi dv f4v flv ivf m2ts m2v m4v mjpeg mjpg mkv mov mp4 mpeg mpg mts mxf nut obu"
    " ogg ogm ogv rm rmvb ts vob webm wmv y4m 264 265 h264 h265 hevc".split()
)
IMAGE_EXTENSIONS = frozenset("apng avif bmp gif heic heif jpeg jpg jxl png tif tiff webp".split())
AUDIO_EXTENSIONS = frozenset("aac aif aiff flac m4a mka mp3 oga opus wav wma".split())
"""Audio files are listed too: a folder's mp3 with nothing but a cover is a loss to be seen
(`no_video_stream`), not a file that was never there."""
MEDIA_EXTENSIONS = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS | AUDIO_EXTENSIONS

TAR_EXTENSIONS = tuple(
    ".tar .tar.gz .tar.bz2 .tar.xz .tar.zst .tar.lz4 .tar.z .tgz .tbz .tbz2 .txz .tzst".split()
)
"""Compressed ones are refused when they are read: they are no videos that cannot be opened."""

ASKED_TOGETHER = 4096
"""Objects of stores, for their sizes."""


@dataclass(slots=True)
class _Found:
    """One file or member before identities are given."""

    path: Path | str
    """A local path, or a URL."""
    name: str
    member: str = ""
    offset: int | None = None
    num_bytes: int | None = None
    ranges: list[ClipRange] = field(default_factory=list)
    metadata_lost: str = ""

    def source(self, root: int) -> Source:
        """As the first one of its name; without a size it has -1 bytes."""
        return Source(
            uri=str(self.path),
            name=f"{self.name}/{self.member}" if self.member else self.name,
            source_root=root,
            source_id=make_source_id(self.name, ordinal=0, member=self.member),
            num_bytes=-1 if self.num_bytes is None else self.num_bytes,
            member=self.member,
            member_offset=self.offset,
            ranges=tuple(self.ranges),
            metadata_lost=self.metadata_lost,
        )


def list_sources(
    arguments: Iterable[str], *, root: Path | str | None = None, allow_network: bool = False
) -> Listing:
    """Resolve SOURCE arguments: files, folders, globs, ``@list.txt``, manifests, WebDataset tars,
    each of them also at a URL.

    The order is the arguments' order and, within one, that of the bytes of the names: never the
    file system's.

    Args:
        root: what paths in lists and manifests are relative to and must stay under, a folder or
            the URL of one; by default the folder of the list or manifest.
        allow_network: whether web servers may be asked, see `spacepatch.remote.web`.

    Raises:
        ConfigError: an argument names nothing, or a manifest points outside its root.
    """
    tally = Tally()
    base = ListBase.of(root, allow_network)

    def found() -> Iterator[Source]:
        for number, argument in enumerate(arguments):
            for item in _expand(argument, base, tally):
                tally.num_missing += item.num_bytes is None
                yield item.source(number)

    listed = SourceTable(found())
    repeated = _repeated(listed.keys)
    if not tally.num_missing and not repeated:
        return Listing(listed, tally.num_ignored, ignored=tuple(tally.ignored))
    ordinals: Counter[tuple[str, str]] = Counter()

    def identified(is_missing: bool) -> Iterator[Source]:
        ordinals.clear()
        for source in listed:
            if key_of(source.source_id) in repeated:
                name = source.name, source.member
                source = replace(source, source_id=next_source_id(source, ordinals[name]))
                ordinals[name] += 1
            if (source.num_bytes < 0) == is_missing:
                yield replace(source, num_bytes=max(source.num_bytes, 0))

    return Listing(
        SourceTable(identified(False)),
        tally.num_ignored,
        SourceTable(identified(True)),
        tuple(tally.ignored),
    )


def _repeated(keys: np.ndarray) -> frozenset[int]:
    """Those that occur more than once."""
    ordered = np.sort(keys)
    return frozenset(ordered[1:][ordered[1:] == ordered[:-1]].tolist())


def make_source_id(name: str, *, ordinal: int, member: str = "") -> str:
    """32 hex digits: blake2b-128 of the uri relative to its SOURCE argument, the ordinal among
    equal ones, and the tar member."""
    content = "\0".join((name, str(ordinal), member)).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def next_source_id(source: Source, ordinal: int) -> str:
    """`make_source_id` of a listed source, as another one of its name."""
    name = source.name.removesuffix(f"/{source.member}") if source.member else source.name
    return make_source_id(name, ordinal=ordinal, member=source.member)


def content_id(path: str, *, offset: int | None = None, num_bytes: int) -> str:
    """32 hex digits: blake2b-128 of the size and of the first and last 64 KiB.

    Args:
        offset, num_bytes: where a tar's member lies; a plain file has the size that it has now.
    """
    block = 64 * 1024
    there = size_of(path)
    with open_source(path) as file:
        size = there if offset is None else num_bytes
        digest = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=16)
        for start in (0, max(size - block, 0)):
            file.seek((offset or 0) + start)
            digest.update(file.read(min(block, size)))
    return digest.hexdigest()


def _expand(argument: str, base: ListBase, tally: Tally) -> Iterator[_Found]:
    """What an argument names, in order, one after the other."""
    is_list = argument.startswith("@")
    argument = argument.removeprefix("@")
    if is_url(argument):
        try:
            argument = check_url(argument, allow_network=base.allow_network)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if is_url(argument):
            try:
                yield from _expand_url(argument, base, is_list, tally)
            except OSError as error:
                raise ConfigError(explain(argument, error)) from None
            return
    path = Path(argument)
    extension = path.suffix.lower().lstrip(".")
    if is_list:
        yield from _read_list(path, base)
    elif argument and path.is_dir():
        yield from _walk(path, "", tally)
    elif path.is_file() and extension in MANIFEST_EXTENSIONS:
        yield from _read_manifest(path, base)
    elif path.is_file() and _is_tar(path.name):
        yield from _read_tar(path, printable(path.name), tally)
    elif path.is_file():
        yield _file(path.absolute(), printable(path.name))
    elif glob.has_magic(argument):
        yield from _glob(argument, tally)
    else:
        there = argument and path.exists()
        what = "neither a regular file nor a folder" if there else "no such file or folder"
        raise ConfigError(f"{argument or repr(argument)}: {what}")


def _expand_url(url: str, base: ListBase, is_list: bool, tally: Tally) -> Iterator[_Found]:
    """What `_expand` makes of a path, of the objects of a store."""
    from spacepatch.remote.listing import kind_of, objects_below, objects_like

    kind = kind_of(url)
    name = printable(name_in(url))
    extension = PurePosixPath(name).suffix.lower().lstrip(".")
    if is_list and kind != "file":
        raise ConfigError(f"@{shown(url)}: no such list")
    if is_list:
        yield from _read_list(url, base)
    elif kind == "folder":
        entries, ignored = objects_below(url, _is_media)
        for left_out in sorted(ignored):
            tally.ignore(printable(left_out))
        yield from _sorted(_Found(e.url, printable(e.name), num_bytes=e.size) for e in entries)
    elif kind == "file" and extension in MANIFEST_EXTENSIONS:
        yield from _read_manifest(url, base)
    elif kind == "file" and _is_tar(name):
        yield from _read_tar(url, name, tally)
    elif kind == "file":
        yield _Found(url, name, num_bytes=size_of(url))
    else:
        there = [_Found(e.url, printable(e.name), num_bytes=e.size) for e in objects_like(url)]
        if not there:
            raise ConfigError(f"{shown(url)}: the pattern matches no object")
        yield from _with_members(there, tally)


def _with_members(found: Iterable[_Found], tally: Tally) -> Iterator[_Found]:
    """In order, of tars what is in them."""
    for item in _sorted(found):
        if _is_tar(item.name):
            yield from _read_tar(item.path, item.name, tally)
        else:
            yield item


def printable(name: str) -> str:
    """A file name as valid unicode: bytes that are none are shown as ``\\xff``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _file(path: Path, name: str) -> _Found:
    """A regular file; else one without a size: a FIFO or a device would block whoever opens it."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return _Found(path, name)
    return _Found(path, name, num_bytes=status.st_size if stat.S_ISREG(status.st_mode) else None)


def _walk(folder: Path, below: str, tally: Tally) -> Iterator[_Found]:
    """The media of a folder and of those in it, in the order of the bytes of their names.

    Args:
        below: the name of the folder, with its slash; empty for the one that was given.
    """
    try:
        with os.scandir(folder) as entries:
            # Of a folder comes, in this order, what is in it: its names have a slash there.
            ordered = sorted(
                (_key(entry), entry.name, entry.is_dir(), entry.is_symlink()) for entry in entries
            )
    except OSError:
        yield _Found(folder, below.rstrip("/") or ".")
        return
    for _, own, is_folder, is_link in ordered:
        path, name = folder / own, f"{below}{printable(own)}"
        if is_folder:
            # Hidden folders are left alone, and links to folders: they may lead round in a circle.
            if own.startswith(".") or is_link:
                tally.ignore(f"{name}/")
            else:
                yield from _walk(path, f"{name}/", tally)
            continue
        item = _file(path.absolute(), name)
        if _is_media(item.name) and item.num_bytes is not None:
            yield item
        else:
            tally.ignore(name)


def _key(entry: os.DirEntry[str]) -> bytes:
    return f"{printable(entry.name)}{'/' * entry.is_dir()}".encode()


def _glob(pattern: str, tally: Tally) -> Iterator[_Found]:
    parts = Path(pattern).parts
    magic = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    fixed = Path(*parts[:magic]) if magic else Path()
    before = tally.num_ignored
    found = []
    for path in map(Path, glob.iglob(pattern, recursive=True)):
        if _is_tar(path.name) or path.is_file():
            name = printable(path.relative_to(fixed).as_posix())
            found.append(_file(path.absolute(), name))
    yield from _with_members(found, tally)
    if not found and tally.num_ignored == before:
        raise ConfigError(f"{pattern}: the pattern matches no file")


def _is_media(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") and part != ".." for part in path.parts)
    return not hidden and path.suffix.lower().lstrip(".") in MEDIA_EXTENSIONS


def _sorted(found: Iterable[_Found]) -> list[_Found]:
    # Two names can look alike once printable; their own bytes then say which is first.
    return sorted(
        found, key=lambda item: (item.name.encode(), item.member.encode(), os.fsencode(item.path))
    )


def _named(uri: str, where: Path | str, base: ListBase) -> _Found:
    """What the list at `where` names, of an object without its size."""
    place, name = base.find(uri, where)
    if isinstance(place, Path):
        return _file(place, printable(name))
    return _Found(place, printable(name))


def _measured(found: Iterable[_Found]) -> Iterator[_Found]:
    """The same, with the sizes of those at URLs, which are asked for side by side."""
    from spacepatch.remote.listing import sizes_of

    left = iter(found)
    while items := list(islice(left, ASKED_TOGETHER)):
        remote = [item for item in items if isinstance(item.path, str)]
        for item, size in zip(remote, sizes_of([str(item.path) for item in remote]), strict=True):
            item.num_bytes = size
        yield from items


def _read_list(path: Path | str, base: ListBase) -> Iterator[_Found]:
    if isinstance(path, Path) and not path.is_file():
        raise ConfigError(f"@{path}: no such list")

    def named() -> Iterator[_Found]:
        raw = open_source(path, anew=True)
        with io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape") as file:
            for number, line in enumerate(file, start=1):
                if line.strip() and not line.startswith("#"):
                    with blaming(f"{shown(str(path))}: line {number}"):
                        yield _named(line.strip(), path, base)

    return _measured(named())


def _read_manifest(path: Path | str, base: ListBase) -> Iterator[_Found]:
    """One source a uri, in the order of first mention; one clip range a row."""

    def named() -> Iterator[_Found]:
        for uri, ranges, number in manifest_entries(path):
            with blaming(f"{shown(str(path))}: row {number}"):
                item = _named(uri, path, base)
            item.ranges = ranges
            yield item

    return _measured(named())


def _is_tar(name: str) -> bool:
    return name.lower().endswith(TAR_EXTENSIONS)


def _is_there(place: str) -> bool:
    if not is_url(place):
        return Path(place).is_file()
    from spacepatch.remote.listing import kind_of

    return kind_of(place) == "file"


def _read_tar(path: Path | str, name: str, tally: Tally) -> list[_Found]:
    """Videos inside a tar, by offset: nothing is extracted and no member's name becomes a path."""
    place = path if isinstance(path, str) else path.absolute()
    places = [place]
    metas = metas_path(place if isinstance(place, str) else place.as_posix())
    if metas is not None and _is_there(metas):
        places.append(metas)
    what = f"{' or '.join(shown(str(place)) for place in places)}: not a plain tar that can be read"
    with blaming(what), ExitStack() as stack:
        files = [stack.enter_context(open_source(place, anew=True)) for place in places]
        videos, ignored = read_tar(*files, is_media=_is_media)
    tally.num_ignored += ignored
    found = []
    for video in videos:
        where = video.offset, video.num_bytes
        ranges = [ClipRange(None, None, video.extra)] if video.extra else []
        lost = video.metadata_lost
        found.append(_Found(place, name, printable(video.name), *where, ranges, lost))
    return _sorted(found)
