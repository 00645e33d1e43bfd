"""What is released: the wheel has all of the package and works where nothing else of us is."""

from __future__ import annotations

import email
import re
import tarfile
import zipfile
from pathlib import Path

import pytest
from release import ROOT, build, install, lend_libraries, use

import spacepatch

PACKAGE = ROOT / "spacepatch"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The sdist, and the wheel that was made of it."""
    return build(tmp_path_factory.mktemp("release") / "built")


def files() -> set[str]:
    """Of the package, as a wheel names them."""
    found = (path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc")
    return {str(path.relative_to(ROOT)) for path in found}


def test_the_wheel_has_every_file_of_the_package_and_no_other(built: tuple[Path, Path]) -> None:
    names = set(zipfile.ZipFile(built[1]).namelist())
    assert {name for name in names if not name.startswith("spacepatch-")} == files()
    assert "spacepatch/py.typed" in names
    assert "spacepatch/presets/navit.toml" in names


def test_the_sdist_has_the_package_and_what_builds_it(built: tuple[Path, Path]) -> None:
    with tarfile.open(built[0]) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert files() | {"pyproject.toml", "README.md", "LICENSE", "PKG-INFO"} <= names


def test_the_wheel_says_version_licence_and_pythons(built: tuple[Path, Path]) -> None:
    with zipfile.ZipFile(built[1]) as wheel:
        (place,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
        facts = email.message_from_bytes(wheel.read(place))
        licence = wheel.read(place.replace("METADATA", "licenses/LICENSE"))
    assert facts["Version"] == spacepatch.__version__
    assert facts["License-Expression"] == "Apache-2.0"
    assert licence == (ROOT / "LICENSE").read_bytes()
    assert facts["Requires-Python"] == ">=3.11"
    classifiers = " ".join(facts.get_all("Classifier", []))
    assert re.findall(r"Python :: (3\.\d+)", classifiers) == ["3.11", "3.12", "3.13"]


def test_the_changelog_begins_with_what_is_not_released_or_with_this_version() -> None:
    first = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[0]
    assert first == "Unreleased" or first.startswith(spacepatch.__version__)


def test_the_installed_wheel_tokenizes_and_verifies(
    built: tuple[Path, Path], tmp_path: Path
) -> None:
    install(built[1], tmp_path / "venv")
    lend_libraries(tmp_path / "venv")
    use(tmp_path / "venv", tmp_path / "shards")
