"""The recipes of samples/train, run as a person does, on shards that their own line makes."""

import ast
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

SAMPLES = Path(__file__).resolve().parents[1] / "samples"
TRAIN = SAMPLES / "train"
ShardsOf = Callable[[str], Path]
"""What the fixture `shards_of` is."""
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


def rows_of(page: Path) -> list[str]:
    """The recipes that the first column of a page's table names, as `NAME.py` or `NAME`."""
    found = re.findall(r"^\| `(\w+)(?:\.py)?[^`|]*` ", page.read_text("utf-8"), re.MULTILINE)
    return sorted(set(found))


OPENING = """
import json, sys
opened = {}
now = []
sys.addaudithook(lambda event, args: now.append(str(args[0])) if event == "open" else None)
for recipe, shards in json.loads(sys.argv[1]).items():
    module = __import__(recipe)
    now.clear()
    module.main([shards, "--steps", "1", "--json"])
    opened[recipe] = list(now)
print(json.dumps(opened))
"""


def opened_by(shards: dict[str, Path]) -> dict[str, list[Path]]:
    """The files that recipes open while they run for a step, each on its shards, in a process of
    their own."""
    asked = json.dumps({recipe: str(folder) for recipe, folder in shards.items()})
    command = [sys.executable, "-c", OPENING, asked]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": _path()}
    ran = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    opened = json.loads(ran.stdout.splitlines()[-1])
    return {recipe: [Path(path) for path in paths] for recipe, paths in opened.items()}


def _path() -> str:
    before = os.environ.get("PYTHONPATH")
    return os.pathsep.join([str(TRAIN), *([before] if before else [])])
