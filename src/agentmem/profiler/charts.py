"""Charts of documents as SVG, in the colours of the page they are put on: `currentColor` and CSS variables.

matplotlib draws in colours that nobody uses, which are then replaced; the same document gives the same bytes.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Callable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from agentmem.footprint import in_units
from agentmem.profiler.live import shortened

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

INK, GRID, FIRST, SECOND, THIRD = "#010101", "#020202", "#030303", "#040404", "#050505"
THEMED = {INK: "currentColor", GRID: "var(--grid)"}
THEMED |= {FIRST: "var(--first)", SECOND: "var(--second)", THIRD: "var(--third)"}
# For a file of its own; a page has these of its own.
STYLE = (
    "svg{color:#24292f;--grid:#d8dee4;--first:#0969da;--second:#bc4c00;--third:#1a7f37}"
    "@media(prefers-color-scheme:dark){svg{color:#e6edf3;--grid:#30363d;--first:#58a6ff;--second:#f0883e;--third:#56d364}}"
)
WIDE, NARROW = 8.6, 4.0  # inches, of a chart on a screen and on a telephone: its text is about as large on both
MOST_MARKS = 8
MOST_BARS = 12


def memory_chart(profile: dict[str, Any], width: float = WIDE) -> str:
    """Memory over time: RSS, traced bytes and what agents hold, with a mark for each event."""
    samples, events = profile["samples"], profile["events"]
    keys = ("RSS", "rss", FIRST), ("traced", "traced", SECOND), ("agents", "agents", THIRD)
    series = [(name, samples["seconds"], samples[key], colour) for name, key, colour in keys]
    return _over_time("Memory over time", series, [(event["at"], event["text"]) for event in events], width)


def change_chart(document: dict[str, Any], width: float = WIDE) -> str:
    """RSS over time of two profiles."""
    sampled = [
        (side, document[side]["profile"]["samples"], colour) for side, colour in (("before", FIRST), ("after", SECOND))
    ]
    series = [(side, one["seconds"], one["rss"], colour) for side, one, colour in sampled if one is not None]
    return _over_time("RSS over time, before and after", series, [], width)


def parts_chart(rows: Sequence[tuple[str, int]], width: float = WIDE) -> str:
    """Bytes by part, of the largest ones."""
    shown = rows[:MOST_BARS]
    names = [shortened(name, 30 if width == WIDE else 20) for name, _ in shown]
    sizes = [nbytes for _, nbytes in shown]

    def draw(axes: Axes) -> None:
        places = range(len(shown))
        axes.barh(places, sizes, color=FIRST, height=0.62)
        axes.set_yticks(places, names)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_xlim(right=max(1, *sizes) * 1.3)
        for place, nbytes in zip(places, sizes, strict=True):
            axes.annotate(in_units(nbytes), (nbytes, place), (4, 0), textcoords="offset points", va="center", color=INK)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)

    return _svg(draw, "What is held, by part", f"The largest is {names[0]}.", (width, 0.3 + 0.27 * len(shown)))


def tradeoff_chart(document: dict[str, Any], width: float = WIDE) -> str:
    """Bytes of a belief against the time of an update, both logarithmic; the front is joined, the recommended named."""
    measurements = document["measurements"]
    front = [one for one in measurements if one["on_front"]]
    others = [one for one in measurements if not one["on_front"]]

    def points(some: list[dict[str, Any]]) -> tuple[list[float], list[float]]:
        return [one["belief_bytes_median"] for one in some], [one["microseconds_per_update"] for one in some]

    def draw(axes: Axes) -> None:
        from matplotlib.ticker import LogLocator

        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.scatter(*points(others), facecolors="none", edgecolors=SECOND, s=34, label="beaten by another")
        axes.plot(*points(_least(front)), color=FIRST, lw=1, alpha=0.5)
        axes.scatter(*points(front), color=FIRST, s=34, label="on the front")
        [best] = [one for one in measurements if one["configuration"] == document["recommended"]]
        axes.scatter(*points([best]), facecolors="none", edgecolors=INK, s=120, lw=1.2, label="recommended")
        named: set[str] = set()
        for one in measurements:  # one name for each way: its points lie close together
            if one["filter"] not in named:
                named.add(one["filter"])
                place = one["belief_bytes_median"], one["microseconds_per_update"]
                axes.annotate(one["filter"], place, (7, 6), textcoords="offset points", color=INK)
        axes.set_xlabel("bytes of a belief, median")
        axes.set_ylabel("us per update")
        axes.xaxis.set_major_locator(LogLocator(base=2, numticks=8))
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 3), numticks=8))
        axes.minorticks_off()
        _sizes(axes.xaxis)
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.margins(0.12)
        axes.legend(loc="best", frameon=False, labelcolor=INK)

    description = shortened(document["summary"].partition("\n")[0], 300)
    return _svg(draw, "Memory against time", description, (width, _height(width)))


def picture(document: dict[str, Any]) -> str:
    """A document's chart as an SVG file, light or dark as its reader is: memory over time, or a trade-off.

    ValueError for a document that has neither.
    """
    if document.get("sweep"):
        return standalone(tradeoff_chart(document))
    if document["command"] == "report" and are_sampled(document):
        return standalone(change_chart(document))
    samples = document.get("profile", {}).get("samples")
    if samples is None or not samples["rss"]:
        raise ValueError(f"a document of `agentmem {document['command']}` has no chart; profiles and sweeps have")
    return standalone(memory_chart(document["profile"]))


def are_sampled(document: dict[str, Any]) -> bool:
    """Whether two documents are profiles, and memory was sampled in one of them at least."""
    sides = [document[side].get("profile", {}).get("samples") for side in ("before", "after")]
    return any(samples is not None and len(samples["rss"]) > 1 for samples in sides)


def standalone(svg: str) -> str:
    """The chart as a file of its own."""
    head, tag, rest = svg.partition(">")
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)
    assert size is not None
    head += f' width="{float(size[1]) * 1.5:.0f}" height="{float(size[2]) * 1.5:.0f}"'
    return f"{head}{tag}<style>{STYLE}</style>{rest}\n"


def check_installed() -> None:
    """ImportError, naming the extra, unless matplotlib is there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise ImportError("charts need matplotlib: pip install 'agentmem-native[profile]'", name="matplotlib") from None


def _least(front: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the front, which is one of errors too, those that no other beats in bytes and time alone; by bytes."""
    least: list[dict[str, Any]] = []
    for one in sorted(front, key=lambda one: (one["belief_bytes_median"], one["microseconds_per_update"])):
        if not least or one["microseconds_per_update"] < least[-1]["microseconds_per_update"]:
            least.append(one)
    return least


Series = tuple[str, Sequence[float], Sequence[int | None], str]  # name, seconds, bytes, colour


def _over_time(title: str, series: Sequence[Series], events: list[tuple[float, str]], width: float) -> str:
    known = [(one, [value for value in one[2] if value is not None]) for one in series]
    shown = [(one, max(values)) for one, values in known if values]

    def draw(axes: Axes) -> None:
        for (name, seconds, values, colour), _ in shown:
            points = [(at, value) for at, value in zip(seconds, values, strict=True) if value is not None]
            axes.plot(*zip(*points, strict=True), color=colour, lw=1.4, label=name, solid_capstyle="butt")
        most = max(1, *(peak for _, peak in shown))
        axes.margins(x=0.01)
        axes.set_xlabel("seconds", loc="left")
        _sizes(axes.yaxis, most)
        axes.set_ylim(0, most * 1.06)
        _marks(axes, events, width)
        # Below the axes, beside their label: inside there is no place that no line may cross.
        axes.legend(
            loc="upper right", bbox_to_anchor=(1, -0.26 / (_height(width) - 0.8)), borderaxespad=0, frameon=False,
            labelcolor=INK, ncols=3, handlelength=1.3, columnspacing=1.2,
        )  # fmt: skip

    peaks = ", ".join(f"{one[0]} at most {in_units(peak)}" for one, peak in shown)
    return _svg(draw, title, f"{peaks}.", (width, _height(width)))


def _height(width: float) -> float:
    return 1.2 + 0.36 * width  # flatter where it is wide


def _svg(draw: Callable[[Axes], None], title: str, description: str, size: tuple[float, float]) -> str:
    check_installed()
    import matplotlib
    from matplotlib.figure import Figure

    style: Any = {
        "svg.fonttype": "none", "svg.hashsalt": f"{title} {size}", "font.size": 10, "font.family": "sans-serif",
        "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": GRID, "xtick.color": GRID, "ytick.color": GRID,
        "xtick.labelcolor": INK, "ytick.labelcolor": INK, "grid.color": GRID, "grid.linewidth": 0.6, "axes.grid": True,
        "axes.axisbelow": True, "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
        "path.simplify_threshold": 0.3, "text.parse_math": False,
    }  # fmt: skip
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # A reader's fonts show the text, not those of this machine.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from")
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        return _themed(figure, title, description)


def _themed(figure: Figure, title: str, description: str) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r' style="[^"]*"', _themed_style, svg)  # not in texts
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # a page has several charts, and each id once
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    box = re.search(r'viewBox="[^"]*"', svg)
    assert box is not None
    names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    said = f"<title>{escape(title)}</title><desc>{escape(description)}</desc>"
    body = svg[svg.index(">") + 1 :].strip()
    return f'<svg {names} {box[0]} role="img" class="chart">{said}{body}'


def _themed_style(style: re.Match[str]) -> str:
    said = style[0]
    for colour, themed in THEMED.items():
        said = said.replace(f": {colour}", f": {themed}")
    return re.sub(r"font: ([\d.]+)px [^;\"]*", r"font: \1px system-ui, sans-serif", said)


def _sizes(axis: Any, most: float | None = None) -> None:
    """Ticks in the units of the text beside; from 0 to `most` on a linear axis, at round numbers of one unit."""
    from matplotlib.ticker import MaxNLocator

    if most is not None:
        unit = 1024 ** min(3, max(0, int(math.log(max(most, 1), 1024))))
        axis.set_ticks(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]).tick_values(0, most / unit) * unit)
    axis.set_major_formatter(lambda value, _: "0" if value == 0 else in_units(value).replace(".0 ", " "))


def _marks(axes: Axes, events: list[tuple[float, str]], chart: float) -> None:
    """A line for each of the first events; its text stands in the lowest row that is free there."""
    begin, end = axes.get_xlim()
    free = [begin] * 3
    for at, text in events[:MOST_MARKS]:
        axes.axvline(at, color=INK, lw=0.6, ls=":", alpha=0.6)
        text = shortened(text, 22)
        width = (end - begin) * (0.09 * len(text) + 0.1) / chart
        is_late = at + width > end
        row = next((k for k, edge in enumerate(free) if edge <= at - is_late * width), None)
        if row is not None:
            free[row] = at if is_late else at + width
            axes.annotate(
                text, (at, 1.0), (-3 if is_late else 3, 3 + 11 * row), xycoords=("data", "axes fraction"),
                textcoords="offset points", ha="right" if is_late else "left", color=INK, fontsize=8.5,
            )  # fmt: skip
