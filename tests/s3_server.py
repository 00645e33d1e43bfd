"""A real S3 endpoint on loopback, in a process of its own, that logs requests and injects faults.

moto's server answers. A layer before it logs each request and, where a `Fault` says so, answers
with an error, breaks the connection, waits, or cuts the body off. The end of our standard input
ends the process, so none outlives its test.
"""

from __future__ import annotations

import json
import os
import random
import re
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

CONTROL = "/_faults"


@dataclass(frozen=True)
class Fault:
    """What goes wrong, for which requests."""

    kind: str
    """`status` (answer `status` with an S3 error), `reset` (RST instead of an answer), `slow`
    (wait `seconds` before the answer), `truncate` (half of the body, then RST), or `short` (half
    of the body, with a Content-Length that says that this is all of it)."""
    count: int | None = None
    """The next so many matching requests; None for all."""
    after: int = 0
    """Of each request (method and target), the first so many are spared."""
    probability: float = 1.0
    """Of each matching request: drawn from (seed, method, target, how often it came), so that it
    does not hang on the order in which requests arrive."""
    seed: int = 0
    method: str = ".*"
    target: str = ".*"
    """Regular expression, searched in `/bucket/key?query`."""
    status: int = 503
    code: str = "SlowDown"
    seconds: float = 1.0
    applied: bool = False
    """For `status` and `reset`: the request is done all the same, only its answer is lost."""


@dataclass(frozen=True)
class Request:
    """One line of the log."""

    method: str
    path: str
    query: str
    range: str
    status: int
    """What was answered; 0 for a reset."""
    sent: int
    """Bytes of the body that were handed to the socket."""
    fault: str


class S3Server:
    """The running endpoint; made by `s3_server()`."""

    def __init__(self, port: int, log: Path) -> None:
        self.endpoint = f"http://127.0.0.1:{port}"
        self.env = {
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_ENDPOINT_URL": self.endpoint,
            # Nothing of this machine's own settings, and nobody asked for an instance's role.
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
        }
        """What a process needs to reach it: the variables that every S3 client reads."""
        self._log = log
        self._buckets = 0

    def client(self) -> Any:
        """A boto3 client, for what a test does beside the code under test."""
        import boto3

        return boto3.client(
            "s3",
            endpoint_url=self.endpoint,
            region_name="us-east-1",
            aws_access_key_id="testing",
            aws_secret_access_key="testing",
        )

    def filesystem(self) -> Any:
        """An s3fs file system with no cache of listings."""
        import s3fs

        return s3fs.S3FileSystem(
            key="testing",
            secret="testing",
            client_kwargs={"endpoint_url": self.endpoint, "region_name": "us-east-1"},
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def bucket(self) -> str:
        """A new empty bucket of its own."""
        self._buckets += 1
        name = f"bucket-{self._buckets}"
        self.client().create_bucket(Bucket=name)
        return name

    def upload(self, folder: Path, bucket: str, prefix: str = "") -> None:
        """All files below a folder, or one file, as objects."""
        client = self.client()
        files = [folder] if folder.is_file() else sorted(folder.rglob("*"))
        base = folder.parent if folder.is_file() else folder
        for path in filter(Path.is_file, files):
            key = prefix + path.relative_to(base).as_posix()
            client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())

    def keys(self, bucket: str, prefix: str = "") -> list[str]:
        """The keys of all objects."""
        pages = (
            self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        )
        return [item["Key"] for page in pages for item in page.get("Contents", ())]

    def get(self, bucket: str, key: str) -> bytes:
        """The bytes of an object."""
        body: bytes = self.client().get_object(Bucket=bucket, Key=key)["Body"].read()
        return body

    def inject(self, *faults: Fault) -> None:
        """From now on these faults and no others; none at all: all is well again."""
        body = json.dumps([asdict(fault) for fault in faults]).encode()
        request = urllib.request.Request(self.endpoint + CONTROL, data=body, method="POST")
        with urllib.request.urlopen(request, timeout=30):
            pass

    @contextmanager
    def faults(self, *faults: Fault) -> Iterator[None]:
        """These faults inside the block."""
        self.inject(*faults)
        try:
            yield
        finally:
            self.inject()

    def requests(self) -> list[Request]:
        """What was asked since the start or the last `forget`, in order of the answers."""
        # The last line may be half written.
        whole = self._log.read_text().rpartition("\n")[0]
        return [Request(**json.loads(line)) for line in whole.splitlines()]

    def forget(self) -> None:
        """Empty the log."""
        self._log.write_text("")


@contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """A running endpoint that keeps its log in `folder`; it is gone after the block."""
    log = folder / "requests.jsonl"
    log.touch()
    with (
        (folder / "server.err").open("w") as errors,
        subprocess.Popen(
            [sys.executable, __file__, str(log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        ) as process,
    ):
        assert process.stdout is not None and process.stdin is not None
        line = process.stdout.readline()
        assert line, (folder / "server.err").read_text()
        try:
            yield S3Server(int(line), log)
        finally:
            process.stdin.close()
            process.wait(timeout=30)


class _Faulty:
    """The layer before moto: logs requests, and spoils those that a fault is meant for."""

    def __init__(self, app: WSGIApplication, log: Path) -> None:
        self._app = app
        self._log = log
        self._lock = threading.Lock()
        self._faults: list[Fault] = []
        self._left: list[int | None] = []
        self._seen: dict[tuple[str, str], int] = {}

    def __call__(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path, query = environ["PATH_INFO"], environ.get("QUERY_STRING", "")
        if path == CONTROL:
            length = int(environ["CONTENT_LENGTH"])
            told = [Fault(**fault) for fault in json.loads(environ["wsgi.input"].read(length))]
            with self._lock:
                self._faults, self._left = told, [fault.count for fault in told]
                self._seen = {}
            start("204 No Content", [])
            return []
        fault = self._fault_for(environ["REQUEST_METHOD"], f"{path}?{query}" if query else path)
        kind = fault.kind if fault is not None else ""
        if fault is not None and kind == "slow":
            time.sleep(fault.seconds)
        if fault is not None and kind in ("status", "reset"):
            if fault.applied:
                list(self._app(environ, lambda *_: None))  # type: ignore[arg-type, return-value]
            else:
                _drain(environ)
            if kind == "reset":
                self._note(environ, 0, 0, kind)
                _reset(environ)
            text = f"<Error><Code>{fault.code}</Code><Message>injected</Message></Error>"
            start(f"{fault.status} Injected", [("Content-Type", "application/xml")])
            body = b"" if environ["REQUEST_METHOD"] == "HEAD" else text.encode()
            self._note(environ, fault.status, len(body), kind)
            return [body]
        return self._forward(environ, start, kind)

    def _forward(
        self, environ: WSGIEnvironment, start: StartResponse, kind: str
    ) -> Iterator[bytes]:
        answer: list[Any] = []
        chunks = self._app(environ, lambda *args: answer.append(args))  # type: ignore[arg-type, return-value, func-returns-value]
        body = b"".join(chunks)
        status, headers = answer[0][:2]
        send = body[: len(body) // 2] if kind in ("truncate", "short") else body
        if environ["REQUEST_METHOD"] != "HEAD":
            headers = [item for item in headers if item[0].lower() != "content-length"]
            told = len(send) if kind == "short" else len(body)
            headers.append(("Content-Length", str(told)))
        # Before it is sent: whoever has the answer finds it in the log.
        self._note(environ, int(status.split()[0]), len(send), kind)
        start(status, headers)
        yield send
        if kind == "truncate" and len(send) < len(body):
            _reset(environ)

    def _fault_for(self, method: str, target: str) -> Fault | None:
        with self._lock:
            times = self._seen[method, target] = self._seen.get((method, target), 0) + 1
            for index, fault in enumerate(self._faults):
                left = self._left[index]
                if left == 0 or times <= fault.after or not re.fullmatch(fault.method, method):
                    continue
                if not re.search(fault.target, target):
                    continue
                draw = random.Random(f"{fault.seed} {index} {method} {target} {times}").random()
                if draw < fault.probability:
                    self._left[index] = None if left is None else left - 1
                    return fault
        return None

    def _note(self, environ: WSGIEnvironment, status: int, sent: int, fault: str) -> None:
        line = Request(
            environ["REQUEST_METHOD"],
            environ["PATH_INFO"],
            environ.get("QUERY_STRING", ""),
            environ.get("HTTP_RANGE", ""),
            status,
            sent,
            fault,
        )
        with self._lock, self._log.open("a") as file:
            file.write(json.dumps(asdict(line)) + "\n")


def _drain(environ: WSGIEnvironment) -> None:
    """Read what the client sends, or it would see a broken pipe where it should see our answer."""
    stream = environ["wsgi.input"]
    if environ.get("wsgi.input_terminated"):
        stream.read()
    else:
        stream.read(int(environ.get("CONTENT_LENGTH") or 0))


def _reset(environ: WSGIEnvironment) -> None:
    """Break the connection: the client gets an RST, no polite end."""
    connection: socket.socket = environ["werkzeug.socket"]
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    os.close(connection.detach())
    raise ConnectionResetError


def _serve(log: Path) -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Handler(WSGIRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_request(self, *_: object) -> None:
            """Our own log has it."""

    app = _Faulty(DomainDispatcherApplication(create_backend_app), log)
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Handler)
    print(server.server_port, flush=True)
    threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
    server.serve_forever()


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
