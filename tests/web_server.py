"""A web server on loopback, in a thread of the tests."""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Server(ThreadingHTTPServer):
    """Answers with `files` in ranges, and with `redirects`."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.asked: list[str] = []
        self.has_ranges = True
        self.has_head = True

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        path = unquote(self.path.partition("?")[0])
        content = self.server.files.get(path)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if self.command == "HEAD" and not self.server.has_head:
            self.send_response(405)
        elif path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[path])
        elif content is None:
            self.send_response(404)
        elif wanted and self.server.has_ranges:
            total, content = len(content), content[int(wanted[1]) : int(wanted[2]) + 1]
            self.send_response(206)
            last = int(wanted[1]) + len(content) - 1
            self.send_header("Content-Range", f"bytes {wanted[1]}-{last}/{total}")
        else:
            self.send_response(200)
        if path in self.server.redirects or content is None:
            content = b""
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def web_server() -> Iterator[Server]:
    """One that runs."""
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.shutdown()
        thread.join()
