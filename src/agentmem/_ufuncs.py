"""NumPy's ufuncs on sparse arrays (NEP 13).

What maps zero to zero gives a sparse result; the rest is computed dense. That is judged on the operation and
the kinds of its operands, not on values. Where the values of a dense operand make a zero cell non-zero
(0 / 0, 0 * inf), that cell is found and stored, so that the numbers are NumPy's everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from math import isfinite, prod
from typing import Any

import numpy as np

from agentmem._core import CoreArray, alike, entrywise, entrywise_into, moment_of, one_writer, reduce_stored
from agentmem._positions import broadcast_pairs, cells_at, coordinates, flatten, merge, normalize_axes

STORABLE = frozenset("?bBhHiIlLqQefd")  # the dtypes that an array may keep
AS_GIVEN = (CoreArray, np.ndarray, np.generic, bool, int, float)  # to a ufunc; a list is made an array
NUMPYS_OWN = frozenset({np.ndarray, bool, int, float, *np.sctypeDict.values()})
NEARLY_DENSE = 8  # cells to an entry, up to which dense copies are faster than merged positions
WORTH_GROUPING = 64  # the same, for sums along an axis
MOST_FACTS = 64  # about views of a read-only array
PROBE_CELLS = 2048  # of a dense operand, looked at in one go
ORDER_FREE = {
    np.add, np.multiply, np.maximum, np.minimum, np.fmax, np.fmin,
    np.logical_and, np.logical_or, np.logical_xor, np.bitwise_and, np.bitwise_or, np.bitwise_xor,
}  # fmt: skip


def most_derived(operands: Iterable[Any]) -> Any:
    """The class that a result of these operands takes: of its sparse ones, the most derived."""
    cls: type | None = None
    for operand in operands:
        if isinstance(operand, CoreArray) and (cls is None or issubclass(type(operand), cls)):
            cls = type(operand)
    return cls


def densify(value: Any) -> Any:
    """The same argument with every sparse array in it as an ndarray."""
    if isinstance(value, CoreArray):
        return value.to_dense()
    if type(value) in (list, tuple):
        return type(value)(densify(v) for v in value)
    if type(value) is dict:
        return {k: densify(v) for k, v in value.items()}
    return value


def call_dense(function: Callable[..., Any], args: Any, kwargs: Any, changed: Iterable[Any] = ()) -> Any:
    """What `function` returns on dense copies; the arguments that are in `changed` take its changes."""
    sparse = {id(x): x for x in changed if isinstance(x, CoreArray)}
    dense = {key: x.to_dense() for key, x in sparse.items()}
    original = {id(d): sparse[key] for key, d in dense.items()}

    def swap(value: Any) -> Any:
        if type(value) is tuple:
            return tuple(swap(v) for v in value)
        return dense[id(value)] if id(value) in dense else densify(value)

    result = function(*[swap(a) for a in args], **{k: swap(v) for k, v in kwargs.items()})
    for key, x in sparse.items():
        x._set_cells(x.shape, dense[key].reshape(-1))
    if type(result) is tuple:
        return tuple(original.get(id(r), r) for r in result)
    return original.get(id(result), result)


# ---- does it map zero to zero?


def kind_of(operand: Any) -> Any:
    """What the rule may know of an operand: its dtype, or the type of a Python number."""
    if isinstance(operand, CoreArray):
        return ("sparse", operand.dtype)
    if type(operand) in (bool, int, float):
        return type(operand)
    if isinstance(operand, (np.ndarray, np.generic)) and operand.dtype.char in STORABLE:
        return operand.dtype
    return None


@lru_cache(4096)
def maps_zero_to_zero(ufunc: np.ufunc, kinds: tuple[Any, ...]) -> bool:
    return probe_zero(ufunc, kinds, {})


def probe_zero(ufunc: np.ufunc, kinds: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether every output is zero where the sparse operands are, for ordinary values of the other one."""

    def operand(kind: Any, value: int) -> Any:
        if type(kind) is tuple:
            return np.zeros(1, kind[1])
        return kind(value) if isinstance(kind, type) else np.full(1, value, kind)

    if len(kinds) > 2 or any(kind is None for kind in kinds):  # float64 == None
        return False
    try:
        with np.errstate(all="ignore"):
            return not any(
                np.any(out)
                for value in (1, 2)
                for out in outputs(ufunc(*[operand(k, value) for k in kinds], **options))
            )
    except Exception:
        return False  # no such loop: dense NumPy raises what it raises


def outputs(result: Any) -> tuple[Any, ...]:
    return result if type(result) is tuple else (result,)


class Content(bytes):
    """The memory of ndarrays that nobody can write to, so that what was found out about it stays true."""

    def __init__(self, _: bytes) -> None:
        self.harmless: dict[Any, bool] = {}


def is_harmless_number(ufunc: np.ufunc, y: Any) -> bool:
    """True if certainly ``ufunc(0, y)`` is zero, for a second operand."""
    if not isinstance(y, float | np.floating):
        return False
    if ufunc is np.multiply:
        return isfinite(y)
    return bool(y > 0) if ufunc is np.true_divide or ufunc is np.greater else False


def is_harmless(ufunc: np.ufunc, y: Any) -> bool:
    """A quick look at all of `y`: True if certainly no ``ufunc(0, y)`` is non-zero."""
    owner = y
    while type(owner) is np.ndarray:
        owner = owner.base
    if type(owner) is not Content:
        return looks_harmless(ufunc, y)
    key = ufunc, y.dtype, y.shape, y.strides, y.__array_interface__["data"][0]
    known = owner.harmless.get(key)
    if known is None:
        if len(owner.harmless) >= MOST_FACTS:
            owner.harmless.clear()
        known = owner.harmless[key] = looks_harmless(ufunc, y)
    return known


def looks_harmless(ufunc: np.ufunc, y: Any) -> bool:
    if ufunc is np.multiply:
        with np.errstate(all="ignore"):  # the sum of finite cells may overflow: then each cell is looked at
            return y.dtype.kind != "f" or bool(np.isfinite(y.sum()))
    return ufunc is np.true_divide and y.size > 0 and bool(y.min() > 0)


def in_chunks(y: Any, shape: tuple[int, ...]) -> Iterator[Any]:
    """The cells of `y` broadcast to `shape`, in C order, a few at a time."""
    if y.shape == shape and y.flags.c_contiguous:
        flat = y.reshape(-1)
        return (flat[i : i + PROBE_CELLS] for i in range(0, y.size, PROBE_CELLS))
    flags: Any = ["external_loop", "buffered", "zerosize_ok"]
    return iter(np.nditer(np.broadcast_to(y, shape), flags, order="C", buffersize=PROBE_CELLS))


def nonzero_off_support(
    ufunc: np.ufunc, operands: tuple[Any, ...], y: Any, shape: tuple[int, ...], options: dict[str, Any]
) -> Any:
    """Positions where `ufunc` of zero and the ndarray `y` is not zero. O(size) time, little memory."""
    if not options and is_harmless(ufunc, y):
        return np.zeros(0, np.intp)
    zero = [x.dtype.type(0) if isinstance(x, CoreArray) else None for x in operands]
    found, start = [], 0
    for chunk in in_chunks(y, shape):
        results = outputs(ufunc(*[chunk if z is None else z for z in zero], **options))
        found += [start + np.flatnonzero(result) for result in results if np.count_nonzero(result)]
        start += len(chunk)
    positions = np.zeros(0, np.intp)
    return merge(positions, np.concatenate(found)) if found else positions


# ---- elementwise


def elementwise(
    ufunc: np.ufunc, inputs: tuple[Any, ...], out: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """The sparse result of a ufunc that maps zero to zero; None if it has to be computed dense."""
    operands = tuple([x if isinstance(x, AS_GIVEN) else np.asarray(x) for x in inputs])
    kinds = tuple(map(kind_of, operands))
    if "where" in options or not (probe_zero(ufunc, kinds, options) if options else maps_zero_to_zero(ufunc, kinds)):
        return None
    if any([o is not None and not isinstance(o, CoreArray) for o in out]):
        return None
    shapes = {getattr(x, "shape", ()) for x in operands} - {()}
    shape = shapes.pop() if len(shapes) == 1 else np.broadcast_shapes(*shapes)
    if shape == () or any([o is not None and o.shape != shape for o in out]):
        return None
    cls = most_derived(operands)
    lent = {id(x): moment_of(x) for x in operands if isinstance(x, CoreArray) and not any([x is o for o in out])}
    operands = tuple([lent.get(id(x), x) for x in operands])
    sparse = [x for x in operands if isinstance(x, CoreArray)]
    if len(sparse) > 1:
        operands = uniform_as_numbers(operands, shape, out)
        sparse = [x for x in operands if isinstance(x, CoreArray)]
    off_support: list[Any] = []
    for x in operands if any([x.nnz < x.size for x in sparse]) else ():
        if isinstance(x, np.ndarray) and x.ndim:
            off_support.append(nonzero_off_support(ufunc, operands, x, shape, options))
        elif not isinstance(x, CoreArray) and (
            options or x is not operands[-1] or not is_harmless_number(ufunc, x)
        ):
            # A number: one look tells of all cells.
            zeros = [np.zeros(1, y.dtype) if isinstance(y, CoreArray) else y for y in operands]
            if any(np.count_nonzero(r) for r in outputs(ufunc(*zeros, **options))):
                return None if out else rebuild(ufunc, operands, options, cls)
    if not any(map(len, off_support)):
        made = where_stored(ufunc, operands, sparse, shape, out, options, cls)
        if made is not None:
            return made
    if any(x.storage in ("dense", "uniform") or x.nnz * NEARLY_DENSE > x.size for x in sparse):
        return None if out else rebuild(ufunc, operands, options, cls)
    pairs = [broadcast_pairs(x, shape) if isinstance(x, CoreArray) else None for x in operands]
    supports = [pair[0] for pair in pairs if pair is not None] + off_support
    support = supports[0]
    for other in supports[1:]:
        if len(other) and not np.array_equal(support, other):
            support = merge(support, other)
    cells = []
    for x, pair in zip(operands, pairs, strict=True):
        if pair is not None:
            cells.append(pair[1] if pair[0] is support else cells_at(*pair, support))
        elif isinstance(x, np.ndarray) and x.ndim:
            cells.append(x.reshape(-1)[support] if x.shape == shape and x.flags.c_contiguous
                         else np.broadcast_to(x, shape)[coordinates(support, shape)])  # fmt: skip
        else:
            cells.append(x)
    if out:
        n = len(support)
        options = {**options, "out": tuple(None if o is None else np.empty(n, o.dtype) for o in out)}
    results = outputs(ufunc(*cells, **options))
    if any(r.dtype.char not in STORABLE for r in results):
        return None
    made = []
    for r, target in zip(results, out or (None,) * len(results), strict=True):
        if target is None:
            made.append(cls._from_pairs(shape, support, r))
        else:
            target._become(shape, support, r)
            made.append(target)
    return made[0] if len(made) == 1 else tuple(made)


def uniform_as_numbers(operands: tuple[Any, ...], shape: tuple[int, ...], out: tuple[Any, ...]) -> tuple[Any, ...]:
    """The operands with what is the same in every cell as a number, beside an array that is not."""
    arrays = [x for x in operands if isinstance(x, CoreArray)]
    if any(x.shape != shape for x in arrays) or all(x.storage == "uniform" for x in arrays):
        return operands
    return tuple(
        x._lookup(np.zeros(1, np.intp))[0]
        if isinstance(x, CoreArray) and x.storage == "uniform" and not any(x is o for o in out)
        else x
        for x in operands
    )


def where_stored(
    ufunc: np.ufunc,
    operands: tuple[Any, ...],
    arrays: list[CoreArray],
    shape: tuple[int, ...],
    out: tuple[Any, ...],
    options: dict[str, Any],
    cls: Any,
) -> Any:
    """The result where all arrays among the operands have their values in the same places; None where they have not."""
    if any([x.shape != shape for x in arrays]) or not all([alike(arrays[0], x) for x in arrays[1:]]):
        return None
    given: list[Any] = []
    for x in operands:
        if isinstance(x, np.ndarray) and x.ndim:
            is_plain = x.shape == shape and x.flags.c_contiguous and x.flags.aligned and x.dtype.isnative
            if not is_plain or arrays[0].storage == "uniform":
                return None
            x = x.reshape(-1)
        given.append(x)
    if len(out) == 1 and any([out[0] is x for x in arrays]):
        entrywise_into(ufunc, tuple(given), options, out[0])
        return out[0]
    made = None if out else entrywise(ufunc, tuple(given), options, cls)
    return made if made is None or len(made) > 1 else made[0]


def rebuild(ufunc: np.ufunc, operands: tuple[Any, ...], options: dict[str, Any], cls: Any) -> Any:
    """The same result through dense arrays: for when hardly a cell stays zero."""
    results = outputs(ufunc(*densify(operands), **options))
    if any(r.dtype.char not in STORABLE for r in results):
        return None
    made = tuple(cls._from_cells(r) for r in results)
    return made[0] if len(made) == 1 else made


# ---- reductions


@lru_cache(4096)
def reduced_zero(ufunc: np.ufunc, dtype: Any, reduced: Any) -> Any:
    """What zeros are reduced to."""
    return ufunc.reduce(np.zeros(1, dtype), dtype=reduced)


def reduce_entries(
    ufunc: np.ufunc, x: CoreArray, axis: Any = 0, dtype: Any = None, keepdims: bool = False, **initial: Any
) -> Any:
    """``ufunc.reduce`` over the entries, and a zero where cells are missing; None to compute it dense."""
    if ufunc not in ORDER_FREE or x.size == 0 or x.ndim == 0:
        return None
    x = moment_of(x)
    axes = normalize_axes(axis, x.ndim)
    zero = reduced_zero(ufunc, x.dtype, dtype)
    if len(axes) == x.ndim:
        stored = reduce_stored(ufunc, x, dtype) + [zero] * (x.nnz < x.size)
        result = ufunc.reduce(np.array(stored, zero.dtype), dtype=dtype, **initial)
        return np.reshape(result, (1,) * x.ndim) if keepdims else result
    if x.nnz * WORTH_GROUPING > x.size:
        return None
    shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
    n_kept = prod(shape)
    n_reduced = x.size // n_kept
    values = x.values
    out = np.full(n_kept, zero)
    if len(values):
        group, order, starts = group_entries(x, shape)
        wide = np.float64 if ufunc is np.add and zero.dtype.kind == "f" else dtype  # reduceat sums naively
        parts = ufunc.reduceat(values[order], starts, dtype=wide)
        counts = np.diff(starts, append=len(values))
        out[group[order[starts]]] = np.where(counts < n_reduced, ufunc(parts, zero), parts)
    out = out.reshape(shape)
    if initial:
        out = ufunc.reduce(out[None], axis=0, dtype=out.dtype, **initial)
    return out if keepdims else out.reshape(tuple(n for a, n in enumerate(x.shape) if a not in axes))


def group_entries(x: CoreArray, shape: tuple[int, ...]) -> tuple[Any, Any, Any]:
    """The cell of `shape` each entry is reduced into; an order that sorts by it; where each group starts."""
    coords = [c if n > 1 else 0 for c, n in zip(coordinates(x.indices, x.shape), shape, strict=True)]
    group = flatten(coords, shape, x.nnz)
    order = np.argsort(group, kind="stable")
    is_start = np.ones(len(order), np.bool)
    is_start[1:] = np.diff(group[order]) != 0
    return group, order, np.flatnonzero(is_start)


def contract(a: Any, b: Any) -> Any:
    """``a @ b`` for one or two axes each, from the entries; None if it has to be computed dense."""
    a, b = (x if isinstance(x, CoreArray) else np.asarray(x) for x in (a, b))
    if not (1 <= a.ndim <= 2 and 1 <= b.ndim <= 2) or a.shape[-1] != b.shape[0]:
        return None
    if kind_of(a) is None or kind_of(b) is None:
        return None
    dtype = np.result_type(a.dtype, b.dtype)
    if b.ndim == 1:
        products = elementwise(np.multiply, (a, b), (), {"dtype": dtype})
        return reduce_entries(np.add, products, axis=-1, dtype=dtype)
    if a.ndim == 1 and isinstance(b, CoreArray):
        products = elementwise(np.multiply, (a.reshape(-1, 1), b), (), {"dtype": dtype})
        return reduce_entries(np.add, products, axis=0, dtype=dtype)
    # only what meets an entry along the contracted axis counts, if the rest of the other side is finite
    met = np.unique(a.indices % a.shape[-1] if isinstance(a, CoreArray) else b.indices // b.shape[1])
    for x in (a, b):
        if isinstance(x, CoreArray):
            if not np.isfinite(x.values).all():
                return None
        elif not is_harmless(np.multiply, x):
            return None
    return np.matmul(np.asarray(a[..., met]), np.asarray(b[met]))


# ---- the protocol


def is_foreign(value: Any) -> bool:
    """Whether another library's array has a say in what happens."""
    if type(value) in NUMPYS_OWN or isinstance(value, CoreArray):
        return False
    return getattr(type(value), "__array_ufunc__", None) not in (None, np.ndarray.__array_ufunc__)


def call_ufunc(ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `SparseArray.__array_ufunc__` returns."""
    out = kwargs.get("out", ())
    if any(map(is_foreign, inputs)) or any(map(is_foreign, out)):
        return NotImplemented
    if not out and method == "__call__":
        result = sparse_result(ufunc, method, inputs, (), kwargs)
        return call_dense(ufunc, inputs, kwargs) if result is None else result
    changed = (inputs[0],) if method == "at" else out
    with one_writer(changed):
        result = sparse_result(ufunc, method, inputs, out, {k: v for k, v in kwargs.items() if k != "out"})
        if result is None:
            result = call_dense(getattr(ufunc, method), inputs, kwargs, changed)
    return result


def sparse_result(
    ufunc: np.ufunc, method: str, inputs: tuple[Any, ...], out: tuple[Any, ...], options: dict[str, Any]
) -> Any:
    """The result without dense arrays; None if it takes them."""
    if any([type(value) is not np.ndarray and isinstance(value, np.ndarray) for value in inputs]):
        return None  # a subclass of ndarray: NumPy knows what becomes of it
    if method == "__call__":
        if ufunc is np.matmul and not out and not options:
            return contract(*inputs)
        return elementwise(ufunc, inputs, out, options) if ufunc.signature is None else None
    if method == "reduce" and not out and "where" not in options:
        return reduce_entries(ufunc, inputs[0], **options)
    if method == "outer" and not out and all(isinstance(x, CoreArray) for x in inputs):
        a, b = inputs
        return elementwise(ufunc, (a.reshape(a.shape + (1,) * b.ndim), b), (), options)
    return None
