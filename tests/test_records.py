"""A log of records beside a list: equal, with types, whatever leaves at the front."""

import contextlib
import copy
import json
import math
import pickle
from collections.abc import MutableSequence

import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import agentmem as am
from test_history import damaged

SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.binary(max_size=8)
    | st.sampled_from([0.0, -0.0, 1, 1.0, True, 2**63, -(2**63), -(2**63) - 1, 10**30, np.float32(0.1), np.int8(-3)])
)  # fmt: skip
RECORDS = st.recursive(
    SCALARS,
    lambda part: st.lists(part, max_size=3)
    | st.lists(part, max_size=3).map(tuple)
    | st.dictionaries(st.sampled_from("abcd") | st.integers(0, 3), part, max_size=3),
    max_leaves=6,
)


def exact(value):
    """What tells records apart: types, bits of floats, order of keys."""
    if isinstance(value, dict):
        return dict, [(exact(key), exact(part)) for key, part in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [exact(part) for part in value]
    if isinstance(value, np.ndarray | np.generic):
        return type(value), value.dtype.str, value.shape, value.tobytes()
    if isinstance(value, float):
        return float, math.copysign(1, value), "nan" if value != value else value
    return type(value), value


def moves(n):
    return [
        {"type": ("move", "look", "wait")[k * k % 3], "x": k * 3 % 100, "y": k % 50, "at": 1.7e9 + k / 10,
         "to": ("home", None)[k % 7 == 0], "path": (k, [k % 2])}
        for k in range(n)
    ]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.lists(RECORDS, max_size=12))
def test_what_goes_in_comes_out(records):
    log = am.RecordHistory()
    log.extend(records)
    assert exact(list(log)) == exact(records)
    assert exact(log[:]) == exact(records)
    for k, record in enumerate(records):
        assert exact(log[k]) == exact(record) == exact(log[k - len(records)])


def test_alike_records_are_told_apart():
    alike = [1, 1.0, True, 0.0, -0.0, 0, False, (1, 2), [1, 2], "1", b"1", {"a": 1}, {"a": 1.0}, {"a": True},
             {"a": 1, "b": 2}, {"b": 2, "a": 1}, {}, (), [], None, np.int64(1), np.float64(1.0),
             {"a": np.float64(1)}]  # fmt: skip
    log = am.RecordHistory()
    log.extend(alike * 3)
    assert exact(list(log)) == exact(alike * 3)


def test_arrays_in_records():
    arrays = [np.arange(6).reshape(2, 3), np.array(3.5), np.zeros((0, 2), np.float32), np.array(["a", "bc"]),
              np.array([True]), np.array([1 + 2j])]  # fmt: skip
    log = am.RecordHistory()
    log.extend([{"grid": array, "k": k} for k, array in enumerate(arrays)])
    assert exact([record["grid"] for record in log]) == exact(arrays)
    log[0]["grid"][:] = 9
    assert log[0]["grid"].tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("n", [1, 255, 256, 257, 3_000])
def test_dicts_of_one_shape(n):
    log, expected = am.RecordHistory(), moves(n)
    log.extend(expected)
    assert exact(list(log)) == exact(expected)
    for which in (slice(None, None, -1), slice(3, 900, 7), slice(-2, None), slice(5, 2)):
        assert exact(log[which]) == exact(expected[which])
    assert log == expected and log != expected[1:] and log != [*expected[:-1], None]


def test_a_column_of_numbers_that_grow_too_large():
    values = [5, 2**62, 2**63, -(2**70), 7]
    log = am.RecordHistory()
    log.extend([{"n": value} for value in values * 100])
    assert exact([record["n"] for record in log]) == exact(values * 100)


def test_what_comes_out_is_new():
    log = am.RecordHistory()
    log.extend([{"path": [1, 2]}] * 2)
    log[0]["path"].append(3)
    for record in log[:]:
        record["path"].append(4)
    first, second = log[:]
    assert first == second == {"path": [1, 2]} and first["path"] is not second["path"]


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({1, 2}, "record: set given"),
        ({"a": {"b": [1, object()]}}, r"record\['a'\]\['b'\]\[1\]: object given"),
        ({"a": 1, "who": test_alike_records_are_told_apart}, r"record\['who'\]: function given"),
        ((1, {2: 1j}), r"record\[1\]\[2\]: complex given"),
        ({"a": np.array([None])}, r"record\['a'\]: ndarray given"),
        ({"a": "\ud800"}, r"record\['a'\]: .*surrogates"),
        (bytearray(b"a"), "record: bytearray given"),
        ({"a": memoryview(b"a")}, r"record\['a'\]: memoryview given"),
        (msgpack.ExtType(5, b"x"), "record: ExtType given"),
        ({"a": np.str_("a\0")}, r"record\['a'\]: str_ given"),
        ({np.str_("who"): 1}, "record key: str_ given"),
    ],
)
def test_what_cannot_be_kept_is_named_and_changes_nothing(record, says):
    log = am.RecordHistory()
    for before in ([], [{"a": 1, "who": "me"}], [{"a": {"b": 1}}, {"a": "text"}]):
        log.extend(before)
        kept = exact(list(log))
        with pytest.raises(TypeError, match=says):
            log.append(record)
        assert exact(list(log)) == kept


def test_a_schema_holds():
    log = am.RecordHistory(schema={"type": str, "x": int, "sure": float})
    log.append({"type": "move", "x": 3, "sure": 0.5})
    for wrong, says in (
        ({"type": "move", "x": 3.0, "sure": 0.5}, "key 'x': float given; expected int"),
        ({"type": "move", "sure": 0.5, "x": 3}, "expected a dict with the keys"),
        ({"type": "move", "x": 3}, "expected a dict with the keys"),
        ("move", "'move' given; expected a dict"),
    ):
        with pytest.raises(TypeError, match=says):
            log.append(wrong)
    assert list(log) == [{"type": "move", "x": 3, "sure": 0.5}]


@pytest.mark.parametrize("maxlen", [0, 1, 70, 1_000])
def test_the_oldest_go_and_nobody_misses_them(maxlen):
    log, expected = am.RecordHistory(maxlen), []
    for k, move in enumerate(moves(2_500)):
        record = move if k % 3 else f"text {k if k % 2 else k % 50}" if k % 5 else {"k": k}
        log.append(record)
        expected = [*expected, record][-maxlen:] if maxlen else []
        assert len(log) == len(expected)
        if k % 97 == 0:
            assert exact(list(log)) == exact(expected)
    assert exact(list(log)) == exact(expected)
    most = am.RecordHistory()
    most.extend(expected)
    assert log.nbytes < most.nbytes + 120_000  # what is gone is not held


def test_dicts_take_a_few_bytes_and_repeated_texts_little():
    log = am.RecordHistory()
    log.extend({key: value for key, value in move.items() if key != "path"} for move in moves(20_000))
    assert log.nbytes < 6 * 20_000
    texts = am.RecordHistory()
    texts.extend(f"action_{k}" * 100 for k in range(2_000))
    assert texts.nbytes < 100_000 < 2_000_000 < sum(map(len, texts))
    assert list(texts) == [f"action_{k}" * 100 for k in range(2_000)]


def test_positions_beyond_are_refused():
    log = am.RecordHistory()
    log.append("a")
    for k in (1, -2):
        with pytest.raises(IndexError, match=f"record {k} given; there are 1"):
            log[k]
    with pytest.raises(ValueError, match="maxlen=-1 given"):
        am.RecordHistory(-1)


REFUSED = {1, 2}
WAYS_IN = ["append", "extend", "insert", "slice", "set"]
SLICES = st.builds(slice, *[st.none() | st.integers(-60, 60)] * 2, st.sampled_from([None, 1, 2, 7, -1, -3]))


class BesideAList(RuleBasedStateMachine):
    @initialize(maxlen=st.sampled_from([None, None, 0, 1, 5, 40, 300]))
    def begin(self, maxlen):
        self.log, self.expected, self.maxlen = am.RecordHistory(maxlen), [], maxlen

    def both(self, change):
        """The same outcome, exception or not."""
        outcomes = []
        for records in (self.log, self.expected):
            try:
                outcomes.append(exact(change(records)))
            except (IndexError, TypeError, ValueError) as error:
                outcomes.append(type(error))
        assert outcomes[0] == outcomes[1]
        if self.maxlen is not None:
            del self.expected[: max(0, len(self.expected) - self.maxlen)]

    @rule(records=st.lists(RECORDS, max_size=6))
    def extend(self, records):
        self.both(lambda log: log.extend(records))

    @rule(n=st.integers(0, 300), shape=st.integers(0, 3))
    def many(self, n, shape):
        records = [
            ({"k": k, "s": str(k % 9), "f": k / 4}, {"k": float(k)}, f"{k % 100}", {"deep": {"k": k}})[shape]
            for k in range(n)
        ]
        self.both(lambda log: log.extend(records))

    @rule(i=st.integers(-400, 400), record=RECORDS)
    def change_one(self, i, record):
        self.both(lambda log: log.__setitem__(i, record))

    @rule(i=st.integers(-400, 400), record=RECORDS)
    def insert(self, i, record):
        self.both(lambda log: log.insert(i, record))

    @rule(which=SLICES, records=st.lists(RECORDS, max_size=4))
    def change_some(self, which, records):
        self.both(lambda log: log.__setitem__(which, records))

    @rule(which=SLICES | st.integers(-400, 400) | st.sampled_from([0, -1]))
    def delete(self, which):
        self.both(lambda log: log.__delitem__(which))

    @rule(n=st.integers(0, 400))
    def delete_the_oldest(self, n):
        self.both(lambda log: log.__delitem__(slice(n)))

    @rule(i=st.none() | st.sampled_from([0, -1, 3, 900]), n=st.integers(1, 30))
    def pop(self, i, n):
        for _ in range(n):
            self.both(lambda log: log.pop() if i is None else log.pop(i))

    @rule(i=st.integers(-5, 400), bounds=st.lists(st.integers(-9, 400), max_size=2))
    def find(self, i, bounds):
        record = self.expected[i] if -len(self.expected) <= i < len(self.expected) else "nowhere"
        if "nan" not in str(record):  # which is found in a list where it is the same object
            self.both(lambda log: log.index(record, *bounds))
            self.both(lambda log: (log.count(record), record in log))
            self.both(lambda log: log.remove(record) if len(bounds) == 1 else None)

    @rule(key=st.sampled_from([str, lambda record: len(str(record))]), reverse=st.booleans())
    def sort(self, key, reverse):
        self.both(lambda log: log.sort(key=key, reverse=reverse))

    @rule(what=st.sampled_from(["reverse", "clear", "add", "iadd", "copy", "twice"]))
    def whole(self, what):
        more = [1.0, {"k": 3}]
        if what in ("reverse", "clear"):
            self.both(lambda log: getattr(log, what)())
        elif what == "add":
            assert exact(more + self.log) == exact(more + self.expected)
            added = self.log + more
            assert self.maxlen is not None or exact(list(added)) == exact(self.expected + more)
        elif what == "copy":
            self.log = self.log.copy()
        elif what == "iadd":
            self.log += more
            self.both(lambda log: None if log is self.log else log.extend(more))
        elif len(self.expected) < 1_000:
            self.both(lambda log: log.extend(log))

    @rule(k=st.integers(0, 3), i=st.integers(-50, 50), way=st.sampled_from(WAYS_IN))
    def refuse(self, k, i, way):
        with pytest.raises((TypeError, IndexError)):
            if way == "append":
                self.log.append({"k": 1, "s": object(), "f": 0.5})
            elif way == "extend":
                self.log.extend([1, "a", {"k": k}, REFUSED, "never"])
            elif way == "insert":
                self.log.insert(i, REFUSED)
            elif way == "slice":
                self.log[i : i + 3] = ["a", REFUSED]
            else:
                self.log[i] = REFUSED

    @invariant()
    def equal(self):
        if hasattr(self, "log"):
            assert exact(list(self.log)) == exact(self.expected) and len(self.log) == len(self.expected)
            assert exact(list(reversed(self.log))) == exact(self.expected[::-1])


TestBesideAList = BesideAList.TestCase
TestBesideAList.settings = settings(max_examples=60, stateful_step_count=12, deadline=None)


def test_a_log_is_a_sequence_and_holds_no_texts_that_went():
    log, expected = am.RecordHistory(), []
    assert isinstance(log, MutableSequence)
    for k in range(3_000):  # each step is tried first, and taken back
        log.append(f"tried {k} " * 20)
        assert log.pop() == f"tried {k} " * 20
        log.append(f"done {k % 7}")
        expected.append(f"done {k % 7}")
    assert log == expected and log.nbytes < 40_000
    for left, right in ((log, ("a",)), (("a",), log)):
        with pytest.raises(TypeError):
            left + right


def test_an_iterator_meets_what_is_appended():
    log = am.RecordHistory()
    log.extend(range(300))
    assert [log.append(record + 300) or record for record in log if record < 600] == list(range(600))


# ---- copies, files


def some_logs():
    rng = np.random.default_rng(0)
    made = {"empty": am.RecordHistory(), "schema": am.RecordHistory(50, schema={"b": int, "a": float, "n": np.int64})}
    made["schema"].extend({"b": k, "a": k / 2, "n": np.int64(k)} for k in range(80))
    for maxlen in (None, 0, 300):
        made[f"{maxlen}"] = log = am.RecordHistory(maxlen)
        for k, move in enumerate(moves(900)):
            log.append(move if k % 3 else f"text {k if k % 2 else k % 50}" if k % 5 else {"k": k})
        log.extend({"n": n, "": None, "g": np.float32(0.1), "s": "\u00e9"} for n in [5, 2**70, 7])
        log.extend(rng.bytes(9_000) for _ in range(4))
    return made


WAYS = {
    "copy": copy.copy, "deepcopy": copy.deepcopy, "buffers": lambda h: type(h).from_buffers(h.header, h.buffers()),
    **{f"pickle {k}": lambda h, k=k: pickle.loads(pickle.dumps(h, k)) for k in range(pickle.HIGHEST_PROTOCOL + 1)},
    "json": lambda h: type(h).from_buffers(json.loads(json.dumps(h.header, sort_keys=True)), h.buffers()),
}  # fmt: skip


@pytest.mark.parametrize("name", some_logs())
def test_logs_are_copied_pickled_and_spilled(name, tmp_path):
    log = some_logs()[name]
    expected, held = exact(list(log)), log.nbytes
    assert all(type(found) is np.ndarray and found.ndim == 1 for found in log.buffers().values())
    assert am.footprint(log).total == held
    spilled = am.Spill(tmp_path / "spilled").put(log)
    for again in (*(way(log) for way in WAYS.values()), spilled.get()):
        assert type(again) is type(log) and exact(list(again)) == expected and again == log
        assert again.schema == log.schema and again.maxlen == log.maxlen and again.nbytes <= held + 2_000
        n_tables, more = len(again._tables), list(log)[-7:]
        again.extend(more)
        every = expected[1] + exact(more)[1]
        assert exact(list(again))[1] == every[len(every) - (len(every) if log.maxlen is None else log.maxlen) :]
        assert len(again._tables) == n_tables and exact(list(log)) == expected


@pytest.mark.parametrize("name", some_logs())
def test_content_that_nobody_made_is_refused_or_read(name):
    """Of files whose checksum agrees: headers and arrays changed at random. A ValueError at once or when read."""
    log, rng = some_logs()[name], np.random.default_rng(1)
    header, buffers = log.header, log.buffers()
    for _ in range(150):
        head, arrays = damaged(header, buffers, rng)
        with contextlib.suppress(ValueError):
            made = am.RecordHistory.from_buffers(head, arrays)
            assert len(list(made)) == len(made)
            made.extend(list(made)[-3:] if made.schema is None else [])


def test_texts_that_are_no_records():
    log = am.RecordHistory()
    log.extend(["some text", (1, 2), 2**80, np.arange(3)])
    header, buffers = log.header, log.buffers()
    rng, refused = np.random.default_rng(0), 0
    for _ in range(1_000):
        texts = buffers["texts/hot"].copy()
        texts[rng.integers(len(texts), size=2)] = rng.integers(256, size=2)
        made = am.RecordHistory.from_buffers(header, buffers | {"texts/hot": texts})
        try:
            list(made)
        except ValueError:
            refused += 1
    assert refused > 100


def test_schemas_of_what_no_record_holds_are_refused():
    for schema in ({"a": object}, {1: int}, {"a": "int"}):
        with pytest.raises(TypeError, match="expected a key, and a type"):
            am.RecordHistory(schema=schema)


# ---- budgets


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("limit", [30_000, 120_000])
@pytest.mark.parametrize("kind", ["dicts", "texts", "shapes"])
def test_a_budget_is_kept_and_given_back(kind, limit):
    rng = np.random.default_rng(0)
    make = {
        "dicts": lambda k: {"x": rng.random(), "k": k, "s": rng.bytes(20)},
        "texts": lambda k: rng.bytes(50),
        "shapes": lambda k: {f"key {k % 40}": k},
    }[kind]
    budget = am.Budget(limit)
    log, expected = am.RecordHistory(budget=budget), []
    for k in range(20_000):
        record = make(k)
        try:
            log.append(record)
        except am.BudgetExceeded:
            break
        expected.append(record)
        assert k % 50 or log.nbytes <= 1.05 * budget.used + 500
    assert k == 19_999 if kind == "shapes" and limit > 100_000 else len(expected) < 19_999
    assert log == expected and 0 < budget.used <= limit
    if len(expected) < 19_999:
        with pytest.raises(am.BudgetExceeded):
            log.extend(rng.bytes(90) for _ in range(3_000))
        assert log == expected and budget.used <= limit
        with pytest.raises(am.BudgetExceeded):
            log[5:] = [rng.bytes(90) for _ in range(9_000)]
        assert log == expected and budget.used <= limit
    used = budget.used
    del log[: len(log) * 3 // 4]
    assert log == expected[len(expected) * 3 // 4 :] and (budget.used < used or kind == "shapes")
    log.append(None)
    log.clear()
    log.append(None)
    assert budget.used < 20_000
    del log
    assert budget.used == 0


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("free", [lambda log: log.clear(), lambda log: log.__delitem__(slice(len(log) * 3 // 4))])
def test_what_is_let_go_makes_room(free):
    log = am.RecordHistory(budget=(budget := am.Budget(30_000)))
    budget.on_short = lambda budget, n: free(log)
    rng, last = np.random.default_rng(0), []
    for k in range(3_000):
        last.append({"k": k, "s": rng.bytes(30)})
        log.append(last[-1])
    assert 0 < len(log) < 1_500 and log == last[-len(log) :]
