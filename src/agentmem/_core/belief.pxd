from agentmem._core.array cimport CoreArray


cdef class CoreBelief(CoreArray):
    cdef public double pruned_mass  # dropped by pruning so far, each time as a share of one
    cdef double relative            # what `update` prunes below, as a share of the largest entry


cdef bint check_measure(CoreBelief self)
