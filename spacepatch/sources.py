"""Find videos: files, folders, globs, lists, manifests and tars become `Source`s."""

from __future__ import annotations

import csv
import glob
import hashlib
import io
import itertools
import os
import stat
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path, PurePosixPath

from spacepatch.data import ClipRange, Source
from spacepatch.errors import ConfigError
from spacepatch.manifests import EXTENSIONS as MANIFEST_EXTENSIONS
from spacepatch.manifests import ListBase, manifest_rows, parse_seconds
from spacepatch.metadata import jsonable
from spacepatch.remote import is_url, open_source, shown, size_of
from spacepatch.remote.stores import explain
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

RESERVED_COLUMNS = ("uri", "start", "end")
"""Manifest columns that we read; every other one travels to the segment (`id` included)."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What the SOURCE arguments name."""

    sources: tuple[Source, ...]
    num_ignored: int
    """Files and members that are hidden, no media by name or not regular; a hidden or linked folder
    is one. What says something of a tar's video is none."""
    missing: tuple[Source, ...] = field(default=())
    """What a list or manifest names, or a folder holds, and cannot be read: losses, not errors."""


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
    sources: list[Source] = []
    missing: list[Source] = []
    ignored = 0
    ordinals: Counter[tuple[str, str]] = Counter()
    base = ListBase.of(root, allow_network)
    for number, argument in enumerate(arguments):
        found, skipped = _expand(argument, base)
        ignored += skipped
        for item in found:
            ordinal = ordinals[item.name, item.member]
            ordinals[item.name, item.member] += 1
            source = Source(
                uri=str(item.path),
                name=f"{item.name}/{item.member}" if item.member else item.name,
                source_root=number,
                source_id=make_source_id(item.name, ordinal=ordinal, member=item.member),
                num_bytes=item.num_bytes or 0,
                member_offset=item.offset,
                ranges=tuple(item.ranges),
                metadata_lost=item.metadata_lost,
            )
            (missing if item.num_bytes is None else sources).append(source)
    return Listing(tuple(sources), ignored, tuple(missing))


def make_source_id(name: str, *, ordinal: int, member: str = "") -> str:
    """32 hex digits: blake2b-128 of the uri relative to its SOURCE argument, the ordinal among
    equal ones, and the tar member."""
    content = "\0".join((name, str(ordinal), member)).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


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


def _expand(argument: str, base: ListBase) -> tuple[list[_Found], int]:
    is_list = argument.startswith("@")
    argument = argument.removeprefix("@")
    if is_url(argument):
        try:
            argument = check_url(argument, allow_network=base.allow_network)
        except ValueError as error:
            raise ConfigError(str(error)) from None
        if is_url(argument):
            try:
                return _expand_url(argument, base, is_list)
            except OSError as error:
                raise explain(argument, error) from None
    path = Path(argument)
    if is_list:
        return _read_list(path, base), 0
    if argument and path.is_dir():
        return _walk(path)
    if path.is_file():
        extension = path.suffix.lower().lstrip(".")
        if extension in MANIFEST_EXTENSIONS:
            return _read_manifest(path, base), 0
        if _is_tar(path.name):
            return _read_tar(path, printable(path.name))
        return [_file(path.absolute(), printable(path.name))], 0
    if glob.has_magic(argument):
        return _glob(argument)
    there = argument and path.exists()
    what = "neither a regular file nor a folder" if there else "no such file or folder"
    raise ConfigError(f"{argument or repr(argument)}: {what}")


def _expand_url(url: str, base: ListBase, is_list: bool) -> tuple[list[_Found], int]:
    """What `_expand` makes of a path, of the objects of a store."""
    from spacepatch.remote.listing import kind_of, objects_below, objects_like

    kind = kind_of(url)
    if is_list:
        if kind != "file":
            raise ConfigError(f"@{shown(url)}: no such list")
        return _read_list(url, base), 0
    if kind == "folder":
        entries, ignored = objects_below(url, _is_media)
        return _sorted(
            [_Found(e.url, printable(e.name), num_bytes=e.size) for e in entries]
        ), ignored
    if kind == "file":
        name = printable(name_in(url))
        extension = PurePosixPath(name).suffix.lower().lstrip(".")
        if extension in MANIFEST_EXTENSIONS:
            return _read_manifest(url, base), 0
        if _is_tar(name):
            return _read_tar(url, name)
        return [_Found(url, name, num_bytes=size_of(url))], 0
    found: list[_Found] = []
    ignored = 0
    for entry in objects_like(url):
        name = printable(entry.name)
        if _is_tar(name):
            members, skipped = _read_tar(entry.url, name)
            found += members
            ignored += skipped
        else:
            found.append(_Found(entry.url, name, num_bytes=entry.size))
    if not found and not ignored:
        raise ConfigError(f"{shown(url)}: the pattern matches no object")
    return _sorted(found), ignored


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


def _walk(folder: Path) -> tuple[list[_Found], int]:
    found: list[_Found] = []
    ignored = 0
    unread: list[OSError] = []
    for parent, folders, files in os.walk(folder, onerror=unread.append):
        # Hidden folders are left alone, and links to folders: they may lead round in a circle.
        visible = [x for x in folders if x[0] != "." and not os.path.islink(f"{parent}/{x}")]  # noqa: PTH114
        ignored += len(folders) - len(visible)
        folders[:] = visible
        for file in files:
            path = Path(parent, file)
            item = _file(path.absolute(), printable(path.relative_to(folder).as_posix()))
            if _is_media(item.name) and item.num_bytes is not None:
                found.append(item)
            else:
                ignored += 1
    for path in (Path(error.filename) for error in unread):
        found.append(_Found(path, printable(path.relative_to(folder).as_posix())))
    return _sorted(found), ignored


def _glob(pattern: str) -> tuple[list[_Found], int]:
    parts = Path(pattern).parts
    magic = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    fixed = Path(*parts[:magic]) if magic else Path()
    found: list[_Found] = []
    ignored = 0
    for path in map(Path, glob.glob(pattern, recursive=True)):
        name = printable(path.relative_to(fixed).as_posix())
        if _is_tar(path.name):
            members, skipped = _read_tar(path, name)
            found += members
            ignored += skipped
        elif path.is_file():
            found.append(_file(path.absolute(), name))
    if not found and not ignored:
        raise ConfigError(f"{pattern}: the pattern matches no file")
    return _sorted(found), ignored


def _is_media(name: str) -> bool:
    path = PurePosixPath(name)
    hidden = any(part.startswith(".") and part != ".." for part in path.parts)
    return not hidden and path.suffix.lower().lstrip(".") in MEDIA_EXTENSIONS


def _sorted(found: list[_Found]) -> list[_Found]:
    # Two names can look alike once printable; their own bytes then say which is first.
    return sorted(
        found, key=lambda item: (item.name.encode(), item.member.encode(), os.fsencode(item.path))
    )


@contextmanager
def _blaming(where: str) -> Iterator[None]:
    """What is wrong with a line, a row or a tar becomes an error that says which one it is."""
    try:
        yield
    except (ValueError, csv.Error, tarfile.TarError, OSError) as error:
        raise ConfigError(f"{where}: {error}") from None


def _named(uri: str, where: Path | str, base: ListBase) -> _Found:
    """What the list at `where` names, of an object without its size."""
    place, name = base.find(uri, where)
    if isinstance(place, Path):
        return _file(place, printable(name))
    return _Found(place, printable(name))


def _measured(found: Iterable[_Found]) -> list[_Found]:
    """The same, with the sizes of those at URLs, which are asked for side by side."""
    from spacepatch.remote.listing import sizes_of

    items = list(found)
    remote = [item for item in items if isinstance(item.path, str)]
    for item, size in zip(remote, sizes_of([str(item.path) for item in remote]), strict=True):
        item.num_bytes = size
    return items


def _read_list(path: Path | str, base: ListBase) -> list[_Found]:
    if isinstance(path, Path) and not path.is_file():
        raise ConfigError(f"@{path}: no such list")
    found = []
    with io.TextIOWrapper(
        open_source(path, anew=True), "utf-8-sig", errors="surrogateescape"
    ) as file:
        text = file.read()
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and not line.startswith("#"):
            with _blaming(f"{shown(str(path))}: line {number}"):
                found.append(_named(line.strip(), path, base))
    return _measured(found)


def _read_manifest(path: Path | str, base: ListBase) -> list[_Found]:
    """One source a uri, one clip range a row; the order is that of first mention."""
    by_uri: dict[str, _Found] = {}
    seen: set[tuple[str, Fraction, Fraction | None]] = set()
    rows = manifest_rows(path)
    for number in itertools.count(1):
        with _blaming(f"{shown(str(path))}: row {number}"):
            row = next(rows, None)
            if row is None:
                break
            uri = row.get("uri")
            if not uri or not isinstance(uri, str):
                raise ValueError(f"has no uri; columns are {', '.join(row)}")
            if uri not in by_uri:
                by_uri[uri] = _named(uri, path, base)
            start, stop = parse_seconds(row, "start"), parse_seconds(row, "end")
            if stop is not None and stop <= (start or 0):
                raise ValueError(f"end {row['end']} is not after {row.get('start') or 0}")
            asked = uri, start or Fraction(0), stop
            if asked in seen:
                raise ValueError(f"repeats the range of an earlier row of {shown(uri)}")
            seen.add(asked)
            extra = {key: value for key, value in row.items() if key not in RESERVED_COLUMNS}
            by_uri[uri].ranges.append(ClipRange(start, stop, jsonable(extra)))
    return _measured(by_uri.values())


def _is_tar(name: str) -> bool:
    return name.lower().endswith(TAR_EXTENSIONS)


def _is_there(place: str) -> bool:
    if not is_url(place):
        return Path(place).is_file()
    from spacepatch.remote.listing import kind_of

    return kind_of(place) == "file"


def _read_tar(path: Path | str, name: str) -> tuple[list[_Found], int]:
    """Videos inside a tar, by offset: nothing is extracted and no member's name becomes a path."""
    place = path if isinstance(path, str) else path.absolute()
    places = [place]
    metas = metas_path(place if isinstance(place, str) else place.as_posix())
    if metas is not None and _is_there(metas):
        places.append(metas)
    what = f"{' or '.join(shown(str(place)) for place in places)}: not a plain tar that can be read"
    with _blaming(what), ExitStack() as stack:
        files = [stack.enter_context(open_source(place, anew=True)) for place in places]
        videos, ignored = read_tar(*files, is_media=_is_media)
    found = []
    for video in videos:
        where = video.offset, video.num_bytes
        ranges = [ClipRange(None, None, video.extra)] if video.extra else []
        lost = video.metadata_lost
        found.append(_Found(place, name, printable(video.name), *where, ranges, lost))
    return _sorted(found), ignored
