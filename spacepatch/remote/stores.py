"""Ask a store: what an object is, and for a range of its bytes, with patience.

The only place where fsspec is used to read. Each process makes file systems of its own: fsspec
keeps them by process, and nothing of ours holds one.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from spacepatch.errors import ConfigError
from spacepatch.extras import needed
from spacepatch.remote.urls import NEEDED, is_web, protocol_of, shown

PAUSES_SECONDS = (0.25, 1.0, 3.0)
"""Before each further try. s3fs and botocore try by themselves before (connections, 5xx): ours are
for what they do not know, bodies that are too short for example, and for stores without any."""

VERSION_KEYS = (
    "ETag", "etag", "md5Hash", "generation", "blob_id", "xet_hash", "Content-MD5", "Digest",
    "LastModified", "Last-Modified", "updated", "modified", "mtime", "created", "last_modified",
)  # fmt: skip
"""What stores call the mark by which one version of an object differs from the next."""

WAYS_OUT = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), and AWS_ENDPOINT_URL "
    "for a store that is not Amazon's",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS, or run gcloud auth application-default login",
    "hf": "set HF_TOKEN, and HF_ENDPOINT for another hub",
}
"""Where credentials and endpoints come from: the variables of each ecosystem, none of ours."""
ENDPOINTS = {"s3": "AWS_ENDPOINT_URL", "hf": "HF_ENDPOINT"}
NOT_CONFIGURED = frozenset(
    "NoCredentialsError PartialCredentialsError ProfileNotFound CredentialRetrievalError "
    "NoRegionError InvalidRegionError TokenRetrievalError UnauthorizedSSOTokenError "
    "DefaultCredentialsError LocalTokenNotFoundError".split()
)
"""Errors, by name, that no further try mends: the user has to say who they are."""
HOPELESS = frozenset(
    "ParamValidationError ValueError NonHttpUrlClientError RedirectClientError".split()
)
"""Errors, by name, of an address, which no further try mends either."""
TRIED = frozenset({"HTTPClientError"})
"""Errors, by name, after which s3fs has tried five times."""
UNREACHABLE = frozenset({"ConnectionError", "ClientConnectionError"})
"""Errors, by name, of connections."""
FINAL = (errno.EINVAL, errno.EOPNOTSUPP, errno.EHOSTUNREACH)
"""Of our own errors, those that are not worth another try."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Stat:
    """What a store says of an object."""

    size: int
    """Bytes."""
    version: str
    """Differs from that of the same URL with other content; empty where the store has none."""


class AnswerError(OSError):
    """A store answered what it should not have; in our words."""


class PrivateAddressError(PermissionError):
    """A connection would lead into a private network, where nobody sent it."""


class NotConfiguredError(PermissionError):
    """The store wants credentials, or an endpoint, and the environment names none."""


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL in this process, and the path in it.

    Raises:
        MissingDependencyError: fsspec, or what it needs for this protocol, is not installed.
    """
    protocol = protocol_of(url)
    fsspec = needed("fsspec", "fsspec", by=f"{protocol}://", extra="remote")
    if is_web(url):
        needed("aiohttp", "aiohttp", by=f"{protocol}://")
        from spacepatch.remote.web import web_filesystem

        return web_filesystem(url), url
    try:
        kind = fsspec.get_filesystem_class(protocol)
    except ImportError:
        needed(NEEDED[protocol], NEEDED[protocol], by=f"{protocol}://")
        raise
    # What was listed before says nothing of what is there now.
    return kind(use_listings_cache=False), kind._strip_protocol(url)


def stat(url: str) -> Stat:
    """Size and version of an object.

    Raises:
        OSError: with a `strerror` of one line; FileNotFoundError: there is none.
    """
    place, path = filesystem(url)
    return stat_of(patiently(lambda: place.info(path), url))


def stat_of(info: dict[str, Any]) -> Stat:
    """The same of what fsspec says of an object.

    Raises:
        OSError: the store does not tell its size.
    """
    size = info.get("size")
    if size is None or info.get("type") == "directory":
        raise AnswerError(errno.EINVAL, "the store does not tell its size")
    marks = [f"{key}={info[key]}" for key in VERSION_KEYS if info.get(key)]
    return Stat(int(size), " ".join(marks))


def fetch(url: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of an object, all of them.

    Raises:
        OSError: as of `stat`.
    """

    def ask() -> bytes:
        content: bytes = place.cat_file(path, start=start, end=stop)
        if len(content) != stop - start:
            message = f"{len(content)} bytes came of {stop - start}"
            raise AnswerError(errno.EIO, message)
        return content

    place, path = filesystem(url)
    return patiently(ask, url)


def patiently(ask: Callable[[], T], url: str) -> T:
    """What `ask` returns, after several tries where the store is busy or the line breaks.

    Raises:
        OSError: as of `stat`.
    """
    for pause in (*PAUSES_SECONDS, None):
        try:
            return ask()
        except Exception as error:
            found = _translated(error, url)
            if pause is None or isinstance(found, (FileNotFoundError, PermissionError)):
                raise found from None
            if found.errno in FINAL:
                raise found from None
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")


def _translated(error: Exception, url: str) -> OSError:
    """An error of any store in our words: what a store says may repeat an address and what is
    secret in it."""
    names = {kind.__name__ for kind in type(error).__mro__}
    protocol = protocol_of(url)
    if names & NOT_CONFIGURED:
        return NotConfiguredError(errno.EACCES, "no credentials")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "no such object")
    if isinstance(error, (AnswerError, PrivateAddressError)):
        return error
    if isinstance(error, PermissionError):
        return PermissionError(errno.EACCES, "the store denies access")
    if names & HOPELESS:
        return OSError(errno.EINVAL, f"no address that {protocol}:// takes")
    if isinstance(error, TimeoutError):
        return OSError(errno.ETIMEDOUT, "the store does not answer in time")
    if names & (TRIED | UNREACHABLE):
        final = errno.EHOSTUNREACH if names & TRIED else errno.EIO
        return OSError(final, "the store cannot be reached")
    code = getattr(error, "errno", None)
    what = errno.errorcode.get(code, type(error).__name__) if code else type(error).__name__
    return OSError(errno.EIO, f"the store cannot be read ({what})")


def explain(url: str, error: OSError) -> ConfigError:
    """Why a SOURCE argument cannot be read, with the way out."""
    protocol = protocol_of(url)
    credentials = WAYS_OUT.get(protocol, "sign it, or copy the file")
    if isinstance(error, FileNotFoundError):
        return ConfigError(f"{shown(url)}: no such object, folder or bucket")
    if isinstance(error, PermissionError) and not isinstance(error, PrivateAddressError):
        return ConfigError(f"{shown(url)}: {error.strerror}; {credentials}")
    way = f"try again later, or see whether {ENDPOINTS.get(protocol, 'the address')} is right"
    return ConfigError(f"{shown(url)}: {error.strerror}; {way}")
