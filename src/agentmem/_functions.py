"""NumPy's functions on sparse arrays (NEP 18): those that need no dense copy, and the way of all others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from agentmem._core import CoreArray, one_writer
from agentmem._positions import (
    coordinates,
    flatten,
    normalize_axes,
    sort_pairs,
)
from agentmem._ufuncs import STORABLE, call_dense, contract, group_entries, most_derived

SPARSE: dict[Any, Callable[..., Any]] = {}  # functions that return None where they need dense copies
CHANGES_FIRST = (np.put, np.place, np.putmask, np.copyto, np.fill_diagonal, np.put_along_axis)


def implements(*functions: Any) -> Callable[[Any], Any]:
    def register(implementation: Any) -> Any:
        SPARSE.update(dict.fromkeys(functions, implementation))
        return implementation

    return register


def call_function(function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What `SparseArray.__array_function__` returns."""
    if function in SPARSE:
        result = SPARSE[function](*args, **kwargs)
        if result is not None:
            return result
    out = kwargs.get("out")
    changed = list(out) if isinstance(out, tuple) else [out]
    if function in CHANGES_FIRST:
        changed += args[:1] or [kwargs.get("dst", kwargs.get("a", kwargs.get("arr")))]
    with one_writer(changed):
        return call_dense(function, args, kwargs, changed)


def as_method(name: str) -> Callable[..., Any]:
    """A function that NumPy answers with its first argument's method."""

    def call(a: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(a, name)(*args, **kwargs) if isinstance(a, CoreArray) else None

    return call


for _name in (
    "sum", "prod", "min", "max", "any", "all", "mean", "var", "std", "argmax", "argmin", "nonzero", "round",
    "reshape", "transpose", "swapaxes", "squeeze", "diagonal", "trace", "copy", "ravel",
):  # fmt: skip
    SPARSE[getattr(np, _name)] = as_method(_name)
SPARSE.update({np.amin: as_method("min"), np.amax: as_method("max"), np.around: as_method("round")})
SPARSE.update({np.shape: lambda a: a.shape, np.real: lambda val: val.real, np.imag: lambda val: val.imag})


# ---- reductions


def leaves_one(x: CoreArray, axis: Any) -> bool:
    """Whether a reduction along `axis` leaves one number."""
    return x.size > 0 and x.ndim > 0 and normalize_axes(axis, x.ndim) == tuple(range(x.ndim))


def moments(x: CoreArray, axis: Any, keepdims: bool) -> tuple[Any, Any, Any, Any]:
    """Mean, sum of squared deviations, cells per group and the shape of the result, in double."""
    axes = normalize_axes(axis, x.ndim)
    shape = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
    n_kept = int(np.prod(shape))
    n = x.size // n_kept
    values = x.values.astype(np.float64)
    if n_kept == 1:
        total, count = values.sum(keepdims=True), np.array([len(values)])
        mean = total / n
        squares = np.square(values - mean).sum(keepdims=True)
    else:
        group = group_entries(x, shape)[0]
        count = np.bincount(group, minlength=n_kept)
        mean = np.bincount(group, values, n_kept) / n
        squares = np.bincount(group, np.square(values - mean[group]), n_kept)
    squares = squares + np.where(count < n, (n - count) * np.square(mean), 0.0)
    return mean, squares, n, shape if keepdims else tuple(m for a, m in enumerate(x.shape) if a not in axes)


def statistic(function: Any, x: CoreArray, axis: Any, dtype: Any, keepdims: bool, ddof: Any = 0) -> Any:
    """`np.mean`, `np.var` or `np.std` of a non-empty array."""
    result, squares, n, shape = moments(x, axis, keepdims)
    if function is not np.mean:
        result = squares / np.float64(max(n - ddof, 0))
    if function is np.std:
        result = np.sqrt(result)
    if dtype is None:
        dtype = x.dtype if x.dtype.kind == "f" else np.float64
    return result.astype(dtype).reshape(shape)[()]  # a NumPy scalar for shape ()


@implements(np.count_nonzero)
def count_nonzero(a: Any, axis: Any = None, *, keepdims: bool = False) -> Any:
    if axis is None and not keepdims:
        return type(np.count_nonzero(0))(a.nnz)  # int or np.intp, by NumPy's version
    return (a != 0).sum(axis=axis, keepdims=keepdims, dtype=np.intp)


@implements(np.flatnonzero)
def flatnonzero(a: Any) -> Any:
    return np.array(a.indices)


@implements(np.argwhere)
def argwhere(a: Any) -> Any:
    return np.stack(a.nonzero(), axis=-1) if a.ndim else None


@implements(np.ptp)
def ptp(a: Any, axis: Any = None, out: Any = None, keepdims: bool = False) -> Any:
    if out is not None:
        return None
    return np.subtract(a.max(axis, keepdims=keepdims), a.min(axis, keepdims=keepdims))


def by_row(function: Any, x: Any, axis: Any, keepdims: bool = False) -> Any:
    """`function` of each row along `axis`, one dense row at a time; None if that is most of the array."""
    if not isinstance(axis, int) or x.ndim < 2 or x.size == 0:
        return None
    (axis,) = normalize_axes(axis, x.ndim)
    n = x.shape[axis]
    rows = np.moveaxis(x, axis, -1)
    row_of, column = np.divmod(rows.indices, n)
    met, starts = np.unique(row_of, return_index=True)
    if len(met) * n * 4 > x.size:
        return None
    result = np.full(x.size // n, function(np.zeros(n, x.dtype)))
    values = rows.values
    for row, begin, end in zip(met, starts, np.append(starts, len(values))[1:], strict=True):
        cells = np.zeros(n, x.dtype)
        cells[column[begin:end]] = values[begin:end]
        result[row] = function(cells)
    result = result.reshape(rows.shape[:-1])
    return np.expand_dims(result, axis) if keepdims else result


@implements(np.median)
def median(
    a: Any, axis: Any = None, out: Any = None, overwrite_input: bool = False, keepdims: bool = False
) -> Any:
    if not isinstance(a, CoreArray) or out is not None:
        return None
    if not leaves_one(a, axis):
        return by_row(np.median, a, axis, keepdims)
    middle = range((a.size - 1) // 2, a.size // 2 + 1)  # np.median itself would load numpy.ma: 1 MB
    result = np.mean(np.array([order_statistic(a, i) for i in middle]))
    return np.reshape(result, (1,) * a.ndim) if keepdims else result


def order_statistic(x: CoreArray, i: int) -> Any:
    """The i-th smallest cell; NaN if there is one, as NumPy's order statistics have it."""
    values = np.sort(x.values)
    if len(values) and np.isnan(values[-1]):
        return values[-1]
    n_below = int(np.searchsorted(values, 0))
    n_zeros = x.size - len(values)
    if n_below <= i < n_below + n_zeros:
        return x.dtype.type(0)
    return values[i if i < n_below else i - n_zeros]


@implements(np.quantile)
def quantile(
    a: Any, q: Any, axis: Any = None, out: Any = None, overwrite_input: bool = False, method: str = "linear",
    keepdims: bool = False, **weights: Any,
) -> Any:  # fmt: skip
    if not isinstance(a, CoreArray) or out is not None or weights or method != "linear" or keepdims:
        return None
    if np.ndim(q) or not 0 <= q <= 1 or a.dtype.kind == "b":
        return None
    if not leaves_one(a, axis):
        return by_row(lambda row: np.quantile(row, q), a, axis)
    at = q * (a.size - 1)
    below = min(int(at), max(a.size - 2, 0))
    pair = np.array([order_statistic(a, i) for i in (below, min(below + 1, a.size - 1))])
    return np.quantile(pair, type(q)(at - below))


@implements(np.percentile)
def percentile(a: Any, q: Any, *args: Any, **kwargs: Any) -> Any:
    return quantile(a, q / 100, *args, **kwargs) if type(q) in (int, float) else None


@implements(np.average)
def average(a: Any, axis: Any = None, weights: Any = None, returned: bool = False, **keepdims: Any) -> Any:
    if returned:
        return None
    if weights is None:
        return a.mean(axis, **keepdims)
    if axis is not None or keepdims or np.shape(a) != np.shape(weights):
        return None
    total: Any = np.sum(weights)
    if total == 0 or not isinstance(products := np.multiply(a, weights), CoreArray):
        return None
    return as_method("sum")(products) / total


def implements_without_nan(function: Any, plain: Any) -> None:
    """`function` ignores NaN: without one it is `plain`."""

    def call(a: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(a, CoreArray) or np.isnan(a.values).any():
            return None
        return plain(a, *args, **kwargs)

    SPARSE[function] = call


for _name in (
    "sum", "prod", "min", "max", "mean", "var", "std", "argmax", "argmin", "median", "quantile", "percentile",
):  # fmt: skip
    implements_without_nan(getattr(np, "nan" + _name), getattr(np, _name))


# ---- products


@implements(np.dot)
def dot(a: Any, b: Any, out: Any = None) -> Any:
    return contract(a, b) if out is None else None


@implements(np.inner)
def inner(a: Any, b: Any, /) -> Any:
    b = as_array(b)
    return contract(a, b.T) if b.ndim in (1, 2) else None


@implements(np.vdot)
def vdot(a: Any, b: Any, /) -> Any:
    return contract(as_array(a).reshape(-1), as_array(b).reshape(-1))


@implements(np.outer)
def outer(a: Any, b: Any, out: Any = None) -> Any:
    if out is not None:
        return None
    return np.multiply(as_array(a).reshape(-1, 1), as_array(b).reshape(1, -1))


def as_array(value: Any) -> Any:
    return value if isinstance(value, CoreArray) else np.asarray(value)


@implements(np.linalg.norm)
def norm(x: Any, ord: Any = None, axis: Any = None, keepdims: bool = False) -> Any:
    is_plain = ord is None or (x.ndim == 1 and ord in (1, 2, np.inf))
    if axis is not None or keepdims or not x.size or not is_plain:
        return None
    return np.linalg.norm(np.append(x.values, x.dtype.type(0)), ord)


# ---- structure


@implements(np.zeros_like, np.empty_like)
def zeros_like(
    a: Any, dtype: Any = None, order: str = "K", subok: bool = True, shape: Any = None, **device: Any
) -> Any:
    if not subok or device or not isinstance(a, CoreArray):
        return None
    cells = np.zeros(0, dtype or a.dtype)
    if cells.dtype.char not in STORABLE:
        return None
    shape = a.shape if shape is None else np.broadcast_shapes(shape)
    return most_derived((a,))._from_pairs(shape, np.zeros(0, np.intp), cells)


@implements(np.expand_dims)
def expand_dims(a: Any, axis: Any) -> Any:
    axes = axis if isinstance(axis, tuple | list) else (axis,)
    at = np.lib.array_utils.normalize_axis_tuple(axes, a.ndim + len(axes))
    extents = iter(a.shape)
    return a.reshape(tuple(1 if i in at else next(extents) for i in range(a.ndim + len(at))))


@implements(np.moveaxis)
def moveaxis(a: Any, source: Any, destination: Any) -> Any:
    moved = np.lib.array_utils.normalize_axis_tuple(source, a.ndim)
    order = [axis for axis in range(a.ndim) if axis not in moved]
    if len(moved) != np.size(destination):
        return None
    targets = np.lib.array_utils.normalize_axis_tuple(destination, a.ndim)
    for target, axis in sorted(zip(targets, moved, strict=True)):
        order.insert(target, axis)
    return a.transpose(order)


def all_sparse(arrays: Any) -> bool:
    is_sequence = isinstance(arrays, list | tuple) and len(arrays) > 0
    return is_sequence and all(isinstance(a, CoreArray) for a in arrays)


@implements(np.concatenate)
def concatenate(
    arrays: Any, axis: Any = 0, out: Any = None, *, dtype: Any = None, casting: Any = "same_kind"
) -> Any:
    if not all_sparse(arrays) or out is not None:
        return None
    if axis is None:
        arrays, axis = [a.reshape(-1) for a in arrays], 0
    shape = list(arrays[0].shape)
    if not -len(shape) <= axis < len(shape):
        return None
    axis %= len(shape)
    if len({(*a.shape[:axis], *a.shape[axis + 1 :], a.ndim) for a in arrays}) > 1:
        return None
    shape[axis] = sum(a.shape[axis] for a in arrays)
    positions, begin = [], 0
    for a in arrays:
        coords = list(coordinates(a.indices, a.shape))
        coords[axis] = coords[axis] + begin
        positions.append(flatten(coords, tuple(shape), a.nnz))
        begin += a.shape[axis]
    values = np.concatenate([a.values for a in arrays], dtype=dtype, casting=casting)
    return most_derived(arrays)._from_pairs(tuple(shape), *sort_pairs(np.concatenate(positions), values))


@implements(np.stack)
def stack(arrays: Any, axis: int = 0, out: Any = None, **options: Any) -> Any:
    if not all_sparse(arrays) or out is not None or len({a.shape for a in arrays}) > 1:
        return None
    return concatenate([expand_dims(a, axis) for a in arrays], axis, **options)


@implements(np.vstack)
def vstack(tup: Any, **options: Any) -> Any:
    if not all_sparse(tup):
        return None
    return concatenate([a.reshape(1, -1) if a.ndim < 2 else a for a in tup], 0, **options)


@implements(np.hstack)
def hstack(tup: Any, **options: Any) -> Any:
    if not all_sparse(tup) or any(a.ndim == 0 for a in tup):
        return None
    return concatenate(tup, 0 if tup[0].ndim == 1 else 1, **options)
