"""Borrowed arrays are apart from each other while they last, lent again when they are over, and watched if asked."""

import contextlib
import gc
import threading
import weakref

import numpy as np
import pytest

import agentmem as am
from agentmem import scratch as module
from agentmem.scratch import ScratchMisuse

both = pytest.mark.parametrize("checked", [False, True], ids=["plain", "checked"])


@pytest.fixture
def scratch():
    return am.Scratch(checked=False)


@pytest.fixture
def checked():
    return am.Scratch(checked=True)


def address(array):
    return array.ctypes.data


# ---- what is lent


@both
@pytest.mark.parametrize("shape", [0, 7, (), (3, 0), (3, 4), (2, 3, 5), np.int64(6)])
@pytest.mark.parametrize("dtype", ["f8", "f4", "i1", "?", "c16", [("x", "f4"), ("n", "i8")], "M8[s]", "S3"])
def test_an_array_is_as_asked(shape, dtype, checked):
    scratch = am.Scratch(checked=checked)
    for _ in range(2):  # a new buffer, and one lent again
        with scratch.borrow(shape, dtype) as a:
            expected = np.zeros(shape, dtype)
            assert (a.shape, a.dtype) == (expected.shape, expected.dtype)
            assert a.flags.c_contiguous and a.flags.writeable and a.flags.aligned
            a[...] = expected
            assert a.tobytes() == expected.tobytes()


def test_float64_unless_told(scratch):
    with scratch.borrow(3) as a:
        assert a.dtype == np.float64


@pytest.mark.parametrize("dtype", [object, [("x", object)]])
def test_objects_are_refused(scratch, dtype):
    with pytest.raises(TypeError, match="without Python objects"):
        scratch.borrow(3, dtype)


@both
@pytest.mark.parametrize("shape", [-1, (3, -1), 2.5, "x"])
def test_what_is_no_shape_is_refused(shape, checked):
    scratch = am.Scratch(checked=checked)
    with pytest.raises((TypeError, ValueError)), scratch.borrow(shape):
        pass
    assert scratch.nbytes == scratch.release() == 0


# ---- who has which buffer


def borrowed_at(scratch, shape, dtype="f8"):
    with scratch.borrow(shape, dtype) as a:
        return address(a)


@both
def test_a_buffer_is_lent_again(checked):
    scratch = am.Scratch(checked=checked)
    first = borrowed_at(scratch, 1000)
    assert borrowed_at(scratch, 1000) == borrowed_at(scratch, (20, 50)) == borrowed_at(scratch, 2000, "f4") == first
    assert borrowed_at(scratch, 10) == first
    assert scratch.nbytes == 8000


def test_a_name_that_stays_is_no_second_owner(scratch):
    with scratch.borrow(1000) as a:
        first = address(a)
    with scratch.borrow(1000) as b:
        assert address(b) == first


@both
def test_nested_arrays_are_apart(checked):
    scratch = am.Scratch(checked=checked)
    for _ in range(3):
        with contextlib.ExitStack() as stack:
            arrays = [stack.enter_context(scratch.borrow(n)) for n in (10, 1000, 10, 500)]
            for k, array in enumerate(arrays):
                array.fill(k)
            assert [set(array) for array in arrays] == [{0}, {1}, {2}, {3}]
            arrays.clear()
            del array
    assert scratch.nbytes == 8 * 1520


def test_the_smallest_that_fits_is_lent(scratch):
    with scratch.borrow(100) as a, scratch.borrow(1000) as b, scratch.borrow(500) as c:
        small, large, middle = address(a), address(b), address(c)
    assert borrowed_at(scratch, 400) == middle
    assert borrowed_at(scratch, 600) == large
    assert borrowed_at(scratch, 100) == small


@both
def test_the_four_largest_are_kept(checked):
    scratch = am.Scratch(checked=checked)
    with contextlib.ExitStack() as stack:
        for n in (600, 100, 500, 200, 400, 300):
            stack.enter_context(scratch.borrow(n, "u1"))
    assert scratch.nbytes == 600 + 500 + 400 + 300
    assert module.KEPT == 4


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a[5:],
        lambda a: a.reshape(2, -1).T[::2],
        lambda a: memoryview(a),
        lambda a: a.view("u1")[3:4],
        lambda a: a,
        lambda a: iter(a),
    ],
)
def test_what_is_still_viewed_is_not_lent_again(scratch, view):
    with scratch.borrow(100) as a:
        a.fill(1)
        kept = view(a)
    assert scratch.nbytes == 0
    with scratch.borrow(100) as b:
        b.fill(2)
        assert set(a) == {1}
    del kept


def test_after_an_exception_buffers_are_lent_again(scratch):
    def fail():
        with scratch.borrow(100):
            raise KeyError

    for _ in range(3):
        with pytest.raises(KeyError):
            fail()
        assert scratch.nbytes == 800


def test_release_frees_what_is_kept(scratch):
    with scratch.borrow(100):
        borrowed_at(scratch, 50)
        assert scratch.release() == 400
        assert scratch.nbytes == 0
    assert scratch.release() == 800
    assert scratch.nbytes == 0


@both
def test_a_scratch_goes_with_its_buffers(checked):
    scratch = am.Scratch(checked=checked)
    with scratch.borrow(100) as a:
        gone = weakref.ref(a.base)
    del a
    assert gone() is not None
    gc.disable()
    try:
        del scratch
        assert gone() is None
    finally:
        gc.enable()


# ---- threads


@both
def test_threads_share_no_buffer(checked):
    scratch, start, wrong = am.Scratch(checked=checked), threading.Barrier(6), []

    def run(k):
        start.wait()
        for step in range(300):
            with scratch.borrow(50 + step % 7) as a, scratch.borrow(20) as b:
                a.fill(k)
                b.fill(-k)
                if (a != k).any() or (b != -k).any():
                    wrong.append(k)
        start.wait()
        start.wait()

    threads = [threading.Thread(target=run, args=(k,)) for k in range(1, 6)]
    for thread in threads:
        thread.start()
    start.wait()
    start.wait()
    assert scratch.nbytes >= 5 * 8 * 76
    assert scratch.release() >= 5 * 8 * 76
    start.wait()
    for thread in threads:
        thread.join()
    assert not wrong


def test_what_a_thread_keeps_goes_with_it(scratch):
    thread = threading.Thread(target=borrowed_at, args=(scratch, 100))
    thread.start()
    thread.join()
    gc.collect()
    assert scratch.nbytes == 0
    borrowed_at(scratch, 100)
    assert scratch.nbytes == 800


def test_threads_borrow_while_another_releases(scratch):
    start, wrong = threading.Barrier(4), []

    def run(k):
        start.wait()
        for _ in range(500):
            with scratch.borrow(30) as a:
                a.fill(k)
                wrong.extend({*a} - {k})

    threads = [threading.Thread(target=run, args=(k,)) for k in range(3)]
    for thread in threads:
        thread.start()
    start.wait()
    while any(thread.is_alive() for thread in threads):
        scratch.release()
    for thread in threads:
        thread.join()
    assert not wrong


# ---- misuse


@both
def test_a_loan_is_given_back_once(checked):
    scratch = am.Scratch(checked=checked)
    loan = scratch.borrow(10)
    with pytest.raises(ScratchMisuse, match="before it began"):
        loan.__exit__(None, None, None)
    with loan, pytest.raises(ScratchMisuse, match="begun twice"):
        loan.__enter__()
    with pytest.raises(ScratchMisuse, match="ended twice"):
        loan.__exit__(None, None, None)
    with pytest.raises(ScratchMisuse, match="begun twice"), loan:
        pass
    assert scratch.nbytes == 80


def test_what_was_given_back_is_no_number_and_read_only(checked):
    with checked.borrow(10) as a, checked.borrow(10, "i4") as n:
        a.fill(0)
        n.fill(0)
    assert np.isnan(a).all() and set(n) == {-1}
    with pytest.raises(ValueError, match="read-only"):
        a[0] = 1
    with checked.borrow(10) as b:
        b.fill(3)
        assert np.isnan(a).all()


@pytest.mark.parametrize("then", ["borrow", "release", "five more"])
def test_a_write_after_the_end_is_found(checked, then):
    with checked.borrow(10) as a:
        place = address(a)
    loan = next(iter(checked._own.shelf))
    del a
    assert address(loan.buffer) == place
    loan.buffer[17] = 0  # as compiled code would that kept the pointer
    with pytest.raises(ScratchMisuse, match=rf"written to after .* the array of {__file__}:\d+"):
        if then == "borrow":
            borrowed_at(checked, 10)
        elif then == "release":
            checked.release()
        else:
            with contextlib.ExitStack() as stack:
                for _ in range(5):
                    stack.enter_context(checked.borrow(11))
    borrowed_at(checked, 10)
    checked.release()
    assert checked.nbytes == 0


@pytest.mark.parametrize("view", [lambda a: a[1:], lambda a: a, memoryview], ids=["view", "name", "memoryview"])
def test_what_stays_in_use_is_found(checked, view):
    with pytest.raises(ScratchMisuse, match=rf"at its end: the array of {__file__}:\d+"), checked.borrow(10) as a:
        kept = view(a)
    assert np.isnan(np.asarray(kept)).all()
    assert checked.nbytes == 0
    checked.release()


def test_an_exception_is_not_covered_up(checked):
    with pytest.raises(KeyError), checked.borrow(10) as a:
        kept = a[1:]
        raise KeyError
    assert np.isnan(kept).all() and checked.nbytes == 0


def test_a_leak_is_found(checked):
    checked.borrow(5).__enter__()
    gc.collect()
    borrowed_at(checked, 20)
    with pytest.raises(ScratchMisuse, match=rf"1 borrowed and never given back: {__file__}:\d+"):
        checked.release()
    assert checked.nbytes == 0


@pytest.mark.parametrize("value, expected", [("1", True), ("0", False), (None, False)])
def test_the_environment_asks_for_checks(monkeypatch, value, expected):
    monkeypatch.delenv("AGENTMEM_CHECKED", raising=False)
    if value is not None:
        monkeypatch.setenv("AGENTMEM_CHECKED", value)
    assert am.Scratch().checked is expected
    assert am.Scratch(checked=not expected).checked is not expected
