"""Workloads: what a user names or hands in to be measured, made a `World`.

Generated worlds and walks are in `worlds`.
"""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from scipy import sparse

from agentmem.model import Model
from agentmem.population import whole
from agentmem.profiler.worlds import World, walked_world

AGENTS, STEPS = 20, 200

Workload: TypeAlias = World | str | Callable[[], World | Model]


def world_of(workload: Workload, *, agents: int = AGENTS, steps: int = STEPS, seed: int = 0) -> World:
    """The world of a workload: itself; or what "module:function", or a function, without arguments, returns.

    In a `Model` so many agents act at random for so many steps; a `World` has its own.

    Raises
    ------
    ValueError
        There is no such function; or numbers that do not fit.
    TypeError
        It is no workload, or the function returns none.
    RuntimeError
        The function, or the import of its module, raised.

    Examples
    --------
    >>> import agentmem as am
    >>> coin = am.Model([[0.5, 0.5], [0.5, 0.5]], [[0.9, 0.1], [0.1, 0.9]])
    >>> world_of(lambda: coin, agents=3, steps=10).actions.shape
    (10, 3)
    """
    agents, steps, seed = whole(agents, "agents", 1), whole(steps, "steps", 1), whole(seed, "seed", 0)
    if isinstance(workload, World):
        return _busy(workload)
    if isinstance(workload, str):
        name, make = workload, _named(workload)
    elif callable(workload):
        name, make = getattr(workload, "__name__", type(workload).__name__), workload
    else:
        raise TypeError(f"workload of type {type(workload).__name__} given; expected a World, a name or a function")
    made = _called(make, name)
    if isinstance(made, Model):
        return walked_model(name, made, agents=agents, steps=steps, seed=seed)
    if not isinstance(made, World):
        raise TypeError(f"{name} returned {_a(made)}; expected a World or a Model")
    return _busy(made)


def command_line(*workload: str, agents: int, steps: int, seed: int, repeats: int) -> str:
    """The command that measures the trade-off on a workload, for a shell."""
    numbers = {"agents": agents, "steps": steps, "seed": seed, "repeats": repeats}
    options = [word for name, number in numbers.items() for word in (f"--{name}", str(number))]
    return shlex.join(["agentmem", "compare", "--sweep", *workload, *options])


def walked_model(name: str, model: Model, *, agents: int, steps: int, seed: int) -> World:
    """The world of a model's tables, and agents that start as its prior says and act at random."""
    n_tables = model.n_actions if model.observations_depend_on_action else 1
    tables = [model.observation(action).astype(np.float64) for action in range(n_tables)]
    initial = np.asarray(model.belief(), np.float64)
    return walked_world(
        name,
        [model.transition(action).astype(np.float64) for action in range(model.n_actions)],
        sparse.vstack(tables, format="csr"),
        initial / initial.sum(),
        agents=agents,
        steps=steps,
        seed=seed,
    )


def _busy(world: World) -> World:
    if not world.actions.size:
        raise ValueError(f"the world {world.name!r} has no agents or no steps")
    return world


def _named(name: str) -> Callable[[], Any]:
    module_name, colon, function_name = name.partition(":")
    if not (module_name and colon and function_name):
        raise ValueError(f"workload {name!r} given; expected module:function")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as missing:
        if missing.name is None or not f"{module_name}.".startswith(f"{missing.name}."):
            raise RuntimeError(f"importing {module_name} raised {_said(missing)}") from missing
        raise ValueError(f"there is no module {missing.name}, of the workload {name!r}") from None
    except Exception as error:
        raise RuntimeError(f"importing {module_name} raised {_said(error)}") from error
    function = getattr(module, function_name, None)
    if function is None:
        raise ValueError(f"there is no {function_name} in the module {module_name}")
    if not callable(function):
        raise TypeError(f"{name} is {_a(function)}; expected a function")
    return function  # type: ignore[no-any-return]


def _called(make: Callable[[], Any], name: str) -> Any:
    try:
        return make()
    except Exception as error:
        raise RuntimeError(f"{name} raised {_said(error)}") from error


def _said(error: Exception) -> str:
    """Type and message in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).rstrip(": ")


def _a(value: object) -> str:
    return "None" if value is None else f"an object of type {type(value).__name__}"
