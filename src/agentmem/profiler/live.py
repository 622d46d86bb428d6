"""What `agentmem watch` shows, from looks at a process: a page for a terminal, or a line for a log. Pure functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from agentmem.footprint import in_units
from agentmem.profiler.records import Profile
from agentmem.profiler.watching import Look

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

BARS = "▁▂▃▄▅▆▇█"
MOST_PARTS = 5


def sparkline(values: Sequence[int], width: int = 60) -> str:
    """The last values as bars, from the least of them to the largest.

    >>> sparkline([0, 1, 2, 3, 4, 5, 6, 7])
    '▁▂▃▄▅▆▇█'
    >>> sparkline([5, 5, 5])
    '▁▁▁'
    """
    shown = values[-width:]
    least, span = min(shown), max(1, max(shown) - min(shown))
    return "".join(BARS[(value - least) * (len(BARS) - 1) // span] for value in shown)


def line(look: Look) -> str:
    """One line, under 80 columns unless a map has a long name."""
    grower = "" if not look.growers else f", {look.growers[0].name} +{in_units(look.growers[0].grown)}"
    return f"{look.seconds:7.1f} s  RSS {in_units(look.rss)}, peak {in_units(look.peak_rss)}{grower}"


def page(looks: Sequence[Look], seen: Profile | None = None, output: Sequence[str] = ()) -> Group:
    """All that is known: memory over time, its kinds, what grows; of a script its variables and last output too."""
    from rich.console import Group
    from rich.text import Text

    now, rss = looks[-1], [look.rss for look in looks]
    head = Text.assemble((f"{now.pid}", "bold"), f"  {shortened(now.command, 60)}", no_wrap=True, overflow="ellipsis")
    parts: list[Text | Table] = [
        head,
        Text(f"{now.seconds:,.0f} s, {now.threads} thread{'s' * (now.threads != 1)}", style="dim"),
        Text(),
        Text.assemble(f"RSS {in_units(now.rss):>9}  ", (sparkline(rss), "cyan"), f"  peak {in_units(now.peak_rss)}"),
        Text(),
        _table("memory", {kind: in_units(nbytes) for kind, nbytes in now.parts.items() if nbytes}),
    ]
    if now.growers:
        grown = {shortened(one.name, 48): f"+{in_units(one.grown)} to {in_units(one.nbytes)}" for one in now.growers}
        parts.append(_table("grown since the watch began", grown))
    if seen is not None and seen.snapshots and seen.snapshots[-1].agents:
        held = seen.snapshots[-1].agents[0].parts
        largest = sorted(held.items(), key=lambda item: (-item[1], item[0]))[:MOST_PARTS]
        parts.append(_table("variables of the script", {shortened(k, 48): in_units(v) for k, v in largest}))
    parts += [Text(shortened(text, 79), style="dim") for text in output]
    return Group(*parts)


def shortened(text: str, most: int) -> str:
    """The text on one line, its middle left out where it is too long.

    >>> shortened("a" * 10 + "b" * 10, 9)
    'aaaa…bbbb'
    """
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:most - 1 - half]}…{text[len(text) - half:]}"


def _table(title: str, rows: dict[str, str]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.title, table.title_justify, table.title_style = title, "left", "bold"
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    for name, value in rows.items():
        table.add_row(Text(name), value)
    return table
