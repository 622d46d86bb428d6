"""`.POMDP` files read as an obvious dense reading of them does; what is malformed is named by file and line."""

import importlib.util
import json
import random
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import agentmem as am
from agentmem._core import Scanner
from agentmem.formats import pomdp, read_pomdp
from reference import Traced

MODELS = Path(__file__).resolve().parents[2] / "shared" / "models"
REAL = {
    "1d_noisy": "1d.noisy.POMDP",
    "4x3": "4x3.95.POMDP",
    "bridge_repair": "bridge-repair.POMDP",
    "hallway": "Hallway.pomdp",
    "tiger": "Tiger.pomdp",
}


def preamble(states="3", actions="2", observations="2", *, start="", discount="0.5", values="reward"):
    """Five lines, or six with a start."""
    lines = [f"discount: {discount}", f"values: {values}", f"states: {states}", f"actions: {actions}"]
    return "\n".join([*lines, f"observations: {observations}", *([start] if start else [])]) + "\n"


FILLED = "T: *\nidentity\nO: *\nuniform\n"


@pytest.fixture
def read(tmp_path):
    """Write a file and read it."""

    def written(text, **options):
        path = tmp_path / "some.pomdp"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return read_pomdp(path, **options)

    return written


def transitions(read_file):
    return np.array([read_file.model.transition(a).toarray() for a in range(read_file.model.n_actions)])


def observations(read_file):
    return np.array([read_file.model.observation(a).toarray() for a in range(read_file.model.n_actions)])


# ---- a dense reading: statements are applied to arrays and written down, in any of their forms


class Dense:
    """A file as it grows, and what it says, as dense arrays."""

    def __init__(self, rng, names):
        self.rng, self.names = rng, names
        n_states, n_actions, n_observations = map(len, names.values())
        self.T = np.zeros((n_actions, n_states, n_states))
        self.O = np.zeros((n_actions, n_states, n_observations))
        self.R = np.zeros((n_actions, n_states, n_states, n_observations))
        self.text = ""

    def space(self):
        return self.rng.choice([" ", "  ", "\t", "\n", "\r\n", " # T: 0 : 0\n", "\n\n#\n"])

    def colon(self):
        return self.rng.choice([":", " :", ": ", " : ", self.space() + ":" + self.space()])

    def place(self, kind, may_be_any=True):
        """How to write one of a kind, or `*`; and its index or a slice."""
        k = self.rng.randrange(len(self.names[kind]))
        if may_be_any and self.rng.random() < 0.25:
            return "*", slice(None)
        return self.rng.choice([self.names[kind][k], str(k)]), k

    def number(self, value):
        forms = [repr(float(value)), f"{value:.17g}", f"{value:.20e}", f"{value:+.17g}"]
        if value == int(value):
            forms += [f"{value:.0f}", f"{value:.1f}", f"{value:.0f}.", f"{value:.0f}e0"]
        if 0 < value < 1:
            forms.append(repr(float(value)).replace("0.", ".", 1))
        return self.rng.choice(forms)

    def write(self, *tokens):
        self.text += self.space().join(tokens) + self.space()

    def numbers(self, array):
        return [self.number(x) for x in np.ravel(array).tolist()]

    def distributions(self, shape):
        """Rows of a few values, many zero, that sum to 1."""
        rows = np.zeros(shape)
        for row in rows.reshape(-1, shape[-1]):
            for _ in range(4):
                row[self.rng.randrange(shape[-1])] += 0.25
        return rows

    def statement(self):
        letter = self.rng.choice("TTTOOR")
        kinds = {"T": ("action", "state", "state"), "O": ("action", "state", "observation")}.get(
            letter, ("action", "state", "state", "observation")
        )
        table = {"T": self.T, "O": self.O, "R": self.R}[letter]
        n_places = self.rng.randint(2 if letter == "R" else 1, len(kinds))
        written, at = zip(*[self.place(kind) for kind in kinds[:n_places]], strict=True)
        head = f"{letter}{self.colon()}" + self.colon().join(written)
        cells = table[at]
        words = ["numbers"]
        if letter != "R" and n_places < 3:
            words += ["uniform"] + ["reset"] * (letter == "T") + ["identity"] * (letter == "T" and n_places == 1)
        word = self.rng.choice(words)
        if word == "uniform":
            table[at] = 1 / table.shape[-1]
        elif word == "reset":
            table[at] = self.start
        elif word == "identity":
            table[at] = np.eye(len(self.names["state"]))
        elif letter == "R":
            table[at] = values = np.array(
                [self.rng.choice([0.0, -1.0, 2.5, 1e-3, -1e6]) for _ in range(table[0, 0].size)]
            ).reshape(table.shape[2:])[(0,) * (n_places - 2)]
        else:
            shape = table.shape[n_places:]
            table[at] = values = self.distributions(shape) if shape else self.rng.choice([0.0, 0.25, 0.125, 1.0])
        self.write(head, *([word] if word != "numbers" else self.numbers(values)))
        assert cells.shape == table[at].shape

    def begin(self):
        kinds = {"state": "states", "action": "actions", "observation": "observations"}
        lines = [f"{kinds[kind]}{self.colon()}" + self.space().join(
            [str(len(names))] if names[0] == "0" else names) for kind, names in self.names.items()]
        lines += [f"discount{self.colon()}0.75", f"values{self.colon()}cost"]
        self.rng.shuffle(lines)
        self.text = self.space() + "".join(line + self.space() for line in lines)
        names, n = self.names["state"], len(self.names["state"])
        how = self.rng.choice(["none", "uniform", "one", "include", "bare", "exclude", "numbers"])
        chosen = sorted(self.rng.sample(range(n), self.rng.randint(1, n)))
        self.start = np.full(n, 1 / n)
        if how == "uniform":
            self.write("start" + self.colon() + "uniform")
        elif how == "one":
            chosen = chosen[:1]
            self.write("start" + self.colon() + self.rng.choice([names[chosen[0]], str(chosen[0])]))
            self.start = np.eye(n)[chosen[0]]
        elif how == "numbers":
            self.start = self.distributions((n,))
            self.write("start" + self.colon() + self.space().join(self.numbers(self.start)))
        elif how != "none" and not (how == "bare" and names[0] == "0") and not (how == "exclude" and len(chosen) == n):
            word = {"bare": "start", "include": "start include", "exclude": "start exclude"}[how]
            self.write(word + self.colon() + self.space().join(names[k] for k in chosen))
            inside = np.isin(np.arange(n), chosen) != (how == "exclude")
            self.start = inside / inside.sum()

    def finish(self):
        """Overwrite what does not sum to 1, and zeros with it."""
        for letter, kinds, table in (("T", ("action", "state"), self.T), ("O", ("action", "state"), self.O)):
            for at in np.ndindex(table.shape[:2]):
                if abs(table[at].sum() - 1) < 1e-9:
                    continue
                places = [self.rng.choice([self.names[kind][k], str(k)]) for kind, k in zip(kinds, at, strict=True)]
                head = f"{letter}{self.colon()}" + self.colon().join(places)
                table[at] = self.distributions(table.shape[2:])
                if self.rng.random() < 0.5:
                    self.write(head, *self.numbers(table[at]))
                    continue
                for column, value in enumerate(table[at].tolist()):
                    self.write(f"{head}{self.colon()}{column}", self.number(value))


def names_of(kind, n, rng):
    if rng.random() < 0.4:
        return [str(k) for k in range(n)]
    return rng.sample([f"{kind}{k}" for k in range(n)] + ["a-b.c_9", "é", "<&>", "identity-2", "1st", "-x", "T0"], n)


@settings(max_examples=200, deadline=None)
@given(
    rng=st.randoms(use_true_random=False),
    sizes=st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 4)),
    n_statements=st.integers(0, 25),
    piece=st.sampled_from([1, 7, 64, 1 << 18]),
)
def test_any_mixture_of_forms_is_the_dense_reading(rng, sizes, n_statements, piece, tmp_path_factory):
    dense = Dense(rng, {kind: names_of(kind[0], n, rng) for kind, n in zip(
        ("state", "action", "observation"), sizes, strict=True)})
    dense.begin()
    for _ in range(n_statements):
        dense.statement()
    dense.finish()
    path = tmp_path_factory.mktemp("mixture") / "some.pomdp"
    path.write_bytes(dense.text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pomdp, "PIECE", piece)
        found = read_pomdp(path)
    assert np.array_equal(transitions(found), dense.T)
    assert np.array_equal(observations(found), dense.O)
    np.testing.assert_allclose(found.model.belief().to_dense(), dense.start, rtol=1e-15)
    assert (found.discount, found.values) == (0.75, "cost")
    for place in np.ndindex(dense.R.shape):
        assert found.rewards.at(*place) == dense.R[place]
    np.testing.assert_allclose(
        found.expected_rewards(), np.einsum("ast,ato,asto->as", dense.T, dense.O, dense.R), rtol=1e-12, atol=1e-9
    )
    for kept, names in zip((found.states, found.actions, found.observations), dense.names.values(), strict=True):
        assert [str(name) for name in kept] == names


# ---- single forms


def test_names_and_counts(read):
    found = read(preamble("left right-most\n  end_3", 4, "seen\tnot-seen") + FILLED)
    assert found.states == ("left", "right-most", "end_3")
    assert found.actions == range(4)
    assert found.observations == ("seen", "not-seen")
    assert (found.model.n_states, found.model.n_actions, found.model.n_observations) == (3, 4, 2)


def test_the_model_comes_first_and_has_its_dtype(read):
    model, *_ = read(preamble() + FILLED, dtype=np.float32)
    assert isinstance(model, am.Model) and model.dtype == np.float32


def test_later_lines_win_and_zeros_vanish(read):
    found = read(preamble(actions=1) + "T: * : * : * 0.5\nT: * : * : 2 0.0\nT: 0 : 1\n0 0 1\nT: 0 : 2 : 1 0\n"
                 "T: 0 : 2 : 0 1\nO: 0 : * : 0 1.0\nO: 0 : 1 uniform\n")
    assert transitions(found)[0].tolist() == [[0.5, 0.5, 0], [0, 0, 1], [1, 0, 0]]
    assert observations(found)[0].tolist() == [[1, 0], [0.5, 0.5], [1, 0]]
    assert found.model.transition(0).nnz == 4


def test_what_one_action_says_does_not_reach_another(read):
    found = read(preamble(actions=3) + FILLED + "T: 1 : 0 : 0 0\nT: 1 : 0 : 1 1\nT: * : 2 : 2 0\nT: * : 2 : 0 1\n"
                 "T: 2 : 2 : 0 0\nT: 2 : 2 : 1 1\n")
    assert transitions(found).argmax(axis=2).tolist() == [[0, 1, 0], [1, 1, 0], [0, 1, 1]]


def test_equal_tables_of_all_actions_are_one(read):
    found = read(preamble(states=200, actions=50) + FILLED)
    assert found.model.nbytes < 20_000


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        ("", [1 / 3, 1 / 3, 1 / 3]),
        ("start: uniform", [1 / 3, 1 / 3, 1 / 3]),
        ("start:\n0.25 0.75\n0", [0.25, 0.75, 0]),
        ("start: b", [0, 1, 0]),
        ("start: 2", [0, 0, 1]),
        ("start: a c", [0.5, 0, 0.5]),
        ("start include: a 1", [0.5, 0.5, 0]),
        ("start exclude: a", [0, 0.5, 0.5]),
        ("start: 0.333333 0.333333 0.333333", [1 / 3, 1 / 3, 1 / 3]),
    ],
)
def test_starts(read, start, expected):
    found = read(preamble("a b c", start=start) + FILLED)
    np.testing.assert_allclose(found.model.belief().to_dense(), expected, rtol=1e-15)


@pytest.mark.parametrize(
    ("states", "start", "expected"), [(2, "0 1", [0, 1]), (2, "1", [0, 1]), (1, "1", [1]), (1, "0", [1])]
)
def test_whole_numbers_as_starts(read, states, start, expected):
    assert read(preamble(states, start=f"start: {start}") + FILLED).model.belief().to_dense().tolist() == expected


def test_reset_goes_to_the_start(read):
    found = read(preamble(start="start: 0.5 0 0.5") + FILLED + "T: 1 reset\nT: 0 : 1 reset")
    assert transitions(found)[1].tolist() == [[0.5, 0, 0.5]] * 3
    assert transitions(found)[0].tolist() == [[1, 0, 0], [0.5, 0, 0.5], [0, 0, 1]]


def test_rows_are_used_as_given(read):
    found = read(preamble(actions=1) + FILLED + "T: 0 : 1\n0.333333 0.333333 0.333333\n")
    assert found.model.transition(0).toarray()[1].tolist() == [0.333333] * 3
    loose = read(preamble(actions=1) + FILLED + "T: 0 : 1\n0.3 0.3 0.3\n", row_tolerance=0.2)
    assert loose.model.transition(0).toarray()[1].tolist() == [0.3] * 3


def test_rewards_of_matrices_replace_what_was_there(read):
    found = read(preamble(actions=1) + FILLED + "R: * : * : * : * 7\nR: 0 : 1\n1 2 0 4 5 6\nR: 0 : 2 : 0\n0 -9.5\n")
    rewards = [[[found.rewards.at(0, s, t, o) for o in range(2)] for t in range(3)] for s in range(3)]
    assert rewards == [[[7, 7]] * 3, [[1, 2], [0, 4], [5, 6]], [[0, -9.5], [7, 7], [7, 7]]]


def test_a_file_without_a_last_newline_and_with_odd_ends(read):
    for end in ("", "\n", "\r\n", " # the end", "\n#", "\t"):
        assert read(preamble() + FILLED.rstrip() + end).model.n_states == 3


# ---- numbers


digits = st.text("0123456789", min_size=1, max_size=25)
fractions = st.builds("{}.{}".format, digits, digits)
decimals = st.one_of(digits, fractions, digits.map("{}.".format), digits.map(".{}".format))
powers = st.one_of(st.just(""), st.builds("{}{}".format, st.sampled_from(["e", "E", "e+", "e-"]), st.integers(0, 400)))
signs = st.sampled_from(["", "+", "-"])


@settings(max_examples=500, deadline=None)
@given(
    st.one_of(
        st.floats(allow_nan=False, allow_infinity=False).map(repr), st.builds("{}{}{}".format, signs, decimals, powers)
    )
)
def test_numbers_are_rounded_as_float_rounds(text):
    kinds, values, _ = Scanner({}).scan(text.encode(), last=True)
    assert chr(kinds[0]) == ("i" if text.isdigit() else "n")
    assert values.tolist() == [float(text)]


@pytest.mark.parametrize(
    "text", ["1e", ".", "+", "-", "1e+", "--1", "1.2.3", "1-2", "nan", "inf", "0x10", "1_0", "e5", "1e5x"]
)
def test_what_is_no_number_is_a_word(text):
    scanner = Scanner({b"k": b"k"})
    kinds, values, lines = scanner.scan(b"k\n" + text.encode() + b"\n", last=True)
    assert (kinds.tobytes(), values.tolist(), lines.tolist()) == (b"kw", [0, 1], [1, 2])
    assert scanner.words == {b"k": 0, text.encode(): 1}


def test_keywords_have_kinds_of_one_character():
    with pytest.raises(ValueError, match="one character"):
        Scanner({b"k": b"kk"})


# ---- real files


@pytest.mark.skipif(not MODELS.is_dir(), reason=f"no models in {MODELS}")
@pytest.mark.parametrize("name", REAL)
@pytest.mark.parametrize("piece", [5, 1 << 18])
def test_real_files_are_the_arrays_beside_them(name, piece, monkeypatch):
    monkeypatch.setattr(pomdp, "PIECE", piece)
    spec = importlib.util.spec_from_file_location("corpus_check", MODELS / "check.py")
    check = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(check)
    folder = MODELS / "corpus" / "PUBLIC" / name
    given_T, given_O, start = check.load_model(str(folder), json.loads((folder / "meta.json").read_text()))
    found = read_pomdp(MODELS / "sources" / "pomdp_files" / REAL[name])
    assert np.abs(transitions(found) - [table.toarray() for table in given_T]).max() <= 1e-12
    assert np.abs(observations(found) - [table.toarray() for table in given_O]).max() <= 1e-12
    assert np.abs(found.model.belief().to_dense() - start / start.sum()).max() <= 1e-12


# ---- memory


@pytest.mark.parametrize("form", ["identity", "entries", "rows", "matrix"])
def test_no_dense_table_is_made(form, tmp_path):
    n = 2000
    text = {
        "identity": "T: *\nidentity\n",
        "entries": "".join(f"T: * : {s} : {s} 1.0\n" for s in range(n)),
        "rows": "".join(f"T: * : {s}\n{'0 ' * s}1{' 0' * (n - s - 1)}\n" for s in range(n)),
        "matrix": "T: *\n" + "".join(f"{'0 ' * s}1{' 0' * (n - s - 1)}\n" for s in range(n)),
    }[form]
    path = tmp_path / "large.pomdp"
    path.write_text(preamble(n, 3, 4) + text + "O: * : * : 0 1.0\n")
    del text
    read_pomdp(path)  # what is imported and cached the first time
    with Traced() as traced:
        found = read_pomdp(path)
    assert (found.model.transition(2) != found.model.transition(0)).nnz == 0
    assert found.model.transition(0).nnz == n
    assert traced.peak < 8 * n * n / 3


def test_states_in_thousands_of_millions_need_no_rows(read):
    with pytest.raises(am.CorruptData, match=r"state 1 to sum to 1"):
        read(preamble(states=2_000_000_000) + "T: * : 0 : 7 1\n")


# ---- malformed files

MALFORMED = {
    "nothing": ("", 1, "expected discount:, found the end of the file"),
    "only comments": ("# a\n# b\n", 3, "expected discount:, found the end of the file"),
    "not a section": ("hello\n", 1, "expected discount:, found 'hello'"),
    "no colon": ("discount 0.5", 1, "expected ':' after discount, found 0.5"),
    "discount of 2": ("\ndiscount: 2", 2, "expected a discount from 0 to 1, found 2"),
    "values of what": ("discount: 1\nvalues: money", 2, "expected reward or cost, found 'money'"),
    "no states": (preamble(states=""), 4,
        "expected how many states there are, or their names (not numbers), found 'actions'"),
    "no state": (preamble(states=0), 3, "expected 1 to 2,147,483,647 states, found 0"),
    "too many states": (preamble(states=10**30), 3, "expected 1 to 2,147,483,647 states, found 1e+30"),
    "half a state": (preamble(states=1.5), 3, "expected how many states there are"),
    "a number among names": (preamble("a b 3"), 3, "or their names (not numbers), found 3"),
    "a name twice": (preamble("a b a"), 3, "expected states of different names, found 'a'"),
    "a keyword as a name": (preamble("a T b"), 3, "expected actions:, found 'T'"),
    "a section twice": (preamble() + "states: 3", 6, "expected states: once, found it again"),
    "a section missing": (preamble(observations="").replace("observations: \n", "") + FILLED, 5,
        "expected observations:, found 'T'"),
    "a section late": (preamble() + FILLED + "start: 0", 10, "expected a statement (T:, O: or R:), found 'start'"),
    "start before states": ("start: uniform\n" + preamble(), 1, "expected states: before start:, found 'start'"),
    "start of a stranger": (preamble("a b", start="start: c"), 6, "expected a state: its name, or 0 to 1, found 'c'"),
    "start of all": (preamble(start="start include: *"), 6, "expected a state: 0 to 2, found '*'"),
    "start of none": (preamble("a b", start="start exclude: a\nb"), 6,
        "expected a state to start in, found all of them"),
    "start too short": (preamble(start="start: 0.5 0.5") + FILLED, 7, "start in each state, number 3 of 3, found 'T'"),
    "start off 1": (preamble(start="start: 0.5 0.4 0"), 6, "expected start to sum to 1 within 1e-05, found 0.9"),
    "start below 0": (preamble(start="start: 1.5 -0.5 0"), 6, "number 1 of 3, found 1.5"),
    "no statement": (preamble() + "0.5\n" + FILLED, 6, "expected a statement (T:, O: or R:), found 0.5"),
    "an unknown action": (preamble() + FILLED + "\nT: 2 : 0 : 0 1", 11, "expected an action: 0 to 1, or '*', found 2"),
    "an unknown state": (preamble("a b c") + FILLED + "T: 0 : d : 0 1", 10,
        "expected a state: its name, or 0 to 2, or '*', found 'd'"),
    "an unknown observation": (preamble() + FILLED + "O: 0 : 0 :\n\n5 1", 12,
        "expected an observation: 0 to 1, or '*', found 5"),
    "half an index": (preamble() + "T: 0 : 0.5 : 1 1", 6, "expected a state: 0 to 2, or '*', found 0.5"),
    "a negative index": (preamble() + "T: -1 identity", 6, "expected an action: 0 to 1, or '*', found -1"),
    "a probability of 2": (preamble() + "T: 0 : 0 : 0 1\nT: 0 : 0 : 1 2", 7, "expected a probability, found 2"),
    "a negative probability": (preamble() + FILLED + "T: 0 : 0 : 1 -0.5", 10, "expected a probability, found -0.5"),
    "a probability missing": (preamble() + "T: 0 : 0 : 0\nT: 0 : 1 : 1 1", 7, "expected a probability, found 'T'"),
    "no number": (preamble() + "T: 0 : 0 : 0 nan", 6, "expected a probability, found 'nan'"),
    "a row too short": (preamble() + "T: 0 : 0 0 1\nT: 0 : 1 uniform", 7,
        "expected a probability, number 3 of 3, found 'T'"),
    "a row too long": (preamble() + "T: 0 : 0 0 1 0 0\n", 6, "expected a statement (T:, O: or R:), found 0"),
    "a matrix too short": (preamble() + "T: 0\n1 0 0\n0 1 0\n0 0", 9, "number 9 of 9, found the end of the file"),
    "an identity that is none": (preamble() + "O: 0 identity", 6,
        "expected 3 x 2 probabilities or uniform, found 'identity'"),
    "an identity as row": (preamble() + "T: 0 : 0 identity", 6,
        "expected a probability, number 1 of 3, found 'identity'"),
    "an observation reset": (preamble() + "O: 0 : 0 reset", 6, "expected a probability, number 1 of 2, found 'reset'"),
    "a reward without states": (preamble() + FILLED + "R: 0 5", 10, "expected ':' and a state, found 5"),
    "an infinite reward": (preamble() + FILLED + "R: 0 : 0 : 0 : 0 1e999", 10, "expected a finite number, found inf"),
    "a fifth place": (preamble() + FILLED + "R: 0 : 0 : 0 : 0 : 0 1", 10, "expected a finite number, found ':'"),
    "a row off 1": (preamble("a b c", "go stay") + FILLED + "T: stay : c : 1\n0.5\n", 10,
                    "expected T of action 'stay', state 'c' to sum to 1 within 1e-05, found 1.5"),
    "a row of nothing": (preamble() + "T: 1 identity\n" + "O: * uniform\n", 8,
        "expected T of action 0, state 0 to sum to 1 within 1e-05, found 0"),
    "a row of zeros": (preamble(actions=1) + FILLED + "O: 0 : 1\n\n0 0\n#\n", 10,
        "expected O of action 0, state 1 to sum to 1"),
    "one row missing": (preamble(2, 1) + "T: 0 : 0 : 0 0.5\nT: 0 : 0 : 1 0.5\n", 8, "action 0, state 1 to sum to 1"),
    "a NUL": (preamble("a b\0c"), 3, r"expected actions:, found '\x00'"),
    "an image": (b"\x89PNG\r\n\x1a\n" + bytes(range(256)), 1, "expected discount:, found '\\\\x89PNG'"),
    "no spaces": (b"x" * (1 << 20), 1, "expected text, found a word of over 65,536 bytes"),
    "a long word": ("y" * 1000 + "\n", 1, f"expected discount:, found '{'y' * 40}...'"),
    "another encoding": (preamble().encode("utf-16"), 1, "expected discount:, found '\\\\xff"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_files_are_named_by_line(name, read, tmp_path):
    text, line, says = MALFORMED[name]
    with pytest.raises(am.CorruptData) as raised:
        read(text)
    message = str(raised.value)
    assert message.startswith(f"{tmp_path / 'some.pomdp'}:{line}: expected ")
    assert says in message
    assert len(message.splitlines()) == 1


def test_files_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_pomdp(tmp_path / "none.pomdp")
    with pytest.raises(IsADirectoryError):
        read_pomdp(tmp_path)


def test_wrong_options_are_those_of_a_model(read):
    with pytest.raises(TypeError, match="dtype int64"):
        read(preamble() + FILLED, dtype=np.int64)
    with pytest.raises(ValueError, match=r"row_tolerance=1\.5"):
        read(preamble() + FILLED, row_tolerance=1.5)


def test_damaged_files_raise_nothing_else(tmp_path):
    rng = random.Random(0)
    whole = (
        preamble("up down 3rd", "a b", "x y", start="start include: up 1") + "T: a\nidentity\nT: b : *\n0.5 0.5 0\n"
        "O: *\n1 0\n0 1\n0.5 .5\nO: a : up : x 1e0 # nothing new\nR: * : up : * : * -1.5\nR: a : down : 3rd\n1 2\n"
    ).encode()
    path = tmp_path / "damaged.pomdp"
    read_or_refused = {True: 0, False: 0}
    for _ in range(1000):
        text = bytearray(whole)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(text) + 1)
            length = rng.randint(0, 8)
            what = rng.randrange(4)
            if what == 0:
                del text[at : at + length]
            elif what == 1:
                text[at:at] = text[at : at + length]
            elif what == 2:
                text[at:at] = bytes(rng.choices(b"\n :#*TOR-+.ex\0\xff", k=length))
            else:
                text[at : at + 1] = bytes([rng.randrange(256)])
        path.write_bytes(text)
        try:
            found = read_pomdp(path)
        except am.CorruptData as error:
            assert str(error).startswith(f"{path}:") and len(str(error).splitlines()) == 1
            read_or_refused[False] += 1
        else:
            found.expected_rewards()
            read_or_refused[True] += 1
    assert min(read_or_refused.values()) > 0


def test_rows_written_over_leave_nothing_behind(read):
    """The usual way to change some rows of an identity, at a size where dense rows would show."""
    n = 2_000
    rows = "".join(f"T: 0 : {k} : * 0\nT: 0 : {k} : {(k + 1) % n} 1\n" for k in range(n))
    tracemalloc.start()
    found = read(preamble(n, 1, 1) + "O: * uniform\nT: * identity\n" + rows)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * n * n / 10
    T = found.model.transition(0)
    assert T.nnz == n and (T.indices == (np.arange(n) + 1) % n).all()


def test_a_mark_of_encoding_is_no_word(tmp_path):
    path = tmp_path / "marked.pomdp"
    path.write_bytes(b"\xef\xbb\xbf" + (preamble() + FILLED).encode())
    assert read_pomdp(path).model.n_states == 3
