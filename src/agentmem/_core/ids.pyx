"""A set of addresses of objects in 11 to 22 bytes each, where Python's takes 60 to 85: who looks at a million objects
would be seen in what it looks at.

Open addressing with linear probing; an address is its own key, and 0 is a free place. Needs the GIL.
"""
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.stdint cimport uint64_t

cdef size_t FIRST = 64  # places; a power of two


cdef class Ids:
    """Ids of objects; whoever adds one keeps the object alive, or another one may get its id.

    Examples
    --------
    >>> seen, item = Ids(), object()
    >>> seen.add(id(item))
    >>> id(item) in seen, len(seen)
    (True, 1)
    """
    cdef uint64_t* places
    cdef size_t n_places, n

    def __cinit__(self):
        self.places = <uint64_t*> PyMem_RawCalloc(FIRST, sizeof(uint64_t))
        if self.places == NULL:
            raise MemoryError
        self.n_places = FIRST

    def __dealloc__(self):
        PyMem_RawFree(self.places)

    def __len__(self):
        return self.n

    def __contains__(self, uint64_t address):
        return address != 0 and self.places[self.place_of(address)] == address

    def __sizeof__(self):
        return sizeof(Ids) + self.n_places * sizeof(uint64_t)

    def add(self, uint64_t address):
        """Add an id; ValueError for 0, which is nobody's. MemoryError leaves the set as it was."""
        cdef size_t place
        if address == 0:
            raise ValueError("0 given; expected the id of an object")
        if 4 * (self.n + 1) > 3 * self.n_places:
            self.grow()
        place = self.place_of(address)
        self.n += self.places[place] == 0
        self.places[place] = address

    cdef size_t place_of(self, uint64_t address) noexcept:
        """Where an address is, or else where it belongs. There is a free place always."""
        # The high bits of a product with 2**64 over the golden ratio: the low ones of addresses are alike.
        cdef size_t last = self.n_places - 1
        cdef size_t place = <size_t> ((address * <uint64_t> 0x9E3779B97F4A7C15) >> 20) & last
        while self.places[place] != 0 and self.places[place] != address:
            place = (place + 1) & last
        return place

    cdef int grow(self) except -1:
        cdef uint64_t* before = self.places
        cdef size_t n_before = self.n_places, i
        cdef uint64_t* places = <uint64_t*> PyMem_RawCalloc(2 * n_before, sizeof(uint64_t))
        if places == NULL:
            raise MemoryError
        self.places, self.n_places = places, 2 * n_before
        for i in range(n_before):
            if before[i] != 0:
                places[self.place_of(before[i])] = before[i]
        PyMem_RawFree(before)
        return 0
