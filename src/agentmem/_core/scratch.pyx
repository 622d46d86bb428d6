"""Workspaces of the belief kernels: borrowed for one call, given back clean, reused by the next.

There is one workspace for each kernel that runs at the same moment, so one per thread at most. The list of free ones is
only touched under the GIL. A workspace grows to the largest model it has served and is kept until `release_scratch`.
"""
from cpython.mem cimport PyMem_RawCalloc, PyMem_RawFree, PyMem_RawMalloc
from libc.string cimport memset

from agentmem._core.types cimport lowest_bit

cdef Workspace* free_workspaces = NULL


cdef Py_ssize_t n_words(Py_ssize_t n_bits) noexcept nogil:
    return (n_bits + 63) >> 6


cdef Py_ssize_t state_bytes(Py_ssize_t n_states) noexcept nogil:
    return 8 * (n_states + n_words(n_states) + n_words(n_words(n_states)))


cdef bint cover(Workspace* workspace, Py_ssize_t n_states) noexcept nogil:
    """Make the per-state arrays at least this long; False without memory (then they are as before)."""
    cdef char* block
    if n_states <= workspace.n_states:
        return True
    block = <char*> PyMem_RawCalloc(state_bytes(n_states), 1)
    if block == NULL:
        return False
    PyMem_RawFree(workspace.sums)  # the head of the one block that holds all three
    workspace.sums = <double*> block
    workspace.touched = <uint64_t*> (block + 8 * n_states)
    workspace.summary = workspace.touched + n_words(n_states)
    workspace.n_states = n_states
    return True


cdef Workspace* borrow(Py_ssize_t n_states) noexcept:
    """A clean workspace for a model of this many states; NULL without memory. Needs the GIL."""
    global free_workspaces
    cdef Workspace* workspace = free_workspaces
    if workspace != NULL:
        free_workspaces = workspace.next
    else:
        workspace = <Workspace*> PyMem_RawCalloc(1, sizeof(Workspace))
        if workspace == NULL:
            return NULL
    if not cover(workspace, n_states):
        give_back(workspace)
        return NULL
    return workspace


cdef void give_back(Workspace* workspace) noexcept:
    """Return a workspace whose sums, touched and summary are zero again. Needs the GIL."""
    global free_workspaces
    workspace.next = free_workspaces
    free_workspaces = workspace


cdef bint make_room(Workspace* workspace, Py_ssize_t n_found) noexcept nogil:
    """Make `found` and `mass` at least this long (their content is lost); False without memory."""
    cdef Py_ssize_t room = n_found + n_found // 4
    cdef char* block
    if n_found <= workspace.n_found:
        return True
    block = <char*> PyMem_RawMalloc(12 * room)
    if block == NULL:
        return False
    PyMem_RawFree(workspace.mass)  # the head of the one block that holds both
    workspace.mass = <double*> block
    workspace.found = <int32_t*> (block + 8 * room)
    workspace.n_found = room
    return True


cdef Py_ssize_t list_touched(Workspace* w, Py_ssize_t n_states, int32_t* found) noexcept nogil:
    """List the marked states in ascending order in `found`, and clear the marks. `found` must have room for all."""
    cdef Py_ssize_t s, word_at, n = 0, n_summary = n_words(n_words(n_states))
    cdef uint64_t above, word
    for s in range(n_summary):
        above = w.summary[s]
        w.summary[s] = 0
        while above:
            word_at = s * 64 + lowest_bit(above)
            above &= above - 1
            word = w.touched[word_at]
            w.touched[word_at] = 0
            while word:
                found[n] = <int32_t> (word_at * 64 + lowest_bit(word))
                word &= word - 1
                n += 1
    return n


cdef void clear(Workspace* w, Py_ssize_t n_states) noexcept nogil:
    """Make sums and marks zero again, whatever is in them."""
    memset(w.sums, 0, n_states * sizeof(double))
    memset(w.touched, 0, n_words(n_states) * sizeof(uint64_t))
    memset(w.summary, 0, n_words(n_words(n_states)) * sizeof(uint64_t))


def scratch_nbytes():
    """Bytes of all free workspaces of this process, whoever used them last."""
    cdef Py_ssize_t total = 0
    cdef Workspace* workspace = free_workspaces
    while workspace != NULL:
        total += sizeof(Workspace) + state_bytes(workspace.n_states) + 12 * workspace.n_found
        workspace = workspace.next
    return total


def release_scratch():
    """Free all workspaces that are not in use; the next update allocates its own again. Returns the bytes freed."""
    global free_workspaces
    cdef Workspace* workspace
    freed = scratch_nbytes()
    while free_workspaces != NULL:
        workspace = free_workspaces
        free_workspaces = workspace.next
        PyMem_RawFree(workspace.sums)
        PyMem_RawFree(workspace.mass)
        PyMem_RawFree(workspace)
    return freed
