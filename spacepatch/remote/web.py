"""Read from web servers: ranges only, and never from an address inside a private network.

Where a connection goes is decided by its address at the moment it is made, so that neither a
redirect nor a name that resolves to something else between two looks leads anywhere else. Only an
address that the user wrote down as such (127.0.0.1, 10.0.0.5, localhost) may be private: it names
the very machine. Lists cannot say so: `spacepatch.sources` refuses such addresses in them.
"""

from __future__ import annotations

import errno
import socket
from functools import cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import Any
from urllib.parse import urlsplit

from spacepatch.remote.errors import AnswerError, PrivateAddressError
from spacepatch.remote.urls import shown

NAT64 = ip_network("64:ff9b::/96")
MAX_REDIRECTS = 5
TIMEOUT_SECONDS = 30
"""Without a byte."""


def is_private(host: str) -> bool:
    """Whether a host is written as an address that is not on the public internet, or localhost."""
    if host.rstrip(".").lower() == "localhost" or host.lower().endswith(".localhost"):
        return True
    try:
        # As the system reads it: 127.1, 0x7f000001 and 2130706433 are addresses too.
        found = socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return False
    return not is_public(str(found[0][4][0]))


def refuse_private(url: str) -> None:
    """Raise a ValueError for a URL of a private address."""
    if is_private(urlsplit(url).hostname or ""):
        message = "is a private address, which only a SOURCE argument itself may name"
        raise ValueError(f"{shown(url)}: {message}")


def is_public(address: str) -> bool:
    """Whether an IP address is one of the internet's; also of an IPv4 inside an IPv6."""
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        inner: IPv4Address | None = found.ipv4_mapped or found.sixtofour
        if found in NAT64:
            inner = IPv4Address(int(found) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return found.is_global and not found.is_multicast


def web_filesystem(url: str) -> Any:
    """The file system for a URL; one for all servers with public addresses."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        port = 0
    own = f"{host}\n{port}" if is_private(host) else ""
    return _kind()(own=own, use_listings_cache=False)


@cache
def _kind() -> Any:
    """The class; made when it is needed, because aiohttp takes long to load."""
    import aiohttp
    from fsspec.implementations.http import HTTPFileSystem

    class Web(HTTPFileSystem):  # type: ignore[misc]
        """`own`: host and port of a private address that the user wrote down, or empty."""

        def __init__(self, own: str = "", **options: Any) -> None:
            super().__init__(get_client=self._connect, **options)
            self.own = own

        async def _connect(self, loop: Any, **options: Any) -> Any:
            timeout = aiohttp.ClientTimeout(
                total=None, sock_connect=TIMEOUT_SECONDS, sock_read=TIMEOUT_SECONDS
            )
            connector = aiohttp.TCPConnector(socket_factory=self._make_socket)
            # No settings of proxies from the environment: they would hide where it goes.
            return aiohttp.ClientSession(connector=connector, timeout=timeout, loop=loop, **options)

        def _make_socket(self, info: Any) -> socket.socket:
            family, kind, protocol, _, address = info
            if not is_public(address[0]) and not self._is_own(address):
                message = "it leads to a private address; only one that is written as such is read"
                raise PrivateAddressError(errno.EACCES, message)
            made = socket.socket(family, kind, protocol)
            made.setblocking(False)
            return made

        def _is_own(self, address: Any) -> bool:
            host, _, port = self.own.partition("\n")
            if not host or int(port) != address[1]:
                return False
            found = socket.getaddrinfo(host, None)
            return address[0] in {entry[4][0] for entry in found}

        async def _ask(self, method: str, url: str, wanted: str = "") -> Any:
            headers = {"Accept-Encoding": "identity"}
            if wanted:
                headers["Range"] = f"bytes={wanted}"
            session = await self.set_session()
            try:
                answer = await session.request(
                    method, self.encode_url(url), headers=headers, max_redirects=MAX_REDIRECTS
                )
            except aiohttp.ClientConnectorError as error:
                if isinstance(error.os_error, PrivateAddressError):
                    raise error.os_error from None
                raise
            except aiohttp.TooManyRedirects:
                raise AnswerError(errno.EOPNOTSUPP, "the server redirects without end") from None
            if answer.status < 400:
                return answer
            answer.close()
            if answer.status in (404, 410):
                raise FileNotFoundError(url)
            if answer.status in (401, 403):
                raise PermissionError(url)
            # Not all servers know HEAD.
            code = errno.EIO if answer.status in (408, 425, 429) or answer.status >= 500 else 0
            raise AnswerError(code or errno.EOPNOTSUPP, f"the server answers {answer.status}")

        async def _info(self, url: str, **_: Any) -> dict[str, Any]:
            try:
                answer = await self._ask("HEAD", url)
                size = answer.headers.get("Content-Length")
            except OSError as error:
                if error.errno != errno.EOPNOTSUPP:
                    raise
                size = None
            if size is None:
                answer = await self._ask("GET", url, "0-0")
                size = answer.headers.get("Content-Range", "").rpartition("/")[2]
                if answer.status == 200:
                    size = answer.headers.get("Content-Length", "")
            answer.close()
            marks = {key: answer.headers.get(key) for key in ("ETag", "Last-Modified")}
            return {"type": "file", "size": int(size) if size.isdigit() else None, **marks}

        async def _cat_file(self, url: str, start: int = 0, end: int = 0, **_: Any) -> bytes:
            async with await self._ask("GET", url, f"{start}-{end - 1}") as answer:
                there = answer.headers.get("Content-Range", "")
                if answer.status == 206 and not there.startswith(f"bytes {start}-"):
                    raise AnswerError(errno.EIO, "the server answers with another range")
                if answer.status != 206 and start > 0:
                    message = "the server does not answer with ranges; copy the file"
                    raise AnswerError(errno.EOPNOTSUPP, message)
                content = bytearray()
                # Never more than was asked for, whatever the server sends.
                while len(content) < end - start:
                    part = await answer.content.read(end - start - len(content))
                    if not part:
                        break
                    content += part
                return bytes(content)

    return Web
