"""A ring of observations per agent beside a deque per agent; then everything that can happen to its file."""

import collections
import fcntl
import gc
import io
import os
import pickle
import stat
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import agentmem as am
from reference import same_environment

SECONDS = 10 if os.environ.get("AGENTMEM_FULL") == "1" else 1


def same(x, y):
    x, y = np.asarray(x), np.asarray(y)
    return x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()


def kept(buffer):
    return [[buffer.read(agent, i) for i in range(buffer.count(agent))] for agent in range(buffer.n_agents)]


def run(script, *arguments, **options):
    """Start a process without threads, which may fork."""
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True, env=same_environment(), **options)


def printed(script, *arguments):
    process = run(script, *arguments)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out


# ---- beside a deque


class BesideDeques(RuleBasedStateMachine):
    @initialize(
        is_file=st.booleans(),
        n_agents=st.integers(1, 4),
        shape=st.sampled_from([(), (3,), (2, 0), (5000,)]),
        dtype=st.sampled_from([np.int16, np.float32, np.dtype([("x", np.int8), ("y", np.float64, (2,))])]),
        capacity=st.integers(1, 4),
    )
    def make(self, is_file, n_agents, shape, dtype, capacity):
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "seen" if is_file else None
        self.shape, self.dtype, self.capacity = shape, np.dtype(dtype), capacity
        self.buffer = am.ObservationBuffer(self.path, n_agents, shape, dtype, capacity=capacity)
        self.readers = [am.ObservationBuffer.open(self.path)] if is_file else []
        self.truth = [collections.deque(maxlen=capacity) for _ in range(n_agents)]
        self.rng = np.random.default_rng(0)

    def drawn(self, *leading):
        size = int(np.prod((*leading, *self.shape))) * self.dtype.itemsize
        return np.frombuffer(self.rng.bytes(size), self.dtype).reshape(*leading, *self.shape)

    @rule(agent=st.integers(0, 3), times=st.integers(1, 6))
    def write(self, agent, times):
        for x in self.drawn(times):
            self.buffer.write(agent % len(self.truth), x)
            self.truth[agent % len(self.truth)].append(x)

    @rule()
    def write_all(self):
        xs = self.drawn(len(self.truth))
        self.buffer.write_all(xs)
        for x, of_agent in zip(xs, self.truth, strict=True):
            of_agent.append(x)

    @rule(n_agents=st.integers(1, 5), capacity=st.integers(1, 5))
    def resize(self, n_agents, capacity):
        lost = any(len(of_agent) > (capacity if k < n_agents else 0) for k, of_agent in enumerate(self.truth))
        if lost:
            with pytest.raises(ValueError, match="would lose some"):
                self.buffer.resize(n_agents=n_agents, capacity=capacity)
            return
        self.buffer.resize(n_agents=n_agents, capacity=capacity)
        self.capacity = capacity
        held = self.truth[:n_agents] + [()] * (n_agents - len(self.truth))
        self.truth = [collections.deque(of_agent, maxlen=capacity) for of_agent in held]

    @rule()
    def reopen(self):
        if self.path:
            self.buffer.close()
            self.buffer = am.ObservationBuffer(
                self.path, len(self.truth), self.shape, self.dtype, capacity=self.capacity
            )

    @rule()
    def pickle(self):
        if self.path:
            self.readers = [pickle.loads(pickle.dumps(self.buffer))]

    @invariant()
    def equal(self):
        for buffer in [self.buffer, *self.readers]:
            assert (buffer.n_agents, buffer.shape, buffer.dtype, buffer.capacity) == (
                len(self.truth),
                self.shape,
                self.dtype,
                self.capacity,
            )
            for agent, of_agent in enumerate(self.truth):
                n = buffer.count(agent)
                assert n == len(of_agent)
                for i in range(-n, n):
                    assert same(buffer.read(agent, i), of_agent[i])
                for i in (n, -n - 1):
                    with pytest.raises(IndexError):
                        buffer.read(agent, i)
            buffer._check()

    def teardown(self):
        if hasattr(self, "buffer"):
            self.buffer.close()
            assert os.listdir(self.folder.name) == (["seen"] if self.path else [])
            self.folder.cleanup()


def test_beside_deques():
    run_state_machine_as_test(BesideDeques, settings=settings(max_examples=40, stateful_step_count=12, deadline=None))


DTYPES = [*"?bhilqBHILQefdgFDG", ">f8", ">i2", "M8[ns]", "m8[s]", "S5", "U3", "V6"]
DTYPES += [np.dtype([("a", "i1"), ("b", "f8")], align=True), np.dtype([("a", "<u2", (2, 2)), ("b", [("c", "S3")])])]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (7,), (2, 0, 3)])
def test_every_dtype_comes_back(dtype, shape, tmp_path):
    dtype = np.dtype(dtype)
    if dtype.kind in "SUV":
        xs = [np.frombuffer(bytes([k, 0, 0, 0] * 300), dtype, int(np.prod(shape))).reshape(shape) for k in (1, 2, 3)]
    else:
        xs = [np.full(shape, value).astype(dtype) for value in (3, 1.75, 0)]
    with am.ObservationBuffer(tmp_path / "seen", 2, shape, dtype, capacity=2) as buffer:
        for x in xs:
            buffer.write(1, x)
    reader = am.ObservationBuffer.open(tmp_path / "seen")
    assert reader.dtype == dtype and reader.shape == shape
    for i in (-2, -1):
        found = reader.read(1, i)
        assert found.shape == shape and np.array_equal(found, xs[i])
        assert found.dtype == (dtype if shape else xs[i][()].dtype)
    assert isinstance(found, np.ndarray if shape else np.generic)


def test_a_dtype_with_a_shape_adds_to_the_shape():
    buffer = am.ObservationBuffer(None, 1, (3,), ("f4", (2,)))
    assert buffer.shape == (3, 2) and buffer.dtype == np.float32


def test_observations_are_copies_on_the_way_in_and_out():
    buffer = am.ObservationBuffer(None, 1, (2, 3), np.float64)
    x = np.arange(6.0).reshape(3, 2).T
    buffer.write(0, x)
    x[:] = -1
    found = buffer.read(0)
    assert np.array_equal(found, np.arange(6.0).reshape(3, 2).T) and found.flags.writeable and found.flags.c_contiguous
    found[:] = -2
    assert buffer.read(0)[1, 2] == 5


def test_any_layout_of_the_input_is_taken():
    buffer = am.ObservationBuffer(None, 1, (4,), np.float32)
    for x in (np.arange(8.0)[::2], np.arange(4.0)[::-1], np.arange(4), [1, 0, 2.5, 1], am.SparseArray([0.0, 1, 0, 2])):
        if isinstance(x, np.ndarray):
            x.flags.writeable = False
        buffer.write(0, x)
        assert same(buffer.read(0), np.asarray(x, np.float32))


def test_agents_and_observations_have_bytes_of_their_own(tmp_path):
    """No two slots overlap, also once every ring has wrapped: the bytes of all are found once in the file."""
    buffer = am.ObservationBuffer(tmp_path / "seen", 3, (5,), np.uint64, capacity=2)
    rng = np.random.default_rng(0)
    written = [rng.integers(2**63, size=(3, 5), dtype=np.uint64) for _ in range(9)]
    for xs in written:
        buffer.write_all(xs)
    content = (tmp_path / "seen").read_bytes()
    for xs in written[-3:]:
        assert [content.count(x.tobytes()) for x in xs] == [1, 1, 1]
    assert np.array_equal(kept(buffer), np.swapaxes(written[-2:], 0, 1))


# ---- what is refused


@pytest.mark.parametrize(
    ("dtype", "x", "error", "says"),
    [
        ("f4", [1.0, 2.0], ValueError, r"observation of shape \(2,\) given; expected \(3,\)"),
        ("f4", 1.0, ValueError, r"observation of shape \(\) given; expected \(3,\)"),
        ("f4", [1j, 1, 1], TypeError, "observation of dtype complex128 given; expected float32"),
        ("f4", ["a", "b", "c"], TypeError, "observation of dtype <U1 given; expected float32"),
        ("i4", [1.0, 2.0, 3.0], TypeError, "observation of dtype float64 given; expected int32"),
        ("?", [1, 0, 1], TypeError, "observation of dtype int64 given; expected bool"),
        ("u1", [1, 2, 256], ValueError, "1 to 256 given; uint8 holds 0 to 255"),
        ("u8", [1, 2, -1], ValueError, "-1 to 2 given; uint64 holds 0 to"),
        ("i1", np.array([0, 0, -129]), ValueError, "-129 to 0 given; int8 holds -128 to 127"),
        ("S2", [b"abc", b"a", b"b"], TypeError, r"observation of dtype \|S3 given; expected \|S2"),
        ([("a", "f4")], np.zeros(3, [("a", "f8")]), TypeError, "observation of dtype .* given; expected"),
    ],
)
def test_what_does_not_fit_is_refused(dtype, x, error, says):
    buffer = am.ObservationBuffer(None, 2, (3,), dtype)
    buffer.write(0, np.zeros(3, dtype))
    with pytest.raises(error, match=says):
        buffer.write(0, x)
    with pytest.raises(error):
        buffer.write_all(np.array([x, x]))
    assert same(buffer.read(0), np.zeros(3, dtype)) and buffer.count(0) == 1 and buffer.count(1) == 0


def test_integers_that_fit_and_floats_that_round_are_taken():
    small = am.ObservationBuffer(None, 1, (2,), np.uint8)
    small.write(0, [0, 255])
    small.write(0, np.array([1, 2], np.int64))
    assert same(small.read(0), np.array([1, 2], np.uint8))
    rounded = am.ObservationBuffer(None, 1, (), np.float32)
    rounded.write(0, 0.1)
    assert same(rounded.read(0), np.float32(0.1))
    record = am.ObservationBuffer(None, 1, (), [("cell", "i4"), ("cost", "f4")])
    record.write(0, (3, 0.5))
    assert record.read(0)["cell"] == 3


def test_agents_and_observations_that_are_not_there():
    buffer = am.ObservationBuffer(None, 2, (), np.int64, capacity=2)
    with pytest.raises(LookupError, match="observation -1 of agent 1 asked for; there are 0"):
        buffer.read(1)
    buffer.write(-1, 4)
    assert buffer.read(1) == 4 and buffer.count(-1) == 1
    for agent in (2, -3):
        for call in (buffer.read, buffer.count, lambda agent: buffer.write(agent, 1)):
            with pytest.raises(IndexError, match=f"agent {agent} given; there are 2"):
                call(agent)
    with pytest.raises(TypeError):
        buffer.read(0.0)


@pytest.mark.parametrize(
    ("parameters", "error"),
    [
        ({"n_agents": 0}, ValueError),
        ({"capacity": 0}, ValueError),
        ({"shape": (2, -1)}, ValueError),
        ({"n_agents": 1.5}, TypeError),
        ({"shape": "ab"}, TypeError),
        ({"dtype": object}, TypeError),
        ({"dtype": [("a", "O")]}, TypeError),
        ({"dtype": "S"}, TypeError),
    ],
)
def test_parameters_that_make_no_buffer(parameters, error, tmp_path):
    with pytest.raises(error):
        am.ObservationBuffer(tmp_path / "seen", **{"n_agents": 2, "shape": (), "dtype": "f8", **parameters})
    assert not os.listdir(tmp_path)


# ---- its file


@pytest.mark.parametrize("other", [{"n_agents": 3}, {"shape": (4,)}, {"dtype": "f4"}, {"capacity": 2}], ids=str)
def test_a_file_of_other_parameters_is_named_and_left(other, tmp_path):
    asked = {"n_agents": 2, "shape": (3,), "dtype": "f8", "capacity": 1}
    with am.ObservationBuffer(tmp_path / "seen", **asked) as buffer:
        buffer.write(0, [1, 2, 3])
    before = (tmp_path / "seen").read_bytes()
    says = r"n_agents=2, shape=\(3,\), dtype=float64, capacity=1; n_agents=\d, shape=.*, dtype=.*, capacity=\d asked"
    with pytest.raises(ValueError, match=says):
        am.ObservationBuffer(tmp_path / "seen", **{**asked, **other})
    assert (tmp_path / "seen").read_bytes() == before
    am.ObservationBuffer(tmp_path / "seen", **asked)._check()


def test_a_file_is_for_its_owner_and_no_link(tmp_path):
    path, link = tmp_path / "seen", tmp_path / "link"
    am.ObservationBuffer(path, 1, (), "f8").close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    for target in (path, tmp_path / "nothing"):
        link.symlink_to(target)
        with pytest.raises(OSError):
            am.ObservationBuffer(link, 1, (), "f8")
        link.unlink()
    assert os.listdir(tmp_path) == ["seen"]


def test_what_is_no_buffer(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()
    (tmp_path / "text").write_text("a text that is longer than a header " * 10)
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "empty", "text", "folder"):
        with pytest.raises(am.CorruptData, match=name):
            am.ObservationBuffer.open(tmp_path / name)
        with pytest.raises((am.CorruptData, IsADirectoryError)):
            am.ObservationBuffer(tmp_path / name, 1, (), "f8")
    with pytest.raises(FileNotFoundError):
        am.ObservationBuffer.open(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError):
        am.ObservationBuffer(tmp_path / "nowhere" / "seen", 1, (), "f8")


def made(path):
    with am.ObservationBuffer(path, 2, (2,), "<i2", capacity=2) as buffer:
        for k in range(5):
            buffer.write(0, [k, 2 * k])
        buffer.write(1, [77, -77])
        return kept(buffer), path.read_bytes()


GOLDEN = (
    b"AGENTOBS\x01\0\0\0\x37\0\0\0\xc4%A\x10"
    + b'{"capacity":2,"dtype":"\'<i2\'","n_agents":2,"shape":[2]}'.ljust(108)
    + bytes.fromhex("1517050000000000 379e010000000000 0000000000000000")  # counters
    + bytes.fromhex("9a781e77 14559de9 181a2845 0a4dd0aa 00000000 00000000").ljust(40, b"\0")  # checksums
    + np.array([[3, 6], [4, 8], [2, 4], [77, -77], [0, 0], [0, 0]], "<i2").tobytes()
)


@pytest.mark.skipif(sys.byteorder != "little", reason="numbers in the file are as in memory")
def test_the_format_is_as_it_was(tmp_path):
    """A reader of this version reads what any writer of this version wrote."""
    _, content = made(tmp_path / "seen")
    assert content == GOLDEN


@pytest.mark.parametrize("flip", [1, 0x80, 0xFF])
def test_every_damaged_byte_is_found_or_does_no_harm(flip, tmp_path):
    path = tmp_path / "seen"
    truth, content = made(path)
    harmless = 0
    for at in range(len(content)):
        path.write_bytes(content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :])
        try:
            assert np.array_equal(kept(am.ObservationBuffer.open(path))[0], truth[0])
            assert np.array_equal(kept(am.ObservationBuffer.open(path))[1], truth[1])
            harmless += 1
        except am.CorruptData:
            pass
    # Padding, the flag, and the slots (4 + 4 bytes) that hold nothing: one of agent 0, two of agent 1.
    n_padding = 128 - len(content[:128].rstrip(b" ")) + 64 - 24 % 64 - 24
    assert harmless == n_padding + 8 + 3 * 8


def test_a_damaged_slot_is_named_and_others_are_read(tmp_path):
    path = tmp_path / "seen"
    truth, content = made(path)
    at = content.index(np.array([4, 8], "<i2").tobytes())
    path.write_bytes(content[:at] + b"\5" + content[at + 1 :])
    reader = am.ObservationBuffer.open(path)
    with pytest.raises(am.CorruptData, match="agent 0, slot 1: checksum"):
        reader.read(0)
    assert np.array_equal(reader.read(0, -2), truth[0][0]) and np.array_equal(reader.read(1), truth[1][0])


def test_a_damaged_byte_of_a_large_slot_is_found(tmp_path):
    path, n = tmp_path / "seen", 10_007  # 80,056 bytes: rows of words, and a rest
    with am.ObservationBuffer(path, 1, (n,), "f8") as buffer:
        buffer.write(0, np.random.default_rng(0).random(n))
        truth = buffer.read(0)
    content = path.read_bytes()
    start = content.index(truth.tobytes())
    for at in [*range(start, start + 8 * n, 997), start + 8 * n - 1]:
        path.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        with pytest.raises(am.CorruptData, match="agent 0, slot 0"):
            am.ObservationBuffer.open(path).read(0)
    for one, other in [(0, 1), (5, 512 * 9 + 5)]:  # words changed places along a row, along a column
        words = truth.copy()
        words[[one, other]] = words[[other, one]]
        path.write_bytes(content[:start] + words.tobytes() + content[start + 8 * n :])
        with pytest.raises(am.CorruptData, match="agent 0, slot 0"):
            am.ObservationBuffer.open(path).read(0)


def test_a_truncated_file_is_refused(tmp_path):
    path = tmp_path / "seen"
    _, content = made(path)
    for n in range(len(content)):
        path.write_bytes(content[:n])
        with pytest.raises(am.CorruptData, match="seen"):
            am.ObservationBuffer.open(path)
    path.write_bytes(content + b"\0")
    with pytest.raises(am.CorruptData, match="expected"):
        am.ObservationBuffer(path, 2, (2,), "<i2", capacity=2)


def test_a_disk_without_room_leaves_what_was_there(tmp_path):
    """Where the system says no to a file's size, as a full disk does: an error now, never a bus error later."""
    script = """if True:
        import resource, sys, os
        import agentmem as am
        os.chdir(sys.argv[1])
        buffer = am.ObservationBuffer("seen", 2, (1000,), "f8")
        buffer.write(1, range(1000))
        before = open("seen", "rb").read()
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for refused in (lambda: buffer.resize(n_agents=100), lambda: am.ObservationBuffer("more", 99, (1000,), "f8")):
            try:
                refused()
            except OSError as error:
                print(type(error).__name__, os.listdir(), open("seen", "rb").read() == before)
        buffer.write(1, range(1, 1001))
        buffer.resize(n_agents=3)
        print(buffer.read(1)[-1], am.ObservationBuffer.open("seen").count(2))
    """
    assert printed(script, tmp_path) == "OSError ['seen'] True\n" * 2 + "1000.0 0\n"


def test_disk_space_is_taken_at_once(tmp_path):
    parameters = tmp_path / "seen", 1, (1000, 1000), "u1"
    with am.ObservationBuffer(*parameters) as buffer:
        assert (tmp_path / "seen").stat().st_blocks * 512 >= 2_000_000
        buffer.resize(n_agents=2)
        assert (tmp_path / "seen").stat().st_blocks * 512 >= 4_000_000
        buffer.resize(n_agents=1)
    with (tmp_path / "seen").open("r+b") as file:  # a copy with holes where there were zeros
        file.truncate(4096)
        file.truncate(2_000_000 + 192)
    with am.ObservationBuffer(*parameters):
        assert (tmp_path / "seen").stat().st_blocks * 512 >= 2_000_000


def test_a_crash_before_the_new_file_took_its_place_is_undone(tmp_path):
    path = tmp_path / "seen"
    truth, content = made(path)
    at = 128 + 2 * 8  # the flag that makes readers look for another file
    path.write_bytes(content[:at] + b"\1" + content[at + 1 :])
    reader = am.ObservationBuffer.open(path)
    assert np.array_equal(kept(reader)[0], truth[0])
    with am.ObservationBuffer(path, 2, (2,), "<i2", capacity=2):
        assert path.read_bytes() == content
    assert np.array_equal(kept(reader)[0], truth[0])


def test_a_file_that_is_replaced_while_a_writer_waits_for_its_lock(tmp_path, monkeypatch):
    first, take = am.ObservationBuffer(tmp_path / "seen", 1, (), "i8"), fcntl.flock

    def resized_before(fd, how):
        monkeypatch.setattr(fcntl, "flock", take)
        first.resize(capacity=2)
        first.write(0, 5)
        first.close()
        take(fd, how)

    monkeypatch.setattr(fcntl, "flock", resized_before)
    second = am.ObservationBuffer(tmp_path / "seen", 1, (), "i8", capacity=2)
    assert second.read(0) == 5
    with pytest.raises(BlockingIOError):
        am.ObservationBuffer(tmp_path / "seen", 1, (), "i8", capacity=2)


def test_readers_follow_to_the_new_file(tmp_path):
    with am.ObservationBuffer(tmp_path / "seen", 1, (), "i8") as buffer:
        reader = am.ObservationBuffer.open(tmp_path / "seen")
        for k in range(3):
            buffer.write(0, k)
        buffer.resize(capacity=3, n_agents=2)
        for k in range(3, 5):
            buffer.write(0, k)
        assert kept(reader) == [[2, 3, 4], []] and reader.capacity == 3
        with pytest.raises(ValueError, match="capacity=2 given; agent 0 has 3 observations"):
            buffer.resize(capacity=2)
        with pytest.raises(BlockingIOError):
            am.ObservationBuffer(tmp_path / "seen", 2, (), "i8", capacity=3)
    assert os.listdir(tmp_path) == ["seen"]


def test_a_damaged_observation_stops_a_resize_and_stays_where_it_is(tmp_path):
    path = tmp_path / "seen"
    _, content = made(path)
    at = content.index(np.array([77, -77], "<i2").tobytes())
    damaged = content[:at] + b"\0" + content[at + 1 :]
    path.write_bytes(damaged)
    with am.ObservationBuffer(path, 2, (2,), "<i2", capacity=2) as buffer:
        with pytest.raises(am.CorruptData, match="agent 1, slot 0"):
            buffer.resize(capacity=3)
        assert path.read_bytes() == damaged and os.listdir(tmp_path) == ["seen"]
        buffer.write(1, [1, 2])
        assert buffer.capacity == 2 and np.array_equal(buffer.read(1), [1, 2])


def test_what_a_dead_process_left_is_removed_and_no_other_file(tmp_path):
    others = [".seen.0123456.observations", ".seen.0123456g.observations", ".other.01234567.observations", "seen.txt"]
    for name in [*others, ".seen.01234567.observations"]:
        (tmp_path / name).touch()
    am.ObservationBuffer(tmp_path / "seen", 1, (), "f8").close()
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "seen"])


# ---- one writer


def test_a_second_writer_is_refused_until_the_first_closes(tmp_path):
    parameters = tmp_path / "seen", 1, (), "f8"
    first = am.ObservationBuffer(*parameters)
    first.write(0, 1.0)
    reader = am.ObservationBuffer.open(tmp_path / "seen")
    del reader  # closing a reader takes no lock along
    with pytest.raises(BlockingIOError, match="somebody else writes this buffer"):
        am.ObservationBuffer(*parameters)
    script = "import sys, agentmem as am; am.ObservationBuffer(sys.argv[1], 1, (), 'f8')"
    process = run(script, tmp_path / "seen")
    assert "BlockingIOError" in process.communicate()[1]
    first.close()
    first.close()
    for call in (lambda: first.read(0), lambda: first.write(0, 1.0), lambda: first.capacity):
        with pytest.raises(ValueError, match="closed"):
            call()
    assert repr(first) == "ObservationBuffer(closed)"
    second = am.ObservationBuffer(*parameters)
    assert second.read(0) == 1
    del second
    am.ObservationBuffer(*parameters).close()


def test_readers_do_not_write(tmp_path):
    buffer = am.ObservationBuffer(tmp_path / "seen", 1, (2,), "f8")
    for reader in (am.ObservationBuffer.open(tmp_path / "seen"), pickle.loads(pickle.dumps(buffer))):
        for call in (lambda: reader.write(0, [1, 2]), lambda: reader.write_all([[1, 2]]), lambda: reader.resize()):  # noqa: B023
            with pytest.raises(io.UnsupportedOperation, match="to read"):
                call()
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(am.ObservationBuffer(None, 1, (), "f8"))


def test_a_forked_child_reads(tmp_path):
    script = """if True:
        import os, sys
        import agentmem as am
        path = sys.argv[1] or None
        buffer = am.ObservationBuffer(path, 1, (), "i8")
        to_child, from_child = os.pipe(), os.pipe()
        if not os.fork():
            for _ in range(3):
                os.read(to_child[0], 1)
                try:
                    os.write(from_child[1], b"%d " % buffer.read(0))
                except RuntimeError:
                    os.write(from_child[1], b"resized ")
            try:
                buffer.write(0, 1)
            except OSError:
                os._exit(0)
            os._exit(1)
        for k in (5, 6, 7):
            if k == 7:
                buffer.resize(n_agents=2)
            buffer.write(0, k)
            os.write(to_child[1], b"!")
            print(os.read(from_child[0], 100).decode())
        print(os.wait()[1])
    """
    assert printed(script, tmp_path / "seen").split() == ["5", "6", "7", "0"]
    assert printed(script, "").split() == ["5", "6", "resized", "0"]


def test_the_lock_goes_with_its_process_though_a_child_lives_on(tmp_path):
    script = """if True:
        import os, signal, sys
        import agentmem as am
        buffer = am.ObservationBuffer(sys.argv[1], 1, (), "i8")
        buffer.write(0, 7)
        lives, says = os.pipe()
        if os.fork():
            os.read(lives, 1)
            print("dies", flush=True)
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(says, b"!")
        sys.stdin.read()
        print(buffer.read(0), flush=True)
    """
    process = run(script, tmp_path / "seen")
    try:
        assert process.stdout.readline() == "dies\n"
        process.wait()
        with am.ObservationBuffer(tmp_path / "seen", 1, (), "i8") as buffer:
            assert buffer.read(0) == 7
            buffer.write(0, 8)
            process.stdin.close()
            assert process.stdout.readline() == "8\n"
    finally:
        process.kill()
        process.stdin.close()
        process.stdout.close()
        process.stderr.close()


def test_bytes_are_those_of_the_object_and_the_file(tmp_path):
    def held(path, capacity):
        buffer = am.ObservationBuffer(path, 10, (100,), "f8", capacity=capacity)
        assert buffer.nbytes == am.footprint(buffer).total
        assert am.footprint(buffer).mapped == pytest.approx(804 * 10 * (capacity + 1) + 8 * 11 + 128, abs=128)
        return buffer.nbytes

    assert held(tmp_path / "seen", 1) - (tmp_path / "seen").stat().st_size < 2000
    assert held(None, 9) - held(None, 4) == pytest.approx(50 * 804, abs=64)


# ---- at the same time


def test_threads_read_while_one_writes():
    buffer, torn, done = am.ObservationBuffer(None, 1, (5000,), "f8", capacity=2), [], threading.Event()
    buffer.write(0, np.zeros(5000))

    def read():
        while not done.is_set():
            x = buffer.read(0)
            if np.any(x != x[0]):
                torn.append(x)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for k in range(300):
        buffer.write(0, np.full(5000, k))
        if k % 100 == 50:
            buffer.resize(n_agents=buffer.n_agents + 1)
    done.set()
    for thread in threads:
        thread.join()
    assert not torn and buffer.read(0)[0] == 299


READER = """if True:
    import sys, time
    import numpy as np
    import agentmem as am
    buffer = am.ObservationBuffer.open(sys.argv[1])
    print("ready", flush=True)
    sys.stdin.readline()
    n_read, newest, end = 0, [0, 0, 0], time.monotonic() + float(sys.argv[2])
    while time.monotonic() < end:
        for agent in range(3):
            x = buffer.read(agent)
            assert np.all(x == x[0]), f"torn: {np.unique(x)}"
            assert x[0] % 3 == agent and x[0] >= newest[agent], (agent, x[0], newest)
            newest[agent] = x[0]
            n_read += 1
    print(n_read, *newest)
"""


@pytest.mark.parametrize(("n", "capacity"), [(60, 1), (4096, 1), (100_000, 2)])
def test_no_reader_sees_half_an_observation(n, capacity, tmp_path):
    buffer = am.ObservationBuffer(tmp_path / "seen", 3, (n,), "f8", capacity=capacity)
    for agent in range(3):
        buffer.write(agent, np.full(n, agent))
    readers = [run(READER, tmp_path / "seen", SECONDS) for _ in range(8)]
    try:
        assert [reader.stdout.readline() for reader in readers] == ["ready\n"] * 8
        for reader in readers:
            reader.stdin.write("go\n")
            reader.stdin.flush()
        step = 0
        x = np.empty(n)
        while any(reader.poll() is None for reader in readers):
            for _ in range(20):
                step += 1
                x.fill(step)
                buffer.write(step % 3, x)
        for reader in readers:
            out, err = reader.communicate()
            assert reader.returncode == 0, err
            n_read, *newest = map(float, out.split())
            assert n_read > 0 and max(newest) > 2
    finally:
        for reader in readers:
            reader.kill()
            reader.communicate()


KILLS = """if True:
    import mmap, os, random, signal, sys, time
    import numpy as np
    import agentmem as am
    path, n_kills, n = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    random.seed(0)
    done = memoryview(mmap.mmap(-1, 16)).cast("q")  # writes that came back, whether the file was there
    after, resized = {0: 0, 1: 0}, set()

    def write_for_ever():
        n_agents = am.ObservationBuffer.open(path).n_agents if done[1] else 2
        buffer = am.ObservationBuffer(path, n_agents, (n,), "f8", capacity=2)
        done[1] = 1
        x = np.empty(n)
        while True:
            x.fill(done[0] + 1)
            buffer.write(0, x)
            done[0] += 1
            if done[0] % 5 == 0:
                buffer.resize(n_agents=5 - buffer.n_agents)

    for kill in range(n_kills):
        child = os.fork()
        if not child:
            write_for_ever()
        time.sleep(random.uniform(0.0, 0.03))
        os.kill(child, signal.SIGKILL)
        assert os.waitpid(child, 0)[1] == signal.SIGKILL  # and did not die of anything else
        if not os.path.exists(path):
            assert not done[1]
            continue
        buffer = am.ObservationBuffer.open(path)
        kept = [buffer.read(0, i) for i in range(buffer.count(0))]
        assert all(np.all(x == x[0]) for x in kept)
        newest = kept[-1][0] if kept else 0
        assert newest - done[0] in (0, 1), (newest, done[0])
        assert [x[0] for x in kept] == [newest - 1, newest][-min(newest, 2):] or not newest, kept
        after[newest - done[0]] += 1
        done[0] = int(newest)
        resized.add(buffer.n_agents)
    am.ObservationBuffer(path, buffer.n_agents, (n,), "f8", capacity=2).close()
    print(done[0], after, resized, os.listdir(os.path.dirname(path)))
"""


@pytest.mark.parametrize("n", [100, 50_000])
def test_a_writer_killed_at_any_instant_leaves_old_or_new(n, tmp_path):
    out = printed(KILLS, tmp_path / "seen", 100, n)
    assert "{2, 3} ['seen']" in out and int(out.split()[0]) > 100, out


def test_a_call_without_its_arguments_leaves_nothing_to_close(monkeypatch):
    ignored = []
    monkeypatch.setattr(sys, "unraisablehook", ignored.append)
    with pytest.raises(TypeError):
        am.ObservationBuffer("somewhere")
    gc.collect()
    assert ignored == []
