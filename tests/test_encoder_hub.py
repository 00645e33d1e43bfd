"""Weights from a hub: asked for by the program itself, and used by workers that may not write."""

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from tiny_autoencoders import save_tiny

COMMIT = "a" * 40


class Hub(ThreadingHTTPServer):
    """As much of a hub's interface as its client asks for, of one model: ``owner/model``."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.asked: list[str] = []


class Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def log_message(self, *args: Any) -> None:
        self.server.asked.append(self.path)

    def _answer(self, *, with_body: bool) -> None:
        folder, path = self.server.folder, self.path.partition("?")[0]
        files = {str(path.relative_to(folder)): path for path in folder.rglob("*.*")}
        headers, body = {}, None
        if path.startswith("/api/models/owner/model/tree/"):
            listed = [
                {"type": "file", "path": name, "oid": COMMIT, "size": file.stat().st_size}
                for name, file in files.items()
            ]
            body = json.dumps(listed).encode()
        elif path.startswith("/api/models/owner/model"):
            siblings = [{"rfilename": name} for name in files]
            body = json.dumps({"id": "owner/model", "sha": COMMIT, "siblings": siblings}).encode()
        elif (name := path.partition(f"/owner/model/resolve/{COMMIT}/")[2]) in files:
            body = files[name].read_bytes()
            etag = hashlib.sha256(body).hexdigest()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{etag}"'}
        self.send_response(404 if body is None else 200)
        for key, value in {"Content-Length": str(len(body or b"")), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if with_body and body:
            self.wfile.write(body)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    # Of more than a worker may write into one file.
    save_tiny("AutoencoderKL", tmp_path / "repository" / "vae", block_out_channels=(64, 64, 64))
    with Hub(tmp_path / "repository") as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def test_a_model_of_a_hub_is_downloaded_once_where_that_is_allowed(
    hub: Hub, sample_clips: Path, tmp_path: Path
) -> None:
    (weights,) = (tmp_path / "repository").rglob("*.safetensors")
    assert weights.stat().st_size > 1 << 20
    home = {
        "HF_ENDPOINT": f"http://127.0.0.1:{hub.server_port}",
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        # A proxy that the environment may name knows nothing of this machine's own ports.
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }
    clip = sample_clips / "square_320x320.mp4"
    command = [sys.executable, "-m", "spacepatch", "tokenize", clip, "--fps", "1"]
    command += ["--short-side", "64", "--encoder", "diffusers:owner/model/vae", "--out"]

    def run(out: str, *more: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, tmp_path / out, *more],
            env=os.environ | home | environment,
            capture_output=True,
            encoding="utf-8",
            check=False,
        )

    refused = run("refused")
    assert refused.returncode == 2
    assert "--allow-download" in refused.stderr
    assert not hub.asked
    done = run("first", "--allow-download")
    assert done.returncode == 0, done.stderr
    assert hub.asked
    document = json.loads((tmp_path / "first" / "dataset.json").read_text())
    assert document["encoder"]["name"] == "diffusers:owner/model/vae"
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert document["encoder"]["weights"] == {weights.name: sha256}
    assert str(tmp_path) not in json.dumps(document)
