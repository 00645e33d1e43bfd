"""The recipes of samples/train, run as a person does, on shards that their own line makes."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
TRAIN = SAMPLES / "train"
SHARED = ("batches", "layers", "training")


def recipe_path(recipe: str) -> Path:
    return TRAIN / f"{recipe}.py"


def load(recipe: str) -> ModuleType:
    """Import a recipe, beside which lie the modules that it shares with others."""
    if str(TRAIN) not in sys.path:
        sys.path.insert(0, str(TRAIN))
    return importlib.import_module(recipe)


def commands_of(recipe: str) -> list[list[str]]:
    """The `spacepatch` lines of the docstring; one that ends in a backslash goes on."""
    text = ast.get_docstring(ast.parse(recipe_path(recipe).read_text("utf-8"))) or ""
    lines = re.findall(r"^ *(spacepatch .*)$", text.replace("\\\n", ""), re.MULTILINE)
    return [shlex.split(line) for line in lines]


def make_shards(recipe: str, folder: Path) -> Path:
    """Run the lines of the docstring in `folder`, from which the sources are gone afterwards.

    Returns:
        The shards that the last one makes.
    """
    link = folder / "samples"
    link.symlink_to(SAMPLES)
    for _, *arguments in commands_of(recipe):
        subprocess.run([sys.executable, "-m", "spacepatch", *arguments], cwd=folder, check=True)
    link.unlink()
    return folder / arguments[arguments.index("--out") + 1]


def imports_of(recipe: str) -> set[str]:
    """The top names of all modules that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(recipe_path(recipe).read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


def foreign_imports(recipe: str) -> set[str]:
    """What it imports beside the standard library, torch, spacepatch and the shared modules."""
    return imports_of(recipe) - set(sys.stdlib_module_names) - {"torch", "spacepatch", *SHARED}
