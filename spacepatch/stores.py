"""Object stores through fsspec: paths on them, range reads, whole uploads, retries, one line for
each error."""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, TypeVar

import fsspec
from upath.extensions import ProxyUPath

from spacepatch.errors import ConfigError, MissingDependencyError, SpacepatchError, StoreError
from spacepatch.store_errors import is_about_credentials, let_go, line_of, told

T = TypeVar("T")

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
READABLE = WRITABLE | {"hf": "huggingface_hub"}
WAITS = (0.5, 1, 2, 4, 8)
"""Seconds before each repetition of a request, times 0.5 to 1.5; beside those of each library."""
READ_BYTES = 8 << 20
"""Of a request, where a file is read from front to back."""
PART_BYTES = 8 << 20
"""Of a part of an upload to S3; ten of them are in memory at a time. Twice as much goes whole."""
MOST_PARTS = 10_000
"""Of an object on S3."""
FIRST_WAITS = WAITS[:1]
"""As long as it has never answered: a wrong endpoint is told within seconds."""
LASTING = (FileNotFoundError, FileExistsError, PermissionError, ImportError)
"""What no repetition mends; and what names credentials."""
OURS = (AssertionError, AttributeError, LookupError, NameError, NotImplementedError, TypeError)


_answered: set[str] = set()
"""Buckets of which this process has had an answer."""


def open_store(url: str, *, writes: bool) -> StorePath:
    """The path of a URL; nothing is asked of the store yet.

    Raises:
        ConfigError: there is no such kind of store, or it cannot be written.
        MissingDependencyError: a package for it is not installed.
    """
    protocol, _, rest = url.partition("://")
    kinds = WRITABLE if writes else READABLE
    if protocol not in kinds:
        why = "can be read, and not written" if protocol in READABLE else "is no store that we know"
        raise ConfigError(
            f"{url}: {protocol}:// {why}; give a folder, or a URL of {', '.join(kinds)}"
        )
    if not rest.strip("/"):
        raise ConfigError(f"{url}: names no bucket; give {protocol}://BUCKET/FOLDER")
    if re.search(r"::|[?#]|//|(^|/)\.\.?(/|$)", rest.lstrip("/").rstrip("/")):
        raise ConfigError(f"{url}: is no plain {protocol}://BUCKET/FOLDER")
    path = StorePath(url.rstrip("/"))
    try:
        path.fs  # noqa: B018 - imports what the store needs
    except ImportError as error:
        package = kinds[protocol]
        raise MissingDependencyError(
            f"{url}: needs {package} ({line_of(error)}): pip install 'spacepatch[remote]' {package}"
        ) from None
    except Exception as error:
        raise told(error, url) from error
    return path


class StorePath(ProxyUPath):
    """What is asked of a `Path` here, of an object; requests are repeated where that may help.

    Listings are not cached: what another process wrote is seen.
    """

    @property
    def fs(self) -> Any:
        # Not that of UPath, which a worker that was forked would share with its parent.
        return fsspec.filesystem(self.protocol, use_listings_cache=False)

    def ask(self, request: Callable[[Any], T]) -> T:
        """The answer of the store's file system to one request.

        Raises:
            FileNotFoundError, FileExistsError: as the store says.
            StoreError: it denies the request, or does not answer.
        """
        waits = WAITS if self.drive in _answered else FIRST_WAITS
        for wait in (*waits, None):
            try:
                answer = request(self.fs)
                _answered.add(self.drive)
                return answer
            except (*OURS, SpacepatchError):
                raise
            except Exception as error:
                let_go(error)
                if wait is None or isinstance(error, LASTING) or is_about_credentials(error):
                    raise told(error, str(self)) from error
            time.sleep(wait * random.uniform(0.5, 1.5))
        raise AssertionError("the last one returns or raises")

    def details(self) -> dict[str, Any]:
        """What the store says of it: `size` and `type`, and checksums where it has them."""
        found: dict[str, Any] = self.ask(lambda fs: fs.info(self.path))
        return found

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """With the size alone."""
        found = self.details()
        if found["type"] != "file":
            raise FileNotFoundError(errno.ENOENT, "is no object", str(self))
        return os.stat_result((0, 0, 0, 0, 0, 0, int(found["size"]), 0, 0, 0))

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return self._kind() is not None

    def is_file(self) -> bool:
        return self._kind() == "file"

    def is_dir(self) -> bool:
        return self._kind() == "directory"

    def sizes(self) -> dict[str, int]:
        """Of the objects directly below, by name; empty where there are none."""
        try:
            found = self.ask(lambda fs: fs.ls(self.path, detail=True))
        except FileNotFoundError:
            return {}
        return {
            _name_of(entry["name"]): int(entry["size"])
            for entry in found
            if entry["type"] == "file" and entry["name"].strip("/") != self.path.strip("/")
        }

    def iterdir(self) -> Iterator[StorePath]:
        found = self.ask(lambda fs: fs.ls(self.path, detail=False))
        own = self.path.strip("/")
        return iter([self / _name_of(name) for name in found if name.strip("/") != own])

    def open(self, mode: str = "rb", buffering: int = -1, **_: Any) -> Any:  # type: ignore[override]
        """To be read, by ranges; `buffering` is READ_BYTES, or none with 0."""
        assert mode == "rb", "objects are written by `upload`"
        raw = RangeFile(self)
        return raw if buffering == 0 else io.BufferedReader(raw, max(min(READ_BYTES, raw.size), 1))

    def read_bytes(self) -> bytes:
        return self.read_range(0, self.stat().st_size)

    def read_text(self, *_: Any, **__: Any) -> str:
        return self.read_bytes().decode("utf-8")

    def read_range(self, start: int, stop: int) -> bytes:
        """The bytes [start, stop), all of them."""

        def read(fs: Any) -> bytes:
            content: bytes = fs.cat_file(self.path, start=start, end=stop) if stop > start else b""
            if len(content) != stop - start:
                raise OSError(errno.EIO, f"{len(content)} of {stop - start} bytes came")
            return content

        return self.ask(read)

    def mkdir(self, *_: Any, **__: Any) -> None:
        """Stores have no folders."""

    def unlink(self, missing_ok: bool = False) -> None:
        try:
            self.ask(lambda fs: fs.rm_file(self.path))
        except FileNotFoundError:
            if not missing_ok:
                raise

    def create(self, content: bytes) -> bool:
        """Make a small object where there is none: False, where one is or another was quicker."""

        def put(fs: Any) -> None:
            try:
                fs.pipe_file(self.path, content, mode="create")
            except OSError as error:
                if re.search("pre-?condition", str(error), re.IGNORECASE):
                    raise FileExistsError from error
                raise

        try:
            self.ask(put)
        except FileNotFoundError:
            bucket = self.path.strip("/").partition("/")[0]
            raise StoreError(
                f"{self}: there is no bucket {bucket}: make it, or give another --out"
            ) from None
        except FileExistsError:
            # Ours, where a repeated request found what the first one had made.
            pass
        with suppress(FileNotFoundError):
            return self.read_bytes() == content
        return False

    def overwrite(self, content: bytes) -> None:
        """Make a small object, or another one of it."""
        self.ask(lambda fs: fs.pipe_file(self.path, content))

    def _kind(self) -> str | None:
        try:
            return str(self.details()["type"])
        except FileNotFoundError:
            return None


class RangeFile(io.RawIOBase):
    """An object that is read by ranges; every read gets all that it asks for."""

    def __init__(self, path: StorePath) -> None:
        self._path, self._place = path, 0
        self.size = path.stat().st_size

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        self._place = max(origin + offset, 0)
        return self._place

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        stop = max(min(self._place + len(view), self.size), self._place)
        content = self._path.read_range(self._place, stop)
        view[: len(content)] = content
        self._place = stop
        return len(content)


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
            path.ask(lambda fs: _send(fs, path.path, name, before))
        except BaseException:
            abort_uploads(path)
            raise


def _send(fs: Any, path: str, name: str, before: Callable[[], None]) -> None:
    before()
    size = os.path.getsize(name)  # noqa: PTH202 - of a name that is one of an open file
    options: dict[str, Any] = {}
    if _is_s3(fs):
        options["chunksize"] = max(PART_BYTES, -(-size // MOST_PARTS))
    try:
        fs.put_file(name, path, **options)
    except FileNotFoundError as error:
        # An upload that is complete, and whose answer was lost, is not there a second time.
        raise OSError(errno.EIO, line_of(error)) from error
    if not _is_there(fs, path, name, size):
        fs.rm_file(path)
        raise OSError(errno.EIO, "what is there is not what was sent")


def _is_there(fs: Any, path: str, name: str, size: int) -> bool:
    """Whether the object is the file: by its size, and by its MD5 where the store tells one."""
    details = fs.info(path)
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
        return _is_s3(fs) and size <= 2 * PART_BYTES and bool(fs.cat_file(path) == file.read())


def _md5() -> Any:
    return hashlib.md5(usedforsecurity=False)


def abort_uploads(path: StorePath, stems: Collection[str] | None = None) -> None:
    """End half uploads of an object, or of objects below a path: nobody sees them, and they cost.

    Args:
        stems: of names, up to their first dot, of which alone they are ended; None: all.
    """
    if not _is_s3(path.fs):
        return  # elsewhere they end by themselves
    bucket, _, key = path.path.strip("/").partition("/")
    below = f"{key}/" if key else ""
    # Not everybody may list them; then it is for the bucket's own rule to end them.
    with suppress(StoreError, FileNotFoundError):
        found = path.ask(lambda fs: fs.call_s3("list_multipart_uploads", Bucket=bucket, Prefix=key))
        for entry in found.get("Uploads", ()):
            name = entry["Key"]
            is_ours = name == key or name.startswith(below)
            if is_ours and (stems is None or _name_of(name).partition(".")[0] in stems):
                _abort(path, bucket, name, entry["UploadId"])


def _abort(path: StorePath, bucket: str, key: str, upload_id: str) -> None:
    with suppress(FileNotFoundError):  # it is done, or ended
        path.ask(lambda fs: fs.abort_mpu(bucket, key, upload_id))


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


def _is_s3(fs: Any) -> bool:
    return "s3" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def _name_of(path: str) -> str:
    return path.rstrip("/").rpartition("/")[2]
