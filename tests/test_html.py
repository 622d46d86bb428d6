"""A page is whole by itself, shows nothing that is not in the JSON, and works in a browser."""

import json
import re
import shutil
import subprocess
import sys
import warnings
from dataclasses import replace
from html import escape, unescape
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

import documents
from agentmem.profiler import charts, records, report
from agentmem.profiler.html import to_html
from agentmem.profiler.records import Event, Operation
from reference import same_environment

BEFORE_AFTER = report.before_after(documents.PROFILE, documents.KILLED)
LEANER = {**documents.SWEEP, "measurements": [{**one, "model_bytes": 1} for one in documents.SWEEP["measurements"]]}
PROFILE_SECTIONS = ["summary", "memory", "parts", "hotspots", "growth", "operations", "tools"]
PAGES = {
    "profile": (documents.PROFILE, PROFILE_SECTIONS, 2),
    "killed": (documents.KILLED, PROFILE_SECTIONS, 0),
    "sweep": (documents.SWEEP, ["summary", "tradeoff"], 1),
    "before-after": (BEFORE_AFTER, ["summary", "before-after"], 1),
    "sweeps": (report.before_after(documents.SWEEP, LEANER), ["summary", "before-after"], 0),
}
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


class Page(HTMLParser):
    """What is in a page: tags, ids, addresses, values of `data`."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.addresses, self.values, self.sections = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        known = dict(attributes)
        self.tags.append(tag)
        self.ids += [value for name, value in attributes if name == "id"]
        self.sections += [known.get("id")] * (tag == "section")
        self.addresses += [value for name, value in attributes if name in ("src", "href", "xlink:href")]
        self.values += [known.get("value")] * (tag == "data")


def numbers(document):
    if isinstance(document, dict | list):
        for one in document.values() if isinstance(document, dict) else document:
            yield from numbers(one)
        if isinstance(document, list):
            yield len(document)  # a count of what is listed
    elif isinstance(document, int | float) and not isinstance(document, bool):
        yield document


@pytest.mark.parametrize("name", PAGES)
def test_every_section_is_there(name):
    document, sections, n_charts = PAGES[name]
    page = Page(to_html(document))
    assert page.sections == sections and page.tags.count("svg") == 2 * n_charts  # each for a wide page and a narrow one
    assert len(set(page.ids)) == len(page.ids)


@pytest.mark.parametrize("name", PAGES)
def test_every_number_is_in_the_json(name):
    document = json.loads(json.dumps(PAGES[name][0]))
    known = set(numbers(document))
    page = Page(to_html(document))
    assert page.values or name == "killed"
    assert {float(value) for value in page.values} <= known


@pytest.mark.parametrize("name", PAGES)
def test_a_page_needs_nothing_else(name):
    text = to_html(PAGES[name][0])
    page = Page(text)
    assert not {"script", "link", "iframe", "img", "object"} & set(page.tags)
    assert all(address.startswith("#") for address in page.addresses)
    assert "@import" not in text and "url(http" not in text
    assert "prefers-color-scheme: dark" in text


@pytest.mark.parametrize("name", PAGES)
def test_the_same_document_gives_the_same_page(name):
    assert to_html(PAGES[name][0]) == to_html(PAGES[name][0])


def test_names_are_escaped_and_shortened():
    evil = "<script>alert('x')</script>\"&" + "y" * 10_000 + "\n"
    taken = documents.snapshot(evil)
    profile = documents.profile(command=evil, ended=f"raised {evil}", notes=(evil,), snapshots=(taken,))
    text = to_html(report.to_json(profile))
    assert "<script" not in text and "&lt;script&gt;" in text
    assert "y" * 500 not in text


def test_names_are_no_formulas():
    taken = replace(documents.snapshot(), parts={r"$\foo$": 5}, shared=())
    events = records.Event(1.0, r"$\frac$"), records.Event(9.0, "\u65e5\u672c")
    with warnings.catch_warnings(action="error"):
        text = to_html(report.to_json(documents.profile(events=events, snapshots=(taken,))))
    assert r"$\foo$" in text and r"$\frac$" in text and "\u65e5\u672c" in text


def test_what_differs_is_set_side_by_side():
    text = to_html(BEFORE_AFTER)
    assert "Of after this is what was seen" in text and "Of before" not in text
    later = report.before_after(documents.PROFILE, report.to_json(documents.profile(duration=3.0)))
    [row] = re.findall(r'<tr><th scope="row">.*?</tr>', to_html(later), re.DOTALL)
    assert "duration" in row and "0.10 x" in row


def test_a_reason_is_given_once():
    assert to_html(documents.SWEEP).count("is left out") == 1


def test_names_in_sweeps_are_escaped_and_shortened():
    evil = "<script>alert('x')</script>" + "y" * 10_000
    text = json.dumps(documents.SWEEP).replace("sparse float64 exact", evil).replace("a lake", evil)
    sweep = json.loads(text)
    for document in (sweep, report.before_after(sweep, json.loads(text.replace("196", "96")))):
        text = to_html(document)
        assert "<script" not in text and "&lt;script&gt;" in text
        assert "y" * 1_000 not in text


def test_marks_stand_in_a_table_whole():
    text = to_html(documents.PROFILE)
    assert ">a mark that is close to it</th>" in text
    text = to_html(report.to_json(documents.profile(events=tuple(Event(float(k), f"mark {k}") for k in range(99)))))
    assert ">mark 39</th>" in text and ">mark 40</th>" not in text and "And 59 more." in text


def test_a_mark_may_look_like_a_style():
    marks = tuple(Event(3.0 * k, text) for k, text in enumerate(["font: 9px x", f": {charts.INK}"]))
    svg = charts.picture(report.to_json(documents.profile(events=marks)))
    ElementTree.fromstring(svg)
    assert all(f">{mark.text}<" in svg for mark in marks)


def test_what_fell_comes_before_what_rose():
    after = documents.profile(duration=20.0, operations=(Operation("plan", 400, 1.0, 0.3, 2, 0, "traced"),))
    text = to_html(report.before_after(documents.PROFILE, report.to_json(after)))
    order = ["Less", "plan: peak above its start", "duration", "More", "plan: longest call", "In one of them", "load"]
    places = [text.index(f">{words}") for words in order]
    assert places == sorted(places)
    same = to_html(report.before_after(documents.PROFILE, documents.PROFILE))
    assert "No figure differs." in same and ">Less<" not in same


def test_what_was_not_measured_is_not_zero():
    text = to_html(documents.PROFILE)
    [row] = re.findall(r"<tr><th[^>]*>traced<.*?</tr>", text, re.DOTALL)
    assert "not measured" in row and "0 B" not in row
    killed = to_html(documents.KILLED)
    assert "Memory was not sampled" in killed and "the end was not" in killed and "killed by SIGKILL" in killed


@pytest.mark.parametrize("command", ["watch", "verify", "demo"])
def test_other_documents_have_no_page(command):
    with pytest.raises(ValueError, match=f"agentmem {command}"):
        to_html({"schema": 1, "command": command})


# ---- charts


def test_a_chart_takes_the_colours_of_its_page():
    memory = charts.memory_chart(documents.PROFILE["profile"])
    for svg in (memory, charts.change_chart(BEFORE_AFTER), charts.tradeoff_chart(documents.SWEEP)):
        assert "currentColor" in svg and "var(--first)" in svg and 'role="img"' in svg and "<title>" in svg
        assert not re.search(r"#0[1-5]0[1-5]0[1-5]", svg)
        assert len(svg) < 60_000


def test_a_chart_stands_alone():
    svg = charts.standalone(charts.memory_chart(documents.PROFILE["profile"]))
    assert svg.startswith("<svg ") and "prefers-color-scheme:dark" in svg
    assert re.search(r'width="\d+" height="\d+"', svg)


def test_values_far_between_are_joined():
    samples = documents.PROFILE["profile"]["samples"]
    agents = [2**20 if k % 50 == 0 else None for k in range(600)]
    svg = charts.memory_chart({**documents.PROFILE["profile"], "samples": {**samples, "agents": agents}})
    line, _ = re.findall(r'<path d="M ([^"]*)"[^>]*stroke: var\(--third\)', svg)  # and that of the legend
    assert "L" in line


def test_a_chart_of_long_series_stays_small():
    samples = documents.PROFILE["profile"]["samples"]
    n = 10_000
    long = {**samples, "seconds": [0.1 * k for k in range(n)], "rss": [10**8 + k % 7 for k in range(n)],
            "traced": [None] * n, "agents": [k for k in range(n)]}  # fmt: skip
    assert len(charts.memory_chart({**documents.PROFILE["profile"], "samples": long})) < 600_000


@pytest.mark.parametrize("missing", ["jinja2", "matplotlib"])
def test_a_missing_library_is_named(missing):
    script = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "import documents\nfrom agentmem.profiler.html import to_html\n"
        "try: to_html(documents.PROFILE)\n"
        "except ImportError as error: print(error.name, error)"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=same_environment())
    assert ran.stdout.startswith(missing) and "pip install 'agentmem-native[profile]'" in ran.stdout, ran.stderr


# ---- in a browser


# The page in a frame, which may be narrower than a browser's window may.
FRAME = """<!doctype html><iframe width="WIDTH" height="1000" style="border:0" srcdoc="PAGE"></iframe><script>
const frame = document.querySelector('iframe');
frame.onload = () => {
    const page = frame.contentDocument, window = frame.contentWindow;
    const beyond = e => e.getBoundingClientRect().right > window.innerWidth + 1;
    document.body.dataset.found = JSON.stringify({
        overflow: page.documentElement.scrollWidth - window.innerWidth,
        beyond: [...page.querySelectorAll('main *')]
            .filter(e => beyond(e) && !e.closest('.scroll') && !e.closest('svg')).map(e => e.tagName),
        sections: [...page.querySelectorAll('section')].map(s => s.id),
        charts: [...page.querySelectorAll('svg')].filter(s => s.getBoundingClientRect().width)
            .map(s => [s.getBoundingClientRect().width, s.querySelectorAll('path').length]),
        requests: window.performance.getEntriesByType('resource').map(r => r.name),
        ink: window.getComputedStyle(page.querySelector('h1')).color,
        paper: window.getComputedStyle(page.body).backgroundColor,
    });
};
</script>"""


def browse(text, width, directory, *, is_dark=False):
    """What a browser finds in a page of this width, and what it says on its console."""
    path = directory / "frame.html"
    path.write_text(FRAME.replace("WIDTH", str(width)).replace("PAGE", escape(text)), encoding="utf-8")
    command = [
        CHROMIUM, "--headless=new", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=3000",
        "--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND", "--enable-logging=stderr", "--v=0",
        f"--blink-settings=preferredColorScheme={0 if is_dark else 1}", "--window-size=1400,1000",
        f"--user-data-dir={directory / 'browser'}", path.as_uri(),
    ]  # fmt: skip
    ran = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    [found] = re.findall(r'data-found="([^"]*)"', ran.stdout)
    return json.loads(unescape(found)), [line for line in ran.stderr.splitlines() if "CONSOLE" in line]


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: Debian's packages chromium and chromium-driver have it")
@pytest.mark.parametrize(("width", "is_dark"), [(1280, False), (390, True)])
@pytest.mark.parametrize("name", PAGES)
def test_a_browser_shows_it_all(tmp_path, name, width, is_dark):
    document, sections, n_charts = PAGES[name]
    found, console = browse(to_html(document), width, tmp_path, is_dark=is_dark)
    assert found["sections"] == sections
    assert len(found["charts"]) == n_charts and all(wide > 300 and paths > 5 for wide, paths in found["charts"])
    assert found["overflow"] <= 0 and found["beyond"] == []
    assert found["requests"] == [] and console == []
    assert found["paper"] == ("rgb(13, 17, 23)" if is_dark else "rgb(255, 255, 255)")
    assert found["ink"] == ("rgb(230, 237, 243)" if is_dark else "rgb(36, 41, 47)")
