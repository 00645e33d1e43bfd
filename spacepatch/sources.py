"""Find videos: files, folders, globs, lists, manifests and tars become `Source`s."""

from __future__ import annotations

import csv
import glob
import hashlib
import json
import os
import stat
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from spacepatch.data import ClipRange, Source
from spacepatch.errors import ConfigError

VIDEO_EXTENSIONS = frozenset(
    "3g2 3gp asf avi dv f4v flv ivf m2ts m2v m4v mkv mov mp4 mpeg mpg mts mxf nut obu ogg ogm ogv"
    " rm rmvb ts vob webm wmv y4m 264 265 h264 h265 hevc".split()
)
IMAGE_EXTENSIONS = frozenset("apng avif bmp gif heic heif jpeg jpg jxl png tif tiff webp".split())
AUDIO_EXTENSIONS = frozenset("aac aif aiff flac m4a mka mp3 oga opus wav wma".split())
"""Audio files are listed too: a folder's mp3 with nothing but a cover is a loss to be seen
(`no_video_stream`), not a file that was never there."""
MEDIA_EXTENSIONS = VIDEO_EXTENSIONS | IMAGE_EXTENSIONS | AUDIO_EXTENSIONS
MANIFEST_EXTENSIONS = frozenset({"csv", "jsonl", "parquet"})

RESERVED_COLUMNS = ("uri", "start", "end")
"""Manifest columns that we read; every other one travels to the segment (`id` included)."""


@dataclass(frozen=True, slots=True)
class Listing:
    """What the SOURCE arguments name."""

    sources: tuple[Source, ...]
    num_ignored: int
    """Files of a folder or tar that are no media by their name, or are hidden."""
    missing: tuple[Source, ...] = field(default=())
    """Sources that a list or manifest names and that are not there: losses, not errors."""


@dataclass(slots=True)
class _Found:
    """One file or member before identities are given."""

    path: Path
    name: str
    member: str = ""
    offset: int | None = None
    num_bytes: int | None = None
    ranges: list[ClipRange] = field(default_factory=list)


def list_sources(arguments: Iterable[str], *, root: Path | None = None) -> Listing:
    """Resolve SOURCE arguments: files, folders, globs, ``@list.txt``, manifests, WebDataset tars.

    The order is the arguments' order and, within one, that of the bytes of the names: never the
    file system's.

    Args:
        root: what relative paths of lists and manifests are relative to, and must stay under;
            by default the folder of the list or manifest.

    Raises:
        ConfigError: an argument names nothing, or a manifest points outside its root.
    """
    sources: list[Source] = []
    missing: list[Source] = []
    ignored = 0
    ordinals: Counter[tuple[str, str]] = Counter()
    for number, argument in enumerate(arguments):
        found, skipped = _expand(argument, root)
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
            )
            if item.num_bytes is None:
                missing.append(source)
            else:
                sources.append(source)
    return Listing(tuple(sources), ignored, tuple(missing))


def make_source_id(name: str, *, ordinal: int, member: str = "") -> str:
    """32 hex digits: blake2b-128 of the uri relative to its SOURCE argument, the ordinal among
    equal ones, and the tar member."""
    content = "\0".join((name, str(ordinal), member)).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def content_id(path: str, *, offset: int | None = None, num_bytes: int) -> str:
    """32 hex digits: blake2b-128 of the size and of the first and last 64 KiB.

    Raises:
        OSError: the file cannot be read.
    """
    block = 64 * 1024
    digest = hashlib.blake2b(num_bytes.to_bytes(8, "little"), digest_size=16)
    with Path(path).open("rb") as file:
        begin = offset or 0
        file.seek(begin)
        digest.update(file.read(min(block, num_bytes)))
        tail = max(num_bytes - block, 0)
        file.seek(begin + tail)
        digest.update(file.read(num_bytes - tail))
    return digest.hexdigest()


def select_sources(
    sources: tuple[Source, ...],
    *,
    seed: int,
    sample: str | None = None,
    limit: int | None = None,
    split: str | None = None,
) -> tuple[Source, ...]:
    """Apply `--sample`, then `--limit`, then name the `--split` of each source.

    Args:
        sample: ``1%`` or a count; the sources with the smallest keyed hashes, so that a larger
            sample contains a smaller one.
        split: ``train=0.98,val=0.02``; by the keyed hash too, so that a source keeps its split
            whatever else is listed.

    Raises:
        ConfigError: a value that cannot be understood.
    """
    if sample is not None:
        count = parse_share("sample", sample, len(sources))
        chosen = sorted(sources, key=lambda s: _keyed_hash(seed, "sample", s.source_id))[:count]
        kept = {id(source) for source in chosen}
        sources = tuple(source for source in sources if id(source) in kept)
    if limit is not None:
        sources = sources[:limit]
    if split:
        borders = parse_split(split)
        sources = tuple(
            replace(source, split=_split_of(_keyed_hash(seed, "split", source.source_id), borders))
            for source in sources
        )
    return sources


def parse_share(key: str, text: str, total: int) -> int:
    """`7` or `1%` of `total`, rounded up.

    Raises:
        ConfigError: neither a count nor a percentage.
    """
    try:
        if text.endswith("%"):
            share = Fraction(text[:-1]) / 100
            if not 0 <= share <= 1:
                raise ValueError(text)
            return -(-share.numerator * total // share.denominator)
        count = int(text)
        if count < 0:
            raise ValueError(text)
        return count
    except ValueError:
        raise ConfigError(f"{key}: {text!r} is no count (12) and no percentage (1%)") from None


def parse_split(text: str) -> list[tuple[str, Fraction]]:
    """``train=0.98,val=0.02`` to names with their upper borders in [0, 1].

    Raises:
        ConfigError: names that cannot be part of a file name, or shares that do not sum to 1.
    """
    borders: list[tuple[str, Fraction]] = []
    total = Fraction(0)
    for part in text.split(","):
        name, _, share = part.strip().partition("=")
        try:
            total += Fraction(share)
        except (ValueError, ZeroDivisionError):
            raise ConfigError(f"split: {part!r} is not NAME=SHARE, as in train=0.98") from None
        if not name.replace("_", "").isalnum() or not name.isascii() or len(name) > 32:
            raise ConfigError(f"split: {name!r} must be letters, digits and _, at most 32")
        if name in dict(borders):
            raise ConfigError(f"split: {name!r} is named twice")
        borders.append((name, total))
    if total != 1:
        raise ConfigError(f"split: the shares of {text!r} sum to {float(total):g}, not to 1")
    return borders


def _split_of(keyed_hash: int, borders: list[tuple[str, Fraction]]) -> str:
    place = Fraction(keyed_hash, 2**64)
    return next(name for name, border in borders if place < border)


def _keyed_hash(seed: int, purpose: str, source_id: str) -> int:
    content = f"{seed}\0{purpose}\0{source_id}".encode()
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "big")


# --- one SOURCE argument ---------------------------------------------------------------------


def _expand(argument: str, root: Path | None) -> tuple[list[_Found], int]:
    if "://" in argument:
        raise ConfigError(
            f"{argument}: only local paths can be read so far; copy or mount it, then give the path"
        )
    if argument.startswith("@"):
        return _read_list(Path(argument[1:]), root), 0
    path = Path(argument)
    if path.is_dir():
        return _walk(path)
    if path.exists():
        extension = path.suffix.lower().lstrip(".")
        if extension in MANIFEST_EXTENSIONS:
            return _read_manifest(path, root), 0
        if extension == "tar":
            return _read_tar(path, printable(path.name))
        return [_file(path.absolute(), printable(path.name))], 0
    if glob.has_magic(argument):
        return _glob(argument)
    raise ConfigError(f"{argument}: no such file or folder")


def printable(name: str) -> str:
    """A file name as valid unicode: bytes that are none are shown as ``\\xff``."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _file(path: Path, name: str) -> _Found:
    try:
        return _Found(path, name, num_bytes=path.stat().st_size)
    except (OSError, ValueError):
        return _Found(path, name)


def _walk(folder: Path) -> tuple[list[_Found], int]:
    found: list[_Found] = []
    ignored = 0
    for parent, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for file in files:
            path = Path(parent, file)
            if _is_media(path):
                name = printable(path.relative_to(folder).as_posix())
                found.append(_file(path.absolute(), name))
            else:
                ignored += 1
    return _sorted(found), ignored


def _glob(pattern: str) -> tuple[list[_Found], int]:
    parts = Path(pattern).parts
    magic = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    fixed = Path(*parts[:magic]) if magic else Path()
    matches = [Path(match) for match in glob.glob(pattern, recursive=True)]
    regular = [path for path in matches if path.is_file()]
    if not regular:
        raise ConfigError(f"{pattern}: the pattern matches no file")
    found = [
        _file(path.absolute(), printable(path.relative_to(fixed).as_posix())) for path in regular
    ]
    return _sorted(found), 0


def _is_media(path: Path) -> bool:
    if path.name.startswith(".") or path.suffix.lower().lstrip(".") not in MEDIA_EXTENSIONS:
        return False
    try:
        # A FIFO or a device named x.mp4 would block whoever opens it.
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return False


def _sorted(found: list[_Found]) -> list[_Found]:
    return sorted(found, key=lambda item: (item.name.encode(), item.member.encode()))


def _read_list(path: Path, root: Path | None) -> list[_Found]:
    if not path.is_file():
        raise ConfigError(f"@{path}: no such list")
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    uris = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    return [_below(uri, path, root, f"line {uri!r}") for uri in uris]


def _read_manifest(path: Path, root: Path | None) -> list[_Found]:
    """One source a uri, one clip range a row; the order is that of first mention."""
    by_uri: dict[str, _Found] = {}
    for number, row in enumerate(_manifest_rows(path), start=1):
        where = f"row {number}"
        uri = row.get("uri")
        if not uri or not isinstance(uri, str):
            raise ConfigError(f"{path}: {where} has no uri; columns are {', '.join(row)}")
        if uri not in by_uri:
            by_uri[uri] = _below(uri, path, root, where)
        start = _seconds(row.get("start"), path, where, "start")
        stop = _seconds(row.get("end"), path, where, "end")
        if start is not None and stop is not None and stop <= start:
            raise ConfigError(f"{path}: {where}: end {row['end']} is not after {row['start']}")
        if any(
            (seen.start_seconds, seen.stop_seconds) == (start, stop) for seen in by_uri[uri].ranges
        ):
            raise ConfigError(f"{path}: {where} repeats the range of an earlier row of {uri}")
        extra = {key: value for key, value in row.items() if key not in RESERVED_COLUMNS}
        by_uri[uri].ranges.append(ClipRange(start, stop, _jsonable(extra)))
    return list(by_uri.values())


def _manifest_rows(path: Path) -> Iterator[dict[str, Any]]:
    kind = path.suffix.lower()
    if kind == ".csv":
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                yield {key: value for key, value in row.items() if key is not None}
    elif kind == ".jsonl":
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError:
                raise ConfigError(f"{path}: line {number} is not JSON") from None
            if not isinstance(row, dict):
                raise ConfigError(f"{path}: line {number} is no JSON object")
            yield row
    else:
        import pyarrow.parquet as parquet

        for batch in parquet.ParquetFile(path).iter_batches():
            yield from batch.to_pylist()


def _below(uri: str, listed_in: Path, root: Path | None, where: str) -> _Found:
    """A path that a list or manifest names: resolved, and refused outside its root."""
    if "\0" in uri or "://" in uri:
        raise ConfigError(f"{listed_in}: {where}: {uri!r} is no local path")
    base = (root or listed_in.parent).resolve()
    path = (base / uri).resolve()
    if not path.is_relative_to(base):
        raise ConfigError(
            f"{listed_in}: {where}: {uri} lies outside {base}; say where the files lie with --root"
        )
    return _file(path, printable(path.relative_to(base).as_posix()))


def _seconds(value: Any, path: Path, where: str, column: str) -> Fraction | None:
    """`3.5`, `90` or `1:02:03.5` to seconds; None where empty."""
    if value is None or value == "" or value != value:  # NaN of a parquet column
        return None
    try:
        seconds = Fraction(0)
        for part in str(value).split(":"):
            seconds = seconds * 60 + Fraction(part.strip())
        if seconds < 0:
            raise ValueError(value)
        return seconds
    except ValueError:
        raise ConfigError(
            f"{path}: {where}: {column} {value!r} is no time; write seconds or H:MM:SS"
        ) from None


def _jsonable(row: dict[str, Any]) -> dict[str, Any]:
    """Only what JSON can hold: a date or bytes of a parquet manifest become text."""
    return json.loads(json.dumps(row, default=str))  # type: ignore[no-any-return]


def _read_tar(path: Path, name: str) -> tuple[list[_Found], int]:
    """Videos inside a tar, by offset: nothing is extracted and no member's name becomes a path."""
    found: list[_Found] = []
    ignored = 0
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                extension = member.name.rsplit(".", 1)[-1].lower()
                if not member.isreg() or extension not in MEDIA_EXTENSIONS or member.issparse():
                    ignored += 1
                    continue
                item = _Found(path.absolute(), name, printable(member.name), member.offset_data)
                item.num_bytes = member.size
                found.append(item)
    except (tarfile.TarError, OSError) as error:
        raise ConfigError(f"{path}: not a plain tar that can be read ({error})") from None
    return _sorted(found), ignored
