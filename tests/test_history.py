"""Histories beside a deque and a list of rows: what goes in comes out bit for bit, in whatever codec it lay."""

import contextlib
import copy
import json
import pickle
from collections import deque

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import agentmem as am
from agentmem import codecs
from agentmem import history as module
from agentmem._core import CoreCoder, CoreLanes, count_pairs

DTYPES = [np.bool_, np.int8, np.uint8, np.int16, np.int32, np.int64, np.uint64, np.float16, np.float32, np.float64,
          np.complex64]  # fmt: skip
KINDS = ["constant", "few", "sticky", "walk", "runs", "decimals", "wide", "edges"]


def numbers(dtype, kind, n, seed=0):
    rng, dtype = np.random.default_rng(seed), np.dtype(dtype)
    if kind == "constant":
        x = np.full(n, 3)
    elif kind == "few":
        x = rng.integers(5, size=n)
    elif kind == "sticky":
        x = np.repeat(rng.integers(5, size=n), 7)[:n]
    elif kind == "walk":
        x = 60 + np.cumsum(rng.integers(-1, 2, size=n)) % 60
    elif kind == "runs":
        x = np.repeat(rng.integers(100, size=n), 50)[:n]
    elif kind == "decimals":
        x = rng.integers(-10**6, 10**6, size=n) / 1000 if dtype.kind in "fc" else rng.integers(100, size=n)
    else:
        x = rng.integers(-(2**63), 2**63 - 1, size=n)
    if kind in ("wide", "edges") and dtype.kind in "fc":
        x = np.frombuffer(rng.bytes(n * dtype.itemsize), dtype)  # any bits, nan and -0.0 among them
    x = x.astype(dtype)
    if kind == "edges" and dtype.kind in "iu" and n:
        x[:: max(1, n // 3)] = np.iinfo(dtype).max
        x[1 :: max(1, n // 3)] = np.iinfo(dtype).min
    return x


def same(found, expected):
    return found.dtype == expected.dtype and found.shape == expected.shape and found.tobytes() == expected.tobytes()


WAYS = {
    "copy": copy.copy, "deepcopy": copy.deepcopy, "buffers": lambda h: type(h).from_buffers(h.header, h.buffers()),
    **{f"pickle {k}": lambda h, k=k: pickle.loads(pickle.dumps(h, k)) for k in range(pickle.HIGHEST_PROTOCOL + 1)},
}  # fmt: skip


# ---- the coder


@settings(max_examples=80, deadline=None)
@given(seed=st.integers(0, 2**31), n_symbols=st.integers(1, 64), steps=st.integers(0, 40), lanes=st.integers(1, 9))
def test_streams_come_back(seed, n_symbols, steps, lanes):
    rng = np.random.default_rng(seed)
    symbols, before = rng.integers(n_symbols, size=(steps, lanes)), rng.integers(n_symbols, size=lanes)
    coder = CoreCoder(rng.random((n_symbols, n_symbols)) ** rng.integers(1, 30))
    assert (coder.table.sum(axis=1) == 1024).all() and (coder.table > 0).all()
    stream = coder.encode(symbols, before)
    assert coder.decode(stream, before, steps).tolist() == symbols.tolist()
    if steps:
        for cut in (stream[:-1], stream[:2], b"", stream + b"\0"):
            with pytest.raises(ValueError, match="damaged"):
                coder.decode(cut, before, steps)


def test_a_stream_takes_little_more_than_its_entropy():
    rng = np.random.default_rng(0)
    moves = rng.random(100_000) < 0.1
    symbols = rng.integers(5, size=100_000)[np.maximum.accumulate(np.where(moves, np.arange(100_000), 0))]
    counts = np.zeros((5, 5))
    count_pairs(symbols[:, np.newaxis], [0], counts)
    p = counts / counts.sum(axis=1, keepdims=True)
    entropy = -(counts * np.log2(p)).sum()
    assert 8 * len(CoreCoder(counts).encode(symbols[:, np.newaxis], [0])) < 1.01 * entropy + 24


@pytest.mark.parametrize(
    ("counts", "says"),
    [
        (np.zeros((0, 0)), "expected"),
        (np.zeros((65, 65)), "expected"),
        (np.zeros((2, 3)), "expected"),
        ([[1, -1], [1, 1]], "count -1.0 given"),
        ([[1, np.nan], [1, 1]], "count nan given"),
        ([[1, np.inf], [1, 1]], "count inf given"),
    ],
)
def test_coders_of_what_are_no_counts_are_refused(counts, says):
    with pytest.raises(ValueError, match=says):
        CoreCoder(counts)


def test_a_coder_and_its_lanes_trust_nobody():
    coder = CoreCoder(np.ones((4, 4)))
    for symbols, before in (([[257]], [0]), ([[-1]], [0])):
        with pytest.raises(ValueError):
            coder.encode(symbols, before)
    for symbols, before in (([[4]], [0]), ([[0]], [4]), ([[0]], [0, 0]), ([[0, 0]], [0])):
        with pytest.raises(ValueError):
            coder.encode(symbols, before)
        with pytest.raises(ValueError):
            count_pairs(symbols, before, np.zeros((4, 4)))
    for stream, before, steps in ((b"abc", [4], 1), (b"", [0], 1), (b"abcd", [0], -1), (b"\xff" * 9, [0], 1)):
        with pytest.raises(ValueError):
            coder.decode(stream, before, steps)
    with pytest.raises(ValueError):
        count_pairs([[0]], [0], np.zeros((4, 3)))
    for wrong in ((0, 4, 4), (4, 0, 4), (4, 4, 0), (4, 4097, 1), (4, 1, 5000), (4, 4096, 4096), (-1, 1, 1)):
        with pytest.raises(ValueError):
            CoreLanes(coder, *wrong)
    lanes = CoreLanes(coder, 5, 2, 3)
    rows = np.arange(15).reshape(3, 5) % 4
    with pytest.raises(IndexError):
        lanes.drop()
    wrong_rows = ((rows[:2], rows[0]), (rows[:, :4], rows[0]), (rows, rows[0, :4]), (rows + 1, rows[0]))
    for symbols, after in (*wrong_rows, (rows, rows[0] + 4)):
        with pytest.raises(ValueError):
            lanes.seal(symbols, after)
    lanes.seal(rows, rows[1])
    for first, last in ((-1, 2), (3, 2), (0, 6)):
        with pytest.raises(IndexError):
            lanes.read(first, last, rows[1])
    for after in (rows[0, :4], rows[0] + 4):
        with pytest.raises(ValueError):
            lanes.read(0, 5, after)
    assert lanes.span(1, 4) == (0, 4) and lanes.span(4, 5) == (4, 5)
    assert lanes.read(1, 4, rows[1, :4]).tolist() == rows[:, 1:4].tolist()
    assert lanes.read(2, 2, rows[1]).shape == (3, 0)


@pytest.mark.parametrize("group", [1, 2, 16, 40])
def test_lanes_are_read_alone_and_together(group):
    rng = np.random.default_rng(0)
    rows = rng.integers(3, size=(31, 37)).astype(np.uint8)
    lanes = CoreLanes(CoreCoder(np.ones((3, 3))), 37, group, 5)
    for k in range(6):
        lanes.seal(rows[5 * k : 5 * k + 5], rows[5 * k + 5])
    for dropped in range(4):
        kept = rows[5 * dropped : 30]
        assert lanes.read(0, 37, rows[30]).tolist() == kept.tolist()
        for first, last in ((0, 1), (36, 37), (15, 18), (7, 33)):
            begin, end = lanes.span(first, last)
            assert lanes.read(first, last, rows[30, begin:end]).tolist() == kept[:, first:last].tolist()
        lanes.drop()


# ---- codecs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [0, 1, 2, 7, 1024])
def test_blocks_come_back(dtype, kind, n):
    x = numbers(dtype, kind, n)
    alphabets = [None]
    if x.dtype.kind in "iub" and n:
        alphabets.append(codecs.train(x))
    for alphabet in alphabets:
        data = codecs.pack(x, alphabet)
        assert same(codecs.unpack(data, n, x.dtype, alphabet), x)
        assert len(data) <= x.nbytes + 1


@pytest.mark.parametrize("codec", [
    "RAW", "CONSTANT", "DEFLATED", "NARROWED", "PACKED", "RUNS", "CODED", "STEPS", "DECIMALS"
])  # fmt: skip
def test_every_codec_is_the_smallest_of_something_and_comes_back(codec):
    rng = np.random.default_rng(0)
    x = {
        "RAW": np.frombuffer(rng.bytes(800), np.float64),
        "CONSTANT": np.full(100, 7),
        "DEFLATED": np.repeat(rng.random(10), 10),
        "NARROWED": np.tile(rng.integers(10**6, size=9), 60),
        "PACKED": rng.integers(1_000, size=100),
        "RUNS": np.repeat([5, 900_000], [300, 700]),
        "CODED": numbers(int, "sticky", 1_000),
        "DECIMALS": np.round(rng.random(500), 2),
        "STEPS": np.cumsum(rng.integers(3, size=500)) * 1_000_003,
    }[codec]
    alphabet = codecs.train(x) if codec == "CODED" else None
    data = codecs.pack(x, alphabet)
    assert data[0] == getattr(codecs, codec)
    assert same(codecs.unpack(data, len(x), x.dtype, alphabet), x)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(min_size=1, max_size=60), n=st.integers(0, 50), dtype=st.sampled_from(DTYPES))
def test_any_bytes_are_numbers_or_a_value_error(data, n, dtype):
    alphabet = codecs.train(np.array([0, 1, 2, 1]))
    with contextlib.suppress(ValueError):
        assert codecs.unpack(data, n, np.dtype(dtype), alphabet).shape == (n,)
    after = np.zeros(n, dtype)
    try:
        codecs.unpack_changes(data, after)
    except ValueError:
        assert not after.tobytes().strip(b"\0")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n_changed", [0, 1, 40, 1000])
def test_changes_come_back(dtype, n_changed):
    frame, after = numbers(dtype, "wide", 1000), numbers(dtype, "wide", 1000)
    places = np.random.default_rng(1).choice(1000, n_changed, replace=False)
    after[places] = numbers(dtype, "wide", 1000, seed=2)[places]
    codecs.unpack_changes(codecs.pack_changes(frame, after), after)
    assert same(after, frame)


# ---- HistoryBuffer


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("maxlen", [None, 0, 1, 10, 3_000])
def test_a_history_is_what_went_in(dtype, kind, maxlen):
    x = numbers(dtype, kind, 5_000)
    history = am.HistoryBuffer(maxlen, dtype=dtype)
    history.extend(x[:2_100])
    for value in x[2_100:2_200]:
        history.append(value)
    history.extend(x[2_200:])
    kept = x[len(x) - maxlen :] if maxlen is not None and maxlen < len(x) else x
    assert len(history) == len(kept) and same(history[:], kept)
    for i in {0, 1, len(kept) // 2, len(kept) - 1, -1, -len(kept)} if len(kept) else ():
        if -len(kept) <= i < len(kept):
            assert same(np.asarray(history[i]), np.asarray(kept[i]))
    for which in (slice(3, 900), slice(None, None, -1), slice(-5, None), slice(1, None, 701), slice(9, 2)):
        assert same(history[which], kept[which])
    assert same(np.array(list(history), dtype), kept)


@pytest.mark.parametrize("shape", [(0,), (3,), (2, 5), (64, 70)])
@pytest.mark.parametrize("dtype", [np.int16, np.float32, np.bool_])
def test_frames_of_any_shape(shape, dtype):
    rng = np.random.default_rng(0)
    frames = numbers(dtype, "walk", 60 * int(np.prod(shape))).reshape(60, *shape)
    if frames.size:
        frames[10:40] = frames[10]
        frames[20:, ..., 0] = rng.integers(2)
    history, expected = am.HistoryBuffer(45, dtype=dtype, shape=shape), deque(maxlen=45)
    for frame in frames:
        history.append(frame)
        expected.append(frame.copy())
        assert same(history[0], expected[0]) and same(history[-1], expected[-1])
    assert same(history[:], np.array(expected))
    assert same(history[7], expected[7]) and same(history[3:30:4], np.array(expected)[3:30:4])


def test_large_frames_that_change_little_take_what_changed():
    rng = np.random.default_rng(0)
    frame, frames = rng.random((512, 768)).astype(np.float32), []
    history = am.HistoryBuffer(300, dtype=np.float32, shape=frame.shape)
    for t in range(200):
        frame = frame.copy()
        frame[rng.integers(512, size=20), rng.integers(768, size=20)] = rng.random(20)
        if t in (50, 120):
            frame[:] = rng.random(frame.shape)
        history.append(frame)
        frames.append(frame)
    assert all(same(history[t], frames[t]) for t in (0, 49, 50, 51, 119, 120, 198, 199))
    assert history.nbytes < 4 * frame.nbytes + 200 * 400


def test_noise_takes_no_more_than_it_is():
    noise = np.frombuffer(np.random.default_rng(0).bytes(8 * 100_000), np.float64)
    history = am.HistoryBuffer(None, dtype=float)
    history.extend(noise)
    assert history.nbytes < 1.02 * noise.nbytes
    assert history.compression_ratio > 0.98


@pytest.mark.parametrize("precision", [0.01, 0.25, 3.0, 1e-3])
def test_a_precision_is_kept_and_no_more(precision):
    x = np.random.default_rng(0).normal(size=5_000)
    history = am.HistoryBuffer(None, dtype=float, precision=precision)
    history.extend(x)
    found = history[:]
    assert abs(found - x).max() <= precision / 2 * (1 + 1e-9)
    np.testing.assert_allclose(found / precision, np.rint(found / precision), atol=1e-9)
    again = am.HistoryBuffer(None, dtype=float, precision=precision)
    again.extend(found)
    assert same(again[:], found) and history.nbytes < 0.4 * x.nbytes
    with pytest.raises(ValueError, match="precision"):
        am.HistoryBuffer(None, dtype=int, precision=0.1)


def test_sticky_logs_take_their_entropy():
    x = numbers(np.int64, "sticky", 100_000)
    x = np.where(np.random.default_rng(3).random(len(x)) < 0.1, np.roll(x, 1), x)
    history = am.HistoryBuffer(len(x), dtype=np.int64)
    history.extend(x)
    counts = np.zeros((5, 5))
    np.add.at(counts, (x[:-1], x[1:]), 1)
    entropy = -(counts * np.log2(counts / counts.sum(axis=1, keepdims=True))).sum() / len(x)
    assert 8 * history.nbytes / len(x) < 1.15 * entropy + 0.08


class BesideADeque(RuleBasedStateMachine):
    @initialize(
        maxlen=st.sampled_from([None, 0, 1, 5, 40, 200]),
        dtype=st.sampled_from([np.int8, np.int64, np.uint64, np.float32]),
    )
    def begin(self, maxlen, dtype):
        self.history, self.expected, self.dtype = am.HistoryBuffer(maxlen, dtype=dtype), deque(maxlen=maxlen), dtype

    @rule(seed=st.integers(0, 99), n=st.integers(0, 400), kind=st.sampled_from(KINDS))
    def extend(self, seed, n, kind):
        x = numbers(self.dtype, kind, n, seed)
        self.history.extend(x)
        self.expected.extend(x)

    @rule(value=st.integers(0, 127))
    def append(self, value):
        self.history.append(value)
        self.expected.append(self.dtype(value))

    @rule(n=st.integers(1, 60))
    def pop(self, n):
        for _ in range(min(n, len(self.expected))):
            assert same(np.asarray(self.history.pop()), np.asarray(self.expected.pop()))
        if not self.expected:
            with pytest.raises(IndexError):
                self.history.pop()

    @rule(way=st.sampled_from(list(WAYS)))
    def copied(self, way):
        self.history = WAYS[way](self.history)

    @rule()
    def popleft(self):
        if self.expected:
            assert same(np.asarray(self.history.popleft()), np.asarray(self.expected.popleft()))
        else:
            with pytest.raises(IndexError):
                self.history.popleft()

    @rule()
    def refuse(self):
        with pytest.raises((TypeError, ValueError)):
            self.history.append("a")
        with pytest.raises((TypeError, ValueError)):
            self.history.extend([[1, 2], [3, 4]])

    @invariant()
    def equal(self):
        if hasattr(self, "history"):
            assert same(self.history[:], np.array(self.expected, self.dtype))


TestBesideADeque = BesideADeque.TestCase
TestBesideADeque.settings = settings(max_examples=25, stateful_step_count=15, deadline=None)


@pytest.mark.parametrize(
    ("dtype", "kept", "refused"),
    [
        ("S3", [b"ab", b"abc"], [b"abcd"]),
        ("U2", ["ab"], ["abc"]),
        ("M8[s]", ["2020-01-01", "NaT"], [np.datetime64("2020-01-01T00:00:00.5")]),
        (np.float16, [0.1, np.inf, np.nan], [1e6]),
        (np.float32, [0.1, 1e-50, 2**24], [1e40, 2**24 + 1]),
        (np.float64, [2**53, -5], [2**53 + 1, 2**63 - 1, 2**64 - 1]),
        (np.uint64, [2**64 - 1, 0], [2**64, -1, 1.0]),
        (np.int64, [-(2**63), 2**63 - 1], [2**63, np.uint64(2**63), 0.5]),
        (np.complex64, [1j], [1e300]),
    ],
)
def test_what_would_come_back_otherwise_is_refused(dtype, kept, refused):
    history, expected = am.HistoryBuffer(None, dtype=dtype), np.array(kept, dtype)
    history.extend(np.array(kept) if np.dtype(dtype).kind in "SU" else expected)
    history.extend(list(kept) if np.dtype(dtype).kind != "M" else expected)
    for wrong in refused:
        with pytest.raises((TypeError, ValueError)):
            history.append(wrong)
        with pytest.raises((TypeError, ValueError)):
            history.extend([wrong, wrong])
    assert same(history[:], np.concatenate([expected, expected]))
    if np.dtype(dtype).kind in "iu":
        group = am.HistoryGroup(2, None, dtype=dtype)
        group.append(kept)
        with pytest.raises((TypeError, ValueError)):
            group.append([refused[0], kept[0]])
        assert same(np.asarray(group), expected[np.newaxis])


def test_an_iterator_meets_what_is_appended():
    history = am.HistoryBuffer(None, dtype=int)
    history.extend(range(800))
    assert [history.append(x + 800) or int(x) for x in history if x < 2_000] == list(range(2_000))


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"maxlen": -1}, ValueError, "maxlen=-1 given"),
        ({"maxlen": 1.5}, TypeError, "float"),
        ({"dtype": object}, TypeError, "dtype object given"),
        ({"dtype": "V0"}, TypeError, "given; expected numbers"),
        ({"shape": (-1,)}, ValueError, "shape"),
    ],
)
def test_wrong_histories_are_refused(options, error, says):
    with pytest.raises(error, match=says):
        am.HistoryBuffer(**({"maxlen": 5, "dtype": int} | options))


def test_wrong_frames_are_refused_and_change_nothing():
    history = am.HistoryBuffer(None, dtype=np.int8)
    history.extend([1, 2, 3])
    for wrong, error in (("a", TypeError), ([1], ValueError), (1.5, TypeError), (300, ValueError), (-129, ValueError),
                         (None, TypeError), (True, None)):  # fmt: skip
        if error:
            with pytest.raises(error):
                history.append(wrong)
            assert history[:].tolist() == [1, 2, 3]
    for i in (3, -4):
        with pytest.raises(IndexError, match=f"frame {i} given; there are 3"):
            history[i]
    history.append(True)
    assert history[:].tolist() == [1, 2, 3, 1]


def some_histories():
    rng = np.random.default_rng(0)
    made = {"empty": am.HistoryBuffer(None, dtype=float), "no frames kept": am.HistoryBuffer(0, dtype=int)}
    for dtype in (*DTYPES, ">i4", "M8[s]", "S3", "U2", [("x", "f4"), ("n", ">i8", (2,)), ("in", [("b", "?")])]):
        x = numbers(np.int64, "sticky", 5_000)
        x = x.astype(str).astype(dtype) if np.dtype(dtype).kind in "SU" else x.astype(dtype)
        made[f"{dtype}"] = am.HistoryBuffer(4_000, dtype=dtype)
        made[f"{dtype}"].extend(x)
    made["precision"] = am.HistoryBuffer(None, dtype=np.float32, precision=np.float32(0.25))
    made["precision"].extend(rng.random(2_000))
    made["no cells"] = am.HistoryBuffer(None, dtype=int, shape=(0, 2))
    made["no cells"].extend(np.zeros((900, 0, 2), int))
    made["large"] = am.HistoryBuffer(30, dtype=np.float32, shape=(100, 100))
    frame = rng.random((100, 100))
    for t in range(40):
        frame[t] = 0
        made["large"].append(frame.astype(np.float32))
    made["all taken out"] = am.HistoryBuffer(None, dtype=int)
    made["all taken out"].extend(range(1_600))
    while len(made["all taken out"]):
        made["all taken out"].popleft()
    for name, rows in {
        "few": rng.integers(3, size=(90, 37)), "constant": np.full((90, 37), 2**64 - 1, np.uint64),
        "wide": rng.integers(-(2**50), 2**50, size=(90, 37)), "floats": rng.random((90, 37)),
        "bools": rng.random((90, 37)) < 0.1, "long floats": rng.random((90, 37)).astype(np.longdouble),
        "moving": rng.integers(3, size=(90, 37)) + np.repeat([0, 10**6, 3], 30)[:, None],
    }.items():  # fmt: skip
        for maxlen in (None, 1, 24, 60):
            made[f"group {name} {maxlen}"] = group = am.HistoryGroup(37, maxlen, dtype=rows.dtype)
            for row in rows:
                group.append(row)
    made["group empty"] = am.HistoryGroup(3, None, dtype=int)
    return made


@pytest.mark.parametrize("name", some_histories())
def test_histories_are_copied_pickled_and_spilled(name, tmp_path):
    history = some_histories()[name]
    expected, held = np.asarray(history), history.nbytes
    json.dumps(history.header)
    buffers = history.buffers()
    assert all(type(found) is np.ndarray and found.ndim == 1 for found in buffers.values())
    assert am.footprint(history).total == held
    spilled = am.Spill(tmp_path / "spilled").put(history)
    for again in (*(way(history) for way in WAYS.values()), spilled.get()):
        assert type(again) is type(history) and same(np.asarray(again), expected) and again.nbytes <= held + 250
        if len(expected):
            frames = np.concatenate([expected[:1]] * 50)
            for frame in frames:
                again.append(frame)
            every = np.concatenate([expected, frames]).astype(expected.dtype)  # NumPy loses the order of bytes
            assert same(np.asarray(again), every[len(every) - (again.maxlen or len(every)) :])
        assert same(np.asarray(history), expected)
    bands = []
    data = pickle.dumps(history, 5, buffer_callback=bands.append)
    assert same(np.asarray(pickle.loads(data, buffers=[bytes(band) for band in bands])), expected)
    if sum(found.nbytes for found in buffers.values()) > 4_000:
        assert len(data) < 4_000 + sum(found.nbytes for found in buffers.values() if found.nbytes < 1_000)


def damaged(header, buffers, rng):
    """The same but for an array, and perhaps something in the header."""
    head, arrays = copy.deepcopy(header), {key: found.copy() for key, found in buffers.items()}
    here = head
    while rng.random() < 0.9:
        place = rng.choice(list(here)) if isinstance(here, dict) else int(rng.integers(len(here)))
        if isinstance(here[place], dict | list) and len(here[place]) and rng.random() < 0.9:
            here = here[place]
        elif rng.random() < 0.2:
            del here[place]
            break
        else:
            values = [0, 1, -1, 3, 2**31, 2**70, None, 0.5, "x", "O", ">f8", "str", [], {}, [1, 2], "(9999999,)i8"]
            here[place] = values[rng.integers(len(values))]
            break
    key = rng.choice(list(arrays))
    if rng.random() < 0.2:
        arrays[key] = arrays[key][: rng.integers(len(arrays[key]) + 1)]
    elif rng.random() < 0.1:
        del arrays[key]
    elif rng.random() < 0.1:
        arrays[key] = arrays[key].astype(np.float64)
    elif len(arrays[key]) and rng.random() < 0.7:
        arrays[key][rng.integers(len(arrays[key]))] = rng.integers(256)
    return head, arrays


@pytest.mark.parametrize("name", some_histories())
def test_content_that_nobody_made_is_refused_or_read(name):
    """Of files whose checksum agrees: headers and arrays changed at random. A ValueError at once or when read."""
    history, rng = some_histories()[name], np.random.default_rng(1)
    header, buffers = history.header, history.buffers()
    for _ in range(60):
        head, arrays = damaged(header, buffers, rng)
        with contextlib.suppress(ValueError):
            made = type(history).from_buffers(head, arrays)
            if isinstance(made, am.HistoryBuffer) and made.dtype.itemsize * np.prod(made.shape, dtype=float) > 10**7:
                continue  # as large as somebody may ask for, and nothing is in it
            np.asarray(made)
            if len(made) and isinstance(made, am.HistoryBuffer):
                made.append(made.popleft())
                made.pop()
            elif isinstance(made, am.HistoryGroup):
                made.append(np.zeros(made.n_agents, made.dtype))


def test_a_history_of_no_bytes_does_not_become_a_large_one():
    group = am.HistoryGroup(4, None, dtype=int)
    for _ in range(100):
        group.append([7, 7, 7, 7])
    header, buffers = group.header, group.buffers()
    buffers["lengths.0"] = np.full(10**6, 1, np.uint64)
    with pytest.raises(ValueError, match="of blocks in"):
        am.HistoryGroup.from_buffers(header, buffers)
    history = am.HistoryBuffer(None, dtype=int, shape=(5_000,))
    history.extend(np.zeros((9, 5_000), int))
    header, buffers = history.header, history.buffers()
    with pytest.raises(ValueError, match="recent frames"):
        am.HistoryBuffer.from_buffers(header | {"shape": [10**12]}, buffers)


def test_coders_are_pickled():
    coder = CoreCoder(np.random.default_rng(0).random((7, 7)))
    assert (pickle.loads(pickle.dumps(coder)).table == coder.table).all()
    for wrong in (np.ones((2, 2)), [[1024, 0], [512, 512]], [[1, 2, 3]], [[1022.5, 1.5], [1022.5, 1.5]]):
        with pytest.raises(ValueError):
            CoreCoder.from_table(wrong)


# ---- HistoryGroup


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.int64, np.uint64, np.float32])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n_agents", "maxlen"), [(1, 30), (37, 100), (300, 50), (5, None), (40, 1)])
def test_a_group_is_a_history_for_each(dtype, kind, n_agents, maxlen):
    rows = numbers(dtype, kind, 260 * n_agents).reshape(n_agents, 260).T
    group = am.HistoryGroup(n_agents, maxlen, dtype=dtype)
    for t, row in enumerate(rows):
        group.append(row)
        kept = rows[: t + 1][-maxlen if maxlen else 0 :]
        assert len(group) == len(kept)
        if t % 7 == 0 or t < 20:
            assert same(np.asarray(group), np.ascontiguousarray(kept))
            assert same(group[t % n_agents], kept[:, t % n_agents].copy()) and same(group[-1], kept[:, -1].copy())


def test_groups_of_the_largest_numbers():
    rows = np.full((70, 3), 2**64 - 1, np.uint64) - np.arange(210, dtype=np.uint64).reshape(70, 3) % np.uint64(5)
    for n, maxlen in ((3, None), (3, 24)):
        group = am.HistoryGroup(n, maxlen, dtype=np.uint64)
        for row in rows:
            group.append(row)
        assert same(np.asarray(group), rows[-maxlen if maxlen else 0 :])


def test_what_is_gone_is_soon_not_held():
    history = am.HistoryBuffer(4, dtype=np.uint8, shape=(200, 200))
    for seed in range(40):
        history.append(np.frombuffer(np.random.default_rng(seed).bytes(40_000), np.uint8).reshape(200, 200))
        assert history.nbytes < 8 * 40_000


def test_numbers_that_come_later_change_nothing_before():
    """Alphabets that grow, move, become too large and small again."""
    rng = np.random.default_rng(0)
    spans = [(0, 3), (0, 9), (-5, 9), (100, 140), (-(2**40), 2**40), (0, 2), (0, 2)]
    rows = [rng.integers(low, high, size=50) for low, high in spans for _ in range(25)]
    group = am.HistoryGroup(50, 120, dtype=np.int64)
    for t, row in enumerate(rows):
        group.append(row)
        assert same(np.asarray(group), np.array(rows[max(0, t - 119) : t + 1]))


def test_a_group_takes_about_the_entropy():
    rng = np.random.default_rng(0)
    n, row, sizes = 20_000, rng.integers(5, size=20_000), []
    group = am.HistoryGroup(n, 100, dtype=np.int64)
    for _ in range(200):
        row = np.where(rng.random(n) < 0.14, rng.integers(5, size=n), row)
        group.append(row)
        sizes.append(group.nbytes)
    assert np.mean(sizes[100:]) < 18 * n  # bytes; a byte each would be 100


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: am.HistoryGroup(0, 5, dtype=int), ValueError),
        (lambda: am.HistoryGroup(5, 0, dtype=int), ValueError),
        (lambda: am.HistoryGroup(5, 5, dtype=object), TypeError),
        (lambda: am.HistoryGroup(5, 5, dtype=int).append([1, 2]), ValueError),
        (lambda: am.HistoryGroup(2, 5, dtype=int).append([1.5, 2]), TypeError),
        (lambda: am.HistoryGroup(2, 5, dtype=np.int8).append([1, 300]), ValueError),
        (lambda: am.HistoryGroup(2, 5, dtype=int)[2], IndexError),
        (lambda: am.HistoryGroup(2, 5, dtype=int)[0.5], TypeError),
    ],
)
def test_wrong_groups_and_rows_are_refused(call, error):
    with pytest.raises(error):
        call()


def test_blocks_are_as_long_as_they_say():
    assert module.BLOCK_FRAMES * 10 // 8 < 0xFFFF  # what a block of symbols can take at most


# ---- budgets

quiet = pytest.mark.filterwarnings("ignore::RuntimeWarning")


RNG = np.random.default_rng(0)
PAID = {
    "ints": (lambda budget: am.HistoryBuffer(None, dtype=int, budget=budget), RNG.integers(2**40, size=80_000)),
    "sticky": (lambda budget: am.HistoryBuffer(None, dtype=int, budget=budget), numbers(int, "sticky", 225_000)),
    "ring": (lambda budget: am.HistoryBuffer(1_000, dtype=float, budget=budget), RNG.random(9_000)),
    "large": (lambda budget: am.HistoryBuffer(None, dtype=float, shape=(4_100,), budget=budget),
              RNG.random((40, 4_100))),
    "many at once": (lambda budget: am.HistoryBuffer(None, dtype=float, budget=budget), RNG.random((40, 4_000))),
    "group": (lambda budget: am.HistoryGroup(200, None, dtype=int, budget=budget),
              RNG.integers(2**20, size=(2_000, 200))),
    "group, coded": (lambda budget: am.HistoryGroup(200, None, dtype=int, budget=budget),
                     RNG.integers(5, size=(9_000, 200))),
}  # fmt: skip


@quiet
@pytest.mark.parametrize("limit", [70_000, 300_000])
@pytest.mark.parametrize("name", PAID)
def test_a_budget_is_kept_and_given_back(name, limit):
    limit = limit // 4 if name == "sticky" else limit
    simulation = am.Budget(10**8)
    budget = am.Budget(limit, parent=simulation)
    history, frames = PAID[name][0](budget), PAID[name][1]
    add, refused_at = history.extend if name == "many at once" else history.append, None
    assert list(budget.holders) == [type(history).__name__]
    for k, frame in enumerate(frames):
        try:
            add(frame)
        except am.BudgetExceeded:
            refused_at = k
            break
        if k % 97 == 0:
            assert history.nbytes <= 1.02 * budget.used + 500  # of small objects
    assert (refused_at is None) == (name == "ring" or (name == "sticky" and limit > 25_000))
    expected = frames[:refused_at].reshape(-1, *getattr(history, "shape", frames.shape[1:]))
    assert same(np.asarray(history), expected[len(expected) - (history.maxlen or len(expected)) :])
    assert 0.6 * budget.used < history.nbytes and simulation.used == budget.used <= limit
    again = copy.copy(history)
    assert simulation.used == budget.used
    del history, add
    assert budget.used == simulation.used == 0 and len(again)


@quiet
def test_what_is_let_go_makes_room():
    budget = am.Budget(50_000, on_short=lambda budget, n: [history.popleft() for _ in range(3_000)])
    history = am.HistoryBuffer(None, dtype=float, budget=budget)
    x = np.random.default_rng(0).random(20_000)
    for value in x:
        history.append(value)
    assert same(history[:], x[-len(history) :]) and 1_000 < len(history) < 7_000
    while len(history):
        history.pop()
    history.append(1.0)
    assert history[:].tolist() == [1.0] and history.nbytes <= budget.used
    with pytest.raises(TypeError, match="budget of type int given"):
        am.HistoryBuffer(5, dtype=int, budget=50)
    with pytest.raises(am.BudgetExceeded):
        am.HistoryBuffer(5, dtype=int, budget=am.Budget(100))


def test_a_budget_is_not_asked_at_every_step():
    calls = []

    class Counted(am.Budget):
        __slots__ = ()

        def reserve(self, nbytes, holder):
            calls.append(nbytes)
            super().reserve(nbytes, holder)

    history, log = (am.HistoryBuffer(None, dtype=float, budget=Counted(10**8)), am.RecordHistory(budget=Counted(10**8)))
    group = am.HistoryGroup(10, 1_000, dtype=int, budget=Counted(10**8))
    for k, x in enumerate(np.random.default_rng(0).random(5_000)):
        history.append(x)
        group.append([k % 5] * 10)
        log.append({"x": float(x), "k": k})
    assert 0 < len(calls) < 500
