"""Objects that appear whole or not at all, and the end of half uploads."""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

from spacepatch.errors import StoreError
from spacepatch.remote.errors import AnswerError, line_of
from spacepatch.remote.paths import StorePath, name_of
from spacepatch.remote.urls import WRITABLE

PART_BYTES = 8 << 20
"""Of a part of an upload to S3; ten of them are in memory at a time. Twice as much goes whole."""
MOST_PARTS = 10_000
"""Of an object on S3."""


def upload(
    path: StorePath, write: Callable[[IO[bytes]], None], *, before: Callable[[], None]
) -> None:
    """Make an object appear whole or not at all.

    `write` fills a temporary file on local disk, in the folder for such (TMPDIR), which is sent as
    often as it takes until the store has what was sent.

    Args:
        before: raises where nothing may be written any more; asked each time.

    Raises:
        OSError: the local disk is full.
        StoreError: the store denies it or does not answer; nothing is visible then.
    """
    with _temporary_file() as (file, name):
        write(file)
        file.flush()
        try:
            path.ask(lambda fs, _: _send(fs, path, name, before))
        except BaseException:
            abort_uploads(path)
            raise


def _send(fs: Any, path: StorePath, name: str, before: Callable[[], None]) -> None:
    before()
    size = os.path.getsize(name)  # noqa: PTH202 - of a name that is one of an open file
    options: dict[str, Any] = {}
    if _is_s3(path):
        options["chunksize"] = max(PART_BYTES, -(-size // MOST_PARTS))
    try:
        fs.put_file(name, path.path, **options)
    except FileNotFoundError as error:
        # An upload that is complete, and whose answer was lost, is not there a second time.
        raise AnswerError(errno.EIO, line_of(error)) from None
    if not _is_there(fs, path, name, size):
        fs.rm_file(path.path)
        raise AnswerError(errno.EIO, "what is there is not what was sent")


def _is_there(fs: Any, path: StorePath, name: str, size: int) -> bool:
    """Whether the object is the file: by its size, and by its MD5 where the store tells one."""
    details = fs.info(path.path)
    if details["size"] != size:
        return False
    told = {str(details.get("ETag") or "").strip('"').lower()}
    if details.get("md5Hash"):
        told.add(base64.b64decode(details["md5Hash"]).hex())
    told = {digest for digest in told if re.fullmatch("[0-9a-f]{32}", digest)}
    if not told:
        return True  # S3 has checked each part of an upload in parts
    with open(name, "rb") as file:  # noqa: PTH123
        if hashlib.file_digest(file, _md5).hexdigest() in told:
            return True
        file.seek(0)
        # Of an object that S3 encrypts with a key of its own, the tag is another number.
        is_small = _is_s3(path) and size <= 2 * PART_BYTES
        return is_small and bool(fs.cat_file(path.path) == file.read())


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


def abort_uploads(path: StorePath, stems: Collection[str] | None = None) -> None:
    """End half uploads of an object, or of objects below a path: nobody sees them, and they cost.

    Args:
        stems: of names, up to their first dot, of which alone they are ended; None: all.
    """
    if not _is_s3(path):
        return  # elsewhere they end by themselves
    bucket, _, key = path.path.strip("/").partition("/")
    below = f"{key}/" if key else ""
    # Not everybody may list them; then it is for the bucket's own rule to end them.
    with suppress(StoreError, FileNotFoundError):
        found = path.ask(
            lambda fs, _: fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key)
        )
        for entry in found.get("Uploads", ()):
            name = entry["Key"]
            is_ours = name == key or name.startswith(below)
            if is_ours and (stems is None or name_of(name).partition(".")[0] in stems):
                _abort(path, bucket, name, entry["UploadId"])


def _abort(path: StorePath, bucket: str, key: str, upload_id: str) -> None:
    with suppress(FileNotFoundError):  # it is done, or ended
        path.ask(lambda fs, _: fs.abort_mpu(bucket, key, upload_id))


@contextmanager
def _temporary_file() -> Iterator[tuple[IO[bytes], str]]:
    """A file, and a name to open it by; on Linux no crash can leave it behind."""
    if sys.platform == "linux":
        with tempfile.TemporaryFile(prefix="spacepatch-") as file:
            yield file, f"/proc/{os.getpid()}/fd/{file.fileno()}"
    else:
        with tempfile.TemporaryDirectory(prefix="spacepatch-") as folder:
            name = os.path.join(folder, "upload")  # noqa: PTH118
            with open(name, "wb") as file:  # noqa: PTH123
                yield file, name


def _is_s3(path: StorePath) -> bool:
    return WRITABLE[path.protocol] == "s3fs"
