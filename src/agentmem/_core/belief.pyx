"""The filter step of one belief: predict, correct, normalise and prune in one pass over a borrowed workspace.

    source --push--> sums --collect--> found, mass --emit--> an exact block

Push adds T(s' | s, a) b(s) to one double accumulator per target. With little work it marks each target in a two-level
bitmap, so that collect meets the targets in order and touches nothing else; with much work marking costs more than a
scan over all sums, so push does not mark. Either way every target adds its terms in ascending order of source, and all
totals run over ascending targets, in four lanes by target modulo 4: the result does not depend on the way taken, on
the storage, or on the thread.

Until emit has its memory the belief is only read: what fails leaves it as it was, and leaves the workspace clean. From
there on nothing can fail, and the old content is overwritten. Other threads are kept out meanwhile (`begin`).

`update` is one `advance`; a pass over a sequence (`_filter`) is a loop of them that Python is only asked into for more
memory, for signals, and where an observation is impossible.
"""
cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.long cimport PyLong_AsSsize_t, PyLong_CheckExact
from libc.float cimport DBL_MIN
from libc.math cimport INFINITY, frexp, isfinite, ldexp, log
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.string cimport memcpy, memset

import operator

import numpy as np

from agentmem._core.array cimport (CoreArray, copy_array, index_offset, item_size, make_block, smallest_storage,
                                   value_offset)
from agentmem._core.model cimport CoreModel, Table, check_action, check_observation
from agentmem._core.scratch cimport Workspace, borrow, clear, give_back, list_touched, make_room
from agentmem._core.types cimport (BITMAP, DENSE, NO_EVIDENCE, NO_MEMORY, NOT_A_MEASURE, PAIRS, UNIFORM, value_t)

cnp.import_array()

cdef extern from *:
    """
    #if defined(_MSC_VER)
    #include <intrin.h>
    static int first_bit(unsigned long long w) { unsigned long i; _BitScanForward64(&i, w); return (int)i; }
    #define prefetch(p) _mm_prefetch((const char*)(p), _MM_HINT_T0)
    #define INLINE __forceinline
    #else
    #define first_bit(w) __builtin_ctzll(w)
    #define prefetch(p) __builtin_prefetch(p)
    #define INLINE inline __attribute__((always_inline))
    #endif
    """
    int first_bit(uint64_t word) noexcept nogil
    void prefetch(const void* address) noexcept nogil

# A push marks its targets while it meets fewer than this many entries per state of the model; above, a scan is cheaper.
cdef double MARK_BELOW = 0.5
# Entries to meet from which releasing the GIL (45 ns) is lost in the noise.
cdef Py_ssize_t RELEASE_FROM = 4000
# Entries met after which a pass over a sequence looks whether somebody wants to interrupt it: about 0.1 s.
cdef double PAUSE_AFTER = 1e8
# Entries in a model from which its rows are likely out of cache, so that prefetching them pays.
cdef Py_ssize_t PREFETCH_FROM = 1 << 18

cdef double LOG_2 = 0.6931471805599453
cdef double SMALLEST_DOUBLE = 4.9406564584124654e-324
cdef double SMALLEST_FLOAT = 1.401298464324817e-45

cdef enum:
    NORMALIZED = 2  # of is_measure: a verb left the belief so
    BLOCK = 256  # support entries that are decoded at a time, where the storage has no list of them
    AHEAD = 16   # rows that are prefetched ahead

cdef enum:  # how a pass stops before its end, beside the codes of a step
    NEEDS_ROOM = -10  # the record is full
    PAUSED = -11


cdef struct Source:  # a belief as the kernels read it
    int storage
    Py_ssize_t n_states
    Py_ssize_t n_stored
    const void* mass
    const int32_t* support
    const uint64_t* words
    double scale             # a power of two to take the mass times, so that products do not underflow


cdef struct Likelihood:  # of one observation, divided by 2**exponent
    bint given
    int exponent
    Py_ssize_t n
    const int32_t* states  # NULL: one value per state
    const void* values


cdef struct Posterior:  # what collect leaves in the workspace for emit
    const int32_t* found   # NULL: mass has one entry per state, zeros included
    double* mass
    Py_ssize_t n
    Py_ssize_t n_positive
    int source_exponent    # the source was taken times 2**-source_exponent
    int exponent           # the weights were taken times 2**-exponent
    double source_total
    double total
    double largest


cdef struct Pass:  # over a sequence of steps
    Py_ssize_t step              # the next one
    Py_ssize_t n_steps
    Py_ssize_t first_action      # the step that takes the first action
    const Py_ssize_t* actions
    const Py_ssize_t* observations
    double* log_evidence
    Py_ssize_t n_recorded        # beliefs in the record
    Py_ssize_t room              # entries it has room for
    int64_t* offsets             # NULL: nothing is recorded
    int32_t* states
    char* values


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
    cdef uint64_t word
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
                word = touched[target >> 6]
                if word == 0:
                    summary[target >> 12] |= (<uint64_t> 1) << ((target >> 6) & 63)
                touched[target >> 6] = word | (<uint64_t> 1) << (target & 63)
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
            support[n] = <int32_t> (k * 64 + first_bit(word))
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
                push_dense_rows(mass if source.storage == DENSE else same, source.scale, NULL, done, n, T, w.sums, source_total)
            else:
                met += push_rows(mass if source.storage == DENSE else same, source.scale, NULL, done, n, T, w.sums,
                                 w.touched, w.summary, source_total, False, False, False)
            done += n
    return min(met, source.n_states) if T.offsets != NULL else source.n_states


# ---- leaves: collect

cdef inline double sum_lanes(const double* lanes) noexcept nogil:
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


cdef void collect_listed(const value_t* weights, const Likelihood* L, Workspace* w, Py_ssize_t n_states,
                         Posterior* out) noexcept nogil:
    """Gather the unmarked sums at the states that the likelihood lists, and clear all."""
    cdef Py_ssize_t k, n = 0
    cdef double v, largest = 0
    cdef double[4] lanes
    lanes[:] = [0, 0, 0, 0]
    for k in range(L.n):
        v = w.sums[L.states[k]] * weights[k]
        if v > 0:
            w.found[n] = L.states[k]
            w.mass[n] = v
            n += 1
            lanes[L.states[k] & 3] += v
            if v > largest:
                largest = v
    memset(w.sums, 0, n_states * sizeof(double))
    out.found, out.mass, out.n, out.n_positive, out.largest = w.found, w.mass, n, n, largest
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
                         Workspace* w, bint marked, bint ranked, Posterior* out) noexcept nogil:
    """Push and collect. NO_MEMORY leaves the workspace clean."""
    cdef const value_t* weights = <const value_t*> L.values
    cdef Py_ssize_t bound
    out.source_total = 0
    bound = push(mass, source, T, w, marked, &out.source_total)
    if marked or L.states != NULL:
        if not make_room(w, bound if marked else L.n):
            clear(w, source.n_states)
            return NO_MEMORY
        if marked:
            collect_marked(weights, L, w, source.n_states, out)
        else:
            collect_listed(weights, L, w, source.n_states, out)
    else:
        collect_all(weights, L, w, source.n_states, ranked, out)
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
        if mass[k] >= threshold:
            kept += 1
            lanes[(posterior.found[k] if posterior.found != NULL else k) & 3] += mass[k]
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


# ---- between the leaves and Python

cdef void read_source(CoreArray self, Source* source) noexcept nogil:
    cdef char* positions = self.block + index_offset(self.storage, self.n_stored, self.n_cells,
                                                     item_size(self.type_num))
    source.storage = self.storage
    source.n_states = self.n_cells
    source.n_stored = self.n_stored
    source.mass = self.block + value_offset(self.storage, self.n_cells)
    source.support = <const int32_t*> positions
    source.words = <const uint64_t*> positions
    source.scale = 1


cdef int rescale(CoreArray self, Source* source) noexcept nogil:
    """Scale up a belief that is not normalised and tiny throughout; return the exponent taken out."""
    cdef Py_ssize_t n = 1 if self.storage == UNIFORM else self.n_cells if self.storage == DENSE else self.n_stored
    cdef double largest
    cdef int exponent = 0
    if self.is_measure == NORMALIZED:
        return 0
    if self.type_num == cnp.NPY_DOUBLE:
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


cdef class CoreBelief(CoreArray):
    """What `SparseBelief` is underneath: an array with the filter verbs."""

    cdef public double pruned_mass  # dropped by pruning so far, each time as a share of one
    cdef double relative            # what `update` prunes below, as a share of the largest entry

    def __cinit__(self):
        self.relative = 1e-12

    @property
    def prune_below(self):
        """What `update` prunes unless told otherwise: entries below this share of the largest. 0.0 is exact."""
        return self.relative

    @prune_below.setter
    def prune_below(self, value):
        self.relative = share(value, "prune_below")

    def copy(self, order="C"):
        """An independent belief with the same content, `prune_below` and `pruned_mass`. O(bytes held)."""
        cdef CoreBelief other = <CoreBelief> copy_array(self)
        other.relative = self.relative
        other.pruned_mass = self.pruned_mass
        return other

    def update(self, model, action, observation, *, prune=None, str on_impossible not None="raise"):
        """One filter step in place: predict, correct, normalise, prune.

        Parameters
        ----------
        model : Model
            Of as many states as the belief has cells, and of its dtype.
        action : int
        observation : int or None
            None: predict only.
        prune : float, optional
            Drop what is below this share of the largest entry; None: `prune_below`; 0.0: exact.
        on_impossible : {"raise", "predict", "likelihood"}
            When belief and model rule the observation out: raise, keep the predicted belief, or restart from the
            likelihood alone.

        Returns
        -------
        float
            Log of the probability of the observation given all before (nats); 0.0 without an observation; -inf when
            it was impossible and that was not raised.

        Raises
        ------
        ImpossibleObservation
            The observation has no probability; the belief is as before.
        TypeError
            The dtypes of belief and model differ; action or observation is not an int.
        ValueError
            A shape or number that does not fit, or a belief that is no measure.

        Notes
        -----
        O(entries of T in the rows of the support). Allocates the new content and nothing else. Releases the GIL when
        the work is worth it; a second thread that writes this belief meanwhile gets RuntimeError. `Model.filter` takes
        a whole sequence at once.
        """
        cdef Workspace* w
        cdef CoreModel tables = as_model(model)
        cdef Py_ssize_t a = as_index(action, "action"), o = -1
        cdef double relative = self.relative if prune is None else share(prune, "prune"), log_evidence, entries
        cdef int status
        check_action(tables, a)
        if observation is not None:
            o = as_index(observation, "observation")
            check_observation(tables, o)
        check_on_impossible(on_impossible)
        enter(self, tables)
        w = borrow(self.n_cells)
        if w == NULL:
            self.writing = 0
            raise MemoryError
        entries = entries_to_meet(self, tables, a)
        if entries < RELEASE_FROM:
            status = advance(self, tables, a, o, relative, entries, w, &log_evidence)
        else:
            with nogil:
                status = advance(self, tables, a, o, relative, entries, w, &log_evidence)
        give_back(w)
        self.writing = 0
        if status == 0:
            return log_evidence
        if status == NO_EVIDENCE and o >= 0:
            return self._on_impossible(model, a, o, on_impossible, relative)
        raise_status(status)

    def _filter(self, model, actions, observations, bint correct_first, prune, str on_impossible not None, bint record):
        """Update by every action and observation (-1: none) of a sequence, in place; a pass that fails stops half way.

        With `correct_first` the first step only corrects, and takes no action. Returns the log-evidence of each step,
        and the beliefs after each if a `record` is wanted: (offsets, states, values).
        """
        cdef CoreModel tables = as_model(model)
        # Copies: no other thread writes to them while the kernel believes them checked.
        cdef cnp.ndarray a = np.array(actions, np.intp, order="C", ndmin=1)
        cdef cnp.ndarray o = np.array(observations, np.intp, order="C", ndmin=1)
        cdef cnp.ndarray log_evidence = np.zeros(len(o)), offsets = None, states = None, values = None
        cdef double relative = self.relative if prune is None else share(prune, "prune")
        cdef Py_ssize_t room
        cdef int status
        cdef bint inside = True
        cdef Pass p
        cdef Workspace* w
        check_on_impossible(on_impossible)
        if len(a) != max(0, len(o) - correct_first):
            raise ValueError(f"{len(a)} actions given for {len(o)} observations; expected "
                             f"{max(0, len(o) - correct_first)}")
        check_steps(a, "actions", 0, tables.n_actions)
        check_steps(o, "observations", -1, tables.n_observations)
        if not fits(self, tables):
            refuse(self, tables)
        p.step, p.n_steps, p.first_action = 0, len(o), correct_first
        p.actions, p.observations = <Py_ssize_t*> cnp.PyArray_DATA(a), <Py_ssize_t*> cnp.PyArray_DATA(o)
        p.log_evidence = <double*> cnp.PyArray_DATA(log_evidence)
        p.n_recorded, p.room, p.offsets, p.states, p.values = 0, 0, NULL, NULL, NULL
        if record:
            offsets, states = np.zeros(len(o) + 1, np.int64), np.empty(0, np.int32)
            values = np.empty(0, cnp.PyArray_DescrFromType(self.type_num))  # not self.dtype: subclasses may say anything
            p.offsets = <int64_t*> cnp.PyArray_DATA(offsets)
        if correct_first and p.n_steps > 0:
            correct_only(self, model, &p, on_impossible)

        enter(self, tables)
        w = borrow(self.n_cells)
        try:
            if w == NULL:
                raise MemoryError
            while True:
                with nogil:
                    status = run(self, tables, &p, relative, w)
                if status == 0:
                    break
                if status == NEEDS_ROOM:
                    room = p.room + max(p.room, self.n_stored)
                    states.resize(room, refcheck=False)
                    values.resize(room, refcheck=False)
                    p.states, p.values = <int32_t*> cnp.PyArray_DATA(states), <char*> cnp.PyArray_DATA(values)
                    p.room = room
                elif status == PAUSED:
                    PyErr_CheckSignals()
                else:
                    self.writing, inside = 0, False
                    go_on(self, model, &p, relative, on_impossible, status)
                    enter(self, tables)
                    inside = True
        finally:
            if w != NULL:
                give_back(w)
            if inside:
                self.writing = 0
        if record:
            states.resize(p.offsets[p.n_steps], refcheck=False)
            values.resize(p.offsets[p.n_steps], refcheck=False)
        return log_evidence, (offsets, states, values) if record else None

    def predict(self, model, action):
        """Replace the belief by its prediction: b'(s') = sum_s T(s' | s, action) b(s), normalised, nothing pruned.

        See `update`, of which this is the first half.
        """
        self.update(model, action, None, prune=0.0)

    def _correct(self, cnp.ndarray weights not None, bint per_entry):
        """Multiply by weights (float32 or float64; one per entry or one per cell) and normalise.

        The caller is inside as the one writer. Returns the log-evidence, or None where no probability is left (then the
        belief is as before).
        """
        cdef Posterior posterior
        cdef Workspace* w
        cdef int status
        cdef bint wide = cnp.PyArray_TYPE(weights) == cnp.NPY_DOUBLE
        if not cnp.PyArray_IS_C_CONTIGUOUS(weights) or not cnp.PyArray_ISNOTSWAPPED(weights) or \
                not cnp.PyArray_ISALIGNED(weights) or cnp.PyArray_TYPE(weights) not in (cnp.NPY_DOUBLE, cnp.NPY_FLOAT):
            raise TypeError(f"weights of dtype {weights.dtype} given; expected contiguous float32 or float64")
        begin(self, 1)
        if cnp.PyArray_SIZE(weights) != (self.n_stored if per_entry else self.n_cells):
            self.writing = 1
            raise ValueError(f"{cnp.PyArray_SIZE(weights)} weights given for {self.n_stored} entries of {self.n_cells}")
        w = listing_workspace(self, self.n_stored, 1)
        if self.n_stored < RELEASE_FROM:
            status = revise(self, w, cnp.PyArray_DATA(weights), wide, per_entry, &posterior)
        else:
            with nogil:
                status = revise(self, w, cnp.PyArray_DATA(weights), wide, per_entry, &posterior)
        give_back(w)
        self.writing = 1
        if status == 0:
            return log_ratio(posterior.total, posterior.source_total) + posterior.exponent * LOG_2
        if status == NO_EVIDENCE:
            return None
        raise_status(status)

    def normalize(self):
        """Make the belief sum to 1; return what it summed to. O(nnz)."""
        cdef Posterior posterior
        cdef Workspace* w
        cdef int status
        begin(self, 0)
        w = listing_workspace(self, 0 if self.storage == UNIFORM else self.n_stored, 0)
        if self.n_stored < RELEASE_FROM:
            status = revise(self, w, NULL, True, False, &posterior)
        else:
            with nogil:
                status = revise(self, w, NULL, True, False, &posterior)
        give_back(w)
        self.writing = 0
        if status != 0:
            raise_status(status)
        return ldexp(posterior.source_total, posterior.source_exponent)

    def _is_measure(self):
        """Whether the content is finite, non-negative, not all zero and of float32 or float64; remembered until written."""
        return check_measure(self)


cdef Workspace* listing_workspace(CoreBelief self, Py_ssize_t n_entries, int before) except NULL:
    """A workspace with room for so many entries of `self`, which `begin` has entered from `before`."""
    cdef Workspace* w = borrow(0)
    if w != NULL and make_room(w, n_entries):
        return w
    if w != NULL:
        give_back(w)
    self.writing = before
    raise MemoryError


cdef inline double entries_to_meet(CoreBelief self, CoreModel model, Py_ssize_t action) noexcept nogil:
    cdef Table* T = &model.tables[model.transition_of[action]]
    return (<double> self.n_stored) * T.n_entries / T.n_rows


cdef inline int advance(CoreBelief self, CoreModel model, Py_ssize_t action, Py_ssize_t observation, double relative,
                        double entries, Workspace* w, double* log_evidence) noexcept nogil:
    """One step by an action and an observation (-1: none) that are in range, with so many entries of T to meet."""
    cdef Source source
    cdef Likelihood L
    cdef Posterior posterior
    cdef Table* T = &model.tables[model.transition_of[action]]
    cdef bint marked = T.offsets != NULL and self.storage <= BITMAP and entries < MARK_BELOW * self.n_cells
    cdef int status
    read_source(self, &source)
    posterior.source_exponent = rescale(self, &source)
    L.given, L.states, L.values, L.exponent, L.n = False, NULL, NULL, 0, 0
    if observation >= 0:
        read_likelihood(model, action, observation, &L)
    status = step(self, &source, T, &L, w, marked, relative, &posterior)
    log_evidence[0] = 0
    if status == 0 and L.given:
        log_evidence[0] = log_ratio(posterior.total, posterior.source_total) + L.exponent * LOG_2
    return status


cdef int run(CoreBelief self, CoreModel model, Pass* p, double relative, Workspace* w) noexcept nogil:
    """Take step after step: to the end, or until one fails, the record is full or it is time for a pause."""
    cdef Source source
    cdef Py_ssize_t action, start
    cdef double work = 0, entries
    cdef int status
    while True:
        if p.offsets != NULL and p.n_recorded < p.step:  # the belief after the step before
            start = p.offsets[p.n_recorded]
            if start + self.n_stored > p.room:
                return NEEDS_ROOM
            read_source(self, &source)
            if self.type_num == cnp.NPY_DOUBLE:
                list_entries(<const double*> source.mass, &source, p.states + start, <double*> p.values + start)
            else:
                list_entries(<const float*> source.mass, &source, p.states + start, <float*> p.values + start)
            p.n_recorded += 1
            p.offsets[p.n_recorded] = start + self.n_stored
        if p.step == p.n_steps:
            return 0
        if work > PAUSE_AFTER:
            return PAUSED
        action = p.actions[p.step - p.first_action]
        entries = entries_to_meet(self, model, action)
        work += 100 + entries
        status = advance(self, model, action, p.observations[p.step], relative, entries, w, &p.log_evidence[p.step])
        if status != 0:
            return status
        p.step += 1


cdef int correct_only(CoreBelief self, model, Pass* p, str on_impossible) except -1:
    """Take the first step without a transition."""
    cdef Py_ssize_t o = p.observations[0]
    try:
        if o < 0:
            self.normalize()
        else:
            p.log_evidence[0] = self.correct(model.likelihood(0, o), on_impossible=on_impossible)
    except ValueError as error:
        raise type(error)(f"step 0, observation {o}: {error}") from None
    p.step = 1
    return 0


cdef int go_on(CoreBelief self, model, Pass* p, double relative, str on_impossible, int status) except -1:
    """Take the step that failed as `on_impossible` wants it, or raise."""
    cdef Py_ssize_t t = p.step, a = p.actions[t - p.first_action], o = p.observations[t]
    try:
        if status != NO_EVIDENCE or o < 0:
            raise_status(status)
        p.log_evidence[t] = self._on_impossible(model, a, o, on_impossible, relative)
    except ValueError as error:
        raise type(error)(f"step {t}: {error}") from None
    p.step += 1
    return 0


cdef int step(CoreBelief self, const Source* source, const Table* T, const Likelihood* L, Workspace* w, bint marked,
              double relative, Posterior* posterior) noexcept nogil:
    """Predict, correct and emit."""
    cdef int status
    if self.type_num == cnp.NPY_DOUBLE:
        status = predict_correct(<const double*> source.mass, source, T, L, w, marked, relative > 0, posterior)
    else:
        status = predict_correct(<const float*> source.mass, source, T, L, w, marked, relative > 0, posterior)
    return emit(self, w, posterior, relative) if status == 0 else status


cdef int revise(CoreBelief self, Workspace* w, const void* weights, bint wide_weights, bint per_entry,
                Posterior* posterior) noexcept nogil:
    """Weigh the belief (not at all for NULL weights) and emit."""
    cdef Source source
    read_source(self, &source)
    posterior.source_exponent = posterior.exponent = 0
    if weights == NULL and self.storage == UNIFORM:
        return normalize_uniform(self, posterior)
    posterior.source_exponent = rescale(self, &source)
    if self.type_num == cnp.NPY_DOUBLE:
        list_mass(<const double*> source.mass, &source, w, posterior)
    else:
        list_mass(<const float*> source.mass, &source, w, posterior)
    if weights != NULL and wide_weights:
        weigh(<const double*> weights, per_entry, posterior)
    elif weights != NULL:
        weigh(<const float*> weights, per_entry, posterior)
    return emit(self, w, posterior, 0.0)


cdef int normalize_uniform(CoreBelief self, Posterior* posterior) noexcept nogil:
    """One cell stands for all; their sum is taken as if each were stored."""
    cdef bint wide = self.type_num == cnp.NPY_DOUBLE
    cdef double value = (<double*> self.block)[0] if wide else (<float*> self.block)[0]
    cdef double[4] lanes
    cdef Py_ssize_t k
    lanes[:] = [0, 0, 0, 0]
    for k in range(self.n_cells):
        lanes[k & 3] += value
    posterior.total = posterior.source_total = sum_lanes(lanes)
    if not isfinite(posterior.total):
        return NOT_A_MEASURE
    if wide:
        (<double*> self.block)[0] = value / posterior.total
    else:
        (<float*> self.block)[0] = <float> (value / posterior.total)
    return 0


cdef int emit(CoreBelief self, Workspace* w, const Posterior* posterior, double relative) noexcept nogil:
    """Make what is kept of the posterior, normalised, the content of `self`; the workspace is clean afterwards."""
    cdef Py_ssize_t n_cells = self.n_cells, kept = posterior.n_positive
    cdef double smallest = SMALLEST_DOUBLE, kept_mass = posterior.total, threshold
    cdef int storage, status = 0
    cdef char* block = NULL
    cdef char* positions
    cdef char* values
    cdef bint wide = self.type_num == cnp.NPY_DOUBLE
    if not isfinite(posterior.total) or not isfinite(posterior.source_total):
        status = NOT_A_MEASURE
    elif posterior.total <= 0:
        status = NO_EVIDENCE
    else:
        if not wide or posterior.total > 1:  # what the dtype cannot hold once normalised would be a stored zero
            smallest = max(smallest, posterior.total * (SMALLEST_DOUBLE if wide else SMALLEST_FLOAT))
        threshold = max(smallest, relative * posterior.largest)
        if threshold > SMALLEST_DOUBLE:
            kept = count_kept(posterior, threshold, &kept_mass)
        storage = smallest_storage(self.storage, kept, n_cells, item_size(self.type_num))
        block = make_block(self, storage, kept)
        if block == NULL:
            status = NO_MEMORY
    if status != 0:
        if posterior.found == NULL:
            memset(w.sums, 0, n_cells * sizeof(double))
        return status
    positions = block + index_offset(storage, kept, n_cells, item_size(self.type_num))
    values = block + value_offset(storage, n_cells)
    if wide:
        write(<double*> values, posterior, threshold, kept_mass, kept, storage, n_cells, positions)
    else:
        write(<float*> values, posterior, threshold, kept_mass, kept, storage, n_cells, positions)
    self.is_measure = NORMALIZED
    if relative > 0:
        self.pruned_mass += max(0.0, (posterior.total - kept_mass) / posterior.total)
    return 0


cdef void write(value_t* values, const Posterior* posterior, double threshold, double kept_mass, Py_ssize_t kept,
                int storage, Py_ssize_t n_states, char* positions) noexcept nogil:
    if posterior.found != NULL:
        write_list(values, posterior, threshold, kept_mass, storage, n_states, positions)
    else:
        write_sums(values, posterior.mass, threshold, kept_mass, kept, storage, n_states, positions)


cdef int begin(CoreBelief self, int before) except -1:
    """Go from `before` (0: outside, 1: inside as the one writer) to writing without the GIL, with a measure."""
    if self.writing != before:
        raise RuntimeError("two writers in one belief: another thread is updating it")
    self.writing = 1  # before anything that may let another thread run
    try:
        if not check_measure(self):
            self._explain_no_measure()
            raise ValueError("belief that is no measure given")
    except BaseException:
        self.writing = before
        raise
    self.writing = 2  # readers keep out too
    return 0


cdef inline int enter(CoreBelief self, CoreModel model) except -1:
    """`begin` with a belief that fits the model."""
    if not fits(self, model):
        refuse(self, model)
    begin(self, 0)
    if not fits(self, model):  # another thread came first
        self.writing = 0
        refuse(self, model)
    return 0


cdef inline bint fits(CoreBelief self, CoreModel model) noexcept:
    return self.type_num == model.type_num and self.n_cells == model.n_states


cdef int refuse(CoreBelief self, CoreModel model) except -1:
    if self.type_num != model.type_num:
        raise TypeError(f"belief of {self.dtype} given with a model of {model.dtype}; expected the same dtype: "
                        f"see Model(dtype=) and belief.astype({model.dtype})")
    raise ValueError(f"belief of {self.n_cells} states given with a model of {model.n_states}")


cdef bint check_measure(CoreBelief self):
    if not self.is_measure:
        if self.type_num != cnp.NPY_DOUBLE and self.type_num != cnp.NPY_FLOAT or self.n_stored == 0 \
                or self.n_cells > 0x7fffffff:
            return False
        values = self._lookup(np.zeros(1, dtype=np.intp)) if self.storage == UNIFORM else self.values
        self.is_measure = bool(values.min() > 0 and values.max() < INFINITY)
    return self.is_measure


cdef double log_ratio(double a, double b) noexcept nogil:
    cdef double ratio = a / b
    if DBL_MIN <= ratio < INFINITY:
        return log(ratio)  # the exact one near 1
    return log(a) - log(b)


cdef int raise_status(int status) except -1:
    if status == NO_MEMORY:
        raise MemoryError
    if status == NOT_A_MEASURE:
        raise ValueError("belief whose sum overflows given; expected a finite sum")
    raise ValueError("no probability is left: all of it underflowed")


cdef inline int check_on_impossible(str given) except -1:
    if given != "raise" and given != "predict" and given != "likelihood":
        raise ValueError(f"on_impossible={given!r} given; expected 'raise', 'predict' or 'likelihood'")
    return 0


cdef int check_steps(cnp.ndarray steps, str name, Py_ssize_t first, Py_ssize_t end) except -1:
    """Raise with the first number outside [first, end); `steps` is 1-D, contiguous and of intp."""
    cdef const Py_ssize_t* numbers = <const Py_ssize_t*> cnp.PyArray_DATA(steps)
    cdef Py_ssize_t t
    if cnp.PyArray_NDIM(steps) != 1:
        raise ValueError(f"{name} of shape {np.shape(steps)} given; expected one number per step")
    for t in range(cnp.PyArray_SIZE(steps)):
        if not first <= numbers[t] < end:
            raise ValueError(f"{name}[{t}] is {numbers[t]}; expected {first} to {end - 1}")
    return 0


cdef Py_ssize_t as_index(value, str name) except? -1:
    try:
        return PyLong_AsSsize_t(value if PyLong_CheckExact(value) else operator.index(value))
    except TypeError:
        raise TypeError(f"{name} {value!r} of type {type(value).__name__} given; expected an int") from None
    except OverflowError:
        raise ValueError(f"{name} {value!r} given; no model has so many") from None


cdef CoreModel as_model(value):
    if not isinstance(value, CoreModel):
        raise TypeError(f"model of type {type(value).__name__} given; expected an agentmem.Model")
    return value


cdef double share(value, str name) except -1.0:
    cdef double number
    try:
        number = value
    except TypeError:
        raise TypeError(f"{name}={value!r} given; expected a number") from None
    if not 0 <= number < 1:
        raise ValueError(f"{name}={value!r} given; expected at least 0 and below 1")
    return number
