"""Files and tars to list, and what is found."""

import io
import tarfile
from pathlib import Path

from spacepatch.listings import Listing
from spacepatch.sources import list_sources


def listed(*arguments: str | Path, root: Path | None = None) -> Listing:
    return list_sources(map(str, arguments), root=root)


def names(listing: Listing) -> list[str]:
    return [source.name for source in listing.sources]


def put(folder: Path, *files: str, content: bytes = b"x") -> Path:
    for name in files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


def make_tar(path: Path, members: list[tuple[str, bytes]], format_: int = tarfile.PAX_FORMAT):
    with tarfile.open(path, "w", format=format_) as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path
