from libc.stdint cimport int32_t, int64_t, uint64_t

from agentmem._core.model cimport CoreModel, Table
from agentmem._core.scratch cimport Workspace
from agentmem._core.types cimport value_t


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


cdef struct Plan:          # what is kept of a posterior
    Py_ssize_t kept        # entries
    int storage            # the smallest form of so many
    double threshold       # entries below go
    double kept_mass
    double dropped         # as a share of one


cdef void read_block(const char* block, int storage, Py_ssize_t n_stored, Py_ssize_t n_states, int type_num,
                     Source* source) noexcept nogil
cdef int advance(const Source* source, CoreModel model, Py_ssize_t action, Py_ssize_t observation, double relative,
                 Py_ssize_t most, Workspace* w, Posterior* posterior, Plan* plan) noexcept nogil
cdef double entries_to_meet(Py_ssize_t n_stored, CoreModel model, Py_ssize_t action) noexcept nogil
cdef double evidence_of(const Posterior* posterior) noexcept nogil
cdef int make_plan(const Posterior* posterior, double relative, Py_ssize_t most, int storage, Py_ssize_t n_cells,
                   int type_num, Workspace* w, Plan* plan) noexcept nogil
cdef void abandon(const Posterior* posterior, Py_ssize_t n_cells, Workspace* w) noexcept nogil
cdef void write_block(const Posterior* posterior, const Plan* plan, Py_ssize_t n_cells, int type_num,
                      char* block) noexcept nogil
cdef void list_mass(const value_t* mass, const Source* source, Workspace* w, Posterior* out) noexcept nogil
cdef void weigh(const value_t* weights, bint per_entry, Posterior* out) noexcept nogil
cdef int rescale(Source* source, int type_num, int is_measure) noexcept nogil
cdef void list_entries(const value_t* mass, const Source* source, int32_t* states, value_t* values) noexcept nogil
cdef double sum_lanes(const double* lanes) noexcept nogil
cdef void foresee(const Source* source, CoreModel model, Py_ssize_t action, Py_ssize_t observation,
                  bint rows) noexcept nogil
