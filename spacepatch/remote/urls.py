"""Which URLs are read, what is shown of them, and which paths they mean."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import unquote, urlsplit

WRITABLE = {
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "abfss": "adlfs",
    "memory": "fsspec",
}
"""Stores in which an object appears whole or not at all, by protocol: the package of each."""
STORES = WRITABLE | {"hf": "huggingface_hub"}
WEB = {"http": "aiohttp", "https": "aiohttp"}
PACKAGES = STORES | WEB
"""Of whatever is read. None of fsspec's other protocols: some of them open local files, or whatever
a second URL inside the first one names."""


def is_url(text: str) -> bool:
    """Whether it is an address and no local path."""
    return "://" in text


def protocol_of(url: str) -> str:
    """``s3`` of ``s3://bucket/key``, in small letters."""
    return url.partition("://")[0].lower()


def is_web(url: str) -> bool:
    """Whether a web server is asked for it: only with --allow-network."""
    return protocol_of(url) in WEB


def shown(url: str) -> str:
    """An address without what may be secret in it: a user, a password, a signature."""
    protocol, separator, rest = url.partition("://")
    if not separator:
        return url
    if is_web(url):
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    host, slash, path = rest.partition("/")
    if is_web(url) or re.search(r":.*@", host):
        host = host.rpartition("@")[2]
    return f"{protocol}://{host}{slash}{path}"


def check_url(url: str, *, allow_network: bool) -> str:
    """The URL to read, its protocol in small letters; of a file, its path.

    Raises:
        ValueError: it is of no protocol that is read, holds a password, or is on the web without
            leave.
    """
    protocol, _, rest = url.partition("://")
    protocol = protocol.lower()
    if protocol == "file":
        host, _, path = rest.partition("/")
        if host not in ("", "localhost"):
            raise ValueError(f"{shown(url)}: a file on another machine; mount it, or copy it")
        return f"/{path}"
    url = _checked(url, PACKAGES, "read; copy or mount it")
    if protocol in WEB and not allow_network:
        raise ValueError(f"{shown(url)}: is on the network; give --allow-network to read it")
    return url


def check_folder(url: str, *, writes: bool) -> str:
    """The URL of a folder of shards, its protocol in small letters.

    Raises:
        ValueError: it is of no store that is read, or with `writes` written, or is no plain folder.
    """
    if writes:
        url = _checked(url, WRITABLE, "written; give a folder on a disk, and copy it from there")
    else:
        url = _checked(url, STORES, "read; copy or mount it")
    protocol, _, rest = url.partition("://")
    if re.search(r"::|[?#]|//|(^|/)\.\.?(/|$)", rest.strip("/")):
        raise ValueError(f"{shown(url)}: is no plain {protocol}://BUCKET/FOLDER")
    return url.rstrip("/")


def _checked(url: str, known: Collection[str], what: str) -> str:
    protocol, _, rest = url.partition("://")
    protocol = protocol.lower()
    if protocol not in known:
        names = ", ".join(f"{name}://" for name in ("file", *known))
        raise ValueError(f"{shown(url)}: only {names} can be {what}")
    host = re.split(r"[/?#]", rest, maxsplit=1)[0]
    if "@" in host and not protocol.startswith("abfs"):
        raise ValueError(
            f"{shown(url)}: no user or password in an address: it would end up in logs; give them "
            "by the variables of the store, or a signed URL"
        )
    if not host or "\0" in rest:
        raise ValueError(f"{shown(url)!r} names no bucket or server")
    return f"{protocol}://{rest}"


def name_in(url: str) -> str:
    """The last part of its path, as a name: no query, and of the web no escapes."""
    return path_of(url).rstrip("/").rpartition("/")[2]


def path_of(url: str) -> str:
    """What follows the bucket or server, without the first slash."""
    if is_web(url):
        return unquote(urlsplit(url).path, errors="backslashreplace").lstrip("/")
    return url.partition("://")[2].partition("/")[2]


def folder_of(url: str) -> str:
    """Where a list lies: what its lines are relative to, with a slash at its end."""
    protocol, _, rest = url.partition("://")
    if is_web(url):
        rest = re.split(r"[?#]", rest, maxsplit=1)[0]
    parent = rest.rpartition("/")[0] or rest
    return f"{protocol}://{parent}/"


def below(uri: str, base: str) -> tuple[str, str]:
    """(URL, name relative to `base`) of what a list at a URL names.

    Args:
        uri: a path relative to `base`, or a URL.
        base: the URL of a folder, with a slash at its end.

    Raises:
        ValueError: it lies outside of `base`, or is a local path.
    """
    outside = f"{shown(uri)} lies outside {shown(base)}; say where the files lie with --root"
    if is_url(uri):
        url = f"{protocol_of(uri)}://{uri.partition('://')[2]}"
    elif uri.startswith("/"):
        raise ValueError(outside)
    else:
        parts: list[str] = []
        for part in uri.split("/"):
            if part == ".." and parts:
                parts.pop()
            elif part == "..":
                raise ValueError(outside)
            elif part not in ("", "."):
                parts.append(part)
        url = base + "/".join(parts)
    plain, root = shown(url), shown(base)
    # A server may go up where we would not: escaped dots too.
    dots = re.split(r"[/\\]", unquote(plain) if is_web(url) else plain)
    if not plain.startswith(root) or len(plain) == len(root) or ".." in dots:
        raise ValueError(outside)
    return url, path_of(url)[len(path_of(base)) :]
