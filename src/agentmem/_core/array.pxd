cimport numpy as cnp
from libc.stdint cimport INT32_MAX, uint64_t

from agentmem._core.types cimport BITMAP, DENSE, PAIRS, UNIFORM, index_t


cdef class CoreArray:
    cdef object __weakref__
    cdef Py_ssize_t n_cells           # product of the shape
    cdef Py_ssize_t n_stored          # entries that are not zero
    cdef char* block                  # values and their places, then all extents but the first
    cdef unsigned char storage        # a Storage
    cdef signed char type_num         # NumPy's number of the dtype
    cdef unsigned char n_axes
    cdef unsigned char writing        # a writer is inside: a second one gets RuntimeError
    cdef unsigned char is_measure     # 1: known to be finite, non-negative and not all zero; 2: and normalised
    cdef unsigned char is_read_only   # a writer gets ValueError
    cdef unsigned char is_lent        # a `Moment` reads the block: it is neither written nor freed


# ---- leaves: sizes and layout. Inline: called through a module's table they cost an agent's step a tenth.

cdef inline Py_ssize_t item_size(int type_num) noexcept nogil:
    if type_num == cnp.NPY_DOUBLE or type_num == cnp.NPY_LONGLONG or type_num == cnp.NPY_ULONGLONG:
        return 8
    if type_num == cnp.NPY_LONG or type_num == cnp.NPY_ULONG:
        return sizeof(long)
    if type_num == cnp.NPY_FLOAT or type_num == cnp.NPY_INT or type_num == cnp.NPY_UINT:
        return 4
    if type_num == cnp.NPY_FLOAT16 or type_num == cnp.NPY_SHORT or type_num == cnp.NPY_USHORT:
        return 2
    if type_num == cnp.NPY_BOOL or type_num == cnp.NPY_BYTE or type_num == cnp.NPY_UBYTE:
        return 1
    return 0


cdef inline Py_ssize_t index_size(Py_ssize_t n_cells) noexcept nogil:
    return 4 if n_cells <= INT32_MAX else 8


cdef inline Py_ssize_t index_offset(int storage, Py_ssize_t n_stored, Py_ssize_t n_cells,
                                    Py_ssize_t item) noexcept nogil:
    """Where the indices (pairs) or the bits (bitmap) begin in the block."""
    cdef Py_ssize_t align = index_size(n_cells)
    return 0 if storage == BITMAP else (n_stored * item + align - 1) & ~(align - 1)


cdef inline Py_ssize_t value_offset(int storage, Py_ssize_t n_cells) noexcept nogil:
    """Where the values begin in the block: behind the bits of a bitmap, so that neither needs padding."""
    return ((n_cells + 63) >> 6) * 8 if storage == BITMAP else 0


cdef inline Py_ssize_t payload_size(int storage, Py_ssize_t n_stored, Py_ssize_t n_cells,
                                    Py_ssize_t item) noexcept nogil:
    """Bytes of values and positions in this form, the shape not counted."""
    if storage == PAIRS:
        return index_offset(PAIRS, n_stored, n_cells, item) + n_stored * index_size(n_cells)
    if storage == BITMAP:
        return value_offset(BITMAP, n_cells) + n_stored * item
    if storage == DENSE:
        return n_cells * item
    return item


cdef inline int smallest_storage(int now, Py_ssize_t n_stored, Py_ssize_t n_cells, Py_ssize_t item) noexcept nogil:
    """The form of fewest bytes; dense, or else the one in use, where no other is over 3 % smaller."""
    cdef int best = PAIRS, storage
    cdef Py_ssize_t best_size = payload_size(PAIRS, n_stored, n_cells, item), size
    for storage in range(BITMAP, <int> UNIFORM):
        size = payload_size(storage, n_stored, n_cells, item)
        if size < best_size:
            best, best_size = storage, size
    if n_stored > 0 and payload_size(DENSE, n_stored, n_cells, item) * 0.97 <= best_size:
        return DENSE
    if now != UNIFORM and payload_size(now, n_stored, n_cells, item) * 0.97 <= best_size:
        return now
    return best


cdef class Moment(CoreArray):
    cdef CoreArray lender


cdef inline Py_ssize_t cells_stored(CoreArray self) noexcept nogil:
    """How many values the block holds."""
    if self.storage == DENSE:
        return self.n_cells
    return 1 if self.storage == UNIFORM else self.n_stored


cdef inline char* values_of(CoreArray self) noexcept nogil:
    return self.block + value_offset(self.storage, self.n_cells)


cdef inline char* positions_of(CoreArray self) noexcept nogil:
    return self.block + index_offset(self.storage, self.n_stored, self.n_cells, item_size(self.type_num))


cdef Py_ssize_t clear_zeros(char* values, Py_ssize_t n, int type_num) noexcept nogil
cdef void settle(CoreArray self, Py_ssize_t n_zeros, bint may_be_same) noexcept
cdef bint all_same(const char* values, Py_ssize_t n, Py_ssize_t item, const char* first) noexcept nogil
cdef void let_go(CoreArray self) noexcept
cdef Py_ssize_t count_bits(const uint64_t* words, Py_ssize_t n_words) noexcept nogil
cdef int n_extents(int n_axes, Py_ssize_t n_cells) noexcept nogil
cdef void read_extents(CoreArray self, Py_ssize_t* extents) noexcept nogil
cdef char* new_block(int storage, Py_ssize_t n_stored, Py_ssize_t n_cells, Py_ssize_t item,
                     int n_axes, const Py_ssize_t* extents) noexcept nogil
cdef int check_readable(CoreArray self) except -1
cpdef CoreArray moment_of(CoreArray self)
cdef int own_block(CoreArray self) except -1
cdef char* make_block(CoreArray self, int storage, Py_ssize_t n_stored) noexcept nogil
cdef take_block(CoreArray self, char* block, int storage, Py_ssize_t n_stored, Py_ssize_t n_cells,
                int n_axes, int type_num)
cdef CoreArray copy_array(CoreArray self)
cdef int check_writable(CoreArray self) except -1
cdef Py_ssize_t find(const index_t* indices, Py_ssize_t n, Py_ssize_t wanted) noexcept nogil
