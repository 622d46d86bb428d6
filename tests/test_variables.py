"""The variables of a script and of its functions that run, found without a trace."""

import gc
import json
import sys
import threading
import time
import types
import weakref

import numpy as np
import pytest

import agentmem as am
from agentmem._core import variables_of
from agentmem.footprint import MAX_PARTS, Parts, footprint
from agentmem.profiler.variables import LIBRARIES, Variables
from reference import run_alone

# ---- of one frame


def test_they_are_those_of_f_locals():
    def outer(a, /, b=2, *more, c, **others):
        def inner():
            return here, a, later

        here = variables_of(sys._getframe()), dict(sys._getframe().f_locals)
        later = 3
        return here, inner

    (found, expected), inner = outer(1, 5, 6, c=7, d=8)
    assert found == expected and found.keys() == {"a", "b", "more", "c", "others", "inner"}
    assert inner()[1:] == (1, 3)


def test_what_is_not_bound_is_not_there():
    def work(gone, kept):
        del gone
        if kept is None:
            never = 1
        found = variables_of(sys._getframe())
        return found if kept else never

    assert work(1, 2) == {"kept": 2}


def test_those_of_a_closure():
    seen = []

    def outer():
        def look():
            return variables_of(sys._getframe()), table

        with pytest.raises(NameError):
            look()
        table = [1]
        seen.append(look()[0])

    outer()
    assert seen == [{"table": [1]}]


@pytest.mark.parametrize(
    "source", ["found = variables_of(here())", "class A:\n    x = 1\n    found = variables_of(here())"]
)
def test_a_module_and_a_class_have_none(source):
    space = {"variables_of": variables_of, "here": lambda: sys._getframe(1)}
    exec(source, space)
    assert (space["found"] if "found" in space else space["A"].found) == {}


@pytest.mark.parametrize("given", [None, 3, "frame", (lambda: 0).__code__])
def test_other_things_are_refused(given):
    with pytest.raises(TypeError, match=f"{type(given).__name__} given; expected a frame"):
        variables_of(given)


def test_a_function_that_ended_has_what_its_frame_kept():
    def end():
        table = [1, 2]
        return sys._getframe(), len(table)

    frame, _ = end()
    assert variables_of(frame)["table"] == [1, 2]
    frame.clear()
    assert variables_of(frame) == {}


def test_those_of_a_generator():
    def numbers():
        total = 0
        while True:
            total += yield total

    made = numbers()
    assert variables_of(made.gi_frame) == {}
    next(made)
    made.send(5)
    assert variables_of(made.gi_frame) == {"total": 5}


class Table:
    """Whose end can be seen."""


def running(work):
    """A thread that is in `work`, which waits for the event it is given; and that event."""
    begun, go_on = threading.Event(), threading.Event()
    thread = threading.Thread(target=work, args=(begun, go_on))
    thread.start()
    assert begun.wait(10)
    return thread, go_on


def frame_of(thread, name):
    frame = sys._current_frames()[thread.ident]
    while frame.f_code.co_name != name:
        frame = frame.f_back
    return frame


def test_looking_keeps_nothing_alive():
    """What the function of another thread lets go after the look is gone at once, and so is what it ends with."""
    gone, reached = [], threading.Event()

    def work(begun, go_on):
        table, last = Table(), Table()
        ends = weakref.ref(table), weakref.ref(last)
        begun.set()
        go_on.wait(10)
        del table
        gone.append(ends[0]() is None)
        del last
        gone.append(ends[1]() is None)
        reached.set()

    thread, go_on = running(work)
    found = variables_of(frame_of(thread, "work"))
    assert found.keys() == {"begun", "go_on", "table", "last", "ends", "gone", "reached"}
    before = sys.getrefcount(found["table"])
    again = variables_of(frame_of(thread, "work"))
    after = sys.getrefcount(found["table"])
    assert after == before + 1
    del found, again
    go_on.set()
    thread.join(10)
    assert reached.is_set() and gone == [True, True]


# ---- of a script


def looked_at(path, source, **given):
    """Run a source as a script up to its `look()`; what is found there, from another thread."""
    main, looks = types.ModuleType("__main__"), []
    seen = Variables(main, str(path))

    def look():
        thread = threading.Thread(target=lambda: looks.append(seen["variables of it.py"]))
        thread.start()
        thread.join()

    vars(main).update(given, look=look)
    exec(compile(source, str(path), "exec"), vars(main))
    [found] = looks
    return Parts((name, value) for name, value in found if name not in {"look", *given} and name[:2] != "__")


@pytest.fixture
def script(tmp_path):
    return lambda source, **given: dict(looked_at(tmp_path / "it.py", source, **given))


def test_they_are_the_modules_and_its_functions(script):
    found = script(
        "table = 'table'\n"
        "class Robot:\n"
        "    def run(self, steps):\n        left = steps - 1\n        look()\n"
        "def main():\n    robot = Robot()\n    def start(x):\n        robot.run(x)\n    start(700)\n"
        "main()"
    )
    assert list(found) == [
        "table", "Robot", "main", "main().start", "main().robot", "main.start().x", "main.start().robot",
        "Robot.run().self", "Robot.run().steps", "Robot.run().left",
    ]  # fmt: skip
    assert found["Robot.run().left"] == 699 and found["main().robot"] is found["Robot.run().self"]


def test_all_that_run_in_one_function_are_one(tmp_path):
    source = "def down(n):\n    text = 'x' * 1_000 * n\n    down(n - 1) if n > 1 else look()\n    return text\ndown(3)"
    found = footprint(looked_at(tmp_path / "it.py", source)).parts
    assert found["down().text"] == sum(sys.getsizeof("x" * 1_000 * n) for n in (1, 2, 3))


def test_libraries_are_left_out(script):
    """A function of the standard library and one of NumPy call the script's."""
    found = script(
        "import functools\n"
        "def called(a, *_):\n    b = 7\n    look()\n    return a\n"
        "def once():\n    functools.reduce(lambda *_: np.apply_along_axis(called, 0, np.ones(2)), [1, 2])\n"
        "once()",
        np=np,
    )
    assert {name for name in found if "(" in name} == {
        "once.<lambda>()._", "called().a", "called()._", "called().b",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("beside/deep/module.py", "beside.deep.module.work().inside"),
        ("beside/__init__.py", "beside.work().inside"),
        ("beside/../it.py", "it.work().inside"),
        ("venv/lib/python3/site-packages/other.py", None),
        ("dist-packages/other.py", None),
        ("../elsewhere.py", None),
        (f"../{LIBRARIES[0]}/profiler/it.py", None),
        (json.__file__, None),
        (np.__file__, None),
        ("<string>", None),
    ],
)
def test_files_below_its_directory_are_its_own(script, tmp_path, file, name):
    module = {}
    path = file if file == "<string>" else f"{tmp_path}/{file}" if file[0] != "/" else file
    exec(compile("def work(look):\n    inside = 1\n    look()", path, "exec"), module)
    found = {found for found in script("work(look)", work=module["work"]) if found.endswith(".inside")}
    assert found == (set() if name is None else {name})


def test_those_of_modules_below_its_directory_are_there(script, tmp_path, monkeypatch):
    for place, name in (tmp_path, "beside"), (tmp_path.parent, "elsewhere"):
        module = types.ModuleType(name)
        vars(module).update(__file__=f"{place}/{name}.py", LOG=["leaks"], __builtins__={"len": len})
        monkeypatch.setitem(sys.modules, name, module)
    assert script("look()") == {"beside.LOG": ["leaks"]}


def test_those_of_functions_that_raised_are_there(tmp_path):
    main = types.ModuleType("__main__")
    path = str(tmp_path / "it.py")
    seen = Variables(main, path)
    source = "def work(table):\n    raise ValueError\ndef main():\n    table = [1]\n    work(table)\nmain()"
    with pytest.raises(ValueError) as raised:
        exec(compile(source, path, "exec"), vars(main))
    assert not [name for name, _ in seen["variables of it.py"] if "(" in name]
    seen.raised = raised.tb
    assert dict(seen["variables of it.py"])["work().table"] == [1]


@pytest.mark.parametrize("library", [json.__file__, np.__file__, am.__file__])
def test_a_script_in_a_directory_above_libraries_does_not_own_them(library):
    seen = Variables(types.ModuleType("__main__"), "/it.py")
    assert seen._prefix(library) is None
    assert seen._prefix("/it.py") == ""
    assert seen._prefix("/nowhere/beside.py") == "nowhere.beside."


def test_a_script_may_be_named_by_a_link_or_from_where_one_stands(tmp_path, monkeypatch):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    monkeypatch.chdir(tmp_path)
    seen = Variables(types.ModuleType("__main__"), "link/it.py")
    monkeypatch.chdir("/")
    assert seen._prefix("link/it.py") == ""
    assert seen._prefix("link/other.py") is None  # who knows from where
    for place in "link", "real":
        assert seen._prefix(f"{tmp_path}/{place}/beside.py") == "beside."


def test_the_main_thread_comes_first(script):
    found = script(
        "def work(begun, go_on):\n    log = ['a']\n    begun.set()\n    go_on.wait(10)\n"
        "def main():\n    threads = [running(work) for _ in range(5)]\n    look()\n"
        "    for thread, go_on in threads:\n        go_on.set()\n        thread.join(10)\n"
        "main()",
        running=running,
    )
    assert [name for name in found if "(" in name] == ["main().threads", "work().begun", "work().go_on", "work().log"]


def test_what_a_variable_before_it_has_is_that_ones():
    """So nothing seems to grow where one goes along what another one holds."""
    chain = None
    for k in range(20):
        chain = [f"link {k}", chain]
    apart = Parts([("chain", chain), ("here", chain[1][1]), ("own", ["own"]), ("both", [chain, "more"])])
    found = footprint(apart)
    assert found.parts == {
        "chain": footprint(chain).total,
        "own": footprint(["own"]).total,
        "both": sys.getsizeof([1, 2]) + sys.getsizeof("more"),
    }
    assert found.total == sum(found.parts.values())


def test_what_has_no_name_any_more_counts():
    many = Parts([(str(k), [k]) for k in range(MAX_PARTS + 5)])
    found = footprint(many).parts
    assert len(found) == MAX_PARTS + 1
    assert found["(itself)"] == 5 * (sys.getsizeof([1]) + sys.getsizeof(10_000))


def test_of_very_many_variables_the_first_are_seen(tmp_path):
    names = [f"v{k}" for k in range(300)]
    source = f"def down(n, {'=0, '.join(names)}=0):\n    return down(n - 1) if n else look()\ndown(99)"
    found = [(name, value) for name, value in looked_at(tmp_path / "it.py", source) if "(" in name]
    assert len(found) == MAX_PARTS and found[0] == ("down().n", 99)


def test_it_is_one_agent_by_the_name_of_the_script():
    main = types.ModuleType("__main__")
    vars(main)[3] = "three"
    found = Variables(main, "somewhere/it.py")
    assert list(found) == ["variables of it.py"] and len(found) == 1
    assert found["variables of it.py"] == [("(unnamed)", "three")]
    with pytest.raises(KeyError):
        found["it.py"]


def ends_at_once():
    """Under many looks from a thread that is the last of all, and without the collector."""
    gc.disable()
    main = types.ModuleType("__main__")
    seen, stop = Variables(main, "/nowhere/it.py"), threading.Event()

    def looks():
        while not stop.is_set():
            seen["variables of it.py"]

    threads = [threading.Thread(target=looks) for _ in range(3)]
    for thread in threads:
        thread.start()
    source = (
        "def step():\n    table = Table()\n    time.sleep(0.001)\n    return weakref.ref(table)\n"
        "ends = [step() for _ in range(300)]"
    )
    vars(main).update(Table=Table, time=time, weakref=weakref)
    exec(compile(source, "/nowhere/it.py", "exec"), vars(main))
    stop.set()
    for thread in threads:
        thread.join()
    assert [end() for end in vars(main)["ends"]] == [None] * 300


def test_what_a_function_let_go_ends_after_the_look():
    run_alone(ends_at_once)
