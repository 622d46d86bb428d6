"""Storage of one sparse array: four forms in one exact block of memory, and the moves between them.

The block holds values and then their indices (pairs), one bit per cell and then values (bitmap), or values alone; then
all extents but the first. Nothing here knows arithmetic: `agentmem.array` puts NumPy's protocols on top, `_core.belief` the filter.
"""
cimport numpy as cnp
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from cpython.object cimport PyObject
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from sys import getsizeof

import numpy as np

from agentmem._core.types cimport BITMAP, DENSE, PAIRS, UNIFORM, index_t, lowest_bit

cnp.import_array()

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX

cdef extern from *:
    """
    /* cls.__new__(cls) without the look-up: 60 ns of a 1 us update */
    static PyObject* agentmem_new_like(PyObject* self) {
        PyTypeObject* type = Py_TYPE(self);
        PyObject* no_arguments = PyTuple_New(0);
        if (no_arguments == NULL) return NULL;
        PyObject* made = type->tp_new(type, no_arguments, NULL);
        Py_DECREF(no_arguments);
        return made;
    }
    """
    object new_like "agentmem_new_like"(PyObject* self)

ctypedef fused cell_t:  # a value as bytes, for moves that do not read it
    uint8_t
    uint16_t
    uint32_t
    uint64_t

STORAGE_NAMES = ("pairs", "bitmap", "dense", "uniform")


# ---- leaves: sizes and layout (those of values and positions are inline, in the .pxd)

cdef int n_extents(int n_axes, Py_ssize_t n_cells) noexcept nogil:
    """How many extents the block ends with: all but the first, which follows from the number of cells."""
    if n_axes <= 1:
        return 0
    return n_axes if n_cells == 0 else n_axes - 1


cdef Py_ssize_t block_size(int storage, Py_ssize_t n_stored, Py_ssize_t n_cells, Py_ssize_t item,
                           int n_axes) noexcept nogil:
    return payload_size(storage, n_stored, n_cells, item) + n_extents(n_axes, n_cells) * <Py_ssize_t> sizeof(Py_ssize_t)


cdef void read_extents(CoreArray self, Py_ssize_t* extents) noexcept nogil:
    """Copy the extents that the block ends with, as many as `n_extents`; they may lie at any address."""
    if n_extents(self.n_axes, self.n_cells) > 0:
        memcpy(extents, self.block + payload_size(self.storage, self.n_stored, self.n_cells, item_size(self.type_num)),
               n_extents(self.n_axes, self.n_cells) * sizeof(Py_ssize_t))


cdef char* new_block(int storage, Py_ssize_t n_stored, Py_ssize_t n_cells, Py_ssize_t item,
                     int n_axes, const Py_ssize_t* extents) noexcept nogil:
    """An exact block with the extents written and the rest as it came; NULL without memory."""
    cdef Py_ssize_t size = block_size(storage, n_stored, n_cells, item, n_axes)
    cdef int n = n_extents(n_axes, n_cells)
    cdef char* block = <char*> PyMem_RawMalloc(size)
    if block != NULL and n > 0:
        memcpy(block + size - n * sizeof(Py_ssize_t), extents, n * sizeof(Py_ssize_t))
    return block


cdef char* make_block(CoreArray self, int storage, Py_ssize_t n_stored) noexcept nogil:
    """Give `self` an exact block for so many entries in this form, to be filled at once; NULL (as before) without memory.

    Shape and dtype stay, the content does not: the old block is used again where it is large enough, which spares a
    large one its page faults. The caller has all it needs of the old content and lets no reader in.
    """
    cdef Py_ssize_t item = item_size(self.type_num)
    cdef Py_ssize_t size = block_size(storage, n_stored, self.n_cells, item, self.n_axes)
    cdef Py_ssize_t room = block_size(self.storage, self.n_stored, self.n_cells, item, self.n_axes)
    cdef int n = n_extents(self.n_axes, self.n_cells)
    cdef Py_ssize_t[64] extents
    cdef char* block
    read_extents(self, extents)
    if self.block == NULL or size > room:  # growing in place would copy the old content
        block = new_block(storage, n_stored, self.n_cells, item, self.n_axes, extents)
        if block == NULL:
            return NULL
        PyMem_RawFree(self.block)
    else:
        block = self.block if size == room else <char*> PyMem_RawRealloc(self.block, size)
        if block == NULL:
            return NULL
        if n > 0:
            memcpy(block + size - n * sizeof(Py_ssize_t), extents, n * sizeof(Py_ssize_t))
    self.block = block
    self.storage = storage
    self.n_stored = n_stored
    return block


# ---- leaves: moves between forms

cdef void scatter(const Py_ssize_t* indices, const cell_t* values, Py_ssize_t n, cell_t* cells) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(n):
        cells[indices[k]] = values[k]


cdef void expand_bitmap(const uint64_t* words, const cell_t* values, Py_ssize_t n_words,
                        cell_t* cells) noexcept nogil:
    cdef Py_ssize_t w, k = 0
    cdef uint64_t word
    for w in range(n_words):
        word = words[w]
        while word:
            cells[w * 64 + lowest_bit(word)] = values[k]
            word &= word - 1
            k += 1


cdef Py_ssize_t list_bitmap(const uint64_t* words, Py_ssize_t n_words, Py_ssize_t* indices) noexcept nogil:
    cdef Py_ssize_t w, k = 0
    cdef uint64_t word
    for w in range(n_words):
        word = words[w]
        while word:
            indices[k] = w * 64 + lowest_bit(word)
            word &= word - 1
            k += 1
    return k


cdef void write_indices(const Py_ssize_t* indices, Py_ssize_t n, int storage, Py_ssize_t n_cells,
                        char* target) noexcept nogil:
    """Sorted indices into the place that `storage` keeps them in."""
    cdef Py_ssize_t k
    cdef uint64_t* words = <uint64_t*> target
    if storage == BITMAP:
        memset(target, 0, ((n_cells + 63) >> 6) * 8)
        for k in range(n):
            words[indices[k] >> 6] |= (<uint64_t> 1) << (indices[k] & 63)
    elif index_size(n_cells) == 4:
        for k in range(n):
            (<int32_t*> target)[k] = <int32_t> indices[k]
    else:
        memcpy(target, indices, n * sizeof(Py_ssize_t))


cdef void write_cells(const Py_ssize_t* indices, const char* values, Py_ssize_t n, Py_ssize_t item,
                      Py_ssize_t n_cells, char* cells) noexcept nogil:
    memset(cells, 0, n_cells * item)
    if item == 8:
        scatter[uint64_t](indices, <const uint64_t*> values, n, <uint64_t*> cells)
    elif item == 4:
        scatter[uint32_t](indices, <const uint32_t*> values, n, <uint32_t*> cells)
    elif item == 2:
        scatter[uint16_t](indices, <const uint16_t*> values, n, <uint16_t*> cells)
    else:
        scatter[uint8_t](indices, <const uint8_t*> values, n, <uint8_t*> cells)


cdef void expand(int storage, const char* block, Py_ssize_t n, Py_ssize_t n_cells, cell_t* cells) noexcept nogil:
    """All cells of a block of n entries, zeros included, into `cells`."""
    cdef Py_ssize_t item = sizeof(cell_t), k
    cdef const cell_t* values = <const cell_t*> (block + value_offset(storage, n_cells))
    cdef const char* positions = block + index_offset(storage, n, n_cells, item)
    if storage == DENSE:
        memcpy(cells, block, n_cells * item)
    elif storage == UNIFORM:
        for k in range(n_cells):
            cells[k] = values[0]
    else:
        memset(cells, 0, n_cells * item)
        if storage == BITMAP:
            expand_bitmap(<const uint64_t*> positions, values, (n_cells + 63) >> 6, cells)
        elif index_size(n_cells) == 4:
            for k in range(n):
                cells[(<const int32_t*> positions)[k]] = values[k]
        else:
            for k in range(n):
                cells[(<const int64_t*> positions)[k]] = values[k]


cdef Py_ssize_t find(const index_t* indices, Py_ssize_t n, Py_ssize_t wanted) noexcept nogil:
    """Position of `wanted` in a sorted list, or -1."""
    cdef Py_ssize_t low = 0, high = n, middle
    while low < high:
        middle = (low + high) >> 1
        if indices[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low if low < n and indices[low] == wanted else -1


cdef bint all_same(const char* values, Py_ssize_t n, Py_ssize_t item) noexcept nogil:
    """Whether n items are equal bit for bit: each equals the one before."""
    return n < 2 or memcmp(values, values + item, (n - 1) * item) == 0


cdef int read_shape(tuple shape, Py_ssize_t* extents, Py_ssize_t* n_cells) except -1:
    """Write the extents and their product; return how many axes there are."""
    cdef Py_ssize_t axis
    product = 1
    if len(shape) > 64:
        raise ValueError(f"shape of {len(shape)} axes given; expected at most 64")
    for extent in shape:
        if extent < 0:
            raise ValueError(f"shape {shape} given; expected extents of at least 0")
        product *= extent
    if product > PY_SSIZE_T_MAX // 16 or max(shape, default=0) > PY_SSIZE_T_MAX:
        raise ValueError(f"shape {shape} given; its cells cannot be numbered in {sizeof(Py_ssize_t)} bytes")
    for axis in range(len(shape)):
        extents[axis] = shape[axis]
    n_cells[0] = product
    return <int> len(shape)


# ---- moves that make or change Python objects

cdef take_block(CoreArray self, char* block, int storage, Py_ssize_t n_stored, Py_ssize_t n_cells,
                int n_axes, int type_num):
    """Make `block` the content, its shape and dtype included."""
    if self.writing > 1:
        PyMem_RawFree(block)
        raise RuntimeError("two writers in one array: another thread is updating it")
    PyMem_RawFree(self.block)
    self.block = block
    self.storage = storage
    self.n_stored = n_stored
    self.n_cells = n_cells
    self.n_axes = n_axes
    self.type_num = type_num
    self.is_measure = False


cdef cnp.ndarray all_cells(CoreArray self):
    """All cells, zeros included, as a new 1-D array."""
    check_readable(self)
    cdef cnp.npy_intp n_cells = self.n_cells
    cdef cnp.ndarray out = cnp.PyArray_SimpleNew(1, &n_cells, self.type_num)
    cdef Py_ssize_t item = item_size(self.type_num)
    cdef char* cells = <char*> cnp.PyArray_DATA(out)
    if n_cells == 0:
        return out
    if item == 8:
        expand[uint64_t](self.storage, self.block, self.n_stored, n_cells, <uint64_t*> cells)
    elif item == 4:
        expand[uint32_t](self.storage, self.block, self.n_stored, n_cells, <uint32_t*> cells)
    elif item == 2:
        expand[uint16_t](self.storage, self.block, self.n_stored, n_cells, <uint16_t*> cells)
    else:
        expand[uint8_t](self.storage, self.block, self.n_stored, n_cells, <uint8_t*> cells)
    return out


cdef int check_readable(CoreArray self) except -1:
    """A kernel without the GIL is writing in place: another thread must not read."""
    if self.writing > 1:
        raise RuntimeError("array read while another thread updates it")
    return 0


cdef int check_writable(CoreArray self) except -1:
    """Nobody else is writing, and the array may be changed at all."""
    if self.writing:
        raise RuntimeError("two writers in one array: another thread is updating it")
    if self.is_read_only:
        raise ValueError("assignment destination is read-only")
    return 0


cdef CoreArray copy_array(CoreArray self):
    cdef CoreArray other = <CoreArray?> new_like(<PyObject*> self)  # a subclass may return anything
    cdef Py_ssize_t size
    check_readable(self)  # after the allocation, which may let another thread run
    if self.block != NULL:
        size = block_size(self.storage, self.n_stored, self.n_cells, item_size(self.type_num), self.n_axes)
        other.block = <char*> PyMem_RawMalloc(size)
        if other.block == NULL:
            raise MemoryError
        memcpy(other.block, self.block, size)
    other.n_cells = self.n_cells
    other.n_stored = self.n_stored
    other.storage = self.storage
    other.type_num = self.type_num
    other.n_axes = self.n_axes
    other.is_measure = self.is_measure
    return other


# ---- the container

cdef class CoreArray:
    """One sparse array: what `SparseArray` is underneath.

    The block is exact (no spare capacity) and replaced as a whole, so whatever fails before that leaves the array as it
    was. One writer at a time; readers hold the GIL.
    """

    def __cinit__(self):
        self.type_num = cnp.NPY_DOUBLE
        self.n_axes = 1

    def __dealloc__(self):
        PyMem_RawFree(self.block)

    # -- writing (private: the subclasses keep the promises about order, class and measure)

    def _set_pairs(self, tuple shape, const Py_ssize_t[::1] indices not None, cnp.ndarray values not None):
        """Take this shape, these flat indices (sorted, unique) and these values (none zero, one each)."""
        cdef Py_ssize_t n = indices.shape[0], k, n_cells, item, previous = -1
        cdef Py_ssize_t[64] extents
        cdef int n_axes = read_shape(shape, extents, &n_cells)
        cdef int storage, type_num = cnp.PyArray_TYPE(values)
        cdef char* block
        cdef const char* source = <const char*> cnp.PyArray_DATA(values)
        item = item_size(type_num)
        if item == 0 or not cnp.PyArray_ISNOTSWAPPED(values):
            raise TypeError(f"values of dtype {values.dtype} given; expected bool, integers or floats of up to 64 bits")
        if cnp.PyArray_NDIM(values) != 1 or cnp.PyArray_DIM(values, 0) != n or not cnp.PyArray_IS_C_CONTIGUOUS(values):
            raise ValueError(f"values of shape {(<object> values).shape} given for {n} indices; "
                             "expected one contiguous value each")
        for k in range(n):
            if indices[k] <= previous or indices[k] >= n_cells:
                raise ValueError(f"index {indices[k]} at position {k} given; expected ascending indices below {n_cells}")
            previous = indices[k]
        if n == n_cells and n > 0 and all_same(source, n, item):
            storage = UNIFORM
        else:
            storage = smallest_storage(PAIRS if n == 0 else UNIFORM, n, n_cells, item)
        block = new_block(storage, n, n_cells, item, n_axes, extents + n_axes - n_extents(n_axes, n_cells))
        if block == NULL:
            raise MemoryError
        if storage == DENSE:
            write_cells(&indices[0] if n else NULL, source, n, item, n_cells, block)
        elif storage == UNIFORM:
            memcpy(block, source, item)
        elif n or storage == BITMAP:
            memcpy(block + value_offset(storage, n_cells), source, n * item)
            write_indices(&indices[0] if n else NULL, n, storage, n_cells,
                          block + index_offset(storage, n, n_cells, item))
        take_block(self, block, storage, n, n_cells, n_axes, type_num)

    def _set_cells(self, tuple shape, cnp.ndarray cells not None):
        """Take this shape and these cells (1-D, contiguous, zeros included)."""
        cdef Py_ssize_t n_cells, item, n
        cdef Py_ssize_t[64] extents
        cdef int n_axes = read_shape(shape, extents, &n_cells)
        cdef int type_num = cnp.PyArray_TYPE(cells), storage
        cdef char* block
        item = item_size(type_num)
        if item == 0 or not cnp.PyArray_ISNOTSWAPPED(cells):
            raise TypeError(f"values of dtype {cells.dtype} given; expected bool, integers or floats of up to 64 bits")
        if cnp.PyArray_NDIM(cells) != 1 or cnp.PyArray_SIZE(cells) != n_cells or not cnp.PyArray_IS_C_CONTIGUOUS(cells):
            raise ValueError(f"{cnp.PyArray_SIZE(cells)} cells given for shape {shape}; expected {n_cells} contiguous ones")
        cells = cells.copy()  # nobody else writes in it while it is counted and stored
        if cells.dtype.kind == "f":
            cells += 0  # -0.0 becomes 0.0
        n = np.count_nonzero(cells)
        if n == n_cells and n > 0 and all_same(<const char*> cnp.PyArray_DATA(cells), n, item):
            storage = UNIFORM
        else:
            storage = smallest_storage(UNIFORM, n, n_cells, item)
        if storage != DENSE:  # uniform included: one cell is enough
            indices = np.flatnonzero(cells)
            self._set_pairs(shape, indices, cells[indices])
            return
        block = new_block(DENSE, n, n_cells, item, n_axes, extents + n_axes - n_extents(n_axes, n_cells))
        if block == NULL:
            raise MemoryError
        memcpy(block, cnp.PyArray_DATA(cells), n_cells * item)
        take_block(self, block, DENSE, n, n_cells, n_axes, type_num)

    def _set_uniform(self, tuple shape, cnp.ndarray value not None):
        """Take this shape with one value (a 1-element array, not zero) in every cell. O(1)."""
        cdef Py_ssize_t n_cells
        cdef Py_ssize_t[64] extents
        cdef int n_axes = read_shape(shape, extents, &n_cells), type_num = cnp.PyArray_TYPE(value)
        cdef Py_ssize_t item = item_size(type_num)
        cdef char* block
        if item == 0 or cnp.PyArray_SIZE(value) != 1 or not value.any() or n_cells == 0:
            raise ValueError(f"value {value} given for shape {shape}; expected one number that is not zero, and cells")
        block = new_block(UNIFORM, n_cells, n_cells, item, n_axes, extents + n_axes - n_extents(n_axes, n_cells))
        if block == NULL:
            raise MemoryError
        memcpy(block, cnp.PyArray_DATA(value), item)
        take_block(self, block, UNIFORM, n_cells, n_cells, n_axes, type_num)

    def _set_writable(self, bint is_writable):
        self.is_read_only = not is_writable

    # -- reading

    @property
    def _is_writable(self):
        return not self.is_read_only

    @property
    def shape(self):
        """Extents, as NumPy's."""
        cdef Py_ssize_t[64] extents
        cdef int n = n_extents(self.n_axes, self.n_cells), axis
        cdef Py_ssize_t first = self.n_cells
        if n > 0:
            check_readable(self)
        read_extents(self, extents)
        for axis in range(n):
            first = first // extents[axis] if n < self.n_axes else 0
        stored = tuple([extents[axis] for axis in range(n)])
        return stored if n == self.n_axes else (first, *stored)

    @property
    def ndim(self):
        return self.n_axes

    @property
    def size(self):
        """Number of cells, zeros included."""
        return self.n_cells

    @property
    def nnz(self):
        """Number of entries that are not zero (the support)."""
        return self.n_stored

    @property
    def dtype(self):
        return cnp.PyArray_DescrFromType(self.type_num)

    @property
    def itemsize(self):
        return item_size(self.type_num)

    @property
    def storage(self):
        """``"pairs"``, ``"bitmap"``, ``"dense"`` or ``"uniform"``: whichever takes the fewest bytes."""
        return STORAGE_NAMES[self.storage]

    @property
    def nbytes(self):
        """All bytes held, the object included."""
        return getsizeof(self)  # with the header that the garbage collector puts before it

    def __sizeof__(self):
        cdef Py_ssize_t item = item_size(self.type_num)
        cdef Py_ssize_t basic = type(self).__basicsize__
        if self.block == NULL:
            return basic
        return basic + block_size(self.storage, self.n_stored, self.n_cells, item, self.n_axes)

    def copy(self, order="C"):
        """An independent array of the same class, shape, dtype and content. O(bytes held)."""
        return copy_array(self)

    @property
    def indices(self):
        """Flat C-order indices of the entries, ascending: a read-only copy, (nnz,) intp."""
        cdef cnp.npy_intp n = self.n_stored
        cdef Py_ssize_t k
        cdef char* positions
        cdef Py_ssize_t* target
        check_readable(self)
        if self.storage == UNIFORM:
            out = np.arange(n, dtype=np.intp)
        elif self.storage == DENSE:
            out = np.flatnonzero(all_cells(self))
        else:
            out = cnp.PyArray_SimpleNew(1, &n, cnp.NPY_INTP)
            target = <Py_ssize_t*> cnp.PyArray_DATA(<cnp.ndarray> out)
            positions = self.block + index_offset(self.storage, n, self.n_cells, item_size(self.type_num))
            if n == 0:
                pass
            elif self.storage == BITMAP:
                list_bitmap(<const uint64_t*> positions, (self.n_cells + 63) >> 6, target)
            elif index_size(self.n_cells) == 4:
                for k in range(n):
                    target[k] = (<int32_t*> positions)[k]
            else:
                memcpy(target, positions, n * sizeof(Py_ssize_t))
        out.flags.writeable = False
        return out

    @property
    def values(self):
        """The entries in the order of `indices`: a read-only copy, (nnz,) of `dtype`."""
        cdef cnp.npy_intp n = self.n_stored
        check_readable(self)
        if self.storage == UNIFORM:
            out = all_cells(self)
        elif self.storage == DENSE:
            out = all_cells(self)
            if n < self.n_cells:
                out = out[np.flatnonzero(out)]
        else:
            out = cnp.PyArray_SimpleNew(1, &n, self.type_num)
            if n:
                memcpy(cnp.PyArray_DATA(<cnp.ndarray> out), self.block + value_offset(self.storage, self.n_cells),
                       n * item_size(self.type_num))
        out.flags.writeable = False
        return out

    def to_dense(self):
        """The same numbers as a new ndarray of `shape`. O(size)."""
        return all_cells(self).reshape(self.shape)

    def _lookup(self, const Py_ssize_t[::1] wanted not None):
        """Cells at these flat indices (in any order), zeros included, as a new (n,) array."""
        cdef cnp.npy_intp n = wanted.shape[0]
        cdef Py_ssize_t k, at, item = item_size(self.type_num)
        cdef cnp.ndarray out = cnp.PyArray_ZEROS(1, &n, self.type_num, 0)
        cdef char* target = <char*> cnp.PyArray_DATA(out)
        cdef char* positions
        check_readable(self)
        for k in range(n):
            if wanted[k] < 0 or wanted[k] >= self.n_cells:
                raise IndexError(f"flat index {wanted[k]} given; expected 0 to {self.n_cells - 1}")
        if n == 0 or self.n_stored == 0:
            return out
        if self.storage == BITMAP:  # ranks need a running count: list the indices once
            indices = self.indices
            nearest = np.searchsorted(indices, wanted)
            nearest[nearest == self.n_stored] = 0
            return np.where(indices[nearest] == wanted, self.values[nearest], np.zeros(1, dtype=self.dtype))
        positions = self.block + index_offset(self.storage, self.n_stored, self.n_cells, item)
        for k in range(n):
            if self.storage == DENSE:
                at = wanted[k]
            elif self.storage == UNIFORM:
                at = 0
            elif index_size(self.n_cells) == 4:
                at = find[int32_t](<const int32_t*> positions, self.n_stored, wanted[k])
            else:
                at = find[int64_t](<const int64_t*> positions, self.n_stored, wanted[k])
            if at >= 0:
                memcpy(target + k * item, self.block + at * item, item)
        return out

    def _check(self):
        """Assert every invariant; for tests."""
        indices, values = self.indices, self.values
        assert 0 <= self.n_stored <= self.n_cells
        assert int(np.prod(self.shape, dtype=object)) == self.n_cells, (self.shape, self.n_cells)
        assert len(indices) == len(values) == self.n_stored, (len(indices), len(values), self.n_stored)
        assert (np.diff(indices) > 0).all()
        assert not len(indices) or (0 <= indices.min() and indices.max() < self.n_cells)
        assert (values != 0).all()
        assert self.writing == 0
        item = self.itemsize
        payloads = [payload_size(form, self.n_stored, self.n_cells, item) for form in (PAIRS, BITMAP, DENSE)]
        assert payload_size(self.storage, self.n_stored, self.n_cells, item) <= 1.05 * min(payloads) + 8, (
            self.storage, payloads)
        if self.is_measure:
            assert (values >= 0).all() and np.isfinite(values).all() and len(values)


cdef class one_writer:
    """A context in which the caller is the one writer of these arrays (what is no array is left out).

    RuntimeError on entry if another writer is in one of them, ValueError if one is read-only. Taking and leaving are single steps to Python, so that no
    interrupt comes between, and each context leaves only what it took.
    """

    cdef list arrays
    cdef list taken

    def __init__(self, arrays):
        self.arrays = [array for array in arrays if isinstance(array, CoreArray)]
        self.taken = []

    def __enter__(self):
        cdef CoreArray array
        for array in self.arrays:
            if any([array is other for other in self.taken]):
                continue
            try:
                check_writable(array)
            except BaseException:
                self.leave()
                raise
            array.writing = 1
            self.taken.append(array)
        return self

    def __exit__(self, *raised):
        self.leave()

    def __dealloc__(self):
        if self.taken is not None:
            self.leave()

    cdef leave(self):
        cdef CoreArray array
        for array in self.taken:
            array.writing = 0
        self.taken = []
