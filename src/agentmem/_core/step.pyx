"""The filter step on pointers: predict, correct, normalise and prune in one pass over a borrowed workspace.

    source --push--> sums --collect--> found, mass --plan, write--> an exact block

Push adds T(s' | s, a) b(s) to one double accumulator per target. With little work it marks each target in a two-level
bitmap, so that collect meets the targets in order and touches nothing else; with much work marking costs more than a
scan over all sums, so push does not mark. Either way every target adds its terms in ascending order of source, and all
totals run over ascending targets, in four lanes by target modulo 4: the result does not depend on the way taken, on
the storage, or on the thread.

Nothing is allocated here but room in the workspace. What fails leaves the workspace clean.
"""
cimport numpy as cnp
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc
from libc.float cimport DBL_MIN
from libc.math cimport INFINITY, frexp, isfinite, ldexp, log
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy, memset

from agentmem._core.array cimport index_offset, item_size, smallest_storage, value_offset
from agentmem._core.model cimport CoreModel, Table
from agentmem._core.scratch cimport (Workspace, clear, list_touched, make_room, mark, marking_pays)
from agentmem._core.types cimport (BITMAP, DENSE, NO_EVIDENCE, NO_MEMORY, NORMALIZED, NOT_A_MEASURE, PAIRS, UNIFORM,
                                   lowest_bit, prefetch, value_t)

cnp.import_array()

# Entries in a model from which its rows are likely out of cache, so that prefetching them pays.
cdef Py_ssize_t PREFETCH_FROM = 1 << 18

cdef double LOG_2 = 0.6931471805599453
cdef double SMALLEST_DOUBLE = 4.9406564584124654e-324
cdef double SMALLEST_FLOAT = 1.401298464324817e-45

cdef enum:
    BLOCK = 256  # support entries that are decoded at a time, where the storage has no list of them
    AHEAD = 16   # rows that are prefetched ahead
    FEW = 32     # states of a likelihood that are looked up rather than met in order: 370 to 320 ns an update of 6 states


cdef void read_block(const char* block, int storage, Py_ssize_t n_stored, Py_ssize_t n_states, int type_num,
                     Source* source) noexcept nogil:
    """A belief as the kernels read it, of a block as `array` lays it out."""
    cdef const char* positions = block + index_offset(storage, n_stored, n_states, item_size(type_num))
    source.storage = storage
    source.n_states = n_states
    source.n_stored = n_stored
    source.mass = block + value_offset(storage, n_states)
    source.support = <const int32_t*> positions
    source.words = <const uint64_t*> positions
    source.scale = 1


# ---- leaves: push

cdef inline void add_row(double* sums, const int32_t* columns, const value_t* values, Py_ssize_t n,
                         double p) noexcept nogil:
    """sums[columns] += p * values. The row lengths of grids are spelled out: a loop takes twice as long."""
    cdef Py_ssize_t e
    if n == 5:
        sums[columns[0]] += p * values[0]
        sums[columns[1]] += p * values[1]
        sums[columns[2]] += p * values[2]
        sums[columns[3]] += p * values[3]
        sums[columns[4]] += p * values[4]
    elif n == 4:
        sums[columns[0]] += p * values[0]
        sums[columns[1]] += p * values[1]
        sums[columns[2]] += p * values[2]
        sums[columns[3]] += p * values[3]
    elif n == 3:
        sums[columns[0]] += p * values[0]
        sums[columns[1]] += p * values[1]
        sums[columns[2]] += p * values[2]
    else:
        for e in range(n):
            sums[columns[e]] += p * values[e]


cdef inline Py_ssize_t push_rows(const value_t* mass, double scale, const int32_t* support, Py_ssize_t first,
                                 Py_ssize_t n, const Table* T, double* sums, uint64_t* touched, uint64_t* summary,
                                 double* source_total, bint listed, bint marked, bint ahead) noexcept nogil:
    """Push n rows: those in `support`, or `first`, `first + 1`, ... Returns how many entries were met.

    The three flags are literals at every call, so that the compiler makes one loop of each kind.
    """
    cdef const int64_t* offsets = T.offsets
    cdef const int32_t* columns = T.columns
    cdef const value_t* values = <const value_t*> T.values
    cdef Py_ssize_t k, e, start, end, row, met = 0
    cdef int32_t target
    cdef double p, total = source_total[0]
    for k in range(n):
        row = support[k] if listed else first + k
        if ahead and k + 3 * AHEAD < n and support[k + AHEAD] - row > 4 * AHEAD:  # scattered
            prefetch(&offsets[support[k + 3 * AHEAD]])
            start = offsets[support[k + 2 * AHEAD]]
            prefetch(&columns[start])
            prefetch(&values[start])
            start = offsets[support[k + AHEAD]]
            for e in range(start, offsets[support[k + AHEAD] + 1]):
                prefetch(&sums[columns[e]])
        p = mass[k] * scale
        total += p
        start = offsets[row]
        end = offsets[row + 1]
        met += end - start
        if not marked:
            add_row(sums, columns + start, values + start, end - start, p)
            continue
        for e in range(start, end):
            target = columns[e]
            if sums[target] == 0:  # not met before, or to no effect: only then look at the marks
                mark(touched, summary, target)
            sums[target] += p * values[e]
    source_total[0] = total
    return met


cdef Py_ssize_t push_list(const value_t* mass, double scale, const int32_t* support, Py_ssize_t n, const Table* T,
                          Workspace* w, double* source_total, bint marked) noexcept nogil:
    cdef bint ahead = T.n_entries >= PREFETCH_FROM
    if marked and ahead:
        return push_rows(mass, scale, support, 0, n, T, w.sums, w.touched, w.summary, source_total, True, True, True)
    if marked:
        return push_rows(mass, scale, support, 0, n, T, w.sums, w.touched, w.summary, source_total, True, True, False)
    if ahead:
        return push_rows(mass, scale, support, 0, n, T, w.sums, w.touched, w.summary, source_total, True, False, True)
    return push_rows(mass, scale, support, 0, n, T, w.sums, w.touched, w.summary, source_total, True, False, False)


cdef void push_dense_rows(const value_t* mass, double scale, const int32_t* support, Py_ssize_t first, Py_ssize_t n,
                          const Table* T, double* sums, double* source_total) noexcept nogil:
    """Push n rows of a dense table: those in `support`, or `first`, `first + 1`, ... if it is NULL."""
    cdef Py_ssize_t k, target, row
    cdef const value_t* values
    cdef double p
    for k in range(n):
        row = support[k] if support != NULL else first + k
        p = mass[k] * scale
        source_total[0] += p
        if p == 0:
            continue
        values = <const value_t*> T.values + row * T.n_columns
        for target in range(T.n_columns):
            sums[target] += p * values[target]


cdef Py_ssize_t decode(const uint64_t* words, Py_ssize_t first, Py_ssize_t last, int32_t* support) noexcept nogil:
    """The states whose bits are set in words [first, last)."""
    cdef Py_ssize_t k, n = 0
    cdef uint64_t word
    for k in range(first, last):
        word = words[k]
        while word:
            support[n] = <int32_t> (k * 64 + lowest_bit(word))
            word &= word - 1
            n += 1
    return n


cdef Py_ssize_t push(const value_t* mass, const Source* source, const Table* T, Workspace* w, bint marked,
                     double* source_total) noexcept nogil:
    """Push all of a belief, whatever its storage. Returns an upper bound of the targets met."""
    cdef int32_t[BLOCK] support
    cdef value_t[BLOCK] same
    cdef Py_ssize_t k, n, met = 0, done = 0, n_words = (source.n_states + 63) >> 6
    if source.storage == PAIRS:
        if T.offsets == NULL:
            push_dense_rows(mass, source.scale, source.support, 0, source.n_stored, T, w.sums, source_total)
        else:
            met = push_list(mass, source.scale, source.support, source.n_stored, T, w, source_total, marked)
    elif source.storage == BITMAP:
        for k in range(0, n_words, 4):  # 4 words hold a block
            n = decode(source.words, k, min(k + 4, n_words), support)
            if T.offsets == NULL:
                push_dense_rows(mass + done, source.scale, support, 0, n, T, w.sums, source_total)
            else:
                met += push_list(mass + done, source.scale, support, n, T, w, source_total, marked)
            done += n
    else:
        if source.storage == UNIFORM:
            for k in range(BLOCK):
                same[k] = mass[0]
        while done < source.n_states:
            n = source.n_states if source.storage == DENSE else min(<Py_ssize_t> BLOCK, source.n_states - done)
            if T.offsets == NULL:
                push_dense_rows(mass if source.storage == DENSE else same, source.scale, NULL, done, n, T, w.sums,
                                source_total)
            else:
                met += push_rows(mass if source.storage == DENSE else same, source.scale, NULL, done, n, T, w.sums,
                                 w.touched, w.summary, source_total, False, False, False)
            done += n
    return min(met, source.n_states) if T.offsets != NULL else source.n_states


cdef void clear_rows(const int32_t* support, Py_ssize_t n, const Table* T, double* sums) noexcept nogil:
    cdef Py_ssize_t k, e
    for k in range(n):
        for e in range(T.offsets[support[k]], T.offsets[support[k] + 1]):
            sums[T.columns[e]] = 0


cdef void clear_targets(const Source* source, const Table* T, double* sums) noexcept nogil:
    """Make zero again what a push of pairs or a bitmap has met: the way it went, without marks."""
    cdef int32_t[BLOCK] support
    cdef Py_ssize_t k, n_words = (source.n_states + 63) >> 6
    if source.storage == PAIRS:
        clear_rows(source.support, source.n_stored, T, sums)
    else:
        for k in range(0, n_words, 4):  # 4 words hold a block
            clear_rows(support, decode(source.words, k, min(k + 4, n_words), support), T, sums)


# ---- leaves: collect

cdef double sum_lanes(const double* lanes) noexcept nogil:
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3])


cdef Py_ssize_t seek(const int32_t* states, Py_ssize_t start, Py_ssize_t n, int32_t wanted) noexcept nogil:
    """The first position from `start` on whose state is not below `wanted`, by doubling steps."""
    cdef Py_ssize_t step = 1, low = start, high, middle
    while low + step < n and states[low + step] < wanted:
        low += step
        step *= 2
    high = min(low + step, n)
    while low < high:
        middle = (low + high) >> 1
        if states[middle] < wanted:
            low = middle + 1
        else:
            high = middle
    return low


cdef void collect_marked(const value_t* weights, const Likelihood* L, Workspace* w, Py_ssize_t n_states,
                         Posterior* out) noexcept nogil:
    """Gather and clear the marked sums in ascending order, weighted by the likelihood."""
    cdef Py_ssize_t k, n = 0, at = 0, n_touched = list_touched(w, n_states, w.found)
    cdef int32_t target
    cdef double v, largest = 0
    cdef double[4] lanes
    lanes[:] = [0, 0, 0, 0]
    for k in range(n_touched):
        target = w.found[k]
        if k + AHEAD < n_touched and w.found[k + AHEAD] - target > 8 * AHEAD:  # scattered
            prefetch(&w.sums[w.found[k + AHEAD]])
            if L.given and L.states == NULL:
                prefetch(&weights[w.found[k + AHEAD]])
        v = w.sums[target]
        w.sums[target] = 0
        if L.given:
            if L.states == NULL:
                v *= weights[target]
            else:
                if at < L.n and L.states[at] < target:
                    at = seek(L.states, at, L.n, target)
                v = v * weights[at] if at < L.n and L.states[at] == target else 0
        if v > 0:
            w.found[n] = target
            w.mass[n] = v
            n += 1
            lanes[target & 3] += v
            if v > largest:
                largest = v
    out.found, out.mass, out.n, out.n_positive, out.largest = w.found, w.mass, n, n, largest
    out.total = sum_lanes(lanes)


cdef void collect_listed(const value_t* weights, const Likelihood* L, Workspace* w, Posterior* out) noexcept nogil:
    """Gather the sums at the states that the likelihood lists, without branches: which are met cannot be foreseen."""
    cdef const int32_t* states = L.states
    cdef const double* sums = w.sums
    cdef int32_t* found = w.found
    cdef double* mass = w.mass
    cdef Py_ssize_t k, n = 0
    cdef double v, largest = 0
    cdef double[4] lanes
    lanes[:] = [0, 0, 0, 0]
    for k in range(L.n):
        if k + AHEAD < L.n and states[k + AHEAD] - states[k] > 8 * AHEAD:  # scattered
            prefetch(&sums[states[k + AHEAD]])
        v = sums[states[k]] * weights[k]
        found[n] = states[k]
        mass[n] = v
        n += v > 0
        lanes[states[k] & 3] += v
        largest = v if v > largest else largest
    out.found, out.mass, out.n, out.n_positive, out.largest = found, mass, n, n, largest
    out.total = sum_lanes(lanes)


cdef void collect_all(const value_t* weights, const Likelihood* L, Workspace* w, Py_ssize_t n_states, bint ranked,
                      Posterior* out) noexcept nogil:
    """Weight all sums in place, where they stay for emit; the largest is only looked for if `ranked`.

    One short loop each for total, count and largest: compilers take those two lanes at a time, and one loop for all
    three twice as long.
    """
    cdef Py_ssize_t s, j, whole = n_states & ~3
    cdef double v
    cdef double[4] lanes, peaks
    cdef double* sums = w.sums
    for j in range(4):
        lanes[j] = peaks[j] = 0
    if L.given:
        for s in range(0, whole, 4):
            for j in range(4):
                v = sums[s + j] * weights[s + j]
                sums[s + j] = v
                lanes[j] += v
    else:
        for s in range(0, whole, 4):
            for j in range(4):
                lanes[j] += sums[s + j]
    for s in range(whole, n_states):
        if L.given:
            sums[s] *= weights[s]
        lanes[s & 3] += sums[s]
    if ranked:
        for s in range(0, whole, 4):
            for j in range(4):
                peaks[j] = sums[s + j] if sums[s + j] > peaks[j] else peaks[j]
        for s in range(whole, n_states):
            peaks[s & 3] = max(peaks[s & 3], sums[s])
    out.found, out.mass, out.n = NULL, sums, n_states
    out.n_positive = count_from(sums, n_states, SMALLEST_DOUBLE)
    out.largest = max(max(peaks[0], peaks[1]), max(peaks[2], peaks[3]))
    out.total = sum_lanes(lanes)


cdef Py_ssize_t count_from(const double* mass, Py_ssize_t n, double threshold) noexcept nogil:
    """How many are not below the threshold; counted in double, which goes two lanes at a time."""
    cdef Py_ssize_t k, whole = n & ~3
    cdef double n0 = 0, n1 = 0, n2 = 0, n3 = 0
    for k in range(0, whole, 4):
        n0 += mass[k] >= threshold
        n1 += mass[k + 1] >= threshold
        n2 += mass[k + 2] >= threshold
        n3 += mass[k + 3] >= threshold
    for k in range(whole, n):
        n0 += mass[k] >= threshold
    return <Py_ssize_t> (n0 + n1 + n2 + n3)


cdef int predict_correct(const value_t* mass, const Source* source, const Table* T, const Likelihood* L,
                         Workspace* w, double entries, bint ranked, Posterior* out) noexcept nogil:
    """Push and collect. `entries` of T will be met, about. NO_MEMORY leaves the workspace clean."""
    cdef const value_t* weights = <const value_t*> L.values
    cdef bint few = T.offsets != NULL and source.storage <= BITMAP and marking_pays(entries, source.n_states)
    cdef bint listed = L.states != NULL and (not few or L.n <= FEW or 4 * L.n <= entries)
    cdef Py_ssize_t bound
    out.source_total = 0
    bound = push(mass, source, T, w, few and not listed, &out.source_total)
    if not few and not listed:
        collect_all(weights, L, w, source.n_states, ranked, out)
        return 0
    if not make_room(w, L.n if listed else bound):
        clear(w, source.n_states)
        return NO_MEMORY
    if not listed:
        collect_marked(weights, L, w, source.n_states, out)
        return 0
    collect_listed(weights, L, w, out)
    if few:
        clear_targets(source, T, w.sums)
    else:
        memset(w.sums, 0, source.n_states * sizeof(double))
    return 0


cdef void list_mass(const value_t* mass, const Source* source, Workspace* w, Posterior* out) noexcept nogil:
    """The belief itself as a posterior, unweighted: states, mass, total and largest."""
    cdef Py_ssize_t k, n = 0, n_words = (source.n_states + 63) >> 6
    cdef double largest = 0
    cdef double[4] lanes
    lanes[:] = [0, 0, 0, 0]
    if source.storage == PAIRS:
        memcpy(w.found, source.support, source.n_stored * sizeof(int32_t))
        for k in range(source.n_stored):
            w.mass[k] = mass[k] * source.scale
        n = source.n_stored
    elif source.storage == BITMAP:
        n = decode(source.words, 0, n_words, w.found)
        for k in range(n):
            w.mass[k] = mass[k] * source.scale
    else:
        for k in range(source.n_states):
            if source.storage == UNIFORM or mass[k] != 0:
                w.found[n] = <int32_t> k
                w.mass[n] = mass[0 if source.storage == UNIFORM else k] * source.scale
                n += 1
    for k in range(n):
        lanes[w.found[k] & 3] += w.mass[k]
        largest = max(largest, w.mass[k])
    out.found, out.mass, out.n, out.n_positive, out.largest = w.found, w.mass, n, n, largest
    out.total = out.source_total = sum_lanes(lanes)


cdef void weigh(const value_t* weights, bint per_entry, Posterior* out) noexcept nogil:
    """Multiply a listed posterior by weights, one per entry or one per state, scaled by a power of two.

    The largest weight that counts is brought to [0.5, 1), so that no product underflows that need not.
    """
    cdef Py_ssize_t k, n = 0
    cdef double v, scale, largest = 0
    cdef double[4] lanes
    lanes[:] = [0, 0, 0, 0]
    for k in range(out.n):
        largest = max(largest, <double> weights[k if per_entry else out.found[k]])
    frexp(largest, &out.exponent)
    out.exponent = max(-1000, min(1000, out.exponent))
    scale = ldexp(1.0, -out.exponent)
    largest = 0
    for k in range(out.n):
        v = out.mass[k] * (weights[k if per_entry else out.found[k]] * scale)
        out.mass[k] = v
        n += v > 0
        lanes[out.found[k] & 3] += v
        largest = max(largest, v)
    out.n_positive, out.largest = n, largest
    out.total = sum_lanes(lanes)


cdef double largest_mass(const value_t* mass, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t k
    cdef double largest = 0
    for k in range(n):
        largest = max(largest, <double> mass[k])
    return largest


# ---- leaves: emit

cdef Py_ssize_t count_kept(const Posterior* posterior, double threshold, double* kept_mass) noexcept nogil:
    cdef Py_ssize_t k, j, kept = 0, whole = 0
    cdef const double* mass = posterior.mass
    cdef double[4] lanes
    for j in range(4):
        lanes[j] = 0
    if posterior.found == NULL:  # position is state
        whole = posterior.n & ~3
        kept = count_from(mass, whole, threshold)
        for k in range(0, whole, 4):
            for j in range(4):
                lanes[j] += mass[k + j] if mass[k + j] >= threshold else 0.0
    for k in range(whole, posterior.n):
        kept += mass[k] >= threshold
        lanes[(posterior.found[k] if posterior.found != NULL else k) & 3] += mass[k] if mass[k] >= threshold else 0.0
    kept_mass[0] = sum_lanes(lanes)
    return kept


cdef void write_list(value_t* values, const Posterior* posterior, double threshold, double kept_mass, int storage,
                     Py_ssize_t n_states, char* positions) noexcept nogil:
    """Write what is kept of a listed posterior, normalised, in the given form."""
    cdef Py_ssize_t k, n = 0
    cdef int32_t state
    cdef const double* mass = posterior.mass
    cdef int32_t* support = <int32_t*> positions
    cdef uint64_t* words = <uint64_t*> positions
    if storage == DENSE:
        memset(values, 0, n_states * sizeof(value_t))
    elif storage == BITMAP:
        memset(words, 0, ((n_states + 63) >> 6) * 8)
    for k in range(posterior.n):
        if not mass[k] >= threshold:
            continue
        state = posterior.found[k]
        if storage == DENSE:
            values[state] = <value_t> (mass[k] / kept_mass)
            continue
        values[n] = <value_t> (mass[k] / kept_mass)
        if storage == PAIRS:
            support[n] = state
        else:
            words[state >> 6] |= (<uint64_t> 1) << (state & 63)
        n += 1


cdef void write_sums(value_t* values, double* sums, double threshold, double kept_mass, Py_ssize_t kept,
                     int storage, Py_ssize_t n_states, char* positions) noexcept nogil:
    """Write what is kept of the sums of all states, normalised, in the given form, and clear them."""
    cdef Py_ssize_t s, k, first, width, n = 0
    cdef double v
    cdef value_t[64] chunk
    cdef int32_t* support = <int32_t*> positions
    cdef uint64_t word
    if storage == DENSE:
        for s in range(n_states):
            v = sums[s]
            sums[s] = 0
            values[s] = <value_t> ((v if v >= threshold else 0) / kept_mass)
        return
    for first in range(0, n_states, 64):
        width = min(<Py_ssize_t> 64, n_states - first)
        for k in range(width):  # apart from the packing below, so that the divisions go in pairs
            v = sums[first + k]
            sums[first + k] = 0
            chunk[k] = <value_t> ((v if v >= threshold else 0) / kept_mass)
        word = 0
        for k in range(width):
            if n < kept:  # always true but behind the last entry; the rest goes without branches
                values[n] = chunk[k]
                if storage == PAIRS:
                    support[n] = <int32_t> (first + k)
                word |= (<uint64_t> (chunk[k] != 0)) << k
                n += chunk[k] != 0
        if storage == BITMAP:
            (<uint64_t*> positions)[first >> 6] = word


cdef void list_entries(const value_t* mass, const Source* source, int32_t* states, value_t* values) noexcept nogil:
    """The entries of a belief as stored: what `list_mass` lists, neither scaled nor summed."""
    cdef Py_ssize_t k, n = 0
    if source.storage == PAIRS:
        memcpy(states, source.support, source.n_stored * sizeof(int32_t))
        memcpy(values, mass, source.n_stored * sizeof(value_t))
    elif source.storage == BITMAP:
        decode(source.words, 0, (source.n_states + 63) >> 6, states)
        memcpy(values, mass, source.n_stored * sizeof(value_t))
    else:
        for k in range(source.n_states):
            if source.storage == UNIFORM or mass[k] != 0:
                states[n] = <int32_t> k
                values[n] = mass[0 if source.storage == UNIFORM else k]
                n += 1


cdef void write(value_t* values, const Posterior* posterior, double threshold, double kept_mass, Py_ssize_t kept,
                int storage, Py_ssize_t n_states, char* positions) noexcept nogil:
    if posterior.found != NULL:
        write_list(values, posterior, threshold, kept_mass, storage, n_states, positions)
    else:
        write_sums(values, posterior.mass, threshold, kept_mass, kept, storage, n_states, positions)


cdef int make_plan(const Posterior* posterior, double relative, Py_ssize_t most, int storage, Py_ssize_t n_cells,
                   int type_num, Workspace* w, Plan* plan) noexcept nogil:
    """What to keep of a posterior, at `most` so many (0: any), and in which form, coming from `storage`.

    A failure cleans the workspace.
    """
    cdef bint wide = type_num == cnp.NPY_DOUBLE
    cdef double smallest = SMALLEST_DOUBLE
    cdef int status = 0
    if not isfinite(posterior.total) or not isfinite(posterior.source_total):
        status = NOT_A_MEASURE
    elif posterior.total <= 0:
        status = NO_EVIDENCE
    if status != 0:
        abandon(posterior, n_cells, w)
        return status
    plan.kept, plan.kept_mass = posterior.n_positive, posterior.total
    if not wide or posterior.total > 1:  # what the dtype cannot hold once normalised would be a stored zero
        smallest = max(smallest, posterior.total * (SMALLEST_DOUBLE if wide else SMALLEST_FLOAT))
    plan.threshold = max(smallest, relative * posterior.largest)
    if plan.threshold > SMALLEST_DOUBLE:
        plan.kept = count_kept(posterior, plan.threshold, &plan.kept_mass)
    if 0 < most < plan.kept:
        if not keep_largest(posterior, most, plan):
            abandon(posterior, n_cells, w)
            return NO_MEMORY
    plan.storage = smallest_storage(storage, plan.kept, n_cells, item_size(type_num))
    plan.dropped = max(0.0, (posterior.total - plan.kept_mass) / posterior.total) if relative > 0 or most > 0 else 0.0
    return 0


cdef bint keep_largest(const Posterior* posterior, Py_ssize_t most, Plan* plan) noexcept nogil:
    """Tighten a plan to the `most` largest entries, of equals the lowest states; False without memory."""
    cdef Py_ssize_t k, n = 0, left = most
    cdef double* mass = <double*> PyMem_RawMalloc(plan.kept * sizeof(double))
    if mass == NULL:
        return False
    for k in range(posterior.n):
        if posterior.mass[k] >= plan.threshold:
            mass[n] = posterior.mass[k]
            n += 1
    plan.threshold = nth_largest(mass, n, most - 1)
    PyMem_RawFree(mass)
    for k in range(posterior.n):
        left -= posterior.mass[k] > plan.threshold
    for k in range(posterior.n):
        if posterior.mass[k] == plan.threshold:
            if left == 0:
                posterior.mass[k] = 0
            else:
                left -= 1
    plan.kept = count_kept(posterior, plan.threshold, &plan.kept_mass)
    return True


cdef double nth_largest(double* x, Py_ssize_t n, Py_ssize_t nth) noexcept nogil:
    """What would be at place `nth` in descending order (Hoare's selection); reorders x."""
    cdef Py_ssize_t low = 0, high = n - 1, i, j
    cdef double pivot, moved
    while low < high:
        pivot = x[(low + high) >> 1]
        i, j = low, high
        while i <= j:
            while x[i] > pivot:
                i += 1
            while x[j] < pivot:
                j -= 1
            if i <= j:
                moved = x[i]
                x[i] = x[j]
                x[j] = moved
                i += 1
                j -= 1
        if nth <= j:
            high = j
        elif nth >= i:
            low = i
        else:
            break
    return x[nth]


cdef void abandon(const Posterior* posterior, Py_ssize_t n_cells, Workspace* w) noexcept nogil:
    """Clean the workspace of a posterior that nobody will write."""
    if posterior.found == NULL:
        memset(w.sums, 0, n_cells * sizeof(double))


cdef void write_block(const Posterior* posterior, const Plan* plan, Py_ssize_t n_cells, int type_num,
                      char* block) noexcept nogil:
    """Write what is kept of the posterior, normalised, to a block of its size; the workspace is clean afterwards."""
    cdef char* positions = block + index_offset(plan.storage, plan.kept, n_cells, item_size(type_num))
    cdef char* values = block + value_offset(plan.storage, n_cells)
    if type_num == cnp.NPY_DOUBLE:
        write(<double*> values, posterior, plan.threshold, plan.kept_mass, plan.kept, plan.storage, n_cells, positions)
    else:
        write(<float*> values, posterior, plan.threshold, plan.kept_mass, plan.kept, plan.storage, n_cells, positions)


# ---- a whole step

cdef int rescale(Source* source, int type_num, int is_measure) noexcept nogil:
    """Scale up a belief that is not normalised and tiny throughout; return the exponent taken out."""
    cdef Py_ssize_t n = source.n_stored
    cdef double largest
    cdef int exponent = 0
    if is_measure == NORMALIZED:
        return 0
    if source.storage >= DENSE:
        n = 1 if source.storage == UNIFORM else source.n_states
    if type_num == cnp.NPY_DOUBLE:
        largest = largest_mass(<const double*> source.mass, n)
    else:
        largest = largest_mass(<const float*> source.mass, n)
    frexp(largest, &exponent)
    if exponent > -100:
        return 0
    exponent = max(-1000, exponent)
    source.scale = ldexp(1.0, -exponent)
    return exponent


cdef int read_likelihood(CoreModel model, Py_ssize_t action, Py_ssize_t observation, Likelihood* L) noexcept nogil:
    cdef Table* table = &model.tables[model.observation_of[action]]
    cdef Py_ssize_t item = item_size(model.type_num), start
    L.given = True
    L.exponent = table.exponents[observation]
    if table.offsets == NULL:
        L.states = NULL
        L.n = table.n_columns
        start = observation * table.n_columns
    else:
        start = table.offsets[observation]
        L.n = table.offsets[observation + 1] - start
        L.states = table.columns + start
    L.values = <const char*> table.values + start * item
    return 0


cdef int advance(const Source* source, CoreModel model, Py_ssize_t action, Py_ssize_t observation, double relative,
                 Py_ssize_t most, Workspace* w, Posterior* posterior, Plan* plan) noexcept nogil:
    """Predict and correct by an action and an observation (-1: none), both in range, and plan what is kept."""
    cdef Table* T = &model.tables[model.transition_of[action]]
    cdef double entries = entries_to_meet(source.n_stored, model, action)
    cdef Likelihood L
    cdef int status
    L.given, L.states, L.values, L.exponent, L.n = False, NULL, NULL, 0, 0
    if observation >= 0:
        read_likelihood(model, action, observation, &L)
    if model.type_num == cnp.NPY_DOUBLE:
        status = predict_correct(<const double*> source.mass, source, T, &L, w, entries, relative > 0, posterior)
    else:
        status = predict_correct(<const float*> source.mass, source, T, &L, w, entries, relative > 0, posterior)
    if status != 0:
        return status
    posterior.exponent = L.exponent
    return make_plan(posterior, relative, most, source.storage, source.n_states, model.type_num, w, plan)


cdef double entries_to_meet(Py_ssize_t n_stored, CoreModel model, Py_ssize_t action) noexcept nogil:
    """How many entries of T a belief of so many states will meet, about."""
    cdef Table* T = &model.tables[model.transition_of[action]]
    return (<double> n_stored) * T.n_entries / T.n_rows


cdef double evidence_of(const Posterior* posterior) noexcept nogil:
    """Of what the posterior was corrected by, given all before."""
    return log_ratio(posterior.total, posterior.source_total) + posterior.exponent * LOG_2


cdef double log_ratio(double a, double b) noexcept nogil:
    cdef double ratio = a / b
    if DBL_MIN <= ratio < INFINITY:
        return log(ratio)  # the exact one near 1
    return log(a) - log(b)


cdef void foresee(const Source* source, CoreModel model, Py_ssize_t action, Py_ssize_t observation,
                  bint rows) noexcept nogil:
    """Ask the memory for what a step will read: first where its rows begin, a step later (`rows`) the rows.

    Other agents' steps lie between, so that a step waits less for the tables: 500 to 420 ns an agent at 10,000 states.
    """
    cdef const Table* T = &model.tables[model.transition_of[action]]
    cdef const Table* O = &model.tables[model.observation_of[action]]
    cdef Py_ssize_t k, start, item = item_size(model.type_num)
    if source.storage != PAIRS or T.offsets == NULL:
        return
    for k in range(min(source.n_stored, <Py_ssize_t> AHEAD)):
        if rows:
            start = T.offsets[source.support[k]]
            prefetch(&T.columns[start])
            prefetch(<const char*> T.values + start * item)
        else:
            prefetch(&T.offsets[source.support[k]])
    if observation >= 0 and O.offsets != NULL:
        if rows:
            start = O.offsets[observation]
            prefetch(&O.columns[start])
            prefetch(<const char*> O.values + start * item)
            prefetch(<const char*> O.values + start * item + 64)
        else:
            prefetch(&O.offsets[observation])
            prefetch(&O.exponents[observation])
