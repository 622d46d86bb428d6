"""The commands that look at programs: profile, watch, report. They parse arguments, call, and print."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from collections import deque
from contextlib import nullcontext, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from agentmem._outputs import check_distinct, check_writable, write, write_json
from agentmem.errors import CorruptData
from agentmem.footprint import in_units
from agentmem.profiler import live, report, script, text, watching

if TYPE_CHECKING:
    import click

LOOKS = 3600    # that are kept
LAST_LINES = 5  # of what a script prints, while it runs


def commands() -> list[click.Command]:
    """The three of them."""
    import click

    def out(flag: str, text: str, default: str | None = None) -> click.Option:
        return click.Option(
            [f"--{flag}", f"{flag}_file"],
            metavar="FILE",
            type=click.Path(dir_okay=False, path_type=Path),
            callback=check_writable,
            default=default,
            show_default=default is not None,
            help=text,
        )

    lines = click.Option(
        ["--lines"],
        metavar="N",
        type=click.IntRange(0, 100),
        default=0,
        show_default=True,
        help="Trace allocations by source line with tracemalloc, N frames of each; what allocates much takes 2.5 to 13 "
        "times as long.",
    )
    existing = click.Path(exists=True, dir_okay=False, path_type=Path)
    seconds = click.FloatRange(min=0.001, max=3600)
    words = {"allow_interspersed_args": False}  # what follows the script is the script's
    return [
        click.Command(
            "profile",
            callback=profile,
            help=profile.__doc__,
            short_help="Run a script, and report what memory it held.",
            context_settings=words,
            params=[
                click.Option(["--interval"], metavar="SECONDS", type=seconds, default=0.1, show_default=True,
                             help="From one sample to the next."),
                lines,
                out("html", "The report as a page.", "report.html"),
                out("json", "The report's figures, sizes in bytes.", "report.json"),
                out("svg", "Also write the chart of memory over time."),
                click.Argument(["file"], metavar="SCRIPT", type=existing),
                click.Argument(["arguments"], metavar="[ARGUMENTS]...", nargs=-1, type=click.UNPROCESSED),
            ],
        ),
        click.Command(
            "watch",
            callback=watch,
            help=watch.__doc__,
            short_help="Show the memory of a process while it runs.",
            context_settings=words,
            params=[
                click.Option(["--interval"], metavar="SECONDS", type=seconds, default=1.0, show_default=True,
                             help="From one look to the next."),
                out("json", "Also write the looks to FILE, sizes in bytes."),
                click.Argument(["target"], metavar="PID|SCRIPT"),
                click.Argument(["arguments"], metavar="[ARGUMENTS]...", nargs=-1, type=click.UNPROCESSED),
            ],
        ),
        click.Command(
            "report",
            callback=show,
            help=show.__doc__,
            short_help="Show what an earlier command found, or two of them side by side.",
            params=[
                click.Argument(["files"], metavar="FILE [AFTER]", nargs=-1, required=True, type=existing),
                out("html", "Write a page instead."),
                out("svg", "Write the chart instead: memory over time, or memory against time."),
                out("json", "Also write what is shown to FILE."),
            ],
        ),
    ]  # fmt: skip


def profile(
    file: Path,
    arguments: tuple[str, ...],
    interval: float,
    lines: int,
    html_file: Path,
    json_file: Path,
    svg_file: Path | None,
) -> None:
    """Run a script, and report what memory it held.

    \b
    agentmem profile simulation.py --agents 100
    agentmem profile --lines 1 simulation.py

    SCRIPT runs as `python SCRIPT ARGUMENTS` would, in a process of its own, where a thread samples memory and now and
    then looks at the variables of the script, of modules below its directory, and of their functions that run; not at
    child processes, nor at coroutines that wait. However it ends, what was seen until then is reported, marked so. Ends
    with the script's exit code.
    """
    import click

    from agentmem.profiler.charts import picture
    from agentmem.profiler.html import check_installed, to_html

    check_installed()
    check_distinct([file], html_file, json_file, svg_file)
    _check_is_script(file)
    with script.Run(file, arguments, interval=interval, lines=lines) as run:
        signal.signal(signal.SIGTERM, lambda *_: run.process.terminate())  # the script ends, and is reported
        seen = run.wait()
        code = run.process.returncode
    document = report.to_json(seen)
    write_json(json_file, document)
    write(html_file, to_html(document))
    if svg_file is not None:
        write(svg_file, picture(document))
    click.echo(f"{run.command} {seen.ended}: {text.in_a_line(document)}", err=True)
    click.echo(f"written to {html_file} and {json_file}", err=True)
    sys.exit(code if code >= 0 else 128 - code)


def watch(target: str, arguments: tuple[str, ...], interval: float, json_file: Path | None) -> None:
    """Show the memory of a process while it runs.

    \b
    agentmem watch 4711
    agentmem watch simulation.py --agents 100

    Of any process: resident memory over time, its kinds, and the maps that grow most; not of its children. A SCRIPT is
    run, and its variables are shown too; what it prints comes when it has ended. Where the output is no terminal, there
    is a line for each look, without variables. Ends when the process does, or at an interrupt or SIGTERM, which end a
    script too.
    """
    import click

    check_distinct([Path(target)], json_file)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as an interrupt
    looks: deque[watching.Look] = deque(maxlen=LOOKS)
    if target.isdecimal() and not arguments:
        try:
            with suppress(KeyboardInterrupt):
                _follow(int(target), interval, looks)
        except (ProcessLookupError, PermissionError) as error:
            raise click.ClickException(str(error)) from None
        name, code = f"process {target}", 0
        is_over = not watching.is_running(looks[-1]) if looks else True
    elif os.path.isfile(target):
        _check_is_script(Path(target))
        name, code = _follow_script(Path(target), arguments, interval, looks)
        is_over = True
    elif target.isdecimal():
        given = " ".join(arguments)
        raise click.UsageError(f"{target} is a process, which takes no arguments; options go before it: {given}")
    else:
        raise click.BadParameter(f"{target} is no number of a process, and no file", param_hint="PID|SCRIPT")
    if looks:
        last = looks[-1]
        ended = "goes on" if not is_over else "ended" if code is None or code == 0 else script.ending(code)
        click.echo(f"{name} {ended}, after {last.seconds:.1f} s: peak RSS {in_units(last.peak_rss)}", err=True)
    write_json(json_file, report.of_looks(looks))
    sys.exit(code if code >= 0 else 128 - code)


def _check_is_script(file: Path) -> None:
    import click

    if file.suffix == ".json":
        raise click.UsageError(f"{file} is no script; to see a report: agentmem report {file}")


def _follow(
    pid: int, interval: float, looks: deque[watching.Look], run: script.Run | None = None, output: Path | None = None
) -> None:
    """Show a process until it ends or somebody has seen enough."""
    import click
    from rich.console import Console
    from rich.live import Live

    console = Console()
    is_page = console.is_terminal and not console.is_dumb_terminal
    with Live(console=console, auto_refresh=False) if is_page else nullcontext() as shown:
        for look in watching.watch(pid, interval, None if run is None else run.command):
            looks.append(look)
            if shown is None:
                click.echo(live.line(look))
                continue
            seen = None if run is None else run.seen
            said = [] if output is None else _last_lines(output)
            shown.update(live.page(looks, seen, said), refresh=True)


def _last_lines(output: Path) -> list[str]:
    with output.open("rb") as file:
        file.seek(max(0, output.stat().st_size - 65_536))
        return file.read().decode(errors="replace").splitlines()[-LAST_LINES:]


def _follow_script(
    file: Path, arguments: tuple[str, ...], interval: float, looks: deque[watching.Look]
) -> tuple[str, int]:
    """Run a script and show it; its name and exit code."""
    is_page = sys.stdout.isatty()
    with TemporaryDirectory(prefix="agentmem-") as directory:
        said = Path(directory) / "output"
        with (
            said.open("wb") if is_page else nullcontext() as output,
            script.Run(file, arguments, output=output) as run,
        ):
            with suppress(ProcessLookupError, KeyboardInterrupt):  # it may have ended already
                _follow(run.process.pid, interval, looks, run, said if is_page else None)
            code = run.let_end()
        if is_page:
            with said.open("rb") as printed:
                shutil.copyfileobj(printed, sys.stdout.buffer)
            sys.stdout.flush()
    return run.command, 130 if code is None else code


def show(files: tuple[Path, ...], html_file: Path | None, svg_file: Path | None, json_file: Path | None) -> None:
    """Show what an earlier command found, or two of them side by side.

    \b
    agentmem report report.json
    agentmem report before.json after.json --html change.html

    FILE is what `profile`, `compare` or another command wrote with --json. Of two files, what changed from one to the
    other: two profiles, or two comparisons.
    """
    import click
    from rich.console import Console

    from agentmem.profiler.charts import picture
    from agentmem.profiler.html import to_html

    if len(files) > 2:
        raise click.UsageError(f"{len(files)} files given; one is shown, or two side by side")
    check_distinct(files, html_file, svg_file, json_file)
    try:
        documents = [report.read(file) for file in files]
        document = documents[0] if len(files) == 1 else report.before_after(*documents)
        wanted = (html_file, to_html), (svg_file, picture)
        made = [(path, make(document)) for path, make in wanted if path is not None]
    except (CorruptData, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from None
    for path, content in made:
        write(path, content)
    if not made:
        Console().print(text.to_text(document))
    write_json(json_file, document)
