"""NumPy's own loops on the stored values of sparse arrays, a part at a time that fits a processor's cache.

    pairs    | 64 KiB of values | 64 KiB of values | ...    a dense operand: its cells at their places, picked
    bitmap   | entries of as many cells | ...               the same
    dense    | as many cells | ...                          the same cells

Arithmetic is NumPy's: nothing here knows a ufunc. What has no place in the arrays is not looked at: the caller knows
that it stays zero.
"""
cimport numpy as cnp
from cpython.object cimport PyTypeObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

import numpy as np

from agentmem._core.array cimport (CoreArray, all_same, cells_stored, check_readable, check_writable, clear_zeros,
                                   count_bits, index_size, item_size, let_go, moment_of, new_block, own_block,
                                   positions_of, read_extents, settle, value_offset, values_of)
from agentmem._core.types cimport BITMAP, DENSE, PAIRS, UNIFORM, cell_t, index_t, lowest_bit, new_of, prefetch

cnp.import_array()

cdef enum:
    PART = 1 << 18  # bytes of values: small enough for malloc to give the same memory again
    AHEAD = 96      # entries: what is picked next is on its way from main memory

cdef struct Part:
    Py_ssize_t first    # values before it
    Py_ssize_t n        # values in it
    Py_ssize_t word     # of a bitmap
    Py_ssize_t n_words


cdef bint next_part(CoreArray x, Part* part) noexcept nogil:
    """Go on from `part`, which is all zeros at first; False behind the last one."""
    cdef Py_ssize_t n_words = (x.n_cells + 63) >> 6, most = PART // item_size(x.type_num)
    part.first += part.n
    if x.storage == BITMAP:
        part.word += part.n_words
        part.n_words = min(most >> 6, n_words - part.word)
        part.n = count_bits(<const uint64_t*> positions_of(x) + part.word, part.n_words)
        return part.n_words > 0
    part.n = min(most, cells_stored(x) - part.first)
    return part.n > 0


# ---- leaves: cells of a dense operand at the places of entries

cdef void pick_at(const index_t* places, Py_ssize_t n, Py_ssize_t n_after, const cell_t* cells,
                  cell_t* out) noexcept nogil:
    cdef Py_ssize_t k, known = n + min(n_after, <Py_ssize_t> AHEAD)
    for k in range(n):
        if k + AHEAD < known:
            prefetch(cells + places[k + AHEAD])
        out[k] = cells[places[k]]


cdef void pick_bits(const uint64_t* words, Py_ssize_t n_words, const cell_t* cells, cell_t* out) noexcept nogil:
    cdef Py_ssize_t w, k = 0
    cdef uint64_t word
    for w in range(n_words):
        word = words[w]
        while word:
            out[k] = cells[w * 64 + lowest_bit(word)]
            word &= word - 1
            k += 1


cdef void pick_part(CoreArray x, const Part* part, const cell_t* cells, cell_t* out) noexcept nogil:
    """Of n_cells cells those where x has the entries of a part."""
    cdef const char* places = positions_of(x)
    cdef Py_ssize_t n_after = x.n_stored - part.first - part.n
    if x.storage == BITMAP:
        pick_bits(<const uint64_t*> places + part.word, part.n_words, cells + part.word * 64, out)
    elif index_size(x.n_cells) == 4:
        pick_at(<const int32_t*> places + part.first, part.n, n_after, cells, out)
    else:
        pick_at(<const int64_t*> places + part.first, part.n, n_after, cells, out)


cdef void pick(CoreArray x, const Part* part, cnp.ndarray cells, cnp.ndarray out) noexcept:
    cdef Py_ssize_t item = cnp.PyArray_ITEMSIZE(cells)
    cdef const char* source = <const char*> cnp.PyArray_DATA(cells)
    cdef char* target = <char*> cnp.PyArray_DATA(out)
    if item == 8:
        pick_part[uint64_t](x, part, <const uint64_t*> source, <uint64_t*> target)
    elif item == 4:
        pick_part[uint32_t](x, part, <const uint32_t*> source, <uint32_t*> target)
    elif item == 2:
        pick_part[uint16_t](x, part, <const uint16_t*> source, <uint16_t*> target)
    else:
        pick_part[uint8_t](x, part, <const uint8_t*> source, <uint8_t*> target)


cdef bint same_places(CoreArray a, CoreArray b) noexcept:
    if a.n_cells != b.n_cells or a.storage != b.storage:
        return False
    if a is b or a.storage == DENSE or a.storage == UNIFORM:
        return True
    if a.n_stored != b.n_stored:
        return False
    if a.storage == BITMAP:
        return memcmp(positions_of(a), positions_of(b), value_offset(BITMAP, a.n_cells)) == 0
    return memcmp(positions_of(a), positions_of(b), a.n_stored * index_size(a.n_cells)) == 0


def alike(CoreArray a not None, CoreArray b not None):
    """Whether two arrays have their values in the same places. O(bytes of indices)."""
    check_readable(a)
    check_readable(b)
    return same_places(a, b)


# ---- elementwise

def entrywise(ufunc, tuple operands not None, dict options not None, type cls not None):
    """What `ufunc` makes of the values of one or two operands, as a tuple of new arrays of `cls`.

    Operands are arrays that are `alike`, ndarrays with all their cells, in one axis (with no uniform array), and
    numbers. None if an array cannot hold a result.
    """
    cdef tuple given = tuple([moment_of(x) if isinstance(x, CoreArray) else x for x in operands])
    cdef CoreArray pattern = check_operands(given), made
    cdef tuple picks = picks_for(given, pattern)
    cdef Part part = Part(0, 0, 0, 0)
    cdef list arrays = []
    cdef Py_ssize_t[8] n_zeros
    cdef bint[8] is_same
    cdef Py_ssize_t i
    results = ufunc(*values_in(given, picks, pattern, &part), **options)
    results = results if type(results) is tuple else (results,)
    if len(results) > 8:
        return None
    for i in range(len(results)):
        if type(results[i]) is not np.ndarray or item_size(cnp.PyArray_TYPE(<cnp.ndarray> results[i])) == 0:
            return None
        arrays.append(like(pattern, cls, cnp.PyArray_TYPE(<cnp.ndarray> results[i])))
        n_zeros[i], is_same[i] = 0, True
    while next_part(pattern, &part):
        ufunc(*values_in(given, picks, pattern, &part), out=tuple([view_of(made, &part) for made in arrays]), **options)
        for i in range(len(arrays)):
            n_zeros[i] += clear_part(arrays[i], &part)
            is_same[i] = is_same[i] and same_part(arrays[i], &part)
    for i in range(len(arrays)):
        made = arrays[i]
        settle(made, n_zeros[i], is_same[i])
        made.writing = 0
    return tuple(arrays)


def entrywise_into(ufunc, tuple operands not None, dict options not None, CoreArray target not None):
    """As `entrywise`, in place: `target` is one of the operands, and the caller inside as its one writer.

    What is wrong with the types raises before anything is written; what NumPy raises of numbers, when all is.
    """
    cdef tuple given, picks
    cdef Part part = Part(0, 0, 0, 0)
    cdef Py_ssize_t n_zeros = 0
    cdef bint is_whole = False, is_same = True
    if target.writing != 1 or not any([x is target for x in operands]):
        raise ValueError("target given that is no operand, or that nobody is writing")
    given = tuple([moment_of(x) if isinstance(x, CoreArray) and x is not target else x for x in operands])
    check_operands(given)
    picks = picks_for(given, target)
    ufunc(*values_in(given, picks, target, &part), out=(view_of(target, &part),), **options)
    own_block(target)
    target.writing = 2
    raised = None
    try:
        while next_part(target, &part):
            values, view = values_in(given, picks, target, &part), view_of(target, &part)
            if raised is None:
                try:
                    ufunc(*values, out=(view,), **options)
                except BaseException as error:
                    raised = error
            else:
                with np.errstate(all="ignore"):
                    ufunc(*values, out=(view,), **options)
            del values, view
            n_zeros += clear_part(target, &part)
            is_same = is_same and same_part(target, &part)
        is_whole = True
    finally:
        if not is_whole:
            n_zeros = clear_zeros(values_of(target), cells_stored(target), target.type_num)
        settle(target, n_zeros, is_same)
        target.writing = 1
    if raised is not None:
        raise raised


cdef CoreArray check_operands(tuple operands):
    """The first array, alike all others; ValueError for operands that the loops must not see."""
    cdef CoreArray pattern = None
    cdef cnp.ndarray cells
    for x in operands:
        if isinstance(x, CoreArray):
            check_readable(x)
            if pattern is None:
                pattern = x
            elif not same_places(pattern, x):
                raise ValueError("arrays given with values in different places")
    if pattern is None:
        raise ValueError("no array given")
    for x in operands:
        if isinstance(x, np.ndarray) and x.ndim > 0:
            cells = x
            if cnp.PyArray_NDIM(cells) != 1 or cnp.PyArray_SIZE(cells) != pattern.n_cells \
                    or not cnp.PyArray_IS_C_CONTIGUOUS(cells) or item_size(cnp.PyArray_TYPE(cells)) == 0 \
                    or not cnp.PyArray_ISNOTSWAPPED(cells) or not cnp.PyArray_ISALIGNED(cells) \
                    or pattern.storage == UNIFORM:
                raise ValueError(f"{x.dtype} of shape {x.shape} given for an array of {pattern.n_cells} cells")
    return pattern


cdef cnp.ndarray view_of(CoreArray x, const Part* part):
    """The values of a part, where they lie: not to outlive the call that they are made for."""
    cdef cnp.npy_intp n = part.n
    return cnp.PyArray_SimpleNewFromData(1, &n, x.type_num, values_of(x) + part.first * item_size(x.type_num))


cdef Py_ssize_t clear_part(CoreArray x, const Part* part) noexcept:
    """How many zeros there are in a part; none is -0.0 any more."""
    return clear_zeros(values_of(x) + part.first * item_size(x.type_num), part.n, x.type_num)


cdef bint same_part(CoreArray x, const Part* part) noexcept:
    """Whether all values of a part are the first one, looked at while they are in the cache."""
    cdef Py_ssize_t item = item_size(x.type_num)
    cdef const char* values = values_of(x)
    return all_same(values + part.first * item, part.n, item, values)


cdef list values_in(tuple operands, tuple picks, CoreArray pattern, const Part* part):
    """The operands of one part; where an ndarray's cells have to be picked, there is an array for them in `picks`."""
    cdef cnp.npy_intp n = part.n
    cdef Py_ssize_t i
    cdef list values = []
    for i in range(len(operands)):
        x = operands[i]
        if isinstance(x, CoreArray):
            values.append(view_of(x, part))
        elif picks[i] is not None:
            if n > 0:
                pick(pattern, part, x, picks[i])
            values.append(picks[i][:n])
        elif isinstance(x, np.ndarray) and x.ndim > 0:
            values.append(x[part.first : part.first + n])
        else:
            values.append(x)
    return values


cdef tuple picks_for(tuple operands, CoreArray pattern):
    most = PART // item_size(pattern.type_num)
    return tuple([
        np.empty(min(most, pattern.n_stored), x.dtype)
        if isinstance(x, np.ndarray) and x.ndim > 0 and pattern.storage != DENSE else None
        for x in operands
    ])


cdef CoreArray like(CoreArray pattern, type cls, int type_num):
    """A new array of another dtype with values, yet to be written, in the same places.

    It is being written until `entrywise` has done: the `__new__` of a subclass may have shown it to others.
    """
    cdef CoreArray made = <CoreArray?> new_of(<PyTypeObject*> cls)
    cdef Py_ssize_t[64] extents
    check_writable(made)
    let_go(made)
    made.block, made.writing = NULL, 2
    read_extents(pattern, extents)
    made.block = new_block(pattern.storage, pattern.n_stored, pattern.n_cells, item_size(type_num), pattern.n_axes,
                           extents)
    if made.block == NULL:
        raise MemoryError
    made.n_cells, made.n_stored, made.n_axes = pattern.n_cells, pattern.n_stored, pattern.n_axes
    made.storage, made.type_num = pattern.storage, type_num
    if pattern.storage == BITMAP:
        memcpy(positions_of(made), positions_of(pattern), value_offset(BITMAP, pattern.n_cells))
    elif pattern.storage == PAIRS and pattern.n_stored > 0:
        memcpy(positions_of(made), positions_of(pattern), pattern.n_stored * index_size(pattern.n_cells))
    return made


# ---- reductions

def reduce_stored(ufunc, CoreArray x not None, dtype):
    """`ufunc` of the values that are stored, as a list of partial results; empty if there are none."""
    cdef CoreArray moment = moment_of(x)
    cdef Part whole = Part(0, cells_stored(moment), 0, 0)
    if whole.n == 0:
        return []
    if moment.storage != UNIFORM:
        return [ufunc.reduce(view_of(moment, &whole), dtype=dtype)]
    cells = np.repeat(view_of(moment, &whole), min(PART // item_size(x.type_num), x.n_cells))
    n_times, rest = divmod(moment.n_cells, len(cells))
    found = [ufunc.reduce(cells, dtype=dtype)] * n_times
    return found + [ufunc.reduce(cells[:rest], dtype=dtype)] if rest else found


def extreme(CoreArray x not None, function, better):
    """Flat index of the first of the cells that `function` (`numpy.argmax` or `argmin`) finds.

    `better` compares two values, as `numpy.greater` or `less` does. The array has cells.
    """
    cdef CoreArray moment = moment_of(x)
    cdef Part whole = Part(0, cells_stored(moment), 0, 0)
    cdef cnp.ndarray values = view_of(moment, &whole)
    if moment.storage == UNIFORM:
        return 0
    best = function(values) if whole.n else None
    if moment.storage == DENSE:
        return best
    if moment.n_stored < moment.n_cells and (best is None or better(0, values[best])):
        return first_gap(moment)
    return place_of(moment, best)


cdef Py_ssize_t place_of(CoreArray x, Py_ssize_t k) noexcept:
    """Where entry k of pairs or a bitmap is."""
    cdef const uint64_t* words = <const uint64_t*> positions_of(x)
    cdef Py_ssize_t w = 0, n
    cdef uint64_t word
    if x.storage == PAIRS:
        return (<const int32_t*> words)[k] if index_size(x.n_cells) == 4 else (<const int64_t*> words)[k]
    while True:
        n = count_bits(words + w, 1)
        if k < n:
            break
        k -= n
        w += 1
    word = words[w]
    for _ in range(k):
        word &= word - 1
    return w * 64 + lowest_bit(word)


cdef Py_ssize_t first_gap(CoreArray x) noexcept:
    """The first cell, of one of pairs or a bitmap, without an entry; there is one."""
    cdef const uint64_t* words = <const uint64_t*> positions_of(x)
    cdef Py_ssize_t w = 0, low = 0, high = x.n_stored, middle
    if x.storage == BITMAP:
        while ~words[w] == 0:
            w += 1
        return w * 64 + lowest_bit(~words[w])
    while low < high:  # before the gap, entry k is at k
        middle = (low + high) >> 1
        if place_of(x, middle) == middle:
            low = middle + 1
        else:
            high = middle
    return low
