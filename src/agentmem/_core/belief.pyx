"""The filter verbs of one belief, around the leaves of `step`.

Until `emit` has its memory the belief is only read: what fails leaves it as it was, and leaves the workspace clean. From
there on nothing can fail, and the old content is overwritten. Other threads are kept out meanwhile (`begin`).

`update` is one `take_step`; a pass over a sequence (`_filter`) is a loop of them that Python is only asked into for more
memory, for signals, and where an observation is impossible.
"""
cimport numpy as cnp
from cpython.exc cimport PyErr_CheckSignals
from cpython.long cimport PyLong_AsSsize_t, PyLong_CheckExact
from libc.math cimport INFINITY, frexp, isfinite, ldexp
from libc.stdint cimport int32_t, int64_t, uint64_t

import operator

import numpy as np

from agentmem._core.array cimport CoreArray, check_writable, copy_array, make_block, own_block
from agentmem._core.model cimport CoreModel, check_action, check_observation
from agentmem._core.scratch cimport Workspace, borrow, give_back, make_room
from agentmem._core.step cimport (Plan, Posterior, Source, abandon, advance, entries_to_meet, evidence_of,                                   list_entries, list_mass, make_plan, read_block, rescale, sum_lanes, weigh,
                                  write_block)
from agentmem._core.types cimport NO_EVIDENCE, NO_MEMORY, NORMALIZED, NOT_A_MEASURE, UNIFORM

cnp.import_array()

# Entries to meet from which releasing the GIL (45 ns) is lost in the noise.
cdef Py_ssize_t RELEASE_FROM = 4000
# Entries met after which a pass over a sequence looks whether somebody wants to interrupt it: about 0.1 s.
cdef double PAUSE_AFTER = 1e8
cdef enum:  # how a pass stops before its end, beside the codes of a step
    NEEDS_ROOM = -10  # the record is full
    PAUSED = -11


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


# ---- between the leaves and Python

cdef inline void read_source(CoreArray self, Source* source) noexcept nogil:
    read_block(self.block, self.storage, self.n_stored, self.n_cells, self.type_num, source)


cdef class CoreBelief(CoreArray):
    """What `SparseBelief` is underneath: an array with the filter verbs."""

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
        cdef double relative = self.relative if prune is None else share(prune, "prune"), evidence
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
        if entries_to_meet(self.n_stored, tables, a) < RELEASE_FROM:
            status = take_step(self, tables, a, o, relative, w, &evidence)
        else:
            with nogil:
                status = take_step(self, tables, a, o, relative, w, &evidence)
        give_back(w)
        self.writing = 0
        if status == 0:
            return evidence
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
            return evidence_of(&posterior)
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


cdef inline int take_step(CoreBelief self, CoreModel model, Py_ssize_t action, Py_ssize_t observation, double relative,
                          Workspace* w, double* evidence) noexcept nogil:
    """One step by an action and an observation (-1: none) that are in range."""
    cdef Source source
    cdef Posterior posterior
    cdef Plan plan
    cdef int status
    read_source(self, &source)
    posterior.source_exponent = rescale(&source, self.type_num, self.is_measure)
    status = advance(&source, model, action, observation, relative, 0, w, &posterior, &plan)
    if status == 0:
        status = emit(self, w, &posterior, &plan)
    evidence[0] = evidence_of(&posterior) if status == 0 and observation >= 0 else 0.0
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
        entries = entries_to_meet(self.n_stored, model, action)
        work += 100 + entries
        status = take_step(self, model, action, p.observations[p.step], relative, w, &p.log_evidence[p.step])
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


cdef int revise(CoreBelief self, Workspace* w, const void* weights, bint wide_weights, bint per_entry,
                Posterior* posterior) noexcept nogil:
    """Weigh the belief (not at all for NULL weights) and emit."""
    cdef Source source
    cdef Plan plan
    cdef int status
    read_source(self, &source)
    posterior.source_exponent = posterior.exponent = 0
    if weights == NULL and self.storage == UNIFORM:
        return normalize_uniform(self, posterior)
    posterior.source_exponent = rescale(&source, self.type_num, self.is_measure)
    if self.type_num == cnp.NPY_DOUBLE:
        list_mass(<const double*> source.mass, &source, w, posterior)
    else:
        list_mass(<const float*> source.mass, &source, w, posterior)
    if weights != NULL and wide_weights:
        weigh(<const double*> weights, per_entry, posterior)
    elif weights != NULL:
        weigh(<const float*> weights, per_entry, posterior)
    status = make_plan(posterior, 0.0, 0, self.storage, self.n_cells, self.type_num, w, &plan)
    return emit(self, w, posterior, &plan) if status == 0 else status


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


cdef int emit(CoreBelief self, Workspace* w, const Posterior* posterior, const Plan* plan) noexcept nogil:
    """Make what is kept of the posterior, normalised, the content of `self`; the workspace is clean afterwards."""
    cdef char* block = make_block(self, plan.storage, plan.kept)
    if block == NULL:
        abandon(posterior, self.n_cells, w)
        return NO_MEMORY
    write_block(posterior, plan, self.n_cells, self.type_num, block)
    self.is_measure = NORMALIZED
    self.pruned_mass += plan.dropped
    return 0


cdef int begin(CoreBelief self, int before) except -1:
    """Go from `before` (0: outside, 1: inside as the one writer) to writing without the GIL, with a measure."""
    if before == 0:
        check_writable(self)
    elif self.writing != before:
        raise RuntimeError("two writers in one belief: another thread is updating it")
    self.writing = 1  # before anything that may let another thread run
    try:
        if not check_measure(self):
            self._explain_no_measure()
            raise ValueError("belief that is no measure given")
        own_block(self)
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
