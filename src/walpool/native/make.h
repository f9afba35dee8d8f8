/* Making: tuples of walpool's classes, and lists of them.
 *
 * Holds: what is not whole yet nobody can find, not even through the collector.
 */
#ifndef WALPOOL_MAKE_H
#define WALPOOL_MAKE_H

#include <stdint.h>

/* What makes tuples of one class. */
typedef struct {
    newfunc new;
    PyTypeObject *type;
    PyObject *fields; /* a tuple that is filled again and again, */
    PyObject *args;   /* in the tuple of arguments */
} Maker;

/* `tuple.__new__(type, fields)`, and not the class's allocator: since Python 3.14 a tuple knows its hash, and only
 * `tuple.__new__` says that it is not known yet. */
static int start_making(Maker *maker, PyObject *type, Py_ssize_t fields)
{
    maker->type = (PyTypeObject *)type;
    maker->new = (newfunc)PyType_GetSlot(&PyTuple_Type, Py_tp_new);
    maker->fields = PyTuple_New(fields);
    if (!maker->fields)
        return 0;
    maker->args = PyTuple_New(1);
    if (!maker->args) {
        Py_DECREF(maker->fields);
        return 0;
    }
    PyObject_GC_UnTrack(maker->fields); /* nobody else may find it: it changes */
    PyObject_GC_UnTrack(maker->args);
    PyTuple_SetItem(maker->args, 0, maker->fields); /* takes the reference; the pointer stays good as long as `args` */
    return 1;
}

static void stop_making(Maker *maker)
{
    Py_DECREF(maker->args);
}

/* Have `value`, whose reference it takes, as the next tuple's field; NULL is an error already set. */
static inline int set_field(Maker *maker, Py_ssize_t at, PyObject *value)
{
    return value && PyTuple_SetItem(maker->fields, at, value) == 0;
}

static inline int set_number(Maker *maker, Py_ssize_t at, uint64_t number)
{
    return set_field(maker, at, PyLong_FromUnsignedLongLong(number));
}

static inline PyObject *make(Maker *maker)
{
    return maker->new(maker->type, maker->args, NULL);
}

/* An entry of bytes and ints: it can be in no cycle, and the collector need not look at it. A list of millions takes it
 * longer to walk than the entries took to make. */
static inline PyObject *make_entry(Maker *maker)
{
    PyObject *entry = make(maker);
    if (entry)
        PyObject_GC_UnTrack(entry);
    return entry;
}

/* A list for so many, which nobody may find before it is filled: the collector would show it to whoever asks. */
static PyObject *new_list(uint64_t count)
{
    PyObject *list = PyList_New((Py_ssize_t)count);
    if (list)
        PyObject_GC_UnTrack(list);
    return list;
}

#endif
