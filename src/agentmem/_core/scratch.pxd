from libc.stdint cimport int32_t, uint64_t


cdef struct Workspace:
    Workspace* next
    Py_ssize_t n_states    # room in sums, touched and summary; all zero between two uses
    double* sums           # one accumulator per state
    uint64_t* touched      # one bit per state
    uint64_t* summary      # one bit per word of touched
    Py_ssize_t n_found     # room in found and mass
    int32_t* found         # states of a result, ascending
    double* mass           # their probabilities, not yet normalised


# A push marks its targets while it meets fewer entries than this share of them; above, a scan is cheaper.
cdef inline bint marking_pays(double entries, Py_ssize_t n_targets) noexcept nogil:
    return entries < 0.5 * n_targets


cdef inline void mark(uint64_t* touched, uint64_t* summary, int32_t target) noexcept nogil:
    """Set the bit of a target, and that of its word if it is the first there."""
    cdef uint64_t word = touched[target >> 6]
    if word == 0:
        summary[target >> 12] |= (<uint64_t> 1) << ((target >> 6) & 63)
    touched[target >> 6] = word | (<uint64_t> 1) << (target & 63)


cdef Workspace* borrow(Py_ssize_t n_states) noexcept
cdef void give_back(Workspace* workspace) noexcept
cdef bint make_room(Workspace* workspace, Py_ssize_t n_found) noexcept nogil
cdef Py_ssize_t list_touched(Workspace* w, Py_ssize_t n_states, int32_t* found) noexcept nogil
cdef void clear(Workspace* w, Py_ssize_t n_states) noexcept nogil
