from agentmem._core.types cimport index_t


cdef class CoreArray:
    cdef object __weakref__
    cdef Py_ssize_t n_cells           # product of the shape
    cdef Py_ssize_t n_stored          # entries that are not zero
    cdef char* block                  # values and their places, then all extents but the first
    cdef unsigned char storage        # a Storage
    cdef signed char type_num         # NumPy's number of the dtype
    cdef unsigned char n_axes
    cdef unsigned char writing        # a writer is inside: a second one gets RuntimeError
    cdef unsigned char is_measure     # 1: known to be finite, non-negative and not all zero; 2: and normalised


cdef Py_ssize_t item_size(int type_num) noexcept nogil
cdef Py_ssize_t index_size(Py_ssize_t n_cells) noexcept nogil
cdef Py_ssize_t index_offset(int storage, Py_ssize_t n_stored, Py_ssize_t n_cells, Py_ssize_t item) noexcept nogil
cdef Py_ssize_t value_offset(int storage, Py_ssize_t n_cells) noexcept nogil
cdef Py_ssize_t payload_size(int storage, Py_ssize_t n_stored, Py_ssize_t n_cells, Py_ssize_t item) noexcept nogil
cdef int smallest_storage(int now, Py_ssize_t n_stored, Py_ssize_t n_cells, Py_ssize_t item) noexcept nogil
cdef char* make_block(CoreArray self, int storage, Py_ssize_t n_stored) noexcept nogil
cdef take_block(CoreArray self, char* block, int storage, Py_ssize_t n_stored, Py_ssize_t n_cells,
                int n_axes, int type_num)
cdef CoreArray copy_array(CoreArray self)
cdef Py_ssize_t find(const index_t* indices, Py_ssize_t n, Py_ssize_t wanted) noexcept nogil
