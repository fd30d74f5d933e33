"""How the package hangs together: light import, one-way dependencies, README and Makefile in step."""

import ast
import graphlib
import json
import re
import subprocess
import sys
from functools import cache
from importlib import import_module
from pathlib import Path

import pytest

import ftkit

ROOT = Path(__file__).parents[1]
HEAVY = (
    "torch",
    "transformers",
    "unsloth",
    "trl",
    "peft",
    "datasets",
    "matplotlib",
    "ipywidgets",
    "bitsandbytes",
    "numpy",
    "yaml",
)
# The ground floor, lowest first: each file knows at most those before it.
GROUND = ("tables", "errors", "files", "figures", "hardware", "config", "runs", "headless", "colab")
# Rooms of one floor may use each other from left to right; every floor may use the floors above it in this list.
FLOORS = (
    ("data", "chat", "models"),
    ("cleaning", "memory", "evaluation", "publishing"),
    ("preflight",),
    ("training",),
    ("decision",),
    ("tuning",),
    ("lessons",),
)
ORDER = tuple(room for floor in FLOORS for room in floor)
PACKAGE = ROOT / "ftkit"
ROOMS = tuple(room for room in ORDER if (PACKAGE / room).is_dir())
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    """The room that a file stands in; "" on the ground floor."""
    inside = path.relative_to(PACKAGE).parts
    return inside[0] if len(inside) > 1 else ""


@cache
def imported(path: Path) -> frozenset[str]:
    """Dotted names of what a file imports from ftkit anywhere, `ftkit.data` or `ftkit.data.splits`."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ftkit":
            below = [f"{node.module}.{alias.name}" for alias in node.names]
            found |= {name if is_module(name) else node.module for name in below}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "ftkit"}
    return frozenset(found)


def is_module(dotted: str) -> bool:
    place = ROOT / Path(*dotted.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def test_import_is_silent_and_light():
    """`import ftkit` prints nothing and loads nothing heavy."""
    script = (
        f"import ftkit, sys; heavy = [m for m in {HEAVY} if m in sys.modules]; sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_front_door_leads_to_every_room():
    assert set(ftkit._ROOMS) == set(ROOMS) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    for name in ftkit._ROOMS + ftkit._GROUND:
        assert getattr(ftkit, name).__name__ == f"ftkit.{name}"
    with pytest.raises(AttributeError, match="nothing"):
        _ = ftkit.nothing


@pytest.mark.parametrize("room", ROOMS)
def test_a_door_is_a_docstring_reexports_and_all(room):
    """Nothing is written in a door, and `__all__` is what it imports."""
    docstring, *body = ast.parse((PACKAGE / room / "__init__.py").read_text()).body
    assert isinstance(docstring, ast.Expr)
    *imports, last = body
    assert all(isinstance(node, ast.ImportFrom) for node in imports)
    assert {node.module.rpartition(".")[0] for node in imports} == {f"ftkit.{room}"}
    names = [alias.asname or alias.name for node in imports for alias in node.names]
    assert last.targets[0].id == "__all__"
    assert sorted(ast.literal_eval(last.value)) == sorted(names)


@pytest.mark.parametrize("room", ROOMS)
def test_no_module_bears_the_name_of_what_its_door_hands_out(room):
    files = {path.stem for path in (PACKAGE / room).glob("*.py")}
    assert files & set(import_module(f"ftkit.{room}").__all__) == set()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_outside_a_room_only_its_door_is_imported(path):
    own = room_of(path)
    through_walls = {
        name
        for name in imported(path)
        if name.count(".") > 1 and name.split(".")[1] in ROOMS and name.split(".")[1] != own
    }
    assert through_walls == set()


@pytest.mark.parametrize("room", ROOMS)
def test_arrows_point_one_way(room):
    """A room uses rooms that come before it in `FLOORS`, and the ground floor."""
    used = {name.split(".")[1] for path in (PACKAGE / room).glob("*.py") for name in imported(path) if "." in name}
    assert used & set(ORDER) - {room} <= set(ORDER[: ORDER.index(room)])
    assert "__main__" not in used


@pytest.mark.parametrize("name", [name for name in GROUND if (PACKAGE / f"{name}.py").is_file()])
def test_the_ground_floor_knows_nobody_above_it(name):
    used = {name.split(".")[1] for name in imported(PACKAGE / f"{name}.py") if "." in name}
    assert used <= set(GROUND[: GROUND.index(name)])


@pytest.mark.parametrize("room", ROOMS)
def test_no_circle_inside_a_room(room):
    files = {path.stem: path for path in (PACKAGE / room).glob("*.py") if path.stem != "__init__"}
    graph = {stem: {n.split(".")[-1] for n in imported(path)} & set(files) - {stem} for stem, path in files.items()}
    list(graphlib.TopologicalSorter(graph).static_order())


def test_only_models_knows_unsloth():
    """Everywhere else Unsloth's objects are plain Hugging Face objects."""
    knowing = {path for path in MODULES if re.search(r"^\s*(import|from) unsloth", path.read_text(), re.M)}
    assert knowing == {PACKAGE / "models/loading.py"}


def test_readme_commands_are_make_targets():
    makefile = (ROOT / "Makefile").read_text()
    commands = set(
        re.findall(r"`?make ([\w-]+)`?", (ROOT / "README.md").read_text() + (ROOT / "CONTRIBUTING.md").read_text())
    )
    assert {"quickstart", "test", "lab", "check", "badges"} <= commands
    for command in commands:
        assert re.search(rf"^{command}:", makefile, re.M), command


def test_readme_tree_names_every_room():
    tree = (ROOT / "README.md").read_text().split("## The tree")[1].split("```")[1]
    rooms = re.findall(r"^  (\w+)/ ", tree, re.M)
    assert [room for room in rooms if room in ORDER] == list(ftkit._ROOMS)


def test_slug_stands_in_pyproject_and_is_what_notebooks_use():
    """Others' repositories may be linked as sources."""
    slug = re.search(r'Repository = "https://github.com/([^"]+)"', (ROOT / "pyproject.toml").read_text()).group(1)
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        used = set(
            re.findall(r"github(?:\.com)?/([\w.-]+/[\w.-]+?)(?:/blob|[\"'\s#]|$)", "".join(map(str, sources(path))))
        )
        assert {name for name in used if name.endswith("/ftkit")} == {slug}


def test_command_line_answers():
    done = subprocess.run([sys.executable, "-m", "ftkit", "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_command_line_errors_are_one_message():
    done = subprocess.run([sys.executable, "-m", "ftkit", "notebook", "99_none"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.startswith("MissingArtifact: No notebook '99_none'")


def sources(path: Path) -> list[str]:
    return ["".join(cell["source"]) for cell in json.loads(path.read_text())["cells"]]


def test_everything_pretrained_is_read_through_one_helper():
    """There code of strangers is refused and weights come from safetensors alone; a call beside it would forget one."""
    beside = []
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Attribute) or path.name == "sources.py":
                continue
            of = getattr(node.value, "id", "")
            if node.attr == "from_pretrained" or (node.attr == "from_config" and of.startswith("Auto")):
                beside.append(f"{path.name}:{node.lineno}")
    assert beside == []
    text = (PACKAGE / "models/sources.py").read_text()
    assert (text.count(".from_pretrained("), text.count(".from_config(")) == (1, 1)
