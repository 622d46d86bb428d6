from libc.stdint cimport int32_t, int64_t


cdef struct Table:  # one stochastic matrix, rows in CSR (offsets not NULL) or dense
    Py_ssize_t n_rows
    Py_ssize_t n_columns
    Py_ssize_t n_entries
    const int64_t* offsets
    const int32_t* columns
    const void* values
    const int32_t* exponents  # row r stands for its values times 2**exponents[r]; NULL: as they are


cdef class CoreModel:
    cdef object __weakref__
    cdef readonly Py_ssize_t n_states
    cdef readonly Py_ssize_t n_actions
    cdef readonly Py_ssize_t n_observations
    cdef int type_num
    cdef Table* tables                  # the distinct ones
    cdef int32_t* transition_of         # action -> its place in tables
    cdef int32_t* observation_of        # action -> its place in tables (rows are observations, columns states)
    cdef tuple owners                   # the arrays that the tables point into


cdef int check_action(CoreModel model, Py_ssize_t action) except -1
cdef int check_observation(CoreModel model, Py_ssize_t observation) except -1
cdef int fill_table(Table* table, arrays, Py_ssize_t n_rows, Py_ssize_t n_columns, int type_num, bint scaled,
                    str name) except -1
