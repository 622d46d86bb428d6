"""Storage of one sparse array: four forms in one exact block of memory, and the moves between them.

The block holds values and then their indices (pairs), one bit per cell and then values (bitmap), or values alone; then
all extents but the first. Nothing here knows arithmetic: `agentmem.array` puts NumPy's protocols on top, `_core.belief` the filter.
"""
cimport cython
cimport numpy as cnp
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from cpython.object cimport PyObject
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove, memset

from sys import getsizeof

import numpy as np

from agentmem._core.types cimport BITMAP, DENSE, PAIRS, UNIFORM, cell_t, index_t, lowest_bit, new_like

cnp.import_array()

cdef extern from "Python.h":
    const Py_ssize_t PY_SSIZE_T_MAX

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
    large one its page faults. The caller has all it needs of the old content, which is not lent, and lets no reader in.
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


cdef Py_ssize_t count_bits(const uint64_t* words, Py_ssize_t n_words) noexcept nogil:
    cdef Py_ssize_t w, n = 0
    cdef uint64_t word
    for w in range(n_words):  # by pairs, nibbles, bytes: no flag asks for the processor's own instruction
        word = words[w] - ((words[w] >> 1) & 0x5555555555555555ULL)
        word = (word & 0x3333333333333333ULL) + ((word >> 2) & 0x3333333333333333ULL)
        n += (((word + (word >> 4)) & 0x0F0F0F0F0F0F0F0FULL) * 0x0101010101010101ULL) >> 56
    return n


cdef uint64_t sign_bit(int type_num) noexcept nogil:
    """The bit that tells -0.0 from 0.0; none for what is no float."""
    if type_num == cnp.NPY_DOUBLE:
        return (<uint64_t> 1) << 63
    if type_num == cnp.NPY_FLOAT:
        return (<uint64_t> 1) << 31
    return (<uint64_t> 1) << 15 if type_num == cnp.NPY_FLOAT16 else 0


cdef Py_ssize_t count_zeros_in(const cell_t* values, Py_ssize_t n, cell_t mask) noexcept nogil:
    cdef Py_ssize_t k = 0, stop, lane, found = 0
    cdef cell_t[16] few  # side by side, in numbers as narrow as the values: four times as fast as one count
    while k + 16 <= n:
        for lane in range(16):
            few[lane] = 0
        stop = min(k + 16 * 100, n - 15)
        while k < stop:
            for lane in range(16):
                few[lane] += (values[k + lane] & mask) == 0
            k += 16
        for lane in range(16):
            found += few[lane]
    while k < n:
        found += (values[k] & mask) == 0
        k += 1
    return found


cdef void clear_zeros_in(cell_t* values, Py_ssize_t n, cell_t mask) noexcept nogil:
    cdef Py_ssize_t k
    for k in range(n):
        values[k] = values[k] if values[k] & mask else 0


cdef Py_ssize_t count_zeros(const char* values, Py_ssize_t n, int type_num) noexcept nogil:
    cdef Py_ssize_t item = item_size(type_num)
    cdef uint64_t mask = ~sign_bit(type_num)
    if item == 8:
        return count_zeros_in[uint64_t](<const uint64_t*> values, n, mask)
    if item == 4:
        return count_zeros_in[uint32_t](<const uint32_t*> values, n, <uint32_t> mask)
    if item == 2:
        return count_zeros_in[uint16_t](<const uint16_t*> values, n, <uint16_t> mask)
    return count_zeros_in[uint8_t](<const uint8_t*> values, n, <uint8_t> mask)


cdef Py_ssize_t clear_zeros(char* values, Py_ssize_t n, int type_num) noexcept nogil:
    """Make every -0.0 be 0.0; return how many zeros there are."""
    cdef Py_ssize_t found = count_zeros(values, n, type_num)
    if found == 0:
        return 0
    if type_num == cnp.NPY_DOUBLE:
        clear_zeros_in[uint64_t](<uint64_t*> values, n, ~sign_bit(type_num))
    elif type_num == cnp.NPY_FLOAT:
        clear_zeros_in[uint32_t](<uint32_t*> values, n, <uint32_t> ~sign_bit(type_num))
    elif type_num == cnp.NPY_FLOAT16:
        clear_zeros_in[uint16_t](<uint16_t*> values, n, <uint16_t> ~sign_bit(type_num))
    return found


cdef inline bint put_entry(int storage, char* positions, cell_t* values, Py_ssize_t k, Py_ssize_t room,
                           Py_ssize_t n_cells, Py_ssize_t place, cell_t value) noexcept nogil:
    """Write entry k of a new block; False where there is no room for it."""
    if storage == DENSE:
        values[place] = value
        return True
    if k >= room:
        return False
    if storage == BITMAP:
        (<uint64_t*> positions)[place >> 6] |= (<uint64_t> 1) << (place & 63)
    elif storage == PAIRS:
        if index_size(n_cells) == 4:
            (<int32_t*> positions)[k] = <int32_t> place
        else:
            (<int64_t*> positions)[k] = place
    elif k > 0:  # uniform: the first one stands for all
        return True
    values[k] = value
    return True


cdef inline bint is_empty_line(const char* line) noexcept nogil:
    """Whether 64 bytes are zero."""
    cdef uint64_t word, any_bit = 0
    cdef int k
    for k in range(8):
        memcpy(&word, line + 8 * k, 8)
        any_bit |= word
    return any_bit == 0


cdef Py_ssize_t move_entries(int source, const char* places, const cell_t* cells, Py_ssize_t n, cell_t mask,
                             Py_ssize_t n_cells, int storage, char* positions, cell_t* values,
                             Py_ssize_t room) noexcept nogil:
    """What is not zero of a block that stores n cells, into one with `room` for so many; return how many there are.

    More than there is room for are not written. The bits of a bitmap and the cells of a dense block are zero before.
    """
    cdef Py_ssize_t k = 0, w, i, begin = 0, stop, run = 64 // sizeof(cell_t)
    cdef const uint64_t* words = <const uint64_t*> places
    cdef uint64_t word
    if source == DENSE and storage == BITMAP:  # without a branch for what a cell holds
        for w in range((n_cells + 63) >> 6):
            word = 0
            for i in range(w * 64, min(w * 64 + 64, n_cells)):
                if k < room:
                    values[k] = cells[i]
                word |= (<uint64_t> ((cells[i] & mask) != 0)) << (i & 63)
                k += (cells[i] & mask) != 0
            (<uint64_t*> positions)[w] = word
    elif source == DENSE:
        while begin < n_cells:
            stop = min(begin + run, n_cells)
            if begin + run > n_cells or not is_empty_line(<const char*> (cells + begin)):  # most lines hold nothing
                for i in range(begin, stop):
                    if cells[i] & mask:
                        if not put_entry(storage, positions, values, k, room, n_cells, i, cells[i]):
                            return k + 1
                        k += 1
            begin = stop
    elif source == BITMAP:
        i = 0
        for w in range((n_cells + 63) >> 6):
            word = words[w]
            while word:
                if cells[i] & mask:
                    if not put_entry(storage, positions, values, k, room, n_cells, w * 64 + lowest_bit(word), cells[i]):
                        return k + 1
                    k += 1
                word &= word - 1
                i += 1
    elif source == PAIRS:
        for i in range(n):
            if cells[i] & mask:
                w = (<const int32_t*> places)[i] if index_size(n_cells) == 4 else (<const int64_t*> places)[i]
                if not put_entry(storage, positions, values, k, room, n_cells, w, cells[i]):
                    return k + 1
                k += 1
    return k


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


cdef struct Rank:  # of a bitmap: entries in the first words
    Py_ssize_t n_words
    Py_ssize_t n_entries


cdef Py_ssize_t value_at(CoreArray self, Py_ssize_t place, Rank* rank) noexcept nogil:
    """Which of the stored values is that of a cell; -1 if there is none. `rank` is kept from one cell to the next."""
    cdef const uint64_t* words = <const uint64_t*> positions_of(self)
    cdef Py_ssize_t w = place >> 6
    cdef uint64_t bit = (<uint64_t> 1) << (place & 63), below
    if self.storage == DENSE:
        return place
    if self.storage == UNIFORM:
        return 0
    if self.storage == PAIRS and index_size(self.n_cells) == 4:
        return find[int32_t](<const int32_t*> words, self.n_stored, place)
    if self.storage == PAIRS:
        return find[int64_t](<const int64_t*> words, self.n_stored, place)
    if w >= rank.n_words:
        rank.n_entries += count_bits(words + rank.n_words, w - rank.n_words)
    else:
        rank.n_entries -= count_bits(words + w, rank.n_words - w)
    rank.n_words = w
    below = words[w] & (bit - 1)
    return rank.n_entries + count_bits(&below, 1) if words[w] & bit else -1


cdef bint are_same(const cell_t* values, Py_ssize_t n, cell_t first) noexcept nogil:
    cdef Py_ssize_t k = 0, lane, stop
    cdef cell_t[16] others
    cdef cell_t other = 0
    while k + 16 <= n:
        for lane in range(16):
            others[lane] = 0
        stop = min(k + 16 * 64, n - 15)
        while k < stop:
            for lane in range(16):
                others[lane] |= values[k + lane] ^ first
            k += 16
        for lane in range(16):
            other |= others[lane]
        if other:
            return False
    while k < n:
        other |= values[k] ^ first
        k += 1
    return other == 0


cdef bint all_same(const char* values, Py_ssize_t n, Py_ssize_t item, const char* first) noexcept nogil:
    """Whether n items are bit for bit what `first` is."""
    if n == 0:
        return True
    if item == 8:
        return are_same[uint64_t](<const uint64_t*> values, n, (<const uint64_t*> first)[0])
    if item == 4:
        return are_same[uint32_t](<const uint32_t*> values, n, (<const uint32_t*> first)[0])
    if item == 2:
        return are_same[uint16_t](<const uint16_t*> values, n, (<const uint16_t*> first)[0])
    return are_same[uint8_t](<const uint8_t*> values, n, (<const uint8_t*> first)[0])


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


cdef Py_ssize_t move_any(int source, const char* places, const char* values, Py_ssize_t n, Py_ssize_t n_cells,
                         int type_num, int storage, char* positions, char* target, Py_ssize_t room) noexcept nogil:
    """`move_entries` of values of any type."""
    cdef Py_ssize_t item = item_size(type_num)
    cdef uint64_t mask = ~sign_bit(type_num)
    if item == 8:
        return move_entries[uint64_t](source, places, <const uint64_t*> values, n, mask, n_cells, storage, positions,
                                      <uint64_t*> target, room)
    if item == 4:
        return move_entries[uint32_t](source, places, <const uint32_t*> values, n, <uint32_t> mask, n_cells, storage,
                                      positions, <uint32_t*> target, room)
    if item == 2:
        return move_entries[uint16_t](source, places, <const uint16_t*> values, n, <uint16_t> mask, n_cells, storage,
                                      positions, <uint16_t*> target, room)
    return move_entries[uint8_t](source, places, <const uint8_t*> values, n, <uint8_t> mask, n_cells, storage, positions,
                                 <uint8_t*> target, room)


cdef Py_ssize_t collect(const cell_t* cells, Py_ssize_t n_cells, cell_t mask, int32_t* places, cell_t* values,
                        Py_ssize_t room) noexcept nogil:
    """Places and values of what is not zero; return how many there are, more than `room` where they may not fit."""
    cdef Py_ssize_t k = 0, begin = 0, i, run = 64 // sizeof(cell_t)
    while begin < n_cells:
        if begin + run <= n_cells and is_empty_line(<const char*> (cells + begin)):
            begin += run
            continue
        if k + run > room:
            return room + 1
        for i in range(begin, min(begin + run, n_cells)):  # without a branch for what a cell holds
            places[k] = <int32_t> i
            values[k] = cells[i]
            k += (cells[i] & mask) != 0
        begin += run
    return k


cdef char* block_of_few(const char* cells, Py_ssize_t n_cells, int type_num, int n_axes, const Py_ssize_t* extents,
                        Py_ssize_t* n) noexcept nogil:
    """A new block of pairs with the n cells that are not zero, found in one look; NULL if that is no form for so many."""
    cdef Py_ssize_t item = item_size(type_num), room = (n_cells >> 5) + 64
    cdef uint64_t mask = ~sign_bit(type_num)
    cdef char* trial = NULL
    cdef char* block = NULL
    cdef int32_t* places
    if index_size(n_cells) == 4:
        trial = new_block(PAIRS, room, n_cells, item, 0, NULL)
    if trial == NULL:
        return NULL
    places = <int32_t*> (trial + index_offset(PAIRS, room, n_cells, item))
    if item == 8:
        n[0] = collect[uint64_t](<const uint64_t*> cells, n_cells, mask, places, <uint64_t*> trial, room)
    elif item == 4:
        n[0] = collect[uint32_t](<const uint32_t*> cells, n_cells, <uint32_t> mask, places, <uint32_t*> trial, room)
    elif item == 2:
        n[0] = collect[uint16_t](<const uint16_t*> cells, n_cells, <uint16_t> mask, places, <uint16_t*> trial, room)
    else:
        n[0] = collect[uint8_t](<const uint8_t*> cells, n_cells, <uint8_t> mask, places, <uint8_t*> trial, room)
    if 0 < n[0] <= room and smallest_storage(UNIFORM, n[0], n_cells, item) == PAIRS:
        block = new_block(PAIRS, n[0], n_cells, item, n_axes, extents)
        if block != NULL:
            memcpy(block, trial, n[0] * item)
            memcpy(block + index_offset(PAIRS, n[0], n_cells, item), trial + index_offset(PAIRS, room, n_cells, item),
                   n[0] * index_size(n_cells))
    PyMem_RawFree(trial)
    return block


cdef char* block_of_entries(int source, const char* places, const char* values, Py_ssize_t n, Py_ssize_t n_cells,
                            int type_num, int storage, Py_ssize_t room, int n_axes,
                            const Py_ssize_t* extents) noexcept nogil:
    """A new block with what is not zero of one that stores n cells; NULL without memory, or if it is not `room` many."""
    cdef Py_ssize_t item = item_size(type_num), moved
    cdef char* block = new_block(storage, room, n_cells, item, n_axes, extents)
    cdef char* positions
    cdef char* target
    if block == NULL:
        return NULL
    positions = block + index_offset(storage, room, n_cells, item)
    target = block + value_offset(storage, n_cells)
    if storage == UNIFORM:
        memcpy(target, values, item)
        return block
    if storage == BITMAP:
        memset(positions, 0, value_offset(BITMAP, n_cells))
    elif storage == DENSE and source == DENSE:
        memcpy(target, values, n_cells * item)
        moved = n_cells - clear_zeros(target, n_cells, type_num)
        if moved == room:
            return block
        PyMem_RawFree(block)
        return NULL
    elif storage == DENSE:
        memset(target, 0, n_cells * item)
    moved = move_any(source, places, values, n, n_cells, type_num, storage, positions, target, room)
    if moved == room:
        return block
    PyMem_RawFree(block)
    return NULL


# ---- moves that make or change Python objects

cdef void let_go(CoreArray self) noexcept:
    """Free the block, unless somebody reads it, who will."""
    if not self.is_lent:
        PyMem_RawFree(self.block)
    self.is_lent = False


cdef int own_block(CoreArray self) except -1:
    """Before writing in place: leave the block to who reads it, and go on with a copy."""
    cdef Py_ssize_t size
    cdef char* block
    if self.is_lent:
        size = block_size(self.storage, self.n_stored, self.n_cells, item_size(self.type_num), self.n_axes)
        block = <char*> PyMem_RawMalloc(size)
        if block == NULL:
            raise MemoryError
        memcpy(block, self.block, size)
        self.block = block
        self.is_lent = False
    return 0


cpdef CoreArray moment_of(CoreArray self):
    """What the array is now, to be read at leisure: a loan of the block, or a copy if that is lent already."""
    cdef Moment moment
    if isinstance(self, Moment):
        return self
    moment = Moment.__new__(Moment)
    check_readable(self)  # after the allocation, which may let another thread run
    if self.is_lent or self.block == NULL:
        return copy_as(self, CoreArray.__new__(CoreArray))
    moment.lender, moment.block, self.is_lent = self, self.block, True
    moment.n_cells, moment.n_stored = self.n_cells, self.n_stored
    moment.storage, moment.type_num, moment.n_axes = self.storage, self.type_num, self.n_axes
    return moment


cdef take_block(CoreArray self, char* block, int storage, Py_ssize_t n_stored, Py_ssize_t n_cells,
                int n_axes, int type_num):
    """Make `block` the content, its shape and dtype included."""
    if self.writing > 1 or self.is_read_only:
        PyMem_RawFree(block)
        if self.is_read_only:
            raise ValueError("assignment destination is read-only")
        raise RuntimeError("two writers in one array: another thread is updating it")
    let_go(self)
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


cdef void close_gaps_in(CoreArray self, cell_t* values, cell_t mask) noexcept nogil:
    """Move up what is not zero of pairs or a bitmap, and its places; the block is as large as before."""
    cdef char* places = positions_of(self)
    cdef uint64_t* words = <uint64_t*> places
    cdef Py_ssize_t k = 0, i = 0, w, step = index_size(self.n_cells)
    cdef uint64_t word
    if self.storage == PAIRS:
        for i in range(self.n_stored):
            if values[i] & mask:
                values[k] = values[i]
                memmove(places + k * step, places + i * step, step)
                k += 1
    else:
        for w in range((self.n_cells + 63) >> 6):
            word = words[w]
            while word:
                if values[i] & mask:
                    values[k] = values[i]
                    k += 1
                else:
                    words[w] ^= word & (~word + 1)
                word &= word - 1
                i += 1


cdef void close_gaps(CoreArray self, Py_ssize_t n) noexcept nogil:
    """Leave n values, none of them zero, in the block, in the same form (pairs for a uniform one), without memory."""
    cdef Py_ssize_t item = item_size(self.type_num), size
    cdef uint64_t mask = ~sign_bit(self.type_num)
    cdef Py_ssize_t[64] extents
    cdef char* places = positions_of(self)
    cdef char* block
    read_extents(self, extents)
    if self.storage == UNIFORM:
        self.storage = PAIRS
    elif item == 8:
        close_gaps_in[uint64_t](self, <uint64_t*> values_of(self), mask)
    elif item == 4:
        close_gaps_in[uint32_t](self, <uint32_t*> values_of(self), <uint32_t> mask)
    elif item == 2:
        close_gaps_in[uint16_t](self, <uint16_t*> values_of(self), <uint16_t> mask)
    else:
        close_gaps_in[uint8_t](self, <uint8_t*> values_of(self), <uint8_t> mask)
    self.n_stored = n
    if self.storage == PAIRS:
        memmove(positions_of(self), places, n * index_size(self.n_cells))
    size = block_size(self.storage, n, self.n_cells, item, self.n_axes)
    if n_extents(self.n_axes, self.n_cells) > 0:
        memcpy(self.block + payload_size(self.storage, n, self.n_cells, item), extents,
               n_extents(self.n_axes, self.n_cells) * sizeof(Py_ssize_t))
    block = <char*> PyMem_RawRealloc(self.block, size)
    if block != NULL:
        self.block = block


cdef void settle(CoreArray self, Py_ssize_t n_zeros, bint may_be_same) noexcept:
    """Leave out the zeros, so many, among the values in the block, and take the form of fewest bytes.

    `may_be_same`: whether the caller has not seen two different values. Nobody else reads the block. Without memory for
    another form the array keeps its own.
    """
    cdef Py_ssize_t item = item_size(self.type_num), n = self.n_cells
    cdef Py_ssize_t[64] extents
    cdef int storage
    cdef char* block
    if self.storage == UNIFORM:
        n = 0 if n_zeros else n
    else:
        n = cells_stored(self) - n_zeros
    self.is_measure = False
    if self.storage == DENSE:
        self.n_stored = n
    elif n_zeros > 0:
        close_gaps(self, n)
    storage = self.storage
    if storage != UNIFORM and may_be_same and n == self.n_cells and n > 0 \
            and all_same(values_of(self), n, item, values_of(self)):
        storage = UNIFORM
    elif n == 0 or storage != UNIFORM:
        storage = smallest_storage(PAIRS if n == 0 else storage, n, self.n_cells, item)
    if storage == self.storage:
        return
    read_extents(self, extents)
    block = block_of_entries(self.storage, positions_of(self), values_of(self), cells_stored(self), self.n_cells,
                             self.type_num, storage, n, self.n_axes, extents)
    if block != NULL:
        PyMem_RawFree(self.block)
        self.block = block
        self.storage = storage


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
    """A copy of the same class; the writer of neither."""
    return copy_as(self, <CoreArray?> new_like(<PyObject*> self))  # a subclass may return anything


cdef CoreArray copy_as(CoreArray self, CoreArray other):
    """Give `other`, a new array, the content of `self`."""
    cdef Py_ssize_t size
    check_readable(self)  # after the allocation of `other`, which may let another thread run
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

    def _reshaped(self, tuple shape):
        """The same cells in another shape, as a new array of the same class. O(bytes held)."""
        cdef Py_ssize_t n_cells, item = item_size(self.type_num)
        cdef Py_ssize_t[64] extents
        cdef int n_axes = read_shape(shape, extents, &n_cells)
        cdef CoreArray moment = moment_of(self), made = <CoreArray?> new_like(<PyObject*> self)
        if n_cells != moment.n_cells:
            raise ValueError(f"shape {shape} given for {moment.n_cells} cells")
        made.block = new_block(moment.storage, moment.n_stored, n_cells, item, n_axes,
                               extents + n_axes - n_extents(n_axes, n_cells))
        if made.block == NULL:
            raise MemoryError
        if moment.block != NULL:
            memcpy(made.block, moment.block, payload_size(moment.storage, moment.n_stored, n_cells, item))
        made.n_cells, made.n_stored, made.n_axes = n_cells, moment.n_stored, n_axes
        made.storage, made.type_num, made.is_measure = moment.storage, moment.type_num, self.is_measure
        return made

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
        if not cnp.PyArray_ISALIGNED(values):
            values = values.copy()
            source = <const char*> cnp.PyArray_DATA(values)
        for k in range(n):
            if indices[k] <= previous or indices[k] >= n_cells:
                raise ValueError(f"index {indices[k]} at position {k} given; expected ascending indices below {n_cells}")
            previous = indices[k]
        if n == n_cells and n > 0 and all_same(source, n, item, source):
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
        cdef const char* source
        cdef char* block
        item = item_size(type_num)
        if item == 0 or not cnp.PyArray_ISNOTSWAPPED(cells):
            raise TypeError(f"values of dtype {cells.dtype} given; expected bool, integers or floats of up to 64 bits")
        if cnp.PyArray_NDIM(cells) != 1 or cnp.PyArray_SIZE(cells) != n_cells or not cnp.PyArray_IS_C_CONTIGUOUS(cells):
            raise ValueError(f"{cnp.PyArray_SIZE(cells)} cells given for shape {shape}; expected {n_cells} contiguous ones")
        if not cnp.PyArray_ISALIGNED(cells):
            cells = cells.copy()
        source = <const char*> cnp.PyArray_DATA(cells)
        if self.storage == PAIRS and self.n_stored > 0:  # what was sparse mostly stays so
            block = block_of_few(source, n_cells, type_num, n_axes, extents + n_axes - n_extents(n_axes, n_cells), &n)
            if block != NULL:
                take_block(self, block, PAIRS, n, n_cells, n_axes, type_num)
                return
        n = n_cells - count_zeros(source, n_cells, type_num)
        if n == n_cells and n > 0 and all_same(source, n, item, source):
            storage = UNIFORM
        else:
            storage = smallest_storage(PAIRS if n == 0 else UNIFORM, n, n_cells, item)
        block = block_of_entries(DENSE, NULL, source, n_cells, n_cells, type_num, storage, n, n_axes,
                                 extents + n_axes - n_extents(n_axes, n_cells))
        if block == NULL:
            if n_cells - count_zeros(source, n_cells, type_num) != n:
                raise RuntimeError("array written by another thread while it was read")
            raise MemoryError
        take_block(self, block, storage, n, n_cells, n_axes, type_num)

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
        cdef Rank rank = Rank(0, 0)
        cdef cnp.ndarray out = cnp.PyArray_ZEROS(1, &n, self.type_num, 0)
        cdef char* target = <char*> cnp.PyArray_DATA(out)
        check_readable(self)
        for k in range(n):
            if wanted[k] < 0 or wanted[k] >= self.n_cells:
                raise IndexError(f"flat index {wanted[k]} given; expected 0 to {self.n_cells - 1}")
        if n == 0 or self.n_stored == 0:
            return out
        for k in range(n):
            at = value_at(self, wanted[k], &rank)
            if at >= 0:
                memcpy(target + k * item, values_of(self) + at * item, item)
        return out

    def _put(self, const Py_ssize_t[::1] places not None, cnp.ndarray values not None):
        """Write values of the same dtype, one per place, where no other place has to be stored for it.

        Places are flat indices, each once. False, and nothing is changed, if more or fewer would be stored. The caller
        is inside as the one writer.
        """
        cdef cnp.npy_intp n = places.shape[0]
        cdef Py_ssize_t k, item = item_size(self.type_num), n_zeros = self.n_cells - self.n_stored
        cdef Rank rank = Rank(0, 0)
        cdef cnp.ndarray found = cnp.PyArray_SimpleNew(1, &n, cnp.NPY_INTP)
        cdef Py_ssize_t* at = <Py_ssize_t*> cnp.PyArray_DATA(found)
        cdef char* cell
        values = np.array(values)  # its zeros are counted, and then they stay
        if self.writing != 1 or cnp.PyArray_TYPE(values) != self.type_num or cnp.PyArray_NDIM(values) != 1 \
                or cnp.PyArray_SIZE(values) != n or not cnp.PyArray_ISNOTSWAPPED(values):
            raise ValueError(f"{values.dtype} of shape {(<object> values).shape} given for {n} places")
        clear_zeros(<char*> cnp.PyArray_DATA(values), n, self.type_num)
        if self.storage == UNIFORM or (
                self.storage != DENSE and count_zeros(<char*> cnp.PyArray_DATA(values), n, self.type_num)):
            return False
        for k in range(n):
            if places[k] < 0 or places[k] >= self.n_cells:
                raise IndexError(f"flat index {places[k]} given; expected 0 to {self.n_cells - 1}")
            at[k] = value_at(self, places[k], &rank)
            if at[k] < 0:
                return False
        own_block(self)
        for k in range(n):
            cell = values_of(self) + at[k] * item
            n_zeros -= count_zeros(cell, 1, self.type_num)
            memcpy(cell, <char*> cnp.PyArray_DATA(values) + k * item, item)
            n_zeros += count_zeros(cell, 1, self.type_num)
        settle(self, n_zeros if self.storage == DENSE else 0, True)
        return True

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


@cython.no_gc
cdef class Moment(CoreArray):
    """What an array was at a moment, on loan from it; the block is its own once the lender has another."""

    def __dealloc__(self):
        if self.lender is not None and self.lender.block == self.block:
            self.lender.is_lent = False
            self.block = NULL


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
