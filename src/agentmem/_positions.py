"""Arithmetic of flat positions: how cells move when an array is broadcast, transposed or indexed.

Cells are numbered in C order. Nothing here reads values or knows NumPy's protocols.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from agentmem._core import CoreArray

Positions = np.ndarray[Any, np.dtype[np.intp]]
Shape = tuple[int, ...]


def strides_of(shape: Shape) -> Shape:
    """C-order strides, counted in cells."""
    strides = [1] * len(shape)
    for axis in range(len(shape) - 1, 0, -1):
        strides[axis - 1] = strides[axis] * shape[axis]
    return tuple(strides)


def coordinates(positions: Positions, shape: Shape) -> tuple[Positions, ...]:
    """One array of coordinates per axis."""
    return np.unravel_index(positions, shape) if shape else ()


def flatten(coords: Any, shape: Shape, n: int) -> Positions:
    """The inverse of `coordinates`, for n cells."""
    flat: Positions = np.zeros(n, np.intp)
    for along_axis, stride in zip(coords, strides_of(shape), strict=True):
        flat += along_axis * stride
    return flat


def sort_pairs(positions: Positions, values: Any) -> tuple[Positions, Any]:
    if (positions[1:] < positions[:-1]).any():
        order = np.argsort(positions, kind="stable")
        return positions[order], values[order]
    return positions, values


def merge(a: Positions, b: Positions) -> Positions:
    """All positions of both, ascending, each once."""
    both: Positions = np.concatenate([a, b])
    both.sort(kind="stable")  # two sorted runs: a merge, where np.union1d hashes
    is_first = np.ones(len(both), np.bool)
    np.not_equal(both[1:], both[:-1], out=is_first[1:])
    return both[is_first]


def broadcast_pairs(x: CoreArray, shape: Shape) -> tuple[Positions, Any]:
    """Positions and values of the entries of `x` after broadcasting to `shape`."""
    positions, values = x.indices, x.values
    if x.shape == shape:
        return positions, values
    old_shape = (1,) * (len(shape) - x.ndim) + x.shape
    flat = flatten(coordinates(positions, old_shape), shape, len(positions))
    for n, old_n, stride in zip(shape, old_shape, strides_of(shape), strict=True):
        if n != old_n:
            flat = flat[..., None] + np.arange(n) * stride
    repeats = flat.size // max(len(positions), 1)
    return sort_pairs(flat.ravel(), np.repeat(values, repeats))


def cells_at(positions: Positions, values: Any, wanted: Positions) -> Any:
    """Cells at the sorted positions `wanted`, among which are all `positions`."""
    cells = np.zeros(len(wanted), values.dtype)
    cells[np.searchsorted(wanted, positions)] = values
    return cells


def normalize_axes(axis: Any, ndim: int) -> tuple[int, ...]:
    """Sorted axes as non-negative ints; None means all. AxisError as NumPy's."""
    if axis is None:
        return tuple(range(ndim))
    return tuple(sorted(np.lib.array_utils.normalize_axis_tuple(axis, ndim)))


def stand_in(shape: Shape) -> Any:
    """An ndarray of this shape in one byte: NumPy's own judge of keys and shapes."""
    return np.broadcast_to(np.int8(0), shape)


def is_full_mask(key: Any, shape: Shape) -> bool:
    return isinstance(key, np.ndarray | CoreArray) and key.dtype == np.bool and key.shape == shape != ()


def block_of(key: Any, shape: Shape) -> tuple[int, Shape] | None:
    """First cell and extents of what a key of ints alone picks; None for other keys, and for what NumPy refuses."""
    keys = key if type(key) is tuple else (key,)
    if not 0 < len(keys) <= len(shape):
        return None
    first = 0
    for k, n in zip(keys, shape, strict=False):
        if not (type(k) is int or isinstance(k, np.integer)) or not -n <= k < n:
            return None
        first = first * n + int(k) % n
    extents = shape[len(keys) :]
    return first * math.prod(extents), extents


def basic_ranges(key: Any, shape: Shape) -> list[tuple[int, int, int, bool]] | None:
    """(start, step, count, is kept) of each axis; None if the key is not made of ints and slices."""
    keys = key if isinstance(key, tuple) else (key,)
    n_axes = 0
    for k in keys:
        if isinstance(k, slice) or (isinstance(k, int | np.integer) and not isinstance(k, bool)):
            n_axes += 1
        elif k is not None and k is not Ellipsis:
            return None
    everything = [slice(None)] * (len(shape) - n_axes)
    if Ellipsis not in keys:
        keys = (*keys, Ellipsis)
    ranges: list[tuple[int, int, int, bool]] = []
    for k in keys:
        for each in everything if k is Ellipsis else (k,):
            if each is None:
                continue
            n = shape[len(ranges)]
            if isinstance(each, slice):
                picked = range(n)[each]
                ranges.append((picked.start, picked.step, len(picked), True))
            else:
                ranges.append((int(each) % n, 1, 1, False))
    return ranges


def picked_positions(key: Any, shape: Shape) -> Positions:
    """Flat positions of the cells that `key` picks, in their order, for a key that NumPy accepts."""
    if is_full_mask(key, shape):
        return key.indices if isinstance(key, CoreArray) else np.flatnonzero(key)
    ranges = basic_ranges(key, shape)
    flat: Any = np.zeros((), np.intp)
    if ranges is not None:
        for (start, step, count, _), stride in zip(ranges, strides_of(shape), strict=True):
            flat = flat[..., None] + np.arange(start, start + step * count, step) * stride
    elif len(shape) == 1 and isinstance(key, np.ndarray | list) and np.asarray(key).dtype.kind == "i":
        flat = np.asarray(key)
        flat = flat + (flat < 0) * shape[0]
    else:
        for axis, (n, stride) in enumerate(zip(shape, strides_of(shape), strict=True)):
            along = np.arange(n).reshape((n,) + (1,) * (len(shape) - 1 - axis))
            flat = flat + np.broadcast_to(along, shape)[key] * stride
    return np.ascontiguousarray(flat, np.intp).reshape(-1)


def picked_entries(
    ranges: list[tuple[int, int, int, bool]], positions: Positions, shape: Shape
) -> tuple[Any, Any]:
    """For a basic key: which entries it picks (a mask), and the flat positions of those in the pick."""
    if len(shape) == 1:
        coords: tuple[Positions, ...] = (positions,)
    else:
        coords = coordinates(positions, shape)
    is_picked = np.ones(len(positions), np.bool)
    flat = np.zeros(len(positions), np.intp)
    out_strides = strides_of(tuple(count for _, _, count, _ in ranges))
    for along, (start, step, count, _), stride in zip(coords, ranges, out_strides, strict=True):
        nth, off = np.divmod(along - start, step)
        is_picked &= (off == 0) & (nth >= 0) & (nth < count)
        flat += nth * stride
    return is_picked, flat[is_picked]
