"""The vocabulary of the kernels: value and index types, storage kinds, status codes.

States are int32 wherever a model is involved (a model of 2**31 states would not fit any machine of today); only a bare
array may be larger, and then its stored indices are int64. Sums are double everywhere.
"""
from cpython.object cimport PyObject, PyTypeObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from *:
    """
    #if defined(_MSC_VER)
    #include <intrin.h>
    #include <xmmintrin.h>
    static int lowest_bit(unsigned long long w) { unsigned long i; _BitScanForward64(&i, w); return (int)i; }
    #define prefetch(p) _mm_prefetch((const char*)(p), _MM_HINT_T0)
    #else
    #define lowest_bit(w) __builtin_ctzll(w)
    #define prefetch(p) __builtin_prefetch(p)
    #endif
    """
    int lowest_bit(uint64_t word) noexcept nogil
    void prefetch(const void* address) noexcept nogil

cdef extern from *:
    """
    /* cls.__new__(cls) without the look-up: 60 ns of a 1 us update */
    static inline PyObject* agentmem_new_of(PyTypeObject* type) {
        PyObject* no_arguments = PyTuple_New(0);
        if (no_arguments == NULL) return NULL;
        PyObject* made = type->tp_new(type, no_arguments, NULL);
        Py_DECREF(no_arguments);
        return made;
    }
    #define agentmem_new_like(array) agentmem_new_of(Py_TYPE(array))
    """
    object new_of "agentmem_new_of"(PyTypeObject* cls)
    object new_like "agentmem_new_like"(PyObject* array)

ctypedef fused cell_t:  # a value as bytes, for moves that do not read it
    uint8_t
    uint16_t
    uint32_t
    uint64_t

ctypedef fused value_t:
    float
    double

ctypedef fused index_t:
    int32_t
    int64_t

cdef enum Storage:
    PAIRS = 0    # values, then sorted indices
    BITMAP = 1   # one bit per cell, then values
    DENSE = 2    # one value per cell
    UNIFORM = 3  # one value for all cells

cdef enum Status:  # what a leaf returns below zero; a count otherwise
    NO_EVIDENCE = -1   # the update left no probability at all
    NOT_A_MEASURE = -2 # a belief with negative, non-finite or no mass
    NO_MEMORY = -3

cdef enum:
    NORMALIZED = 2  # of is_measure, where 1 is any measure: a filter verb left the belief so
