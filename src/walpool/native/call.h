/* Calls: what a twin is called with, and how it hands a call to its Python function.
 *
 * Holds: whatever is unusual goes to Python with the arguments as they came, so that every error is said by Python.
 */
#ifndef WALPOOL_CALL_H
#define WALPOOL_CALL_H

/* What a twin is called with; `self` is (its Python function, what it needs ...). */
#define CALL PyObject *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames
#define NEED(at) PyTuple_GetItem(self, (at) + 1)
#define UNUSUAL unusual(self, args, nargs, kwnames)

static PyObject *unusual(CALL)
{
    Py_ssize_t named = kwnames ? PyTuple_Size(kwnames) : 0;
    PyObject *given = PyTuple_New(nargs), *names = named ? PyDict_New() : NULL, *result = NULL;
    if (!given || (named && !names))
        goto done;
    for (Py_ssize_t at = 0; at < nargs; at++) {
        Py_INCREF(args[at]);
        PyTuple_SetItem(given, at, args[at]);
    }
    for (Py_ssize_t at = 0; at < named; at++)
        if (PyDict_SetItem(names, PyTuple_GetItem(kwnames, at), args[nargs + at]) < 0)
            goto done;
    result = PyObject_Call(PyTuple_GetItem(self, 0), given, names);
done:
    Py_XDECREF(given);
    Py_XDECREF(names);
    return result;
}

#endif
