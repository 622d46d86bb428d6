"""The plan of the house: who may import whom, what is light to import, what names do not live here."""

import ast
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import agentmem
from reference import same_environment

PACKAGE = Path(__file__).parents[1] / "src" / "agentmem"
PACKAGE = PACKAGE if PACKAGE.is_dir() else Path(agentmem.__file__).parent  # of an sdist; of an installed wheel

# A room imports only rooms above it. A subpackage is one room, and so is a module with the private ones it is made of.
ROOMS = [
    "_core",
    "errors",
    "footprint",
    "files",
    "budget",
    "scratch",
    "array",
    "belief",
    "trajectory",
    "model",
    "frames",
    "codecs",
    "arena",
    "history",
    "groups",
    "records",
    "observations",
    "policy",
    "population",
    "sharing",
    "spill",
    "compact",
    "profiler",
    "formats",
    "integrations",
    "cli",
]
PART_OF = {"_positions": "array", "_ufuncs": "array", "_functions": "array", "__main__": "cli"}
PART_OF |= {"_looking": "cli", "_outputs": "cli"}
FRONT_DOOR = "__init__"  # agentmem/__init__.py: the public names
LATER = {"scipy", "psutil", "click", "rich", "gymnasium", "msgpack"}  # loaded when first used

SOURCES = sorted(PACKAGE.rglob("*.py"))
KERNELS = sorted(PACKAGE.rglob("*.py[xd]"))


def label(path):
    return str(path.relative_to(PACKAGE))


def room_of(path):
    name = path.relative_to(PACKAGE).parts[0].removesuffix(path.suffix)
    return PART_OF.get(name, name)


def imported(path):
    """Every module of agentmem that a source file imports anywhere, as a list of names below agentmem."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{label(path)}:{node.lineno}: relative import"
            if node.module == "agentmem":
                names += [f"agentmem.{alias.name}" for alias in node.names]
            else:
                names.append(node.module)
    return [name.split(".")[1:] for name in names if name.split(".")[0] == "agentmem"]


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_every_module_belongs_to_a_room(path):
    assert room_of(path) in [*ROOMS, FRONT_DOOR]


@pytest.mark.parametrize("path", [p for p in SOURCES if room_of(p) != FRONT_DOOR], ids=label)
def test_a_room_imports_only_rooms_above_it(path):
    room = room_of(path)
    above = ROOMS[: ROOMS.index(room) + 1]
    for name in imported(path):
        other = PART_OF.get(name[0], name[0]) if name else FRONT_DOOR
        is_version = name == ["__version__"]
        assert other in above or is_version, f"{room} imports {'.'.join(name)}"


@pytest.mark.parametrize("path", [p for p in SOURCES if room_of(p) != "_core"], ids=label)
def test_compiled_code_has_one_door(path):
    assert not [name for name in imported(path) if name[:1] == ["_core"] and len(name) > 1 and name[1].islower()]


@pytest.mark.parametrize("path", KERNELS, ids=label)
def test_kernels_import_only_kernels(path):
    assert room_of(path) == "_core"
    asked = re.findall(r"^\s*(?:from\s+(agentmem[\w.]*)|c?import\s+(agentmem[\w.]*))", path.read_text(), re.MULTILINE)
    assert all("".join(name).startswith("agentmem._core.") for name in asked)


def test_importing_loads_nothing_heavy():
    script = "import sys, json, agentmem; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=same_environment())
    assert not LATER & set(json.loads(printed.stdout))


def test_a_step_loads_nothing_heavy(tmp_path):
    """A model from a file and a belief on it are all that a running agent needs."""
    agentmem.Model([[0.5, 0.5], [0.0, 1.0]], [[0.9, 0.1], [0.2, 0.8]]).save(tmp_path / "model")
    script = (
        "import sys, json, agentmem\n"
        "model = agentmem.Model.open(sys.argv[1])\n"
        "model.belief().update(model, 0, 1)\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "model")], capture_output=True, text=True, env=same_environment()
    )
    assert not LATER & set(json.loads(printed.stdout))


def test_importing_starts_no_thread():
    script = "import threading, agentmem; print(threading.active_count())"
    printed = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=same_environment())
    assert printed.stdout.strip() == "1"


# ---- names


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_every_module_says_what_lives_in_it(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


@pytest.mark.parametrize("path", SOURCES + KERNELS, ids=label)
def test_no_room_is_called_by_what_it_is_not(path):
    assert path.stem.strip("_") not in {"utils", "util", "helpers", "common", "misc", "base", "core_utils"}


@pytest.mark.parametrize("path", SOURCES, ids=label)
def test_no_class_is_called_by_what_it_is_not(path):
    classes = [node.name for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.ClassDef)]
    said_nothing = re.compile(r"Manager|Factory|Service|Optimizer|Handler|Enhanced|Advanced|Helper|Util")
    assert not [name for name in classes if said_nothing.search(name)]


def test_public_names_exist_and_are_sorted():
    assert agentmem.__all__ == sorted(agentmem.__all__)
    for name in agentmem.__all__:
        assert getattr(agentmem, name).__doc__, name


def test_the_map_names_every_public_room():
    rooms = {room_of(path) for path in SOURCES} - {FRONT_DOOR, "_core"}
    assert not [room for room in sorted(rooms) if f"``{room}``" not in agentmem.__doc__]


def test_the_map_names_no_room_that_is_not_there():
    for room in re.findall(r"^``(\w+)``", agentmem.__doc__, re.MULTILINE):
        assert importlib.util.find_spec(f"agentmem.{room}"), room
