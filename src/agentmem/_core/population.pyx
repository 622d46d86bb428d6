"""Beliefs of many agents, a chunk of them in one buffer, and the filter step over all rows of a chunk.

    rows:    offset, entries, storage of each agent's block
    buffer:  | block | block | ...      blocks as in `array`, each in its smallest form, 8 bytes apart

A step reads one chunk and fills a new one from the front, so that a step that fails has changed nothing. A block that is
replaced by itself (`store`) goes to the end and leaves a hole, which the next step closes.
"""
cimport numpy as cnp
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.math cimport INFINITY
from libc.stdint cimport int16_t, int32_t, int64_t, uint64_t
from libc.string cimport memcpy

import numpy as np

from agentmem._core.array cimport item_size, make_block, payload_size
from agentmem._core.belief cimport CoreBelief, check_measure
from agentmem._core.model cimport CoreModel
from agentmem._core.scratch cimport Workspace, borrow, give_back
from agentmem._core.step cimport (Plan, Posterior, Source, abandon, advance, evidence_of, foresee, list_entries, read_block,
                                  rescale, write_block)
from agentmem._core.types cimport (BITMAP, DENSE, NO_EVIDENCE, NO_MEMORY, NORMALIZED, NOT_A_MEASURE, PAIRS, UNIFORM, lowest_bit,
                                   value_t)

cnp.import_array()


cdef struct Row:
    int64_t offset
    int32_t n_stored
    int16_t storage
    int16_t is_measure


# ---- leaves

cdef inline Py_ssize_t room_for(CoreChunk chunk, int storage, Py_ssize_t n_stored) noexcept nogil:
    """Bytes of a block in this form, up to where the next one begins."""
    return (payload_size(storage, n_stored, chunk.n_cells, item_size(chunk.type_num)) + 7) & ~7


cdef inline Py_ssize_t size_of(CoreChunk chunk, Py_ssize_t k) noexcept nogil:
    """Bytes of the block of row k."""
    return room_for(chunk, chunk.rows[k].storage, chunk.rows[k].n_stored)


cdef inline void read_row(CoreChunk chunk, Py_ssize_t k, Source* source) noexcept nogil:
    cdef const Row* row = &chunk.rows[k]
    read_block(chunk.buffer + row.offset, row.storage, row.n_stored, chunk.n_cells, chunk.type_num, source)


cdef void append_row(CoreChunk chunk, Py_ssize_t k, int storage, Py_ssize_t n_stored, int is_measure,
                     double pruned_mass) noexcept nogil:
    """Make the block that begins where the used ones end that of row k."""
    chunk.rows[k].offset, chunk.rows[k].n_stored = chunk.used, <int32_t> n_stored
    chunk.rows[k].storage, chunk.rows[k].is_measure = storage, is_measure
    chunk.pruned_mass[k] = pruned_mass
    chunk.used += room_for(chunk, storage, n_stored)


cdef char* place(CoreChunk chunk, Py_ssize_t k, int storage, Py_ssize_t n_stored, int is_measure,
                 double pruned_mass) noexcept nogil:
    """Give row k a block of this size behind all others, to be filled at once; NULL (as before) without memory."""
    cdef Py_ssize_t size = room_for(chunk, storage, n_stored)
    cdef char* block
    if not ensure(chunk, size):
        return NULL
    block = chunk.buffer + chunk.used
    (<int64_t*> (block + size - 8))[0] = 0  # the same bytes for the same belief, up to where the next one begins
    append_row(chunk, k, storage, n_stored, is_measure, pruned_mass)
    return block


cdef bint is_listed(const value_t* values, const Source* source) noexcept nogil:
    """Whether values and places are those of a belief of `n_stored` states."""
    cdef Py_ssize_t k, n_values = source.n_stored, found = 0
    if source.storage >= DENSE:
        n_values = source.n_states if source.storage == DENSE else 1
    for k in range(n_values):
        if not 0 <= values[k] < INFINITY:
            return False
        found += values[k] > 0
    if source.storage == UNIFORM:
        return found == 1 and source.n_stored == source.n_states
    if found != source.n_stored:
        return False
    if source.storage == PAIRS:
        for k in range(source.n_stored):
            if source.support[k] < 0 or source.support[k] >= source.n_states:
                return False
            if k > 0 and source.support[k] <= source.support[k - 1]:
                return False
    return source.storage != BITMAP or count_bits(source.words, source.n_states) == source.n_stored


cdef Py_ssize_t count_bits(const uint64_t* words, Py_ssize_t n_bits) noexcept nogil:
    """How many are set; -1 if one beyond the last is."""
    cdef Py_ssize_t k, n = 0
    cdef uint64_t word
    for k in range((n_bits + 63) >> 6):
        word = words[k]
        while word:
            if k * 64 + lowest_bit(word) >= n_bits:
                return -1
            word &= word - 1
            n += 1
    return n


cdef bint is_belief(CoreChunk chunk, Py_ssize_t offset, int storage, Py_ssize_t n_stored) noexcept nogil:
    """Whether a block of the buffer, all of which is there, is a belief of so many states in this form."""
    cdef Source source
    read_block(chunk.buffer + offset, storage, n_stored, chunk.n_cells, chunk.type_num, &source)
    if chunk.type_num == cnp.NPY_DOUBLE:
        return is_listed(<const double*> source.mass, &source)
    return is_listed(<const float*> source.mass, &source)


cdef bint copy_row(CoreChunk to, Py_ssize_t k, CoreChunk source, Py_ssize_t j) noexcept nogil:
    """Make row j of another chunk of the same kind row k; False (as before) without memory."""
    cdef const Row* row = &source.rows[j]
    cdef char* block = place(to, k, row.storage, row.n_stored, row.is_measure, source.pruned_mass[j])
    if block == NULL:
        return False
    memcpy(block, source.buffer + row.offset, payload_size(row.storage, row.n_stored, to.n_cells, item_size(to.type_num)))
    return True


cdef int step_rows(CoreChunk old, CoreChunk new, CoreModel model, const Py_ssize_t* actions,
                   const Py_ssize_t* observations, double relative, Py_ssize_t most, Workspace* w,
                   double* evidence, Py_ssize_t* at) noexcept nogil:
    """Step every row of `old` into `new`. A row without evidence is copied as it is, its evidence -inf.

    Returns 0, or the status of the row `at` that failed otherwise.
    """
    cdef Py_ssize_t k, ahead
    cdef Source source
    cdef Posterior posterior
    cdef Plan plan
    cdef char* block
    cdef int status
    for k in range(old.n_rows):
        at[0] = k
        for ahead in range(2, 0, -1):
            if k + ahead < old.n_rows:
                read_row(old, k + ahead, &source)
                foresee(&source, model, actions[k + ahead], observations[k + ahead], ahead == 1)
        read_row(old, k, &source)
        posterior.source_exponent = rescale(&source, old.type_num, old.rows[k].is_measure)
        status = advance(&source, model, actions[k], observations[k], relative, most, w, &posterior, &plan)
        if status == NO_EVIDENCE and observations[k] >= 0:
            if not copy_row(new, k, old, k):
                return NO_MEMORY
            evidence[k] = -INFINITY
            continue
        if status != 0:
            return status
        block = place(new, k, plan.storage, plan.kept, NORMALIZED, old.pruned_mass[k] + plan.dropped)
        if block == NULL:
            abandon(&posterior, old.n_cells, w)
            return NO_MEMORY
        write_block(&posterior, &plan, old.n_cells, old.type_num, block)
        evidence[k] = evidence_of(&posterior) if observations[k] >= 0 else 0.0
    return 0


cdef bint ensure(CoreChunk chunk, Py_ssize_t more) noexcept nogil:
    """Make room behind what is used; False without memory."""
    cdef Py_ssize_t room = chunk.used + more
    cdef char* buffer
    if room <= chunk.room:
        return True
    room += room >> 3
    buffer = <char*> PyMem_RawRealloc(chunk.buffer, room)
    if buffer == NULL:
        return False
    chunk.buffer, chunk.room = buffer, room
    return True


cdef bint close_holes(CoreChunk chunk) noexcept nogil:
    """Move the blocks together, row behind row; False (as before) without memory."""
    cdef Py_ssize_t k, size, used = 0
    cdef Py_ssize_t room = max(<Py_ssize_t> 8, chunk.used - chunk.holes)
    cdef char* buffer = <char*> PyMem_RawMalloc(room)
    if buffer == NULL:
        return False
    for k in range(chunk.n_rows):
        if chunk.rows[k].n_stored >= 0:
            size = size_of(chunk, k)
            memcpy(buffer + used, chunk.buffer + chunk.rows[k].offset, size)
            chunk.rows[k].offset = used
            used += size
    PyMem_RawFree(chunk.buffer)
    chunk.buffer, chunk.used, chunk.room, chunk.holes = buffer, used, room, 0
    return True


# ---- wrapper

cdef class CoreChunk:
    """The beliefs of a range of agents over the same states."""

    cdef readonly Py_ssize_t n_rows, n_cells
    cdef int type_num
    cdef Row* rows
    cdef double* pruned_mass
    cdef char* buffer
    cdef Py_ssize_t used, room, holes  # bytes of the buffer
    cdef int readers                   # steps without the GIL, and views: the buffer must not move

    def __cinit__(self, Py_ssize_t n_rows, Py_ssize_t n_cells, dtype, Py_ssize_t room=0):
        """`n_rows` agents of `n_cells` states; each row is to be stored before it is read."""
        if n_rows < 0 or n_rows > 0x7fffffff or n_cells < 1 or n_cells > 0x7fffffff or room < 0:
            raise ValueError(f"{n_rows} agents over {n_cells} states given")
        self.type_num = cnp.NPY_DOUBLE if dtype == np.float64 else cnp.NPY_FLOAT
        if dtype not in (np.float32, np.float64):
            raise TypeError(f"dtype {dtype} given; a belief is float32 or float64")
        self.n_rows, self.n_cells = n_rows, n_cells
        self.rows = <Row*> PyMem_RawMalloc(max(1, n_rows) * sizeof(Row))
        self.pruned_mass = <double*> PyMem_RawMalloc(max(1, n_rows) * sizeof(double))
        self.buffer = <char*> PyMem_RawMalloc(max(8, room))
        if self.rows == NULL or self.pruned_mass == NULL or self.buffer == NULL:
            raise MemoryError
        self.room = max(8, room)
        for k in range(n_rows):
            self.rows[k].n_stored = -1  # nothing there yet

    def __dealloc__(self):
        PyMem_RawFree(self.rows)
        PyMem_RawFree(self.pruned_mass)
        PyMem_RawFree(self.buffer)

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.buffer, self.used, True, flags)
        self.readers += 1

    def __releasebuffer__(self, Py_buffer* view):
        self.readers -= 1

    def __sizeof__(self):
        return type(self).__basicsize__ + self.n_rows * (sizeof(Row) + sizeof(double)) + self.room

    cdef int check_still(self) except -1:
        if self.readers:
            raise RuntimeError("two writers in one chunk: a thread is stepping it, or its `buffers` are still held")
        return 0

    cdef int check_row(self, Py_ssize_t k, bint filled) except -1:
        if k < 0 or k >= self.n_rows:
            raise IndexError(f"row {k} given; there are {self.n_rows}")
        if filled and self.rows[k].n_stored < 0:
            raise ValueError(f"row {k} has no belief yet")
        return 0

    def store(self, Py_ssize_t k, CoreBelief belief not None):
        """Make a belief that of agent k, as a copy."""
        cdef Py_ssize_t hole
        cdef char* block
        self.check_row(k, False)
        if belief.writing:
            raise RuntimeError("two writers in one belief: another thread is updating it")
        belief.writing = 1  # nobody else changes it, whatever lets other threads run below
        try:
            if belief.n_cells != self.n_cells or belief.type_num != self.type_num:
                raise ValueError(f"belief of {belief.n_cells} states and {belief.dtype} given; expected {self.n_cells} "
                                 f"and {self.dtype}")
            if not check_measure(belief):
                belief._explain_no_measure()
                raise ValueError("belief that is no measure given")
            self.check_still()
            hole = size_of(self, k) if self.rows[k].n_stored >= 0 else 0
            block = place(self, k, belief.storage, belief.n_stored, belief.is_measure, belief.pruned_mass)
            if block == NULL:
                raise MemoryError
            memcpy(block, belief.block,
                   payload_size(belief.storage, belief.n_stored, self.n_cells, item_size(self.type_num)))
        finally:
            belief.writing = 0
        self.holes += hole
        if self.holes > self.used >> 2:
            close_holes(self)

    def load(self, Py_ssize_t k, CoreBelief belief not None):
        """Make the belief of agent k the content of `belief`, which nobody else holds."""
        cdef char* block
        self.check_row(k, True)
        if belief.n_cells != self.n_cells or belief.type_num != self.type_num or belief.writing:
            raise ValueError(f"belief of {belief.n_cells} states and {belief.dtype} given; expected a free one of "
                             f"{self.n_cells} and {self.dtype}")
        block = make_block(belief, self.rows[k].storage, self.rows[k].n_stored)
        if block == NULL:
            raise MemoryError
        memcpy(block, self.buffer + self.rows[k].offset,
               payload_size(self.rows[k].storage, self.rows[k].n_stored, self.n_cells, item_size(self.type_num)))
        belief.is_measure = self.rows[k].is_measure
        belief.pruned_mass = self.pruned_mass[k]

    def take(self, Py_ssize_t first, CoreChunk other not None, rows):
        """Make the beliefs of these rows of another chunk those of the agents from `first` on, as copies."""
        cdef const Py_ssize_t[::1] wanted = np.array(rows, dtype=np.intp)
        cdef Py_ssize_t k, total = 0
        if other.n_cells != self.n_cells or other.type_num != self.type_num:
            raise ValueError(f"chunk of {other.n_cells} states and {other.dtype} given; expected {self.n_cells} and "
                             f"{self.dtype}")
        if first < 0 or first > self.n_rows - wanted.shape[0]:
            raise IndexError(f"rows {first} to {first + wanted.shape[0] - 1} given; there are {self.n_rows}")
        for k in range(wanted.shape[0]):
            other.check_row(wanted[k], True)
            total += size_of(other, wanted[k])
        for k in range(first, first + wanted.shape[0]):
            if self.rows[k].n_stored >= 0:
                raise ValueError(f"row {k} has a belief already")
        self.check_still()
        if not ensure(self, total):
            raise MemoryError
        for k in range(wanted.shape[0]):
            copy_row(self, first + k, other, wanted[k])  # there is room

    def buffers(self):
        """All rows by name: storage and counts (n_rows,) int32, pruned_mass (n_rows,) float64, blocks int64.

        The blocks, row behind row, are a view; while somebody holds it, no row can be stored.
        """
        cdef Py_ssize_t k
        storage, counts = np.empty(self.n_rows, np.int32), np.empty(self.n_rows, np.int32)
        pruned_mass = np.empty(self.n_rows)
        cdef int32_t[::1] forms = storage, stored = counts
        cdef double[::1] pruned = pruned_mass
        if self.holes:
            self.check_still()
            if not close_holes(self):
                raise MemoryError
        for k in range(self.n_rows):
            self.check_row(k, True)
            forms[k], stored[k], pruned[k] = self.rows[k].storage, self.rows[k].n_stored, self.pruned_mass[k]
        blocks = np.frombuffer(self, np.int64) if self.used else np.empty(0, np.int64)
        return {"storage": storage, "counts": counts, "pruned_mass": pruned_mass, "blocks": blocks}

    def fill(self, storage, counts, pruned_mass, blocks):
        """Make what `buffers` gave the rows of a chunk that has none yet. It may come from anywhere: all is checked."""
        cdef const int32_t[::1] forms = np.array(storage, dtype=np.int32), stored = np.array(counts, dtype=np.int32)
        cdef const double[::1] pruned = np.array(pruned_mass, dtype=np.float64)
        cdef const int64_t[::1] words = blocks
        cdef Py_ssize_t k, size, at = 0, n_bytes = 8 * words.shape[0]
        if not forms.shape[0] == stored.shape[0] == pruned.shape[0] == self.n_rows:
            raise ValueError(f"{forms.shape[0]} storages, {stored.shape[0]} counts and {pruned.shape[0]} pruned masses "
                             f"given for {self.n_rows} agents")
        self.check_still()
        if self.used:
            raise ValueError("a chunk that has beliefs already")
        if not ensure(self, n_bytes):
            raise MemoryError
        if n_bytes:
            memcpy(self.buffer, &words[0], n_bytes)  # before it is checked: what is checked is what is kept
        for k in range(self.n_rows):
            if forms[k] < PAIRS or forms[k] > UNIFORM or stored[k] < 1 or stored[k] > self.n_cells:
                raise ValueError(f"row {k}: {stored[k]} states of {self.n_cells} in storage {forms[k]} given")
            if not 0 <= pruned[k] < INFINITY:
                raise ValueError(f"row {k}: pruned mass {pruned[k]} given")
            size = room_for(self, forms[k], stored[k])
            if size > n_bytes - at or not is_belief(self, at, forms[k], stored[k]):
                raise ValueError(f"row {k}: no belief of {stored[k]} states among {self.n_cells}")
            at += size
        if at != n_bytes:
            raise ValueError(f"{n_bytes} bytes given for beliefs of {at}")
        for k in range(self.n_rows):
            append_row(self, k, forms[k], stored[k], 1, pruned[k])
        self.trim()

    def step(self, CoreModel model not None, actions, observations, double relative, Py_ssize_t most,
             double[::1] evidence not None):
        """All agents by one action and observation (-1: none) each: a new chunk; each one's log-evidence is written.

        Each keeps what is not below the `relative` share of its largest entry, and at `most` so many (0: any).

        An agent whose observation is impossible keeps its belief, with an evidence of -inf. Releases the GIL.
        """
        # Copies: no other thread writes to them while the kernel believes them checked.
        cdef const Py_ssize_t[::1] a = np.array(actions, dtype=np.intp), o = np.array(observations, dtype=np.intp)
        cdef Py_ssize_t k, at = 0
        cdef int status
        cdef CoreChunk new
        cdef Workspace* w
        if a.shape[0] != self.n_rows or o.shape[0] != self.n_rows or evidence.shape[0] != self.n_rows:
            raise ValueError(f"{a.shape[0]} actions, {o.shape[0]} observations and room for {evidence.shape[0]} evidences "
                             f"given for {self.n_rows} agents")
        if model.n_states != self.n_cells or model.type_num != self.type_num:
            raise ValueError(f"model of {model.n_states} states and {model.dtype} given; expected {self.n_cells} and "
                             f"{self.dtype}")
        if most < 0:
            raise ValueError(f"max_states={most} given; expected at least 1")
        if not 0 <= relative < 1:
            raise ValueError(f"prune={relative} given; expected at least 0 and below 1")
        for k in range(self.n_rows):
            if self.rows[k].n_stored < 0:
                self.check_row(k, True)
            if a[k] < 0 or a[k] >= model.n_actions:
                raise ValueError(f"row {k}: action {a[k]} given; expected 0 to {model.n_actions - 1}")
            if o[k] < -1 or o[k] >= model.n_observations:
                raise ValueError(f"row {k}: observation {o[k]} given; expected -1 to {model.n_observations - 1}")
        if self.n_rows == 0:
            return self
        new = CoreChunk(self.n_rows, self.n_cells, self.dtype, self.used - self.holes)
        w = borrow(self.n_cells)
        if w == NULL:
            raise MemoryError
        self.readers += 1
        with nogil:
            status = step_rows(self, new, model, &a[0], &o[0], relative, most, w, &evidence[0], &at)
        self.readers -= 1
        give_back(w)
        if status == NO_MEMORY:
            raise MemoryError
        if status == NOT_A_MEASURE:
            raise ValueError(f"agent {at}: a belief whose sum overflows")
        if status != 0:
            raise ValueError(f"agent {at}: no probability is left: all of it underflowed")
        return new.trim()

    def trim(self):
        """Give back the room that is not used; returns the chunk."""
        cdef char* buffer
        self.check_still()
        buffer = <char*> PyMem_RawRealloc(self.buffer, max(<Py_ssize_t> 8, self.used))
        if buffer != NULL:
            self.buffer, self.room = buffer, max(<Py_ssize_t> 8, self.used)
        return self

    def entries(self, Py_ssize_t first, Py_ssize_t last):
        """Rows [first, last) as one CSR record: offsets (rows + 1,) int64, states int32, values of the dtype."""
        cdef Py_ssize_t k
        cdef Source source
        cdef int64_t[::1] starts
        cdef int32_t[::1] places
        if not 0 <= first <= last <= self.n_rows:
            raise IndexError(f"rows {first} to {last} given; there are {self.n_rows}")
        offsets = np.zeros(last - first + 1, dtype=np.int64)
        np.cumsum(self.nnz()[first:last], out=offsets[1:])
        states, values = np.empty(offsets[last - first], np.int32), np.empty(offsets[last - first], self.dtype)
        if not len(states):
            return offsets, states, values
        starts, places = offsets, states
        cdef char* numbers = <char*> cnp.PyArray_DATA(<cnp.ndarray> values)
        cdef Py_ssize_t item = item_size(self.type_num)
        for k in range(first, last):
            read_row(self, k, &source)
            if item == 8:
                list_entries(<const double*> source.mass, &source, &places[0] + starts[k - first],
                             <double*> (numbers + starts[k - first] * item))
            else:
                list_entries(<const float*> source.mass, &source, &places[0] + starts[k - first],
                             <float*> (numbers + starts[k - first] * item))
        return offsets, states, values

    def nnz(self):
        """(n_rows,) int64: the states that each agent holds possible."""
        cdef Py_ssize_t k
        counts = np.empty(self.n_rows, dtype=np.int64)
        cdef int64_t[::1] count = counts
        for k in range(self.n_rows):
            self.check_row(k, True)
            count[k] = self.rows[k].n_stored
        return counts

    @property
    def dtype(self):
        return cnp.PyArray_DescrFromType(self.type_num)
