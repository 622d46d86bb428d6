"""SparseArray: the drop-in array type. Construction, looks, indexing and the methods of an ndarray.

Storage is in `_core.array`, ufuncs in `_ufuncs`, functions in `_functions`, index arithmetic in `_positions`.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from typing import Any, Self, cast

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray

from agentmem import _functions
from agentmem._core import CoreArray, extreme, one_writer
from agentmem._positions import (
    basic_ranges,
    block_of,
    coordinates,
    flatten,
    is_full_mask,
    picked_entries,
    picked_positions,
    sort_pairs,
    stand_in,
    strides_of,
)
from agentmem._ufuncs import NEARLY_DENSE, STORABLE, Content, call_dense, call_ufunc, densify

NO_POSITIONS = np.zeros(0, np.intp)


class SparseArray(CoreArray, np.lib.mixins.NDArrayOperatorsMixin):
    """An array of real numbers that keeps only its non-zero cells, and otherwise acts as an ndarray.

    Parameters
    ----------
    array_like : array_like, scipy.sparse array or SparseArray
        Any shape; bool, integers or floats of up to 64 bits. Copied. Zeros, -0.0 too, are not stored.
    dtype : dtype, optional
        As in `numpy.array`.

    Raises
    ------
    TypeError
        The numbers are not bool, integers or floats of up to 64 bits.

    Notes
    -----
    The storage of fewest bytes is chosen at every change; an array never takes more than its dense form
    plus 256 B.

    A result is sparse if the operation maps zero to zero, whatever the values: ``x * y``, ``x / 2``,
    ``x > 0.1``, ``np.sqrt(x)``. Other results, and all reductions, are what NumPy returns. As in
    scipy.sparse, the results of indexing and reshaping are copies, not views.

    One writer: a second thread that changes the array at the same time gets a RuntimeError.

    Examples
    --------
    >>> x = SparseArray([0.0, 0.25, 0.0, 0.75])
    >>> (x * 2).values
    array([0.5, 1.5])
    >>> float(x.sum()), int(x.argmax())
    (1.0, 3)
    """

    __slots__ = ()
    __hash__ = None  # type: ignore[assignment]

    def __init__(self, array_like: Any, *, dtype: DTypeLike | None = None) -> None:
        if isinstance(array_like, CoreArray):
            moment = array_like.copy()
            values = moment.values if dtype is None else moment.values.astype(dtype)
            self._become(moment.shape, moment.indices, values)
        elif hasattr(array_like, "tocoo"):
            check_scipy(array_like)
            entries = array_like.tocoo(copy=True)
            entries.sum_duplicates()
            coords = [np.asarray(c, np.intp) for c in entries.coords]
            positions = flatten(coords, entries.shape, len(entries.data))
            self._become(entries.shape, *sort_pairs(positions, np.asarray(entries.data, dtype)))
        else:
            cells = np.asarray(array_like, dtype)
            self._set_cells(cells.shape, storable(cells).reshape(-1))

    @classmethod
    def from_indices(cls, indices: ArrayLike, values: ArrayLike, shape: int | Sequence[int]) -> Self:
        """An array of `shape` with `values` at the flat C-order `indices`, in any order. O(nnz log nnz).

        Raises
        ------
        ValueError
            An index out of range or given twice; not one value per index.

        Examples
        --------
        >>> SparseArray.from_indices([7, 2], [0.5, 0.25], 10)  # doctest: +ELLIPSIS
        SparseArray(shape=(10,), dtype=float64, nnz=2, storage='pairs', nbytes=...)
        """
        return cls(cls._checked_pairs(indices, values, shape))

    @classmethod
    def _checked_pairs(cls, indices: Any, values: Any, shape: Any) -> SparseArray:
        positions, cells = np.asarray(indices), storable(np.asarray(values))
        extents = tuple(map(operator.index, shape if isinstance(shape, tuple | list) else (shape,)))
        if positions.size == 0:
            positions = positions.astype(np.intp)
        if positions.dtype.kind not in "iu":
            raise ValueError(f"indices of dtype {positions.dtype} given; expected integers")
        if positions.ndim != 1 or positions.shape != cells.shape:
            raise ValueError(
                f"indices of shape {positions.shape} and values of shape {cells.shape} given; "
                "expected one value per index"
            )
        if any(extent < 0 for extent in extents):
            raise ValueError(f"shape {extents} given; expected extents of at least 0")
        size = math.prod(extents)
        if len(positions) and not (positions.min() >= 0 and positions.max() < size):
            off = positions.min() if positions.min() < 0 else positions.max()
            raise ValueError(f"index {off} given for shape {extents}; expected 0 to {size - 1}")
        positions, cells = sort_pairs(positions.astype(np.intp), cells)
        twice = np.flatnonzero(positions[1:] == positions[:-1])
        if len(twice):
            raise ValueError(f"index {positions[twice[0]]} given more than once; expected each index once")
        return SparseArray._from_pairs(extents, positions, cells)

    # -- made by results: without the checks of a subclass's constructor

    @classmethod
    def _from_pairs(cls, shape: tuple[int, ...], indices: Any, values: Any) -> Self:
        made = cls.__new__(cls)
        made._become(shape, indices, values)
        return made

    @classmethod
    def _from_cells(cls, cells: Any) -> Self:
        made = cls.__new__(cls)
        made._set_cells(cells.shape, storable(cells).reshape(-1))
        return made

    def _become(self, shape: tuple[int, ...], indices: Any, values: Any) -> None:
        """Take these entries (ascending; zeros among them are left out)."""
        if np.count_nonzero(values) < len(values):
            is_entry = values != 0
            indices, values = indices[is_entry], values[is_entry]
        self._set_pairs(shape, indices, storable(values))

    # -- one protocol: a header and named arrays

    @property
    def header(self) -> dict[str, Any]:
        """What `from_buffers` needs beside the buffers."""
        return {"shape": self.shape}

    def buffers(self) -> dict[str, NDArray[Any]]:
        """The content as named 1-D arrays: `values` alone where every cell is stored, else with `indices`."""
        if self.storage == "dense":
            return {"values": self.to_dense().reshape(-1)}
        if self.storage == "uniform":
            return {"values": self._lookup(np.zeros(1, np.intp))}
        return {"indices": self.indices, "values": self.values}

    @classmethod
    def from_buffers(cls, header: dict[str, Any], buffers: dict[str, NDArray[Any]]) -> Self:
        """The array that `header` and `buffers` were taken from."""
        shape, values = tuple(header["shape"]), buffers["values"]
        if "indices" in buffers:
            return cls._from_pairs(shape, buffers["indices"], values)
        if values.size != math.prod(shape):
            made = cls.__new__(cls)
            made._set_uniform(shape, values)
            return made
        return cls._from_cells(values.reshape(shape))

    def __reduce_ex__(self, protocol: Any) -> Any:
        return type(self).from_buffers, (self.header, self.buffers())

    def __copy__(self) -> Self:
        return self.copy()

    def __deepcopy__(self, memo: Any) -> Self:
        return self.copy()

    # -- NumPy's protocols

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **kwargs: Any) -> Any:
        return call_ufunc(ufunc, method, inputs, kwargs)

    def __array_function__(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        for cls in types:
            override = getattr(cls, "__array_function__", None)
            if not issubclass(cls, CoreArray) and override not in (None, np.ndarray.__array_function__):
                return NotImplemented
        return _functions.call_function(function, args, kwargs)

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        if copy is False:
            raise ValueError("a SparseArray becomes an ndarray only by a copy; copy=False given")
        cells = self.to_dense()
        return cells if dtype is None else cells.astype(dtype, copy=False)

    def __eq__(self, other: Any) -> Any:
        try:
            return super().__eq__(other)
        except TypeError:  # not comparable: nowhere equal
            return self.to_dense() == densify(other)

    def __ne__(self, other: Any) -> Any:
        try:
            return super().__ne__(other)
        except TypeError:
            return self.to_dense() != densify(other)

    def __imatmul__(self, other: Any) -> Self:
        with one_writer([self]):
            call_dense(operator.imatmul, (self, other), {}, (self,))
        return self

    # -- looks

    @property
    def shape(self) -> tuple[int, ...]:
        """Extents, as NumPy's; assigning to it reshapes in place."""
        return CoreArray.shape.__get__(self)  # type: ignore[no-any-return]

    @shape.setter
    def shape(self, shape: Any) -> None:
        with one_writer([self]):
            self._set_pairs(stand_in(self.shape).reshape(shape).shape, self.indices, self.values)

    @property
    def density(self) -> float:
        """Share of the cells that are not zero."""
        return self.nnz / self.size if self.size else 0.0

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype}, nnz={self.nnz}, "
            f"storage={self.storage!r}, nbytes={self.nbytes})"
        )

    def __format__(self, spec: str) -> str:
        return format(self.to_dense(), spec) if spec else str(self)

    def to_scipy(self) -> Any:
        """A `scipy.sparse.csr_array` (two axes) or `coo_array` (any other number) of the same entries."""
        from scipy import sparse

        coords: Any = coordinates(self.indices, self.shape)
        entries = sparse.coo_array((self.values, coords), self.shape)
        return entries.tocsr() if self.ndim == 2 else entries

    def to_numpy(self) -> NDArray[Any]:
        """As `to_dense`, under the name that matplotlib asks for; without it, it would plot `values`."""
        return self.to_dense()

    @property
    def strides(self) -> tuple[int, ...]:
        """Those of the dense form."""
        return tuple(n * self.itemsize for n in strides_of(self.shape))

    @property
    def flags(self) -> Any:
        return _Flags(self)

    def setflags(self, write: bool | None = None, align: bool | None = None, uic: bool | None = None) -> None:
        """Whether the array may be changed; as `numpy.ndarray.setflags`."""
        np.empty(0).setflags(align=align, uic=uic)
        if write is not None:
            self._set_writable(bool(write))

    @property
    def base(self) -> None:
        return None

    @property
    def T(self) -> Self:
        return self.transpose()

    @property
    def real(self) -> Self:
        return self

    @property
    def imag(self) -> Self:
        return cast(Self, np.zeros_like(cast(Any, self)))

    @property
    def flat(self) -> _Flat:
        """The cells in C order; assigning to it changes the array."""
        return _Flat(self)

    @flat.setter
    def flat(self, value: Any) -> None:
        _Flat(self)[:] = value

    def __len__(self) -> int:
        if self.ndim == 0:
            raise TypeError("len() of unsized object")
        return self.shape[0]

    def __iter__(self) -> Iterator[Any]:
        if self.ndim == 0:
            raise TypeError("iteration over a 0-d array")
        if self.ndim == 1:
            return iter(self.to_dense())
        return (self[i] for i in range(len(self)))

    def __contains__(self, value: Any) -> bool:
        return bool(np.any(self == value))

    def __bool__(self) -> bool:
        if self.size > 1:
            raise ValueError(
                "The truth value of an array with more than one element is ambiguous. Use a.any() or a.all()"
            )
        return bool(self.to_dense())

    def __int__(self) -> int:
        return int(self.to_dense())

    def __float__(self) -> float:
        return float(self.to_dense())

    def __complex__(self) -> complex:
        return complex(self.to_dense())

    def __index__(self) -> int:
        return operator.index(cast(Any, self.to_dense()))

    # -- indexing

    def __getitem__(self, key: Any) -> Any:
        """The cells that `key` picks: a copy. O(nnz) for ints and slices, else O(cells picked + extents)."""
        block = block_of(key, self.shape)
        if block is not None:
            first, extents = block
            n = math.prod(extents)
            if n <= self.nnz or not extents:
                cells = self._lookup(np.arange(first, first + n))
                return self._from_cells(cells.reshape(extents)) if extents else cells[0]
        if is_full_mask(key, self.shape):
            return self._from_cells(self._lookup(picked_positions(key, self.shape)))
        key = densify(key)
        picked = stand_in(self.shape)[key]
        ranges = basic_ranges(key, self.shape)
        if ranges is None or isinstance(picked, np.generic) or picked.size <= self.nnz:
            cells = self._lookup(picked_positions(key, self.shape))
            if isinstance(picked, np.generic):
                return cells[0]
            return self._from_cells(cells.reshape(picked.shape))
        moment = self.copy()  # indices and values that belong together, whatever other threads do
        is_picked, positions = picked_entries(ranges, moment.indices, self.shape)
        return self._from_pairs(picked.shape, *sort_pairs(positions, moment.values[is_picked]))

    def __setitem__(self, key: Any, value: Any) -> None:
        with one_writer([self]):
            is_all = key is ... or (type(key) is slice and key == slice(None) and self.ndim > 0)
            if is_all and isinstance(value, np.ndarray | CoreArray) and value.shape == self.shape:
                cells = np.asarray(densify(value))
                self._set_cells(self.shape, cells.astype(self.dtype, "C", copy=False).reshape(-1))
                return
            block = block_of(key, self.shape)
            if block is not None and not block[1] and isinstance(value, int | float | np.number | np.bool):
                cell = np.empty(1, self.dtype)
                cell[0] = value
                if self._put(np.array([block[0]]), cell):
                    return
            if not is_full_mask(key, self.shape):
                key = densify(key)
                picked = stand_in(self.shape)[key]
                shape, n_picked = picked.shape, picked.size
            else:
                n_picked = key.nnz if isinstance(key, CoreArray) else int(np.count_nonzero(key))
                shape = (n_picked,)
            if n_picked * NEARLY_DENSE > self.size:
                cells = self.to_dense()
                cells[densify(key)] = densify(value)
                self._set_cells(self.shape, cells.reshape(-1))
                return
            written = np.zeros(shape or 1, self.dtype)
            written[0 if shape == () else ...] = densify(value)
            positions = picked_positions(key, self.shape)
            # of a cell picked twice, the last value stays
            positions, last = np.unique(positions[::-1], return_index=True)
            written = written.reshape(-1)[::-1][last]
            if self._put(positions, written):
                return
            if self.nnz * NEARLY_DENSE > self.size:
                cells = self.to_dense().reshape(-1)
                cells[positions] = written
                self._set_cells(self.shape, cells)
                return
            kept = ~np.isin(self.indices, positions)
            self._become(
                self.shape,
                *sort_pairs(
                    np.concatenate([self.indices[kept], positions]), np.concatenate([self.values[kept], written])
                ),
            )

    def __delitem__(self, key: Any) -> None:
        raise ValueError("cannot delete array elements")

    def item(self, *key: Any) -> Any:
        """One cell as a Python number."""
        if not key:
            if self.size != 1:
                raise ValueError("can only convert an array of size 1 to a Python scalar")
            key = (0,)
        if len(key) == 1 and not isinstance(key[0], tuple):
            return self.reshape(-1)[operator.index(key[0])].item()
        key = key[0] if len(key) == 1 else key
        if len(key) != self.ndim:
            raise ValueError("incorrect number of indices for array")
        return self[tuple(map(operator.index, key))].item()

    # -- structure

    def reshape(self, *shape: Any, order: Any = "C", copy: bool | None = None) -> Self:
        """The same cells in another shape: a copy."""
        extents = shape[0] if len(shape) == 1 else shape
        if order == "F":
            reverse = extents[::-1] if isinstance(extents, tuple | list) else extents
            return self.transpose().reshape(reverse).transpose()
        return self._reshaped(stand_in(self.shape).reshape(extents).shape)

    def ravel(self, order: Any = "C") -> Self:
        return self.reshape(-1, order=order)

    flatten = ravel

    def transpose(self, *axes: Any) -> Self:
        """The axes in another order: a copy. O(nnz log nnz)."""
        order = axes[0] if len(axes) == 1 else axes or None
        if isinstance(order, int):
            order = (order,)
        moved = stand_in(self.shape).transpose(order)
        if self.ndim < 2:
            return self.copy()
        if self.nnz * NEARLY_DENSE > self.size:
            return self._from_cells(self.to_dense().transpose(order))
        order = range(self.ndim)[::-1] if order is None else [axis % self.ndim for axis in order]
        coords = coordinates(self.indices, self.shape)
        positions = flatten([coords[axis] for axis in order], moved.shape, self.nnz)
        return self._from_pairs(moved.shape, *sort_pairs(positions, self.values))

    def swapaxes(self, axis1: int, axis2: int) -> Self:
        order = list(range(self.ndim))
        stand_in(self.shape).swapaxes(axis1, axis2)
        order[axis1], order[axis2] = order[axis2], order[axis1]
        return self.transpose(order)

    def squeeze(self, axis: Any = None) -> Self:
        return self.reshape(stand_in(self.shape).squeeze(axis).shape)

    def astype(self, dtype: DTypeLike, order: Any = "K", casting: Any = "unsafe", subok: bool = True,
               copy: bool = True) -> Any:  # fmt: skip
        """The same numbers in another dtype; sparse if an array can have that dtype."""
        if np.dtype(dtype).char not in STORABLE or not subok:
            return self.to_dense().astype(dtype, order, casting)
        if self.dtype == dtype:
            return self.copy() if copy else self
        return self._from_pairs(self.shape, self.indices, self.values.astype(dtype, casting=casting))

    def round(self, decimals: int = 0, out: Any = None) -> Any:
        if out is not None:
            with one_writer([out]):
                return call_dense(np.round, (self, decimals, out), {}, (out,))
        return self._from_pairs(self.shape, self.indices, self.values.round(decimals))

    def nonzero(self) -> tuple[NDArray[np.intp], ...]:
        return coordinates(self.indices, self.shape) if self.ndim else self.to_dense().nonzero()

    def resize(self, *shape: Any, refcheck: bool = True) -> None:
        """Change shape in place; cells beyond the old size are zero."""
        extents = shape[0] if len(shape) == 1 else shape
        with one_writer([self]):
            new = np.broadcast_shapes(extents)
            n = int(np.searchsorted(self.indices, int(np.prod(new))))
            self._become(new, self.indices[:n], self.values[:n])

    # -- reductions: scalars and ndarrays, as NumPy's

    def sum(
        self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False, **options: Any
    ) -> Any:
        return self._reduce(np.add, axis, dtype, out, keepdims, options)

    def prod(
        self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False, **options: Any
    ) -> Any:
        return self._reduce(np.multiply, axis, dtype, out, keepdims, options)

    def min(self, axis: Any = None, out: Any = None, keepdims: Any = False, **options: Any) -> Any:
        return self._reduce(np.minimum, axis, None, out, keepdims, options)

    def max(self, axis: Any = None, out: Any = None, keepdims: Any = False, **options: Any) -> Any:
        return self._reduce(np.maximum, axis, None, out, keepdims, options)

    def any(self, axis: Any = None, out: Any = None, keepdims: Any = False, **options: Any) -> Any:
        return self._reduce(np.logical_or, axis, None, out, keepdims, options)

    def all(self, axis: Any = None, out: Any = None, keepdims: Any = False, **options: Any) -> Any:
        return self._reduce(np.logical_and, axis, None, out, keepdims, options)

    def _reduce(self, ufunc: Any, axis: Any, dtype: Any, out: Any, keepdims: Any, options: Any) -> Any:
        return ufunc.reduce(self, axis, dtype, out, keepdims, **options)

    def mean(
        self, axis: Any = None, dtype: Any = None, out: Any = None, keepdims: Any = False, **options: Any
    ) -> Any:
        return self._statistic(np.mean, axis, dtype, out, keepdims, options)

    def var(
        self, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0, keepdims: Any = False,
        **options: Any,
    ) -> Any:  # fmt: skip
        return self._statistic(np.var, axis, dtype, out, keepdims, options, ddof=ddof)

    def std(
        self, axis: Any = None, dtype: Any = None, out: Any = None, ddof: Any = 0, keepdims: Any = False,
        **options: Any,
    ) -> Any:  # fmt: skip
        return self._statistic(np.std, axis, dtype, out, keepdims, options, ddof=ddof)

    def _statistic(
        self, function: Any, axis: Any, dtype: Any, out: Any, keepdims: Any, options: Any, **ddof: Any
    ) -> Any:
        if out is None and not options and self.size:
            return _functions.statistic(function, self, axis, dtype, keepdims, **ddof)
        options = {"axis": axis, "dtype": dtype, "out": out, "keepdims": keepdims, **ddof, **options}
        with one_writer([out]):
            return call_dense(function, (self,), options, (out,))

    def argmax(self, axis: Any = None, out: Any = None, *, keepdims: Any = False) -> Any:
        return self._arg_extreme(np.argmax, axis, out, keepdims)

    def argmin(self, axis: Any = None, out: Any = None, *, keepdims: Any = False) -> Any:
        return self._arg_extreme(np.argmin, axis, out, keepdims)

    def _arg_extreme(self, function: Any, axis: Any, out: Any, keepdims: Any) -> Any:
        result = None
        if out is None and self.size and axis is not None and self.ndim > 1:
            result = _functions.by_row(function, self, axis, keepdims)
        elif out is None and not keepdims and self.size and axis in (None, 0, -1):
            result = np.intp(extreme(self, function, np.greater if function is np.argmax else np.less))
        if result is None:
            with one_writer([out]):
                result = call_dense(function, (self, axis, out), {"keepdims": keepdims}, (out,))
        return result

    def dot(self, b: Any, out: Any = None) -> Any:
        return _functions.call_function(np.dot, (self, b), {} if out is None else {"out": out})


class _Flags:
    """What `SparseArray.flags` returns: those of an ndarray, of which `writeable` can be set."""

    __slots__ = ("array",)

    def __init__(self, array: SparseArray) -> None:
        object.__setattr__(self, "array", array)

    def _of_a_cell(self) -> Any:
        cell = np.empty((1,) * self.array.ndim, self.array.dtype)
        cell.setflags(write=self.array._is_writable)
        return cell.flags

    def __getattr__(self, name: str) -> Any:
        return getattr(self._of_a_cell(), name)

    def __getitem__(self, name: str) -> Any:
        return self._of_a_cell()[name]

    def __setattr__(self, name: str, value: Any) -> None:
        if name != "writeable":
            raise AttributeError(f"flag {name} cannot be set, only writeable")
        self.array.setflags(write=value)

    def __repr__(self) -> str:
        return repr(self._of_a_cell())


class _Flat:
    """What `SparseArray.flat` returns."""

    __slots__ = ("array",)

    def __init__(self, array: SparseArray) -> None:
        self.array = array

    def __getitem__(self, key: Any) -> Any:
        block = block_of(key, (self.array.size,))
        return self.array.reshape(-1)[key] if block is None else self.array._lookup(np.array(block[:1]))[0]

    def __setitem__(self, key: Any, value: Any) -> None:
        with one_writer([self.array]):
            flat = self.array.reshape(-1).to_dense()
            flat.flat[key] = densify(value)
            self.array._set_cells(self.array.shape, flat)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.array.to_dense().flat)

    def __len__(self) -> int:
        return self.array.size

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[Any]:
        return self.array.reshape(-1).__array__(dtype, copy)


def read_only(array: Any) -> Any:
    """An equal array that nobody can write to: of an ndarray, or of a SparseArray.

    What is found out about such an ndarray is kept: that multiplying zeros by it leaves zeros takes one look, not one
    for each multiplication.
    """
    if isinstance(array, SparseArray):
        array = array.copy()
        array.setflags(write=False)
        return array
    return np.frombuffer(Content(array.tobytes()), array.dtype).reshape(array.shape)


def check_scipy(matrix: Any) -> None:
    """ValueError for a scipy.sparse matrix whose indices lie outside it: scipy would follow them."""
    places: list[Any] = []
    if matrix.format == "coo":
        places = list(zip(matrix.coords, matrix.shape, strict=True))
    elif matrix.format in ("csr", "csc"):
        places = [(matrix.indices, matrix.shape[-1 if matrix.format == "csr" else 0])]
    for along, n in places:
        if len(along) and not 0 <= along.min() <= along.max() < n:
            wrong = along.min() if along.min() < 0 else along.max()
            raise ValueError(f"scipy.sparse matrix with index {wrong} given; expected 0 to {n - 1}")
    if hasattr(matrix, "check_format"):
        matrix.check_format(full_check=True)


def storable(values: NDArray[Any]) -> NDArray[Any]:
    """The values in native C order; TypeError if an array cannot keep them."""
    if values.dtype.char not in STORABLE:
        expected = "bool, integers or floats of up to 64 bits"
        raise TypeError(f"values of dtype {values.dtype} given; expected {expected}")
    return np.asarray(values, values.dtype.newbyteorder("="), order="C")


def _add_dense_methods() -> None:
    """The other methods of an ndarray: through a dense copy, written back by those that change the array."""

    def define(name: str, changes: bool) -> None:
        def method(self: SparseArray, *args: Any, **kwargs: Any) -> Any:
            changed = (self, kwargs.get("out")) if changes else (kwargs.get("out"),)
            with one_writer(changed):
                return call_dense(getattr(np.ndarray, name), (self, *args), kwargs, changed)

        method.__name__ = name
        method.__qualname__ = f"SparseArray.{name}"
        method.__doc__ = f"As `numpy.ndarray.{name}`, through a dense copy."
        setattr(SparseArray, name, method)

    for name in (
        "argpartition", "argsort", "byteswap", "choose", "clip", "compress", "conj", "conjugate", "cumprod",
        "cumsum", "diagonal", "dump", "dumps", "getfield", "repeat", "searchsorted", "take",
        "tobytes", "tofile", "tolist", "trace", "view",
    ):  # fmt: skip
        define(name, changes=False)
    for name in ("fill", "partition", "put", "setfield", "sort"):
        define(name, changes=True)


def _defer_to_scipy() -> None:
    """Operators that meet a scipy.sparse array: scipy answers, as it does an ndarray."""

    def define(name: str, reflected: bool) -> None:
        operation: Any = getattr(operator, name)
        method_name = f"__r{name}__" if reflected else f"__{name}__"
        answer: Any = getattr(SparseArray, method_name)

        def method(self: SparseArray, other: Any) -> Any:
            if not hasattr(other, "tocoo"):
                return answer(self, other)
            return operation(other, self.to_dense()) if reflected else operation(self.to_dense(), other)

        method.__name__ = method_name
        setattr(SparseArray, method_name, method)

    for name in ("add", "sub", "mul", "truediv", "matmul"):
        define(name, reflected=False)
        define(name, reflected=True)
    for name in ("eq", "ne", "lt", "le", "gt", "ge"):
        define(name, reflected=False)


_add_dense_methods()
_defer_to_scipy()
