"""Where the sources of a dataset lie now: its tables name them relative to SOURCE arguments."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from spacepatch.data import Source
from spacepatch.errors import ConfigError
from spacepatch.remote import is_url, reachable, size_of
from spacepatch.remote.errors import explain
from spacepatch.remote.urls import check_url, is_web
from spacepatch.sources import list_sources

ANY = -1
"""In place of an ordinal: every SOURCE argument that has no root of its own."""


def parse_roots(texts: Iterable[str]) -> dict[int, str]:
    """``N=DIR`` for the N-th SOURCE argument, or ``DIR`` for all that are not named.

    Raises:
        ConfigError: one N is given twice, or two are for all.
    """
    roots: dict[int, str] = {}
    for text in texts:
        match = re.fullmatch(r"(?:(\d{1,9})=)?(.*)", text, re.DOTALL)
        assert match is not None, "it takes any text"
        number, place = ANY if match[1] is None else int(match[1]), match[2]
        if number in roots:
            which = 1 if number == ANY else number + 1
            raise ConfigError(
                f"--source-root {text}: those sources lie in {roots[number]} already; say which "
                f"SOURCE argument this is, as in {which}={place}"
            )
        roots[number] = place
    return roots


class SourceRoots:
    """Finds sources by their names below the places that the user gave."""

    def __init__(self, roots: Mapping[int, str], *, allow_network: bool = False) -> None:
        """Args:
            roots: by ordinal of the SOURCE argument, or `ANY`: the folder that its names are
                relative to, or the argument itself (a file, glob, list or manifest), or the URL of
                one.
            allow_network: whether web servers may be asked, see `spacepatch.remote.web`.

        Raises:
            ConfigError: a place is not there, or a URL that may not be read.
        """
        self._roots = dict(roots)
        self._allow_network = allow_network
        self._listed: dict[str, dict[str, Source]] = {}
        self._urls = {place: self._folder_url(place) for place in self._roots.values()}
        for place, url in self._urls.items():
            if not url and (not place or not Path(place).is_dir()):
                self._sources_in(place)

    def __contains__(self, number: int) -> bool:
        return number in self._roots or ANY in self._roots

    def place_of(self, source: Source) -> str:
        """Where it is looked for; `source.source_root` must be one of those that it contains."""
        return self._roots.get(source.source_root) or self._roots[ANY]

    def find(self, source: Source) -> Source | None:
        """The source where it lies now; None: there is none of its name."""
        place = self.place_of(source)
        url, found = self._urls[place], None
        # A table that leads out of the folder is none of ours.
        is_below = not source.name.startswith("/") and ".." not in PurePosixPath(source.name).parts
        if url and is_below:
            found = self._at_url(url, source.name)
        elif is_below and Path(place).is_dir():
            found = self._below(Path(place), source.name)
        if found is None and not is_web(url):  # which cannot be listed
            found = self._sources_in(place).get(source.name)
        if found is None:
            return None
        return replace(
            source, uri=found.uri, num_bytes=found.num_bytes, member_offset=found.member_offset
        )

    def _folder_url(self, place: str) -> str:
        """The URL of a folder, which need not be listed either; empty: it is none."""
        if not is_url(place) or place.startswith(("@", "memory://")):
            return ""
        from spacepatch.remote.listing import kind_of

        try:
            url = check_url(place, allow_network=self._allow_network)
            is_folder = is_url(url) and (
                (is_web(url) and url.endswith("/")) or kind_of(url) == "folder"
            )
        except (ValueError, ConfigError) as error:
            raise ConfigError(f"--source-root: {error}") from None
        return url if is_folder else ""

    def _below(self, folder: Path, name: str) -> Source | None:
        """By its path, so that a large folder need not be walked."""
        parts = PurePosixPath(name).parts
        for stop in range(1, len(parts) + 1):
            path = folder.joinpath(*parts[:stop])
            if not path.is_file():
                continue
            if stop == len(parts):
                return Source(str(path.absolute()), name, 0, "", path.stat().st_size)
            if path.suffix.lower() == ".tar":
                return self._sources_in(str(path)).get("/".join(parts[stop - 1 :]))
        return None

    def _at_url(self, folder: str, name: str) -> Source | None:
        """The same of an object, or of a tar's member."""
        base = folder.rstrip("/")
        start, tar, rest = name.partition(".tar/")
        path = f"{start}.tar" if tar else name
        url = f"{base}/{quote(path) if is_web(folder) else path}"
        try:
            num_bytes = size_of(url)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise ConfigError(f"--source-root: {explain(url, error)}") from None
        if tar:
            return self._sources_in(url).get(f"{PurePosixPath(path).name}/{rest}")
        return Source(url, name, 0, "", num_bytes)

    def _sources_in(self, place: str) -> dict[str, Source]:
        if place not in self._listed:
            try:
                listing = reachable(list_sources([place], allow_network=self._allow_network))
            except ConfigError as error:
                raise ConfigError(f"--source-root: {error}") from None
            # The first of equal names: which file was planned, its content says.
            self._listed[place] = {
                source.name: source for source in reversed(listing.sources) if source.num_bytes
            }
        return self._listed[place]
