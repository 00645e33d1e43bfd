"""Build the sdist, the wheel from it, install that where nothing else is, and use it.

`make release`; `tests/test_release.py` does the same with the libraries that are there already.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "spacepatch")
CLIP = ROOT / "samples" / "clips" / "square_320x320.mp4"

SDIST = "from setuptools.build_meta import build_sdist; import sys; build_sdist(sys.argv[1])"


def build(folder: Path) -> tuple[Path, Path]:
    """The sdist of the checkout and the wheel of that sdist, in `folder`."""
    tree = folder / "tree"
    tree.mkdir(parents=True)
    # A copy: what lies in build/ of a checkout may be of another day.
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__")
            shutil.copytree(ROOT / name, tree / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, tree)
    _run([sys.executable, "-c", SDIST, folder], cwd=tree)
    (sdist,) = folder.glob("*.tar.gz")
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder]
    _run([sys.executable, "-m", "pip", "wheel", "-q", *options, sdist])
    (wheel,) = folder.glob("*.whl")
    shutil.rmtree(tree)
    return sdist, wheel


def install(wheel: Path, venv: Path, *, python: str = sys.executable) -> Path:
    """A new virtual environment with the wheel alone; returns its python."""
    _run([python, "-m", "venv", "--without-pip", venv])
    made = venv / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", made, "install", "-q"]
    _run([*pip, "--no-deps", "--no-index", wheel])
    return made


def lend_libraries(venv: Path) -> None:
    """Give it what is installed here, without the editable spacepatch of here."""
    (packages,) = venv.glob("lib/python*/site-packages")
    here = dict.fromkeys((sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    # A path on a line: .pth files in there, such as that of an editable install, are not read.
    (packages / "lent.pth").write_text("".join(f"{path}\n" for path in here))


def use(venv: Path, folder: Path) -> None:
    """A first run with the installed program, outside of the checkout."""
    program = venv / "bin" / "spacepatch"
    where = _run([venv / "bin" / "python", "-c", "import spacepatch; print(spacepatch.__file__)"])
    assert str(venv) in where, where
    assert _run([program, "--version"]).startswith("spacepatch ")
    presets = json.loads(_run([program, "presets", "--json"]))
    shipped = {path.stem for path in (ROOT / "spacepatch" / "presets").glob("*.toml")}
    assert {preset["name"] for preset in presets} == shipped
    _run([program, "tokenize", CLIP, "--out", folder, "--fps", "2", "--workers", "1"])
    assert "verified, clean" in _run([program, "verify", folder])


def _run(command: Sequence[str | Path], cwd: Path | None = None) -> str:
    # Without the checkout on the path.
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd or tempfile.gettempdir(),
        env=clean,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}")
    return done.stdout


def main() -> None:
    """Build into dist/, and try the wheel with each interpreter and all dependencies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", nargs="+", default=[sys.executable], help="To try it with.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        sdist, wheel = build(Path(folder) / "built")
        for number, python in enumerate(arguments.python):
            venv = Path(folder) / f"venv-{number}"
            made = install(wheel, venv, python=python)
            # As a user does it, torch and all; with the versions that are tested together.
            pip = [sys.executable, "-m", "pip", "--python", made, "install", "-q"]
            _run([*pip, "-c", ROOT / "constraints.txt", wheel])
            use(venv, Path(folder) / f"shards-{number}")
            print(f"{wheel.name}: works with {_run([made, '--version']).strip()}")
        dist = ROOT / "dist"
        shutil.rmtree(dist, ignore_errors=True)
        dist.mkdir()
        for path in (sdist, wheel):
            shutil.copy(path, dist)
            print(f"dist/{path.name}")


if __name__ == "__main__":
    main()
