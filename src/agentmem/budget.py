"""Budget: a ledger of bytes with a limit. It counts what holders tell it, and decides nothing.

What is short of bytes is freed by a function that the budget was given; budgets of agents may share one above them.
`Account` is what a container that grows has in a budget.
"""

from __future__ import annotations

import operator
import re
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, Self, SupportsIndex

from agentmem.errors import BudgetExceeded

UNITS = {"": 1, "b": 1}
UNITS |= {f"{prefix}b": 1000**k for k, prefix in enumerate("kmgtp", 1)}
UNITS |= {f"{prefix}ib": 1024**k for k, prefix in enumerate("kmgtp", 1)}
WARN_AT = (80, 95)  # percent of the limit
NAMED = 5  # of the largest holders, in an error
SPARE = 1 << 8  # bytes to grow by that a container reserves at least, beside an eighth of what it holds


class Budget:
    """How many bytes may be held, how many are, and by whom.

    Parameters
    ----------
    limit : str or int
        ``"10 MB"``, ``"1.5 GiB"``, or a number of bytes. kB, MB, GB, TB, PB are powers of 1000, KiB to PiB of 1024.
    parent : Budget, optional
        Is charged too, with everything: a budget of each agent under one of the simulation.
    on_short : callable, optional
        ``on_short(budget, missing_bytes)``, called when this budget is short of so many bytes: it may prune, compress
        or spill, and `release` what that freed.
    name : str, optional
        The one holder that the parent sees, and what errors say. Without a name, the parent sees this budget's holders.

    Attributes
    ----------
    limit : int
    parent : Budget or None
    on_short : callable or None
        May be set later.
    name : str or None

    Raises
    ------
    ValueError
        A limit that is no size, or not positive.

    Warns
    -----
    RuntimeWarning
        When 80 % and 95 % of the limit are crossed, each once until it is crossed again from below.

    Notes
    -----
    Any number of threads may use a budget, and finalizers too. What a budget still holds when it goes is given back to
    its parent. 3 to 5 us per call and as much for each budget above; about 350 bytes and a dict entry per holder.

    Examples
    --------
    >>> import agentmem as am
    >>> simulation = am.Budget("10 kB")
    >>> agent = am.Budget("1 kB", parent=simulation, name="agent 7")
    >>> agent.reserve(600, "beliefs")
    >>> agent.reserve(500, "history")
    Traceback (most recent call last):
        ...
    agentmem.errors.BudgetExceeded: history asks for 500 bytes; agent 7 has 400 of 1,000 free; held by: beliefs 600
    >>> agent.used, simulation.used, simulation.holders
    (600, 600, {'agent 7': 600})
    """

    __slots__ = ("__weakref__", "_asking", "_held", "_lock", "_used", "_warned", "limit", "name", "on_short", "parent")

    def __init__(
        self,
        limit: str | SupportsIndex,
        *,
        parent: Budget | None = None,
        on_short: Callable[[Budget, int], object] | None = None,
        name: str | None = None,
    ) -> None:
        if parent is not None and not isinstance(parent, Budget):
            raise TypeError(f"parent of type {type(parent).__name__} given; expected an agentmem.Budget")
        self._used = self._warned = 0
        self._held: defaultdict[str, int] = defaultdict(int)
        self.parent, self.on_short, self.name = parent, on_short, name
        self.limit = _bytes_of(limit)
        # One lock for the whole tree, so that all its ledgers change together. A finalizer may come in between, in the
        # same thread: hence reentrant, and every change is one += or -=, which nothing comes in between of.
        self._lock: Any = threading.RLock() if parent is None else parent._lock
        self._asking: set[tuple[int, int]] = set() if parent is None else parent._asking  # budget and thread

    @classmethod
    def for_machine(
        cls,
        fraction: float,
        *,
        on_short: Callable[[Budget, int], object] | None = None,
        name: str | None = None,
        root: str = "/",
    ) -> Self:
        """A budget of this share of the memory that is available now: to the machine, or to the cgroup if that is less.

        `root` is where ``proc`` and ``sys`` are found. O(depth of the cgroup) small files are read.

        Examples
        --------
        >>> import agentmem as am
        >>> am.Budget.for_machine(0.5).limit < am.Budget.for_machine(1.0).limit
        True
        """
        if not 0 < fraction <= 1:
            raise ValueError(f"fraction={fraction!r} given; expected above 0 and at most 1")
        import psutil  # type: ignore[import-untyped]

        available = min([psutil.virtual_memory().available, *_cgroup_rooms(Path(root))])
        return cls(max(1, int(fraction * available)), on_short=on_short, name=name)

    # ---- looks

    @property
    def used(self) -> int:
        """Bytes reserved here and in the budgets below."""
        return self._used

    @property
    def free(self) -> int:
        """Bytes that can be reserved: what this budget and all above it have left."""
        return max(0, min(budget.limit - budget._used for budget in self._chain()))

    @property
    def holders(self) -> dict[str, int]:
        """Bytes by holder, the largest first."""
        with self._lock:
            held = dict(self._held)
        return dict(sorted(held.items(), key=lambda item: -item[1]))

    def __repr__(self) -> str:
        named = f"{self.name!r}, " if self.name else ""
        return f"{type(self).__name__}({named}limit={self.limit}, used={self.used})"

    def _chain(self) -> list[Budget]:
        """This budget and those above it, the nearest first."""
        chain, above = [self], self.parent
        while above is not None:
            chain.append(above)
            above = above.parent
        return chain

    def _accounts(self, holder: str) -> list[tuple[Budget, str]]:
        """Every budget to charge, and the name to charge under."""
        accounts = []
        for budget in self._chain():
            accounts.append((budget, holder))
            holder = budget.name or holder
        return accounts

    # ---- the ledger

    def reserve(self, nbytes: SupportsIndex, holder: object) -> None:
        """Charge bytes to a holder, here and in all budgets above, or nowhere.

        Parameters
        ----------
        nbytes : int
        holder : str or object
            A name, or an object that is named by its type. No reference to it is kept.

        Raises
        ------
        BudgetExceeded
            A budget is short, and its `on_short` did not free enough. `on_short` is called once for every budget that
            is short, the nearest first, and not for what it reserves itself.
        """
        n, name, me = _amount(nbytes), _name_of(holder), threading.get_ident()
        asked: set[tuple[int, int]] = set()
        while short := self._charge(n, name):
            hopeless = [budget for budget in short if n > budget.limit]
            askable = [budget for budget in short if budget.on_short and (id(budget), me) not in asked | self._asking]
            if hopeless or not askable:
                raise BudgetExceeded((hopeless or short)[0]._refusal(n, name))
            asked.add((id(askable[0]), me))
            askable[0]._ask(n, (id(askable[0]), me))
        try:
            for budget in self._chain():
                budget._warn()
        except Warning:  # that somebody made an error
            self.release(n, name)
            raise

    def release(self, nbytes: SupportsIndex, holder: object) -> None:
        """Give bytes of a holder back, here and in all budgets above.

        Raises ValueError, and changes nothing, if the holder has fewer.
        """
        n, name = _amount(nbytes), _name_of(holder)
        with self._lock:
            for budget, known in self._accounts(name):
                if n > (held := budget._held.get(known, 0)):
                    raise ValueError(f"{known} gives back {n:,} bytes; {budget._title} knows of {held:,}")
            for budget, known in self._accounts(name):
                budget._used -= n
                budget._held[known] -= n
                if not budget._held[known]:
                    del budget._held[known]
                budget._warned = min(budget._warned, budget._level())

    def _ask(self, n: int, call: tuple[int, int]) -> None:
        """Let `on_short` free what n bytes more would take."""
        missing = n + self._used - self.limit
        if self.on_short is None or missing <= 0:
            return
        self._asking.add(call)
        try:
            self.on_short(self, missing)
        finally:
            self._asking.discard(call)

    def _charge(self, n: int, name: str) -> list[Budget]:
        """Charge all budgets, or return those that are short."""
        with self._lock:
            short = [budget for budget in self._chain() if budget._used + n > budget.limit]
            if n and not short:
                for budget, known in self._accounts(name):
                    budget._used += n
                    budget._held[known] += n
            return short

    def _level(self) -> int:
        """The highest share to warn at that is in use, in percent."""
        return max((percent for percent in WARN_AT if self._used * 100 >= percent * self.limit), default=0)

    def _warn(self) -> None:
        with self._lock:
            level, before = self._level(), self._warned
            self._warned = level
        if level > before:
            message = f"{self._title}: over {level} % of {self.limit:,} bytes are in use ({self._largest()})"
            warnings.warn(message, RuntimeWarning, stacklevel=3)

    def _refusal(self, n: int, name: str) -> str:
        free = max(0, self.limit - self._used)
        return f"{name} asks for {n:,} bytes; {self._title} has {free:,} of {self.limit:,} free; {self._largest()}"

    def _largest(self) -> str:
        shown = [f"{name} {nbytes:,}" for name, nbytes in self.holders.items()]
        more = f" and {len(shown) - NAMED} more" if len(shown) > NAMED else ""
        return f"held by: {', '.join(shown[:NAMED]) or 'nobody'}{more}"

    @property
    def _title(self) -> str:
        return self.name or "the budget"

    def __del__(self) -> None:
        if parent := getattr(self, "parent", None):
            for name, nbytes in self._held.items():
                with suppress(ValueError):  # somebody else gave it back there
                    parent.release(nbytes, self.name or name)

    def _check(self) -> None:
        with self._lock:
            assert self._used == sum(self._held.values()) <= self.limit
            assert all(nbytes > 0 for nbytes in self._held.values())
            assert self._warned in (0, *WARN_AT) and self._warned <= self._level()


class Account:
    """What a container has reserved in a budget: what it holds, and room to grow. Given back when both are garbage."""

    __slots__ = ("budget", "holder", "reserved", "unused")

    def __init__(self, budget: Budget, container: Any) -> None:
        if not isinstance(budget, Budget):
            raise TypeError(f"budget of type {type(budget).__name__} given; expected an agentmem.Budget")
        self.budget, self.holder = budget, type(container).__name__
        self.reserved = self.unused = 0
        self.take(0, container)

    def take(self, more: int, container: Any) -> bool:
        """Have so many bytes more. Only where those reserved do not do, it measures and asks the budget: True."""
        if is_short := more > self.unused or not self.reserved:
            need = container.nbytes + more
            spare = min(need // 8 + SPARE, self.budget.free + self.reserved - need)
            before = self.reserved
            if (missing := need + max(0, spare) - before) > 0:
                self.budget.reserve(missing, self.holder)
                self.reserved += missing
            self.unused = more + max(0, spare)
        self.unused -= more
        return is_short

    def settle(self, nbytes: int) -> None:
        """Give back what is reserved beyond so many bytes."""
        beyond = self.reserved - nbytes
        if beyond > 0:
            self.budget.release(beyond, self.holder)
            self.reserved -= beyond
        self.unused = 0

    def __del__(self) -> None:
        if getattr(self, "reserved", 0):
            with suppress(ValueError):  # the budget went first, and gave it back above
                self.budget.release(self.reserved, self.holder)


@contextmanager
def unpaid(container: Any) -> Iterator[None]:
    """Within it, what goes back to how it was asks no budget."""
    account, container._account = container._account, None
    try:
        yield
    finally:
        container._account = account
        if account is not None:
            account.settle(container.nbytes)


def _bytes_of(limit: str | SupportsIndex) -> int:
    if not isinstance(limit, str):
        try:
            nbytes = operator.index(limit)
        except TypeError:
            raise TypeError(f"limit {limit!r} given; expected a size such as '10 MB', or an int of bytes") from None
    else:
        found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]*)\s*", limit, re.IGNORECASE | re.ASCII)
        if not found or found[2].lower() not in UNITS:
            raise ValueError(f"limit {limit!r} given; expected a size such as '10 MB' or '1.5 GiB', or an int of bytes")
        nbytes = int(Fraction(found[1]) * UNITS[found[2].lower()])
    if nbytes < 1:
        raise ValueError(f"limit {limit!r} given; expected at least one byte")
    return nbytes


def _amount(nbytes: SupportsIndex) -> int:
    if (n := operator.index(nbytes)) < 0:
        raise ValueError(f"{n} bytes given; expected at least 0")
    return n


def _name_of(holder: object) -> str:
    return holder if isinstance(holder, str) else type(holder).__name__


def _cgroup_rooms(root: Path) -> list[int]:
    """What each limit on this process's cgroups leaves: version 1 and 2, the groups above included."""
    rooms = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            mount, limits, usage, reclaimable = "", ["memory.max", "memory.high"], "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            mount, limits, usage = "memory", ["memory.limit_in_bytes"], "memory.usage_in_bytes"
            reclaimable = "total_inactive_file"
        else:
            continue
        top = root / "sys/fs/cgroup" / mount
        group = top / path.strip("/")  # in a container it may not be there: then its root is the container's group
        for folder in [group, *group.parents][: len(group.parts) - len(top.parts) + 1]:
            stated = dict(row.split(" ", 1) for row in _text(folder / "memory.stat").splitlines() if " " in row)
            held = max(0, _number(_text(folder / usage)) - _number(stated.get(reclaimable, "")))
            stated_limits = [text for name in limits if (text := _text(folder / name)).isdigit()]  # not "max"
            rooms += [max(0, int(limit) - held) for limit in stated_limits]
    return rooms


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _number(text: str) -> int:
    return int(text) if text.isdigit() else 0
