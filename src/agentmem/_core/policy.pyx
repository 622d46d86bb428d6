"""What policies are worth to an agent that holds a sparse belief: their (negative) expected free energy.

Policies are walked as a tree in depth-first order, a node per action, so that a shared beginning is predicted once. Each
depth has one level, the predicted belief as a list of states in ascending order:

    belief --T[a]--> level 1 --T[a']--> level 2        worth of a level q, added along each way down:
                        |                  |             sum_s q(s) value(s)
                        worth              worth       + sum_{q(s) > e**-16} q(s) sum_o A(o | s) ln(A(o | s) + e**-16)
                                                       - sum_o p(o) ln(p(o) + 1e-16), p = A q over the same s

The last two lines are the information gain on states (Friston et al. 2017, "Active inference: a process theory"), once
per modality, with the constants of pymdp, so that the numbers are the same.
"""
cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawRealloc
from libc.math cimport INFINITY, exp, log
from libc.stdint cimport int32_t, int64_t, uint64_t

import numpy as np

from agentmem._core.array cimport find
from agentmem._core.model cimport CoreModel, Table, fill_table
from agentmem._core.scratch cimport Workspace, borrow, clear, give_back, list_touched, mark, marking_pays
from agentmem._core.types cimport NO_MEMORY, value_t

cnp.import_array()

# Entries met after which a walk looks whether somebody wants to interrupt it: about 0.1 s.
cdef double PAUSE_AFTER = 1e8
cdef double NEGLIGIBLE = exp(-16.0)  # pymdp's: states below it gain no information, and it is added inside that log
cdef double EPSILON = 1e-16          # pymdp's: added inside all other logs

cdef enum:
    PAUSED = -10  # of a walk that is not at its end


cdef struct Level:  # a distribution as a list, ascending
    double worth  # of the way that leads to it
    Py_ssize_t n
    Py_ssize_t room
    int32_t* places
    double* mass


cdef struct Preference:  # what a walk values, any of them NULL
    const double* value      # a row of n_states per depth
    Py_ssize_t stride        # from row to row; 0: the same one at every depth
    const double* extra      # n_states, at every depth
    const double* ambiguity  # n_states; NULL: information gain does not count


# ---- leaves

cdef int make_room(Level* level, Py_ssize_t n) noexcept nogil:
    cdef void* block
    if n <= level.room:
        return 0
    block = PyMem_RawRealloc(level.mass, n * sizeof(double))
    if block == NULL:
        return NO_MEMORY
    level.mass = <double*> block
    block = PyMem_RawRealloc(level.places, n * sizeof(int32_t))
    if block == NULL:
        return NO_MEMORY
    level.places = <int32_t*> block
    level.room = n
    return 0


cdef Py_ssize_t push(const Level* source, double above, const Table* table, const value_t* values, double* sums,
                     uint64_t* touched, uint64_t* summary, bint marked) noexcept nogil:
    """sums += rows of the table, each times the mass of its place if that is above the limit. Returns entries met."""
    cdef Py_ssize_t k, e, start, end, met = 0
    cdef int32_t target
    cdef double p
    for k in range(source.n):
        p = source.mass[k]
        if not p > above:
            continue
        if table.offsets == NULL:
            start = source.places[k] * table.n_columns
            for e in range(table.n_columns):
                sums[e] += p * values[start + e]
            continue
        start, end = table.offsets[source.places[k]], table.offsets[source.places[k] + 1]
        met += end - start
        for e in range(start, end):
            target = table.columns[e]
            if marked and sums[target] == 0:
                mark(touched, summary, target)
            sums[target] += p * values[e]
    return met


cdef int spread(const Level* source, double above, const Table* table, bint wide, Workspace* w,
                Level* out) noexcept nogil:
    """out = the table's rows mixed by what of `source` is above the limit; the workspace is clean afterwards."""
    cdef Py_ssize_t k, n, bound = table.n_columns
    cdef bint marked = (table.offsets != NULL
                        and marking_pays(source.n * (<double> table.n_entries / table.n_rows), table.n_columns))
    if wide:
        n = push(source, above, table, <const double*> table.values, w.sums, w.touched, w.summary, marked)
    else:
        n = push(source, above, table, <const float*> table.values, w.sums, w.touched, w.summary, marked)
    if marked:
        bound = min(n, bound)
    if make_room(out, bound) != 0:
        clear(w, table.n_columns)
        return NO_MEMORY
    out.n = 0
    if marked:
        n = list_touched(w, table.n_columns, out.places)
        for k in range(n):
            add_found(out, out.places[k], w)
    else:
        for k in range(table.n_columns):
            add_found(out, <int32_t> k, w)
    return 0


cdef inline void add_found(Level* out, int32_t place, Workspace* w) noexcept nogil:
    cdef double mass = w.sums[place]
    w.sums[place] = 0
    if mass > 0:
        out.places[out.n] = place
        out.mass[out.n] = mass
        out.n += 1


cdef double value_of(const Level* level, const Preference* preference, Py_ssize_t depth) noexcept nogil:
    """The part of a level's worth that is a sum over states."""
    cdef Py_ssize_t k
    cdef double total = 0, p
    cdef const double* value = preference.value
    cdef int32_t s
    if value != NULL:
        value += (depth - 1) * preference.stride
    for k in range(level.n):
        s, p = level.places[k], level.mass[k]
        if value != NULL:
            total += p * value[s]
        if preference.extra != NULL:
            total += p * preference.extra[s]
        if preference.ambiguity != NULL and p > NEGLIGIBLE:
            total += p * preference.ambiguity[s]
    return total


cdef double entropy_of(const Level* level) noexcept nogil:
    cdef Py_ssize_t k
    cdef double total = 0
    for k in range(level.n):
        total -= level.mass[k] * log(level.mass[k] + EPSILON)
    return total


cdef int walk(const Table* tables, const int32_t* transition_of, const Table* sensors, Py_ssize_t n_sensors, bint wide,
              const int32_t* depths, const int32_t* actions, Py_ssize_t n_nodes, const Preference* preference,
              Workspace* w, Level* levels, Level* seen, double* worth, Py_ssize_t* at) noexcept nogil:
    """The worth of the way from the root, levels[0], to each node from `at` on; nodes are in depth-first order."""
    cdef Py_ssize_t k, m, depth
    cdef double total, work = 0
    cdef const Table* T
    for k in range(at[0], n_nodes):
        if work > PAUSE_AFTER:
            at[0] = k
            return PAUSED
        depth = depths[k]
        T = &tables[transition_of[actions[k]]]
        work += T.n_columns + levels[depth - 1].n * (<double> T.n_entries / T.n_rows)
        if spread(&levels[depth - 1], 0, T, wide, w, &levels[depth]) != 0:
            return NO_MEMORY
        total = value_of(&levels[depth], preference, depth)
        if preference.ambiguity != NULL:
            for m in range(n_sensors):
                work += sensors[m].n_columns + levels[depth].n * (<double> sensors[m].n_entries / sensors[m].n_rows)
                if spread(&levels[depth], NEGLIGIBLE, &sensors[m], wide, w, seen) != 0:
                    return NO_MEMORY
                total += entropy_of(seen)
        levels[depth].worth = total + levels[depth - 1].worth
        worth[k] = levels[depth].worth
    return 0


cdef void expect(const Table* table, const value_t* values, const double* of_column, double* out) noexcept nogil:
    """out[row] += sum of the row's values times what `of_column` says; NULL: times the log of the value itself."""
    cdef Py_ssize_t row, e, start, end
    cdef double total, v
    for row in range(table.n_rows):
        start, end = row * table.n_columns, (row + 1) * table.n_columns
        if table.offsets != NULL:
            start, end = table.offsets[row], table.offsets[row + 1]
        total = 0
        for e in range(start, end):
            v = values[e]
            if of_column == NULL:
                total += v * log(v + NEGLIGIBLE)
            else:
                total += v * of_column[table.columns[e] if table.offsets != NULL else e - start]
        out[row] += total


cdef double entry(const Table* table, const value_t* values, Py_ssize_t row, int32_t column) noexcept nogil:
    """One cell of a table. O(log of the row's length)."""
    cdef Py_ssize_t start, at
    if table.offsets == NULL:
        return values[row * table.n_columns + column]
    start = table.offsets[row]
    at = find(table.columns + start, table.offsets[row + 1] - start, column)
    return values[start + at] if at >= 0 else 0


# ---- wrapper

cdef class CoreSensors:
    """P(o | s) of an agent's modalities by states, for a model's transitions. Filled once; any number of readers."""

    cdef readonly CoreModel model
    cdef readonly Py_ssize_t n_modalities
    cdef Table* tables
    cdef tuple owners               # the arrays that the tables point into
    cdef cnp.ndarray ambiguities    # (n_states,) float64: sum over modalities and o of P ln(P + e**-16)

    def __cinit__(self, CoreModel model not None, tables):
        """`tables`: (offsets or None, columns or None, values, n_observations) of each modality, a row per state."""
        cdef Py_ssize_t m
        self.owners = tuple(tuple(table) for table in tables)
        for table in self.owners:
            for array in table[:3]:
                if isinstance(array, np.ndarray):
                    array.flags.writeable = False  # from here on the pointers are trusted
        self.tables = <Table*> PyMem_RawCalloc(max(1, len(self.owners)), sizeof(Table))
        if self.tables == NULL:
            raise MemoryError
        for m, (offsets, columns, values, n_observations) in enumerate(self.owners):
            if n_observations < 1 or n_observations > 0x7fffffff:
                raise ValueError(f"modality {m}: {n_observations} observations given; expected 1 to {0x7fffffff}")
            fill_table(&self.tables[m], (offsets, columns, values, None), model.n_states, n_observations,
                       model.type_num, False, f"modality {m}")
        self.model = model
        self.n_modalities = len(self.owners)
        self.ambiguities = np.zeros(model.n_states)
        for m in range(self.n_modalities):
            self.add_expectation(m, NULL, self.ambiguities)

    def __dealloc__(self):
        PyMem_RawFree(self.tables)

    def __copy__(self):
        return self

    def __deepcopy__(self, memo):
        return self

    def __reduce__(self):
        views = [tuple(array[:] if isinstance(array, np.ndarray) else array for array in t) for t in self.owners]
        return type(self), (self.model, views)  # unlike owners, views stay read-only

    def __sizeof__(self):
        return type(self).__basicsize__ + self.n_modalities * sizeof(Table)

    cdef int add_expectation(self, Py_ssize_t modality, const double* of_column, cnp.ndarray out) except -1:
        cdef Table* table = &self.tables[modality]
        cdef double* sums = <double*> cnp.PyArray_DATA(out)
        with nogil:
            if self.model.type_num == cnp.NPY_DOUBLE:
                expect(table, <const double*> table.values, of_column, sums)
            else:
                expect(table, <const float*> table.values, of_column, sums)
        return 0

    cdef int check_modality(self, Py_ssize_t modality) except -1:
        if modality < 0 or modality >= self.n_modalities:
            raise ValueError(f"modality {modality} given; expected 0 to {self.n_modalities - 1}")
        return 0

    def expectation(self, Py_ssize_t modality, of_observation):
        """sum over o of P(o | s) times of_observation[o], (n_observations,): a new (n_states,) float64 array."""
        cdef const double[::1] values = np.ascontiguousarray(of_observation, dtype=np.float64)
        cdef cnp.ndarray out = np.zeros(self.model.n_states)
        self.check_modality(modality)
        if values.shape[0] != self.tables[modality].n_columns:
            raise ValueError(f"modality {modality}: {values.shape[0]} values given; "
                             f"expected {self.tables[modality].n_columns}")
        self.add_expectation(modality, &values[0], out)
        return out

    def likelihood(self, Py_ssize_t modality, Py_ssize_t observation, const Py_ssize_t[::1] states not None):
        """P(observation | s) of one modality at the given states: a new float64 array."""
        cdef Py_ssize_t k
        cdef double[::1] out = np.empty(states.shape[0])
        self.check_modality(modality)
        cdef Table* table = &self.tables[modality]
        if observation < 0 or observation >= table.n_columns:
            raise ValueError(f"modality {modality}: observation {observation} given; expected 0 to {table.n_columns - 1}")
        for k in range(states.shape[0]):
            if states[k] < 0 or states[k] >= table.n_rows:
                raise ValueError(f"state {states[k]} given; expected 0 to {table.n_rows - 1}")
            if self.model.type_num == cnp.NPY_DOUBLE:
                out[k] = entry(table, <const double*> table.values, states[k], <int32_t> observation)
            else:
                out[k] = entry(table, <const float*> table.values, states[k], <int32_t> observation)
        return out.base

    def worth(self, states, mass, depths, actions, *, offsets=None, const double[:, ::1] value=None,
              const double[::1] extra=None, bint information=True):
        """What the way to each node of a tree of policies is worth, from one belief or from several.

        Parameters
        ----------
        states : (n,) intp or int32, ascending
        mass : (n,) float64 or float32
            The belief from which the policies start.
        depths, actions : (n_nodes,) int32
            The tree in depth-first order: how many actions lead to each node, and the last of them.
        offsets : (n_beliefs + 1,) int64, optional
            `states` and `mass` are of several beliefs: offsets[k] to offsets[k + 1] of belief k.
        value : (1 or greatest depth, n_states) float64, optional
            What being in a state is worth; one row for all depths, or one each.
        extra : (n_states,) float64, optional
            Added to it.
        information : bool
            Whether to add the information gain on states.

        Returns
        -------
        (n_nodes,) float64; with offsets (n_beliefs, n_nodes)

        Notes
        -----
        O(entries of the tables in the rows of every level's support). Releases the GIL; can be interrupted.
        """
        # Copies: no other thread writes to them while the kernel believes them checked.
        cdef const int32_t[::1] depth_of = np.array(depths), action_of = np.array(actions)
        cdef const Py_ssize_t[::1] places = copy_of(states, (np.intp, np.int32), "states")
        cdef const double[::1] masses = copy_of(mass, (np.float64, np.float32), "mass")
        cdef const int64_t[::1] starts = (np.array([0, len(places)], np.int64) if offsets is None
                                          else copy_of(offsets, (np.int64,), "offsets"))
        cdef Py_ssize_t n_states = self.model.n_states, n_nodes = depth_of.shape[0], n_beliefs = starts.shape[0] - 1
        cdef Py_ssize_t b, k, m, n, deepest = 0, widest = n_states, at
        cdef double[:, ::1] worth
        cdef Preference preference
        cdef Workspace* w
        cdef Level* levels
        cdef int status = 0
        check_tree(depth_of, action_of, self.model.n_actions)
        check_beliefs(starts, places, masses, n_states)
        for k in range(n_nodes):
            deepest = max(deepest, <Py_ssize_t> depth_of[k])
        preference.value = preference.extra = preference.ambiguity = NULL
        preference.stride = 0
        if value is not None:
            if value.shape[1] != n_states or (value.shape[0] != 1 and value.shape[0] < deepest):
                raise ValueError(f"value of shape {value.shape[0], value.shape[1]} given; "
                                 f"expected (1 or {deepest}, {n_states})")
            if value.shape[0] > 0:
                preference.value = &value[0, 0]
            preference.stride = n_states if value.shape[0] > 1 else 0
        if extra is not None:
            if extra.shape[0] != n_states:
                raise ValueError(f"extra of shape ({extra.shape[0]},) given; expected ({n_states},)")
            preference.extra = &extra[0]
        if information:
            preference.ambiguity = <const double*> cnp.PyArray_DATA(self.ambiguities)
        out = np.empty((n_beliefs, n_nodes))
        if n_nodes == 0 or n_beliefs == 0:
            return out[0] if offsets is None else out
        worth = out
        for m in range(self.n_modalities):
            widest = max(widest, self.tables[m].n_columns)
        levels = <Level*> PyMem_RawCalloc(deepest + 2, sizeof(Level))  # the root, one each depth, the observations
        w = borrow(widest)
        try:
            if levels == NULL or w == NULL:
                raise MemoryError
            for b in range(n_beliefs):
                n = starts[b + 1] - starts[b]
                if make_room(&levels[0], max(<Py_ssize_t> 1, n)) != 0:
                    raise MemoryError
                levels[0].n, at, status = n, 0, PAUSED
                for k in range(n):
                    levels[0].places[k] = <int32_t> places[starts[b] + k]
                    levels[0].mass[k] = masses[starts[b] + k]
                while status == PAUSED:
                    with nogil:
                        status = walk(self.model.tables, self.model.transition_of, self.tables, self.n_modalities,
                                      self.model.type_num == cnp.NPY_DOUBLE, &depth_of[0], &action_of[0], n_nodes,
                                      &preference, w, levels, &levels[deepest + 1], &worth[b, 0], &at)
                    if status == PAUSED or b & 0xff == 0xff:
                        PyErr_CheckSignals()
                if status != 0:
                    raise MemoryError
            return out[0] if offsets is None else out
        finally:
            if w != NULL:
                give_back(w)
            if levels != NULL:
                for k in range(deepest + 2):
                    PyMem_RawFree(levels[k].places)
                    PyMem_RawFree(levels[k].mass)
                PyMem_RawFree(levels)


cdef copy_of(array, tuple kinds, str name):
    """A contiguous copy in the first of these dtypes of an array in any of them."""
    if not isinstance(array, np.ndarray) or array.dtype not in kinds:
        raise TypeError(f"{name} of {getattr(array, 'dtype', type(array).__name__)} given; expected an ndarray of "
                        f"{' or '.join([kind.__name__ for kind in kinds])}")
    return np.array(array, dtype=kinds[0], order="C")


cdef int check_beliefs(const int64_t[::1] starts, const Py_ssize_t[::1] states, const double[::1] mass,
                       Py_ssize_t n_states) except -1:
    cdef Py_ssize_t b, k
    if mass.shape[0] != states.shape[0]:
        raise ValueError(f"{states.shape[0]} states with {mass.shape[0]} masses given")
    if starts.shape[0] < 1 or starts[0] != 0 or starts[starts.shape[0] - 1] != states.shape[0]:
        raise ValueError(f"offsets that do not go from 0 to {states.shape[0]} given")
    for b in range(starts.shape[0] - 1):
        if starts[b + 1] < starts[b] or starts[b + 1] > states.shape[0]:
            raise ValueError(f"belief {b}: offsets {starts[b]} to {starts[b + 1]} given; expected ascending ones")
        for k in range(starts[b], starts[b + 1]):
            if states[k] < 0 or states[k] >= n_states or (k > starts[b] and states[k] <= states[k - 1]):
                raise ValueError(f"state {states[k]} given; expected ascending ones from 0 to {n_states - 1}")
            if not (mass[k] >= 0 and mass[k] < INFINITY):
                raise ValueError(f"mass {mass[k]} of state {states[k]} given; expected finite and not negative")
    return 0


cdef int check_tree(const int32_t[::1] depths, const int32_t[::1] actions, Py_ssize_t n_actions) except -1:
    cdef Py_ssize_t k
    cdef int32_t above = 0
    if depths.shape[0] != actions.shape[0]:
        raise ValueError(f"{depths.shape[0]} depths with {actions.shape[0]} actions given")
    for k in range(depths.shape[0]):
        if depths[k] < 1 or depths[k] > above + 1:
            raise ValueError(f"node {k}: depth {depths[k]} given after {above}; expected depth-first order")
        if actions[k] < 0 or actions[k] >= n_actions:
            raise ValueError(f"node {k}: action {actions[k]} given; expected 0 to {n_actions - 1}")
        above = depths[k]
    return 0
