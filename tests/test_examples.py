"""Every file in examples/ runs, prints something, and is short."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from reference import same_environment

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))
OPTIONAL = {"click", "gymnasium", "hmmlearn", "jax", "matplotlib", "pandas", "pomdp_py", "pymdp", "ray", "rich"}

if not EXAMPLES:
    pytest.skip("no examples/ beside the tests", allow_module_level=True)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs_and_prints(example, tmp_path):
    command = [sys.executable, str(example)]
    ran = subprocess.run(command, cwd=tmp_path, env=same_environment(), capture_output=True, text=True, timeout=900)
    last_line = ran.stderr.strip().rpartition("\n")[2]
    missing = re.match(r"ModuleNotFoundError: No module named '(\w+)|ImportError: .*pip install", last_line)
    if ran.returncode and missing and (missing[1] is None or missing[1] in OPTIONAL):
        pytest.skip(f"{example.name} needs a library that is not here: {last_line}")
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip()


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_is_short_and_says_what_it_is(example):
    text = example.read_text()
    assert text.startswith('"""')
    assert len(text.splitlines()) < 60
