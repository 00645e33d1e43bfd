"""Fixtures that more than one test file uses."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import pytest
from filelock import FileLock
from numbered_clips import ClipOf, make_numbered
from s3_server import S3Server, s3_server
from small_runs import LOADED, make_dataset
from web_server import Server, web_server

if TYPE_CHECKING:
    from recipes import ShardsOf
    from tiny_packs import Key

    from spacepatch.loader import PackDataset

REPOSITORY = Path(__file__).resolve().parent.parent

# What a shell starts in the background ignores Ctrl-C, and what that starts too; tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Several processes run tests: threads of torch in all of them, which wait for one another, made
# some tests 17 times slower. Processes that tests start have it too.
os.environ.setdefault("OMP_NUM_THREADS", "1")


LONGEST = (
    "test_crashes",
    "test_conformance",
    "test_corpus",
    "test_preset_runs",
    "test_remote_output",
    "test_ray",
    "test_latent_rows",
)
"""Files that take the longest: they begin, so that no process is left alone with one at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


class SpacepatchCli(Protocol):
    """Run the command line in a process of its own; never raises on a non-zero exit code."""

    def __call__(
        self,
        *args: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder `shared` that lies beside the checkout."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("../shared is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def corpus(shared: Path) -> Path:
    """Return the folder of real and awkward videos."""
    return shared / "corpus"


@pytest.fixture(scope="session")
def sample_clips() -> Path:
    """Return the folder of sample clips that is part of the repository."""
    return REPOSITORY / "samples" / "clips"


@pytest.fixture(scope="session")
def ffmpeg() -> str:
    """Return the path of the ffmpeg program."""
    path = shutil.which("ffmpeg")
    if path is None:
        pytest.skip("ffmpeg is not on the PATH")
    return path


@pytest.fixture(scope="session")
def spacepatch_cli() -> SpacepatchCli:
    """Return a function that runs `spacepatch ARGS`; `env` is added to this environment."""

    def run(
        *args: str | Path,
        cwd: Path | None = None,
        env: Mapping[str, str] | None = None,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "spacepatch", *map(str, args)],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def clip_of(ffmpeg: str, tmp_path_factory: pytest.TempPathFactory) -> ClipOf:
    """Return a function that makes a clip of numbered frames by its name, once for all processes
    that run tests."""
    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    folder /= "numbers"
    folder.mkdir(exist_ok=True)

    def clip(name: str) -> Path:
        path, done = folder / name, folder / f"{name}.made"
        with FileLock(folder / f"{name}.lock"):
            if not done.exists():
                make_numbered(ffmpeg, name, path, clip)
                done.touch()
        return path

    return clip


@pytest.fixture(scope="session")
def pristine(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of the sample clips that no test may change."""
    return make_dataset([sample_clips], tmp_path_factory.mktemp("pristine") / "out", fps="2")


@pytest.fixture
def spoilable(pristine: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may spoil."""
    return shutil.copytree(pristine, tmp_path / "copy")


@pytest.fixture(scope="session")
def part_damaged(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The sample clips, and two that are damaged in the middle, so that grid rows are dropped."""
    folder = tmp_path_factory.mktemp("damaged")
    for name, share in (("square_320x320.mp4", 0.7), ("portrait_270x480.mp4", 0.3)):
        content = bytearray((sample_clips / name).read_bytes())
        start = content.index(b"mdat")
        place = start + int(int.from_bytes(content[start - 4 : start]) * share)
        content[place : place + 200] = bytes(200)
        (folder / f"damaged_{name}").write_bytes(content)
    return [sample_clips, folder]


@pytest.fixture(scope="session")
def packed_folder(part_damaged: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of `part_damaged` that no test may change."""
    return make_dataset(part_damaged, tmp_path_factory.mktemp("dataset") / "full", **LOADED)


@pytest.fixture(scope="session")
def pack_dataset(packed_folder: Path) -> "PackDataset":
    """The packs of `packed_folder` as tensors."""
    # Not at the top: torch takes seconds to import, and most test files do not need it.
    from spacepatch.loader import PackDataset

    return PackDataset(packed_folder)


@pytest.fixture
def without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where scipy is not installed."""
    for name in ("scipy", "scipy.optimize", "scipy.sparse", "scipy.stats"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of very small packs, which no test may change; as are the next two."""
    from tiny_packs import tiny_dataset  # torch

    return tiny_dataset(tmp_path_factory.getbasetemp(), "tiny")


@pytest.fixture(scope="session")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose packs have the shapes of those of `tiny`."""
    from tiny_packs import tiny_dataset

    return tiny_dataset(tmp_path_factory.getbasetemp(), "alike")


@pytest.fixture(scope="session")
def widths(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One with tokens of two widths."""
    from tiny_packs import tiny_dataset

    return tiny_dataset(tmp_path_factory.getbasetemp(), "widths")


@pytest.fixture(scope="session")
def keys(tiny: Path) -> "list[Key]":
    """The packs of `tiny`, in their order."""
    from tiny_packs import keys_of

    return keys_of(tiny)


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 endpoint; a test makes a bucket of its own and leaves no faults behind."""
    with s3_server(tmp_path_factory.mktemp("s3")) as server:
        yield server


@pytest.fixture
def bucket(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket that this process and its children can read; blocks are kept nowhere."""
    from spacepatch.remote import configure

    # Our own tries are to be seen, not those of botocore.
    for name, value in (s3.env | {"AWS_MAX_ATTEMPTS": "1"}).items():
        monkeypatch.setenv(name, value)
    configure(None, 0)
    yield s3.bucket()
    s3.inject()
    configure(None, 0)


@pytest.fixture
def server() -> Iterator[Server]:
    """A web server without files."""
    with web_server() as made:
        yield made


@pytest.fixture(scope="session")
def shards_of(tmp_path_factory: pytest.TempPathFactory) -> "ShardsOf":
    """Return a function that makes the shards of a recipe by its own lines, once for equal ones."""
    import recipes

    made: dict[str, Path] = {}

    def shards(recipe: str) -> Path:
        lines = str(recipes.commands_of(recipe))
        if lines not in made:
            made[lines] = recipes.make_shards(recipe, tmp_path_factory.mktemp(recipe))
        return made[lines]

    return shards


@pytest.fixture(scope="module")
def videos(sample_clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample clips that can be read, in a folder that may be moved."""
    folder = tmp_path_factory.mktemp("videos") / "videos"
    shutil.copytree(sample_clips, folder, ignore=shutil.ignore_patterns("broken*"))
    return folder
