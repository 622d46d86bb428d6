"""Logs of few different symbols as bits: an order-1 range coder (rANS) over lanes, and the sealed blocks of many lanes.

    steps x lanes      a stream: 3 bytes of state, then what it shifted out
    +---+---+---+
    | 2 | 0 | 1 |      each symbol is coded by how often it follows the one above it, in its own lane;
    | 2 | 0 | 0 |      the row before the first is the context
    +---+---+---+

A `CoreCoder` is the table of those frequencies, which streams share. `CoreLanes` keeps blocks of many lanes, cut in
groups of lanes with a stream each, so that one lane comes back without the others' groups. The coder is J. Duda's
(arXiv:1311.2540); its state takes 16 to 24 bits, a frequency 10.
"""
cimport numpy as cnp
from cpython.mem cimport PyMem_RawFree, PyMem_RawMalloc, PyMem_RawRealloc
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

import numpy as np

cnp.import_array()

cdef enum:
    BITS = 10                # of a frequency
    WHOLE = 1 << BITS        # what the frequencies of a context sum to
    LOWEST = 1 << 16         # of the state between two symbols; below LOWEST << 8 always
    STATE = 3                # bytes of a stream's state
    MOST_SYMBOLS = 64        # of an alphabet
    NO_ROOM = -1
    DAMAGED = -2

# What the decoder finds in one look: the symbol, its frequency, and how far into it a state is.
ctypedef uint32_t look_t


cdef struct Coded:           # a symbol in its context
    uint32_t frequency
    uint32_t before          # frequencies of lower symbols
    uint64_t reciprocal      # of the frequency, times 2**36, rounded up: exact for every state


# ---- leaves

cdef void make_coded(const uint16_t* frequencies, Py_ssize_t n_symbols, Coded* coded) noexcept nogil:
    cdef Py_ssize_t context, symbol, k
    cdef uint32_t before
    for context in range(n_symbols):
        before = 0
        for symbol in range(n_symbols):
            k = context * n_symbols + symbol
            coded[k].frequency = frequencies[k]
            coded[k].before = before
            coded[k].reciprocal = ((<uint64_t> 1 << 36) + frequencies[k] - 1) // frequencies[k]
            before += frequencies[k]


cdef void make_looks(const uint16_t* frequencies, Py_ssize_t n_symbols, look_t* looks) noexcept nogil:
    """One for each context and remainder of a state: symbol, frequency (11 bits), what of it lies below (10 bits)."""
    cdef Py_ssize_t k
    cdef uint32_t frequency, below
    cdef look_t lowest
    for k in range(n_symbols * n_symbols):  # contexts, in each of them symbols
        frequency = frequencies[k]
        lowest = <look_t> (k % n_symbols) << 21 | frequency << 10
        for below in range(frequency):
            looks[below] = lowest | below
        looks += frequency


cdef Py_ssize_t encode(const Coded* coded, Py_ssize_t n_symbols, const uint8_t* rows, const uint8_t* contexts,
                       Py_ssize_t n_steps, Py_ssize_t n_lanes, Py_ssize_t stride, uint8_t* out,
                       Py_ssize_t room) noexcept nogil:
    """Write the stream of n_steps x n_lanes symbols, rows `stride` apart in memory, to `out`; its bytes, or NO_ROOM.

    From the last symbol to the first, as the decoder takes them the other way; bytes fill `out` from its end.
    """
    cdef Py_ssize_t step, lane, at = room
    cdef uint32_t state = LOWEST, quotient
    cdef const uint8_t* row
    cdef const uint8_t* above
    cdef const Coded* c
    for step in range(n_steps - 1, -1, -1):
        row = rows + step * stride
        above = row - stride if step > 0 else contexts
        for lane in range(n_lanes - 1, -1, -1):
            c = &coded[above[lane] * n_symbols + row[lane]]
            while state >= c.frequency << (16 + 8 - BITS):
                if at <= STATE:
                    return NO_ROOM
                at -= 1
                out[at] = state & 255
                state >>= 8
            quotient = <uint32_t> ((state * c.reciprocal) >> 36)
            state = (quotient << BITS) + (state - quotient * c.frequency) + c.before
    memmove(out + STATE, out + at, room - at)
    out[0], out[1], out[2] = state & 255, (state >> 8) & 255, state >> 16
    return STATE + room - at


cdef Py_ssize_t decode(const look_t* looks, const uint8_t* stream, Py_ssize_t n_bytes, const uint8_t* contexts,
                       Py_ssize_t n_steps, Py_ssize_t n_lanes, uint8_t* rows) noexcept nogil:
    """Read n_steps x n_lanes symbols, rows one behind another; 0, or DAMAGED where the stream ends otherwise."""
    cdef Py_ssize_t step, lane, at = STATE
    cdef uint32_t state
    cdef look_t look
    cdef const uint8_t* above = contexts
    cdef uint8_t* row = rows
    if n_bytes < STATE:
        return DAMAGED
    state = stream[0] | <uint32_t> stream[1] << 8 | <uint32_t> stream[2] << 16
    for step in range(n_steps):
        for lane in range(n_lanes):
            look = looks[(<Py_ssize_t> above[lane] << BITS) + (state & (WHOLE - 1))]
            row[lane] = look >> 21
            state = ((look >> 10) & 2047) * (state >> BITS) + (look & 1023)
            while state < LOWEST:
                if at >= n_bytes:
                    return DAMAGED
                state = state << 8 | stream[at]
                at += 1
        above = row
        row += n_lanes
    return 0 if state == LOWEST and at == n_bytes else DAMAGED


cdef bint are_below(const uint8_t* symbols, Py_ssize_t n, Py_ssize_t n_symbols) noexcept nogil:
    cdef Py_ssize_t k
    cdef uint8_t largest = 0
    for k in range(n):
        largest = symbols[k] if symbols[k] > largest else largest
    return largest < n_symbols


cdef Py_ssize_t longest(Py_ssize_t n_symbols) noexcept nogil:
    """Bytes that no stream of so many symbols exceeds: BITS each, and what the state holds."""
    return STATE + 2 + (n_symbols * BITS + 7) // 8


# ---- wrappers

cdef class CoreCoder:
    """How often each symbol follows each other one, as shares of 1024: what coder and decoder agree on."""

    cdef readonly Py_ssize_t n_symbols
    cdef uint16_t* frequencies   # (context, symbol), at least 1 each: every symbol can be coded everywhere

    def __cinit__(self, counts):
        """`counts` (n, n): how often symbol follows context, whole or not, in any scale."""
        cdef const double[:, ::1] given = np.array(counts, dtype=np.float64, order="C")
        cdef Py_ssize_t context, symbol, largest, left, n = given.shape[0]
        cdef double total, share
        if n < 1 or n > MOST_SYMBOLS or given.shape[1] != n:
            raise ValueError(f"counts of shape ({n}, {given.shape[1]}) given; expected (n, n), n up to {MOST_SYMBOLS}")
        self.frequencies = <uint16_t*> PyMem_RawMalloc(n * n * sizeof(uint16_t))
        if self.frequencies == NULL:
            raise MemoryError
        self.n_symbols = n
        for context in range(n):
            total, largest, left = 0, 0, WHOLE - n
            for symbol in range(n):
                if not 0 <= given[context, symbol] < 1e300:
                    raise ValueError(f"count {given[context, symbol]} given; expected finite and at least 0")
                total += given[context, symbol]
                largest = symbol if given[context, symbol] > given[context, largest] else largest
            for symbol in range(n):
                share = given[context, symbol] / total if total > 0 else 1.0 / n
                self.frequencies[context * n + symbol] = 1 + <uint16_t> (share * (WHOLE - n))
                left -= <Py_ssize_t> (share * (WHOLE - n))
            if left < 0 or left >= WHOLE:  # rounded sums of shares that are not sums of counts
                raise ValueError("counts that have no shares given")
            self.frequencies[context * n + largest] += <uint16_t> left

    @staticmethod
    def from_table(table not None):
        """The coder whose `table` this is, exactly."""
        cdef const uint16_t[:, ::1] given = np.array(table, dtype=np.uint16, order="C")
        cdef Py_ssize_t k, n = given.shape[0]
        cdef CoreCoder made = CoreCoder(np.ones(np.shape(table)))
        if not (np.sum(given, axis=1) == WHOLE).all() or np.min(given) < 1:  # of the copy, which is what is kept
            raise ValueError(f"rows of a table given; expected sums of {WHOLE} and frequencies of at least 1")
        for k in range(n * n):
            made.frequencies[k] = given[k // n, k % n]
        return made

    def __reduce__(self):
        return CoreCoder.from_table, (self.table,)

    def __copy__(self):
        return self  # it never changes

    def __deepcopy__(self, memo):
        return self

    def __dealloc__(self):
        PyMem_RawFree(self.frequencies)

    def __sizeof__(self):
        return type(self).__basicsize__ + self.n_symbols * self.n_symbols * sizeof(uint16_t)

    @property
    def table(self):
        """(n_symbols, n_symbols) uint16: the frequency of each symbol after each other one; rows sum to 1024."""
        cdef Py_ssize_t k, n = self.n_symbols
        found = np.empty((n, n), np.uint16)
        cdef uint16_t[:, ::1] cells = found
        for k in range(n * n):
            cells[k // n, k % n] = self.frequencies[k]
        return found

    def encode(self, symbols not None, contexts not None):
        """The stream of (steps, lanes) uint8 symbols, after the (lanes,) symbols of the row before, as bytes."""
        if np.size(symbols) and not 0 <= np.min(symbols) <= np.max(symbols) < MOST_SYMBOLS:
            raise ValueError(f"symbols from {np.min(symbols)} to {np.max(symbols)} given; expected below {self.n_symbols}")
        cdef const uint8_t[:, ::1] rows = np.ascontiguousarray(symbols, dtype=np.uint8)
        cdef const uint8_t[::1] before = np.ascontiguousarray(contexts, dtype=np.uint8)
        cdef Py_ssize_t n_bytes, room = longest(rows.shape[0] * rows.shape[1]), n = rows.shape[0] * rows.shape[1]
        cdef Coded* coded
        cdef uint8_t* out
        if before.shape[0] != rows.shape[1]:
            raise ValueError(f"{before.shape[0]} contexts given for {rows.shape[1]} lanes")
        if n == 0:
            return b""
        if not (are_below(&rows[0, 0], n, self.n_symbols) and are_below(&before[0], rows.shape[1], self.n_symbols)):
            raise ValueError(f"symbols beyond {self.n_symbols - 1} given")
        coded = <Coded*> PyMem_RawMalloc(self.n_symbols * self.n_symbols * sizeof(Coded))
        out = <uint8_t*> PyMem_RawMalloc(room)
        try:
            if coded == NULL or out == NULL:
                raise MemoryError
            with nogil:
                make_coded(self.frequencies, self.n_symbols, coded)
                n_bytes = encode(coded, self.n_symbols, &rows[0, 0], &before[0], rows.shape[0], rows.shape[1],
                                 rows.shape[1], out, room)
            if n_bytes < 0:
                raise AssertionError("a stream longer than any can be")
            return out[:n_bytes]
        finally:
            PyMem_RawFree(coded)
            PyMem_RawFree(out)

    def decode(self, stream not None, contexts not None, Py_ssize_t n_steps):
        """The (n_steps, lanes) uint8 symbols of a stream. ValueError where it is not one of theirs."""
        cdef const uint8_t[::1] data = np.frombuffer(stream, np.uint8)
        cdef const uint8_t[::1] before = np.ascontiguousarray(contexts, dtype=np.uint8)
        cdef Py_ssize_t status, n_lanes = before.shape[0]
        cdef look_t* looks
        cdef uint8_t[:, ::1] rows
        if n_steps < 0:
            raise ValueError(f"{n_steps} steps given")
        symbols = np.empty((n_steps, n_lanes), np.uint8)
        rows = symbols
        if n_steps * n_lanes == 0:
            return symbols
        if not are_below(&before[0], n_lanes, self.n_symbols):
            raise ValueError(f"contexts beyond {self.n_symbols - 1} given")
        looks = <look_t*> PyMem_RawMalloc(self.n_symbols * WHOLE * sizeof(look_t))
        if looks == NULL:
            raise MemoryError
        with nogil:
            make_looks(self.frequencies, self.n_symbols, looks)
            status = decode(looks, &data[0] if data.shape[0] else NULL, data.shape[0], &before[0], n_steps, n_lanes,
                            &rows[0, 0])
        PyMem_RawFree(looks)
        if status < 0:
            raise ValueError("a damaged stream: it does not end as it must")
        return symbols


def count_pairs(symbols not None, contexts not None, counts not None):
    """Add how often each symbol of (steps, lanes) uint8 follows the one in the row above to (n, n) float64 counts."""
    cdef const uint8_t[:, ::1] rows = np.ascontiguousarray(symbols, dtype=np.uint8)
    cdef const uint8_t[::1] before = np.ascontiguousarray(contexts, dtype=np.uint8)
    cdef double[:, ::1] sums = counts
    cdef Py_ssize_t step, lane, n = sums.shape[0], n_lanes = rows.shape[1]
    if before.shape[0] != n_lanes or sums.shape[1] != n:
        raise ValueError(f"{before.shape[0]} contexts and ({n}, {sums.shape[1]}) counts given for {n_lanes} lanes")
    if rows.shape[0] * n_lanes == 0:
        return
    if not (are_below(&rows[0, 0], rows.shape[0] * n_lanes, n) and are_below(&before[0], n_lanes, n)):
        raise ValueError(f"symbols beyond {n - 1} given")
    for lane in range(n_lanes):
        sums[before[lane], rows[0, lane]] += 1
    for step in range(1, rows.shape[0]):
        for lane in range(n_lanes):
            sums[rows[step - 1, lane], rows[step, lane]] += 1


cdef struct Block:           # `steps` rows of all lanes
    uint8_t* streams         # of each group, one behind another
    uint16_t* lengths        # of each stream
    uint32_t* starts         # of every STRIDE-th stream
    Py_ssize_t n_bytes       # of all three


cdef enum:
    STRIDE = 16              # streams between two that `starts` tells of


cdef class CoreLanes:
    """Sealed blocks of many lanes, oldest first, all by one coder. A new one goes behind, the oldest goes first.

    Time runs backwards in them: a symbol's context is the one after it, so that a reader begins with the newest row,
    which somebody holds as it is, and the oldest block can go without a word. One writer.
    """

    cdef readonly Py_ssize_t n_lanes, group, steps, n_blocks
    cdef readonly CoreCoder coder
    cdef Block* blocks
    cdef Py_ssize_t room     # blocks there is place for
    cdef int busy            # calls without the GIL: blocks must not move

    def __cinit__(self, CoreCoder coder not None, Py_ssize_t n_lanes, Py_ssize_t group, Py_ssize_t steps):
        """Blocks of `steps` rows, with `group` lanes to a stream."""
        if not (0 < n_lanes and 0 < group <= 4096 and 0 < steps <= 4096 and longest(steps * group) <= 0xffff):
            raise ValueError(f"blocks of {steps} steps and {n_lanes} lanes in groups of {group} given")
        self.coder, self.n_lanes, self.group, self.steps = coder, n_lanes, group, steps

    def __dealloc__(self):
        cdef Py_ssize_t k
        for k in range(self.n_blocks):
            PyMem_RawFree(self.blocks[k].starts)  # the head of all three
        PyMem_RawFree(self.blocks)

    def __sizeof__(self):
        cdef Py_ssize_t k, total = type(self).__basicsize__ + self.room * sizeof(Block)
        for k in range(self.n_blocks):
            total += self.blocks[k].n_bytes
        return total

    cdef int check_free(self) except -1:
        if self.busy:
            raise RuntimeError("two threads in one history")
        return 0

    def seal(self, rows not None, after not None):
        """Append a block of (steps, n_lanes) uint8 rows, before the (n_lanes,) row `after`. O(symbols)."""
        cdef const uint8_t[:, ::1] symbols = np.array(rows, dtype=np.uint8, order="C")  # copies: nobody writes there
        cdef const uint8_t[::1] contexts = np.array(after, dtype=np.uint8)
        cdef Py_ssize_t k, n = self.n_lanes, n_symbols = self.coder.n_symbols
        cdef Py_ssize_t n_groups = (n + self.group - 1) // self.group, most = longest(self.steps * self.group)
        cdef Py_ssize_t n_starts = (n_groups + STRIDE - 1) // STRIDE, at = 0
        cdef Coded* coded = NULL
        cdef uint8_t* out = NULL
        cdef uint16_t* lengths = NULL
        cdef Block* grown
        cdef Block block
        if symbols.shape[0] != self.steps or symbols.shape[1] != n or contexts.shape[0] != n:
            raise ValueError(f"({symbols.shape[0]}, {symbols.shape[1]}) symbols before {contexts.shape[0]} given; "
                             f"expected ({self.steps}, {n}) before {n}")
        if not (are_below(&symbols[0, 0], self.steps * n, n_symbols) and are_below(&contexts[0], n, n_symbols)):
            raise ValueError(f"symbols beyond {n_symbols - 1} given")
        self.check_free()
        if self.n_blocks == self.room:
            grown = <Block*> PyMem_RawRealloc(self.blocks, (self.room + 1 + self.room // 8) * sizeof(Block))
            if grown == NULL:
                raise MemoryError
            self.blocks, self.room = grown, self.room + 1 + self.room // 8
        try:
            coded = <Coded*> PyMem_RawMalloc(n_symbols * n_symbols * sizeof(Coded))
            out = <uint8_t*> PyMem_RawMalloc(n_groups * most)
            lengths = <uint16_t*> PyMem_RawMalloc(n_groups * sizeof(uint16_t))
            if coded == NULL or out == NULL or lengths == NULL:
                raise MemoryError
            self.busy += 1
            with nogil:
                make_coded(self.coder.frequencies, n_symbols, coded)
                at = encode_groups(coded, n_symbols, &symbols[0, 0], &contexts[0], self.steps, n, self.group, out,
                                   lengths)
            self.busy -= 1
            if at < 0:
                raise AssertionError("a stream longer than any can be")
            block.n_bytes = n_starts * sizeof(uint32_t) + n_groups * sizeof(uint16_t) + at
            block.starts = <uint32_t*> PyMem_RawMalloc(block.n_bytes)
            if block.starts == NULL:
                raise MemoryError
            block.lengths = <uint16_t*> (block.starts + n_starts)
            block.streams = <uint8_t*> (block.lengths + n_groups)
            memcpy(block.lengths, lengths, n_groups * sizeof(uint16_t))
            memcpy(block.streams, out, at)
            at = 0
            for k in range(n_groups):
                if k % STRIDE == 0:
                    block.starts[k // STRIDE] = <uint32_t> at
                at += lengths[k]
            self.blocks[self.n_blocks] = block
            self.n_blocks += 1
        finally:
            PyMem_RawFree(coded)
            PyMem_RawFree(out)
            PyMem_RawFree(lengths)

    def drop(self):
        """Forget the oldest block. O(blocks)."""
        self.check_free()
        if self.n_blocks == 0:
            raise IndexError("no blocks are left")
        PyMem_RawFree(self.blocks[0].starts)
        self.n_blocks -= 1
        memmove(self.blocks, self.blocks + 1, self.n_blocks * sizeof(Block))

    def span(self, Py_ssize_t first, Py_ssize_t last):
        """The first and the end of the lanes in the groups that lanes [first, last) are in."""
        return first // self.group * self.group, min(self.n_lanes, (last + self.group - 1) // self.group * self.group)

    def read(self, Py_ssize_t first, Py_ssize_t last, after not None):
        """The (n_blocks x steps, last - first) uint8 rows of these lanes, oldest first.

        `after` is of the row behind the newest block what lies in the `span` of these lanes. O(symbols in that span).
        """
        cdef const uint8_t[::1] contexts = np.ascontiguousarray(after, dtype=np.uint8)
        cdef Py_ssize_t status, n_rows = self.n_blocks * self.steps
        cdef look_t* looks
        cdef uint8_t* row
        cdef uint8_t[:, ::1] out
        if not 0 <= first <= last <= self.n_lanes:
            raise IndexError(f"lanes {first} to {last} given; there are {self.n_lanes}")
        found = np.empty((n_rows, last - first), np.uint8)
        if found.size == 0:
            return found
        begin, end = self.span(first, last)
        if contexts.shape[0] != end - begin or not are_below(&contexts[0], contexts.shape[0], self.coder.n_symbols):
            raise ValueError(f"{contexts.shape[0]} symbols given after lanes {begin} to {end}, or some beyond "
                             f"{self.coder.n_symbols - 1}")
        out = found
        looks = <look_t*> PyMem_RawMalloc(self.coder.n_symbols * WHOLE * sizeof(look_t))
        row = <uint8_t*> PyMem_RawMalloc(self.group * (self.steps + 1))
        if looks == NULL or row == NULL:
            PyMem_RawFree(looks)
            PyMem_RawFree(row)
            raise MemoryError
        self.busy += 1
        with nogil:
            make_looks(self.coder.frequencies, self.coder.n_symbols, looks)
            status = decode_lanes(self, looks, &contexts[0], first, last, row, &out[0, 0])
        self.busy -= 1
        PyMem_RawFree(looks)
        PyMem_RawFree(row)
        if status < 0:
            raise ValueError("a damaged stream: it does not end as it must")
        return found


cdef Py_ssize_t encode_groups(const Coded* coded, Py_ssize_t n_symbols, const uint8_t* rows, const uint8_t* after,
                              Py_ssize_t n_steps, Py_ssize_t n_lanes, Py_ssize_t group, uint8_t* out,
                              uint16_t* lengths) noexcept nogil:
    """Write the stream of every group of lanes, last row first; bytes of all, or NO_ROOM."""
    cdef Py_ssize_t k, n_bytes, first = 0, at = 0
    cdef const uint8_t* newest = rows + (n_steps - 1) * n_lanes
    for k in range((n_lanes + group - 1) // group):
        n_bytes = encode(coded, n_symbols, newest + first, after + first, n_steps, min(group, n_lanes - first),
                         -n_lanes, out + at, longest(n_steps * group))
        if n_bytes < 0:
            return n_bytes
        lengths[k] = <uint16_t> n_bytes
        at += n_bytes
        first += group
    return at


cdef Py_ssize_t decode_lanes(CoreLanes self, const look_t* looks, const uint8_t* after, Py_ssize_t first,
                             Py_ssize_t last, uint8_t* row, uint8_t* out) noexcept nogil:
    """Read lanes [first, last) of all blocks into `out`, oldest row first; `row` has room for one block of a group."""
    cdef Py_ssize_t b, k, step, lane, width, begin, end, n = last - first
    cdef const Block* block
    cdef uint8_t* target
    for k in range(first // self.group, (last - 1) // self.group + 1):
        lane = k * self.group
        width = min(self.group, self.n_lanes - lane)
        begin, end = max(first, lane), min(last, lane + width)
        memcpy(row, after + lane - first // self.group * self.group, width)
        for b in range(self.n_blocks - 1, -1, -1):
            block = &self.blocks[b]
            if decode(looks, stream_of(block, k), block.lengths[k], row, self.steps, width, row + width) < 0:
                return DAMAGED
            for step in range(self.steps):  # the newest row came first
                target = out + (b * self.steps + self.steps - 1 - step) * n
                memcpy(target + begin - first, row + (step + 1) * width + begin - lane, end - begin)
            memcpy(row, row + self.steps * width, width)
    return 0


cdef const uint8_t* stream_of(const Block* block, Py_ssize_t k) noexcept nogil:
    cdef Py_ssize_t j, at = block.starts[k // STRIDE]
    for j in range(k - k % STRIDE, k):
        at += block.lengths[j]
    return block.streams + at
