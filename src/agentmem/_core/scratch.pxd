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


cdef Workspace* borrow(Py_ssize_t n_states) noexcept
cdef void give_back(Workspace* workspace) noexcept
cdef bint make_room(Workspace* workspace, Py_ssize_t n_found) noexcept nogil
cdef Py_ssize_t list_touched(Workspace* w, Py_ssize_t n_states, int32_t* found) noexcept nogil
cdef void clear(Workspace* w, Py_ssize_t n_states) noexcept nogil
cdef void clear_touched(Workspace* w, Py_ssize_t n_states) noexcept nogil
