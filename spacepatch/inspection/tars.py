"""Read a tar of packs once, front to back, as any tar tool would, and hold it against the rules."""

from __future__ import annotations

import hashlib
import re
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from spacepatch.inspection.findings import Report

KEY = re.compile(r"[0-9A-Za-z_-]{1,80}")
READ_BYTES = 1 << 20


@dataclass(slots=True)
class Sample:
    """Members that lie together under one key."""

    key: str
    names: list[str] = field(default_factory=list)
    """Members in the order of the tar."""
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Offset and size of each member's data."""
    contents: dict[str, bytes] = field(default_factory=dict)
    """Data of the declared members."""


class TarScan:
    """One pass over a tar; memory is one sample's."""

    def __init__(
        self, path: Path, *, members: Sequence[str], most_bytes: int, report: Report
    ) -> None:
        """Args:
        members: the declared members of every sample, in order.
        most_bytes: that a member can have; a larger one is reported and not read.
        """
        self._path, self._members = path, list(members)
        self._most_bytes, self._report = most_bytes, report
        self.num_bytes = 0
        """What has been read; after the last sample, the size of the file."""
        self.sha256 = ""
        """Of the file, after the last sample."""

    def __iter__(self) -> Iterator[Sample]:
        """The samples in order, whole or not.

        Raises:
            OSError: the file cannot be read.
        """
        with self._path.open("rb") as file:
            hashing = _Hashing(file)
            try:
                with tarfile.open(fileobj=hashing, mode="r|", bufsize=READ_BYTES) as tar:  # type: ignore[call-overload]
                    yield from self._samples(tar)
            except tarfile.TarError as error:
                self._report(f"is torn: {error}")
            while hashing.read(READ_BYTES):
                pass
        self.num_bytes, self.sha256 = hashing.num_bytes, hashing.digest.hexdigest()

    def _samples(self, tar: tarfile.TarFile) -> Iterator[Sample]:
        seen: set[str] = set()
        sample: Sample | None = None
        while (info := tar.next()) is not None:
            # tarfile remembers every member that it has passed.
            tar.members = []  # type: ignore[attr-defined]
            self._check_header(info)
            key, _, name = info.name.partition(".")
            if sample is None or key != sample.key or name in sample.places:
                if sample is not None:
                    self._check_order(sample)
                    yield sample
                if key in seen:
                    self._report(f"key {key} occurs twice, or its members are not adjacent")
                if not KEY.fullmatch(key):
                    self._report(f"key {key!r} is not 1 to 80 of 0-9 A-Z a-z _ -")
                seen.add(key)
                sample = Sample(key)
            sample.names.append(name)
            sample.places[name] = (info.offset_data, info.size)
            if name in self._members and info.type in (tarfile.REGTYPE, tarfile.AREGTYPE):
                if info.size > self._most_bytes:
                    self._report(f"{info.name} has {info.size} bytes: more than a pack can have")
                    continue
                content = tar.extractfile(info)
                assert content is not None, "a regular file has data"
                sample.contents[name] = content.read()
        if sample is not None:
            self._check_order(sample)
            yield sample

    def _check_header(self, info: tarfile.TarInfo) -> None:
        found = (info.type, info.mode, info.mtime, info.uid, info.gid, info.uname, info.gname)
        if found != (tarfile.REGTYPE, 0o644, 0, 0, 0, "", "") or info.pax_headers:
            self._report(
                f"{info.name} is no plain member with mode 644, time 0 and owner 0: "
                f"type {info.type!r}, mode {info.mode:o}, time {info.mtime}, "
                f"owner {info.uid} {info.gid} {info.uname!r} {info.gname!r}"
            )

    def _check_order(self, sample: Sample) -> None:
        if sample.names != self._members:
            self._report(
                f"{sample.key} has the members {', '.join(sample.names)}, "
                f"not {', '.join(self._members)} in this order"
            )


class _Hashing:
    """A file that hashes what is read of it, so that nothing is read twice."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest, self.num_bytes = file, hashlib.sha256(), 0

    def read(self, size: int) -> bytes:
        content = self._file.read(size)
        self.digest.update(content)
        self.num_bytes += len(content)
        return content
