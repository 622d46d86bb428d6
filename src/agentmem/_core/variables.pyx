"""The variables of a function that runs, read from outside without a trace.

`frame.f_locals`, up to Python 3.12, leaves a dict in the frame, which keeps alive what the function lets go.
"""
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF
from inspect import CO_OPTIMIZED
from types import FrameType

cdef extern from *:
    """
    #if PY_VERSION_HEX < 0x030C0000
    #ifndef Py_BUILD_CORE
    #define Py_BUILD_CORE 1
    #endif
    #include "internal/pycore_code.h"
    #include "internal/pycore_frame.h"
    #endif

    /* A new reference to what a variable of a frame holds; NULL, without an error, if that is nothing. */
    static PyObject *held_in(PyObject *frame, PyObject *name)
    {
    #if PY_VERSION_HEX < 0x030C0000
        _PyInterpreterFrame *running = ((PyFrameObject *) frame)->f_frame;
        PyCodeObject *code = running->f_code;
        for (int i = 0; i < code->co_nlocalsplus; i++) {
            if (PyTuple_GET_ITEM(code->co_localsplusnames, i) == name) {
                PyObject *value = running->localsplus[i];
                _PyLocals_Kind kind = _PyLocals_GetKind(code->co_localspluskinds, i);
                if (value != NULL && kind & (CO_FAST_CELL | CO_FAST_FREE) && PyCell_Check(value)) {
                    value = PyCell_GET(value);
                }
                return Py_XNewRef(value);
            }
        }
        return NULL;
    #else
        PyObject *value = PyFrame_GetVar((PyFrameObject *) frame, name);
        if (value == NULL && PyErr_ExceptionMatches(PyExc_NameError)) {
            PyErr_Clear();
        }
        return value;
    #endif
    }
    """
    PyObject* held_in(object frame, object name) except? NULL


def variables_of(frame):
    """Names and values of the variables of a function's frame, parameters and those in closures among them.

    The frame may run, in any thread; it stays as it is. Of a module or a class there are none: they have a dict. Without
    the iterators of comprehensions, which have no names. Time is quadratic in their number.

    Examples
    --------
    >>> import sys
    >>> def add(a, b):
    ...     return variables_of(sys._getframe())
    >>> add(1, 2)
    {'a': 1, 'b': 2}
    """
    cdef dict found = {}
    cdef PyObject* value
    if not isinstance(frame, FrameType):
        raise TypeError(f"{type(frame).__name__} given; expected a frame")
    code = frame.f_code
    if not code.co_flags & CO_OPTIMIZED:
        return found
    for names in code.co_varnames, code.co_cellvars, code.co_freevars:
        for name in names:
            if name[0] == ".":
                continue
            value = held_in(frame, name)
            if value != NULL:
                found[name] = <object> value
                Py_DECREF(<object> value)
    return found
