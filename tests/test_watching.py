"""A process is seen from outside: what it holds, what of it grows, that it ends, that it is another user's."""

import os
import subprocess
import sys
import time

import pytest

from agentmem.profiler.watching import watch
from reference import same_environment

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="reads /proc")

MIB = 2**20
GROWING = """
import mmap, sys, time
kept = []
for line in sys.stdin:
    block = mmap.mmap(-1, int(line), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block[:] = b"x" * int(line)
    kept.append(block)
    print("done", flush=True)
"""


@pytest.fixture
def other():
    command = [sys.executable, "-c", GROWING]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def grow(process, nbytes):
    process.stdin.write(f"{nbytes}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "done\n"


def test_what_a_process_holds_is_seen_growing(other):
    grow(other, MIB)
    looks = watch(other.pid, 0.01)
    first = next(looks)
    assert first.pid == other.pid and "python" in first.command and first.threads == 1 and first.growers == ()
    grow(other, 20 * MIB)
    time.sleep(0.1)
    now = next(look for _, look in zip(range(2_000), looks, strict=False) if look.growers)
    assert abs(now.rss - first.rss - 20 * MIB) < 2 * MIB
    assert now.peak_rss >= now.rss
    assert abs(sum(now.parts[part] for part in ("anonymous", "files", "shared memory")) - now.rss) < MIB
    assert abs(now.growers[0].grown - 20 * MIB) < MIB and now.growers[0].name == "(anonymous)"


def test_looks_follow_each_other_until_it_ends(other):
    looks = watch(other.pid, 0.02)
    found = [next(looks) for _ in range(5)]
    assert all(look.seconds > 0.02 * k - 0.001 for k, look in enumerate(found))
    other.kill()
    other.wait()
    assert list(looks) == []


def test_a_process_that_ended_unwaited_for_is_over(other):
    looks = watch(other.pid, 0.02)
    next(looks)
    other.kill()  # a zombie: nobody has asked how it ended
    assert len(list(looks)) <= 1


def test_a_process_without_memory_is_refused(other):
    other.kill()
    while "Z" not in open(f"/proc/{other.pid}/stat").read().rpartition(")")[2].split()[0]:  # noqa: SIM115
        time.sleep(0.01)
    with pytest.raises(ProcessLookupError, match="no memory of its own"):
        next(watch(other.pid, 0.1))


def test_there_may_be_no_such_process(other):
    other.kill()
    other.wait()
    with pytest.raises(ProcessLookupError, match=f"no process {other.pid}"):
        next(watch(other.pid, 0.1))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs a second user")
def test_another_users_process_is_hidden():
    script = (
        "import os, sys; from agentmem.profiler.watching import watch\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try: next(watch(int(sys.argv[1]), 0.1))\n"
        "except PermissionError as error: print(error)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", script, str(os.getpid())], capture_output=True, text=True, env=same_environment()
    )
    assert f"process {os.getpid()} belongs to another user, root" in ran.stdout, ran.stdout + ran.stderr
