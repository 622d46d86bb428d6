"""An operation is measured as it is: blocks, functions, generators and coroutines, traced or not."""

import asyncio
import inspect
import threading
import time
import tracemalloc
from contextlib import ExitStack

import numpy as np
import pytest

from agentmem.profiler import Operation, Profiler
from agentmem.profiler.process import peak_rss, rss
from agentmem.profiler.tracing import TRACING
from reference import run_alone

MIB = 2**20


def near(found, expected, within=0.01):
    return abs(found - expected) <= within * expected + 5_000


def test_peak_and_what_stays(tracing):
    operation, kept = Operation("build"), []
    with operation:
        temporary = np.zeros(8 * MIB, np.uint8)
        kept.append(np.zeros(3 * MIB, np.uint8))
        del temporary
    record = operation.record
    assert (record.name, record.calls, record.measured) == ("build", 1, "traced")
    assert near(record.peak, 11 * MIB) and near(record.retained, 3 * MIB)
    assert record.seconds == record.longest > 0


def test_blocks_in_blocks_have_their_own_peaks(tracing):
    outer, inner = Operation("outer"), Operation("inner")
    with outer:
        first = np.zeros(4 * MIB, np.uint8)
        with inner:
            np.zeros(8 * MIB, np.uint8)
        del first
        with inner:
            np.zeros(2 * MIB, np.uint8)
    assert near(inner.record.peak, 8 * MIB) and inner.record.calls == 2
    assert near(outer.record.peak, 12 * MIB)
    assert outer.record.seconds >= inner.record.seconds


def test_a_name_within_itself(tracing):
    operation = Operation("again")

    @operation
    def down(n):
        block = np.zeros(MIB, np.uint8)
        return len(block) + (down(n - 1) if n else 0)

    assert down(3) == 4 * MIB
    record = operation.record
    assert record.calls == 4 and record.seconds == record.longest  # the outer ones have the inner ones in them
    assert near(operation.record.peak, 4 * MIB)


def test_threads_have_their_own_blocks():
    operation, inside = Operation("both"), threading.Barrier(2)

    def work():
        with operation:
            inside.wait(10)
            time.sleep(0.02)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    record = operation.record
    assert record.calls == 2 and record.seconds > 0.04  # none of them lies in the other


def test_what_calls_itself_counts_once():
    operation = Operation("both")

    @operation
    def walk(depth):
        time.sleep(0.01)
        yield depth
        if depth:
            yield from walk(depth - 1)

    began = time.perf_counter()
    assert list(walk(5)) == [5, 4, 3, 2, 1, 0]
    passed = time.perf_counter() - began
    record = operation.record
    assert record.calls == 6 and 0.06 < record.longest <= record.seconds < passed


def test_a_task_that_outlives_the_block_it_began_in_counts():
    operation = Operation("both")

    async def work():
        with operation:
            await asyncio.sleep(0.03)

    async def main():
        with operation:
            task = asyncio.create_task(work())
            await asyncio.sleep(0)  # it has begun
        await task

    asyncio.run(main())
    assert operation.record.calls == 2 and operation.record.seconds >= operation.record.longest >= 0.03


def walked(operation):
    with operation:
        yield 1
        yield 2


def test_a_block_of_a_generator_ends_on_another_thread(tracing):
    operation, raised = Operation("both"), []

    def close(*walks):
        try:
            with operation:  # which is not what ends
                for walk in walks:
                    walk.close()
                time.sleep(0.02)
        except BaseException as error:
            raised.append(error)

    walks = [walked(operation), walked(operation)]
    for walk in walks:
        next(walk)
    thread = threading.Thread(target=close, args=walks)
    thread.start()
    thread.join()
    assert raised == [] and operation.record.calls == 3 and operation.record.longest >= 0.02
    assert operation._open == []


def test_a_block_of_an_async_generator_ends_in_another_task(tracing):
    operation = Operation("both")

    async def walk():
        with operation:
            yield 1
            yield 2

    async def main():
        with operation:
            async for _ in walk():
                break
            await asyncio.sleep(0.01)
            time.sleep(0.03)

    asyncio.run(main())
    record = operation.record
    assert record.calls == 2 and record.longest >= 0.03 and record.seconds >= record.longest


def test_a_block_of_an_exit_stack_ends():
    operation = Operation("both")
    with ExitStack() as stack:
        stack.enter_context(operation)
        stack.enter_context(operation)
    assert operation.record.calls == 2 and operation._open == []


def test_tracing_that_begins_anew_forgets_its_peak():
    operation = Operation("both")
    tracemalloc.start()
    kept = np.ones(40 * MIB, np.uint8)
    assert TRACING.highest() >= 40 * MIB
    with operation:
        kept = None
        tracemalloc.stop()
        tracemalloc.start()
        assert TRACING.highest() < MIB
    tracemalloc.stop()
    assert kept is None and operation.record.retained == 0


def test_methods_of_all_kinds():
    operation = Operation("both")

    class Robot:
        @operation
        @staticmethod
        def plan(x):
            return x

        @operation
        @classmethod
        def make(cls):
            return cls()

    assert (Robot.plan(3), type(Robot.make())) == (3, Robot)
    assert operation.record.calls == 2


def test_the_peak_of_a_snapshot_survives_the_reset(tracing):
    np.zeros(16 * MIB, np.uint8)
    with Operation("small"):
        pass
    assert TRACING.highest() >= 16 * MIB
    assert Profiler().snapshot().traced.peak >= 16 * MIB


# ---- decorated


def test_a_function_is_what_it_was():
    operation = Operation("f")

    @operation
    def double(x, *, by=2):
        """Doubles."""
        return by * x

    assert double(3) == 6 and double(3, by=3) == 9
    assert (double.__name__, double.__doc__) == ("double", "Doubles.")
    assert list(inspect.signature(double).parameters) == ["x", "by"]
    assert operation.record.calls == 2


def test_what_raises_counts():
    operation = Operation("f")

    @operation
    def fail():
        raise KeyError("x")

    with pytest.raises(KeyError):
        fail()
    assert operation.record.calls == 1
    with operation:
        pass
    assert operation.record.calls == 2


def test_a_generator_counts_while_it_runs(tracing):
    operation, got = Operation("g"), []

    @operation
    def numbers(n):
        held = []
        for k in range(n):
            held.append(np.zeros(MIB, np.uint8))
            got.append((yield k))
        return "end"

    assert inspect.isgeneratorfunction(numbers)
    began, made = time.perf_counter(), numbers(3)
    assert next(made) == 0
    between = np.zeros(32 * MIB, np.uint8)  # while it waits
    time.sleep(0.2)
    assert made.send("a") == 1 and made.send("b") == 2
    assert operation.record.calls == 0  # it goes on
    with pytest.raises(StopIteration) as stop:
        made.send("c")
    assert stop.value.value == "end" and got == ["a", "b", "c"]
    record = operation.record
    assert record.calls == 1 and record.seconds < time.perf_counter() - began - 0.2
    assert near(record.peak, 3 * MIB) and record.retained < MIB
    assert between.nbytes == 32 * MIB


def test_a_generator_hears_what_is_thrown_and_closed():
    operation, heard = Operation("g"), []

    @operation
    def stubborn():
        while True:
            try:
                yield len(heard)
            except ValueError as error:
                heard.append(str(error))
            except GeneratorExit:
                heard.append("closed")
                raise

    made = stubborn()
    next(made)
    assert made.throw(ValueError("v")) == 1
    made.close()
    assert heard == ["v", "closed"] and operation.record.calls == 1


def test_a_coroutine_counts_while_it_runs(tracing):
    operation = Operation("c")

    @operation
    async def fetch(n):
        block = np.zeros(n * MIB, np.uint8)
        await asyncio.sleep(0.2)
        return len(block)

    async def main():
        return await asyncio.gather(fetch(1), fetch(2))

    assert inspect.iscoroutinefunction(fetch)
    began = time.perf_counter()
    assert asyncio.run(main()) == [MIB, 2 * MIB]
    record = operation.record
    assert record.calls == 2 and record.seconds < time.perf_counter() - began - 0.1
    assert near(record.peak, 2 * MIB, 0.05)


def test_blocks_of_tasks_are_their_own():
    operation = Operation("c")

    async def work(seconds):
        with operation:
            await asyncio.sleep(seconds)

    async def main():
        await asyncio.gather(work(0.2), work(0.05))

    asyncio.run(main())
    assert operation.record.calls == 2
    assert operation.record.seconds > 0.24  # of both: neither is within the other


def test_a_coroutine_is_cancelled_and_fails_as_it_would():
    operation, heard = Operation("c"), []

    @operation
    async def wait():
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            heard.append("cancelled")
            raise

    async def main():
        task = asyncio.create_task(wait())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())
    assert heard == ["cancelled"] and operation.record.calls == 1


async def many():
    yield 1


@pytest.mark.parametrize("work", [many, Profiler, 3, None], ids=str)
def test_what_cannot_be_decorated_is_refused(work):
    with pytest.raises(TypeError, match="expected a function"):
        Operation("x")(work)


# ---- without tracing


def without_tracing():
    operation, kept = Operation("rss"), []
    with operation:
        temporary = np.ones(64 * MIB, np.uint8)
        kept.append(np.ones(32 * MIB, np.uint8))
        del temporary
    record = operation.record
    assert record.measured == "rss"
    assert 96 * MIB * 0.99 <= record.peak <= 96 * MIB * 1.05, record
    assert 32 * MIB * 0.99 <= record.retained <= 32 * MIB * 1.05, record
    assert peak_rss() >= rss()
    with (lower := Operation("below what the process had")):
        np.ones(MIB, np.uint8)
    assert lower.record.calls == 1 and lower.record.peak is None  # not 0: it took a MiB
    with lower:
        np.ones(256 * MIB, np.uint8)
    assert lower.record.peak >= 256 * MIB * 0.5
    known = lower.record.peak
    with lower:
        pass
    assert lower.record.peak == known
    with lower:
        kept.append(np.ones(250 * MIB, np.uint8))
        more = np.ones(250 * MIB, np.uint8)
    with Operation("after") as after:
        del more
    assert after.record.peak is None

    @after
    def walk():
        kept.append(np.ones(400 * MIB, np.uint8))  # it is seen how high this goes
        yield
        kept.append(np.ones(MIB, np.uint8))
        kept.pop(-2)
        yield
        kept.append(np.ones(300 * MIB, np.uint8))  # and not how high this does

    list(walk())
    assert after.record.peak is None and after.record.retained > 300 * MIB  # not the peak of a part of it


def test_without_tracing_it_is_the_process():
    run_alone(without_tracing)


def test_tracing_that_ends_meanwhile_counts_no_memory():
    tracemalloc.start()
    operation = Operation("x")
    with operation:
        kept = np.zeros(MIB, np.uint8)
        tracemalloc.stop()
    assert operation.record.retained == 0 and len(kept) == MIB


def test_a_profiler_has_one_operation_of_a_name():
    profiler = Profiler()
    with profiler.profile_operation("step"):
        pass
    with profiler.profile_operation("step"):
        pass
    assert [record.calls for record in profiler.profile().operations] == [2]
