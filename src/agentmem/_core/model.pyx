"""The tables of one model as pointers, checked once, and the kernels that check and build them.

A transition table has a row per state s and a column per next state s'. An observation table is kept transposed, a row
per observation and a column per state s', so that one observation's likelihood is contiguous; its rows are scaled by a
power of two to a maximum in [0.5, 1), which is exact and keeps float32 products from underflowing.
"""
cimport numpy as cnp
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree
from libc.math cimport INFINITY
from libc.stdint cimport INT32_MAX

import numpy as np

from agentmem._core.types cimport value_t

cnp.import_array()


# ---- leaves

cdef Py_ssize_t first_bad_row(const int64_t* offsets, const int32_t* columns, Py_ssize_t n_rows,
                              Py_ssize_t n_columns, Py_ssize_t n_entries) noexcept nogil:
    """The first row whose offsets or columns are out of order or range; n_rows where all are well."""
    cdef Py_ssize_t row, k
    cdef int64_t previous
    if offsets[0] != 0 or offsets[n_rows] != n_entries:
        return 0
    for row in range(n_rows):
        if offsets[row] > offsets[row + 1] or offsets[row + 1] > n_entries:
            return row
        previous = -1
        for k in range(offsets[row], offsets[row + 1]):
            if columns[k] <= previous or columns[k] >= n_columns:
                return row
            previous = columns[k]
    return n_rows


cdef Py_ssize_t first_bad_value(const value_t* values, Py_ssize_t n) noexcept nogil:
    """The first negative or non-finite value; n where all are well."""
    cdef Py_ssize_t k
    for k in range(n):
        if not (values[k] >= 0 and values[k] < INFINITY):
            return k
    return n


# ---- wrappers

cdef int fill_table(Table* table, arrays, Py_ssize_t n_rows, Py_ssize_t n_columns, int type_num, bint scaled,
                    str name) except -1:
    """Point `table` at arrays (offsets or None, columns or None, values, exponents or None) after checking all of them."""
    cdef Py_ssize_t bad, row
    offsets, columns, values, exponents = arrays
    cdef cnp.ndarray entries = plain(values, type_num, f"{name} values")
    table.n_rows, table.n_columns, table.n_entries = n_rows, n_columns, cnp.PyArray_SIZE(entries)
    table.values = cnp.PyArray_DATA(entries)
    table.offsets, table.columns, table.exponents = NULL, NULL, NULL
    if offsets is None:
        if table.n_entries != n_rows * n_columns:
            raise ValueError(f"{name}: {table.n_entries} values given; expected {n_rows} x {n_columns}")
    else:
        plain(offsets, cnp.NPY_INT64, f"{name} offsets")
        plain(columns, cnp.NPY_INT32, f"{name} columns")
        if len(offsets) != n_rows + 1 or len(columns) != table.n_entries:
            raise ValueError(f"{name}: {len(offsets)} offsets and {len(columns)} columns given for {n_rows} rows "
                             f"and {table.n_entries} values")
        table.offsets = <const int64_t*> cnp.PyArray_DATA(<cnp.ndarray> offsets)
        table.columns = <const int32_t*> cnp.PyArray_DATA(<cnp.ndarray> columns)
        with nogil:
            bad = first_bad_row(table.offsets, table.columns, n_rows, n_columns, table.n_entries)
        if bad < n_rows:
            raise ValueError(f"{name}: row {bad} has columns out of order or not below {n_columns}")
    with nogil:
        if type_num == cnp.NPY_DOUBLE:
            bad = first_bad_value(<const double*> table.values, table.n_entries)
        else:
            bad = first_bad_value(<const float*> table.values, table.n_entries)
    if bad < table.n_entries:
        raise ValueError(f"{name}: entry {bad} is {values[bad]}; expected finite and not negative")
    if scaled:
        plain(exponents, cnp.NPY_INT32, f"{name} exponents")
        if len(exponents) != n_rows:
            raise ValueError(f"{name}: {len(exponents)} exponents given for {n_rows} rows")
        table.exponents = <const int32_t*> cnp.PyArray_DATA(<cnp.ndarray> exponents)
        for row in range(n_rows):
            if not -1100 < table.exponents[row] < 1100:  # those of all doubles
                raise ValueError(f"{name}: row {row} is scaled by 2**{table.exponents[row]}")
    return 0


cdef cnp.ndarray plain(array, int type_num, str name):
    """`array` itself if it is a contiguous 1-D array of this type."""
    if not isinstance(array, np.ndarray) or array.ndim != 1 or not array.flags.c_contiguous or not array.flags.aligned:
        raise ValueError(f"{name}: {type(array).__name__} given; expected a contiguous 1-D ndarray")
    if cnp.PyArray_TYPE(array) != type_num or not array.dtype.isnative:
        raise TypeError(f"{name}: dtype {array.dtype} given; expected {cnp.PyArray_DescrFromType(type_num)}")
    return array


cdef class CoreModel:
    """What `Model` is underneath: immutable tables behind pointers. Filled once; any number of readers."""

    def __sizeof__(self):
        n_tables = 0 if self.owners is None else len(self.owners)
        return type(self).__basicsize__ + n_tables * sizeof(Table) + self.n_actions * 2 * sizeof(int32_t)

    def __dealloc__(self):
        PyMem_RawFree(self.tables)
        PyMem_RawFree(self.transition_of)
        PyMem_RawFree(self.observation_of)

    def _set(self, Py_ssize_t n_states, Py_ssize_t n_observations, dtype, transitions, observations,
             transition_of, observation_of):
        """Take distinct tables, each (offsets, columns, values, exponents), and which of them each action uses."""
        cdef int type_num = cnp.NPY_DOUBLE if dtype == np.float64 else cnp.NPY_FLOAT if dtype == np.float32 else -1
        cdef Py_ssize_t n_actions = len(transition_of), n_transitions = len(transitions), k, place
        cdef Table* tables
        if self.tables != NULL:
            raise ValueError("model already filled: models are immutable")
        if type_num < 0:
            raise TypeError(f"dtype {dtype} given; a model is float32 or float64")
        if n_states < 1 or n_states > INT32_MAX:
            raise ValueError(f"{n_states} states given; expected 1 to {INT32_MAX}")
        if n_observations < 1 or n_observations > INT32_MAX:
            raise ValueError(f"{n_observations} observations given; expected 1 to {INT32_MAX}")
        if n_actions < 1 or len(observation_of) != n_actions:
            raise ValueError(f"tables for {n_actions} actions and observations for {len(observation_of)} given")
        self.tables = <Table*> PyMem_RawCalloc(max(1, n_transitions + len(observations)), sizeof(Table))
        self.transition_of = <int32_t*> PyMem_RawCalloc(n_actions, sizeof(int32_t))
        self.observation_of = <int32_t*> PyMem_RawCalloc(n_actions, sizeof(int32_t))
        if self.tables == NULL or self.transition_of == NULL or self.observation_of == NULL:
            raise MemoryError
        for k in range(n_transitions):
            fill_table(&self.tables[k], transitions[k], n_states, n_states, type_num, False, f"transition table {k}")
        for k in range(len(observations)):
            fill_table(&self.tables[n_transitions + k], observations[k], n_observations, n_states, type_num,
                       True, f"observation table {k}")
        for k in range(n_actions):
            place = transition_of[k]
            if place < 0 or place >= n_transitions:
                raise ValueError(f"action {k}: transition table {place} given; there are {n_transitions}")
            self.transition_of[k] = <int32_t> place
            place = observation_of[k]
            if place < 0 or place >= len(observations):
                raise ValueError(f"action {k}: observation table {place} given; there are {len(observations)}")
            self.observation_of[k] = <int32_t> (n_transitions + place)
        self.owners = (*transitions, *observations)
        self.type_num = type_num
        self.n_states = n_states
        self.n_observations = n_observations
        self.n_actions = n_actions  # last: a model without actions lets no kernel in

    @property
    def dtype(self):
        """float32 or float64: of the tables, and so of the beliefs that go with them."""
        return cnp.PyArray_DescrFromType(self.type_num)

    def _likelihood_pairs(self, Py_ssize_t action, Py_ssize_t observation):
        """The states that may give this observation, and P(observation | s', action) of each (float64)."""
        check_action(self, action)
        check_observation(self, observation)
        cdef Table* table = &self.tables[self.observation_of[action]]
        offsets, columns, values, exponents = self.owners[self.observation_of[action]]
        if offsets is None:
            row = values[observation * self.n_states:(observation + 1) * self.n_states]
            states = np.flatnonzero(row)
            row = row[states]
        else:
            entries = slice(table.offsets[observation], table.offsets[observation + 1])
            states, row = columns[entries].astype(np.intp), values[entries]
        return states, np.ldexp(row.astype(np.float64), exponents[observation])

    def likelihood(self, action, observation):
        """P(observation | s', action) for all states, as a new (n_states,) float64 array. O(n_states)."""
        states, values = self._likelihood_pairs(action, observation)
        row = np.zeros(self.n_states)
        row[states] = values
        return row


cdef int check_action(CoreModel model, Py_ssize_t action) except -1:
    if action < 0 or action >= model.n_actions:
        raise ValueError(f"action {action} given; expected 0 to {model.n_actions - 1}")
    return 0


cdef int check_observation(CoreModel model, Py_ssize_t observation) except -1:
    if observation < 0 or observation >= model.n_observations:
        raise ValueError(f"observation {observation} given; expected 0 to {model.n_observations - 1}")
    return 0
