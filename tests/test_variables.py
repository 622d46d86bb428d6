"""The variables of a script and of its functions that run, found without a trace."""

import sys
import threading
import types
import weakref

import numpy as np
import pytest

from agentmem._core import variables_of
from agentmem.profiler.variables import Variables

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


@pytest.fixture
def script(tmp_path):
    """Run a source as a script up to its `look()`; what is found there."""
    main = types.ModuleType("__main__")
    path = tmp_path / "it.py"
    seen = Variables(main, str(path))

    def run(source, **given):
        looks = []
        vars(main).update(given, look=lambda: looks.append(seen[next(iter(seen))]))
        exec(compile(source, str(path), "exec"), vars(main))
        [found] = looks
        return {name: value for name, value in found.items() if name not in {"look", "__builtins__", *given}}

    return run


def names(found):
    return {name for name in found if not name.startswith("__")}


def test_they_are_the_modules_and_its_functions(script):
    found = script(
        "table = 'table'\n"
        "class Robot:\n"
        "    def run(self, steps):\n        left = steps - 1\n        look()\n"
        "def main():\n    robot = Robot()\n    def start(x):\n        robot.run(x)\n    start(700)\n"
        "main()"
    )
    assert names(found) == {
        "table", "Robot", "main", "main().robot", "main().start", "main.start().x", "main.start().robot",
        "Robot.run().self", "Robot.run().steps", "Robot.run().left",
    }  # fmt: skip
    assert found["Robot.run().left"] == 699 and found["main().robot"] is found["Robot.run().self"]


def test_those_of_calls_of_itself_are_numbered(script):
    found = script("def down(n):\n    down(n - 1) if n else look()\ndown(2)")
    assert {name: value for name, value in found.items() if "(" in name} == {
        "down().n": 2, "down()[2].n": 1, "down()[3].n": 0,
    }  # fmt: skip


def test_libraries_are_left_out(script):
    """A function of the standard library, of NumPy, and of agentmem call the script's."""
    source = (
        "import functools\n"
        "def called(a, *_):\n    b = 7\n    look()\n    return a\n"
        "def main():\n    functools.reduce(called, [1, 2])\n    return np.apply_along_axis(called, 0, np.ones(2))\n"
        "def once():\n    np.apply_along_axis(called, 0, np.ones(2))\nonce()"
    )
    found = script(source, np=np)
    assert {name for name in found if "(" in name} == {"called().a", "called()._", "called().b"}


@pytest.mark.parametrize(
    ("place", "is_own"),
    [("beside/deep", True), ("venv/lib/python3/site-packages/other", False), ("../elsewhere", False)],
)
def test_modules_below_its_directory_are_its_own(script, tmp_path, place, is_own):
    module = {}
    path = (tmp_path / place / "module.py").resolve()
    exec(compile("def work(look):\n    inside = 1\n    look()", str(path), "exec"), module)
    found = script("work(look)", work=module["work"])
    assert ("work().inside" in found) == is_own


def test_those_of_other_threads_are_there(script):
    found = script(
        "def work(begun, go_on):\n    log = ['a']\n    begun.set()\n    go_on.wait(10)\n"
        "def main():\n    first, go_on = running(work)\n    second, go_on_too = running(work)\n    look()\n"
        "    for one in go_on, go_on_too:\n        one.set()\n    first.join(10)\n    second.join(10)\n"
        "main()",
        running=running,
    )
    assert {"main().first", "work().log", "work()[2].log"} <= names(found)


def test_an_element_is_a_part_of_what_has_it(script):
    found = script(
        "model = ['shared']\nagents = [[model], [2], [3]]\nby_name = {'x': [4]}\n"
        "def main():\n    pair = ([5], model)\n    chosen = by_name['x']\n    of_pair = pair[0]\n"
        "    for agent in agents:\n        pass\n    look()\n"
        "main()"
    )
    assert names(found) == {"model", "agents", "by_name", "main", "main().pair"}


def test_it_is_one_agent_by_the_name_of_the_script():
    main = types.ModuleType("__main__")
    found = Variables(main, "somewhere/it.py")
    assert list(found) == ["variables of it.py"] and len(found) == 1
    assert found["variables of it.py"] == vars(main)
    with pytest.raises(KeyError):
        found["it.py"]
