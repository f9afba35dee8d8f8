/* The core: compiled twins of a few hot functions, each beside its Python with the same name, arguments and results; and
 * the plain case of an append (place.h), which is asked first, and answers 0 where Python has to do it.
 *
 * Python is the specification. Whatever is unusual (another type, bytes that are no frame, lengths that do not add up), a
 * twin hands to its Python function with the arguments as they came, having changed nothing: so an error is always said
 * by Python. native/select.py decides whether any of this runs.
 *
 * Holds: the lock of the interpreter is let go of in two places only: where a large body is summed, whose bytes are
 * pinned, and where an append waits or writes much (place.h). Nothing is kept between calls of a twin: what it makes and
 * compares with is in the tuple that it is bound to.
 */
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include "entries.h"
#include "frames.h"
#include "place.h"

#ifndef WALPOOL_SOURCES
#define WALPOOL_SOURCES "unknown"
#endif

/* The module */

typedef PyObject *(*Function)(CALL);

static PyMethodDef twins[] = {
#define TWIN(name) {#name, (PyCFunction)(void (*)(void))(Function)name, METH_FASTCALL | METH_KEYWORDS, NULL}
    TWIN(encode_one), TWIN(encode_entries), TWIN(make_put), TWIN(check_body),
    TWIN(decode_body), TWIN(read_frame), TWIN(read_run), {NULL, NULL, 0, NULL}};

/* Of each, what it needs: t is a class of tuples, o anything. */
static const char *const needs[] = {"", "ttoo", "too", "", "too", "t", "tttoo"};

/* twin(python, *needs): the twin of that function. */
static PyObject *twin(PyObject *module, PyObject *args)
{
    (void)module;
    PyObject *python = PyTuple_Size(args) ? PyTuple_GetItem(args, 0) : NULL;
    PyObject *name = python ? PyObject_GetAttrString(python, "__name__") : NULL;
    if (!name) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_TypeError, "twin() takes a function");
        return NULL;
    }
    PyObject *found = NULL;
    for (size_t at = 0; twins[at].ml_name && !found; at++) {
        if (!PyUnicode_Check(name) || PyUnicode_CompareWithASCIIString(name, twins[at].ml_name) != 0)
            continue;
        Py_ssize_t wanted = (Py_ssize_t)strlen(needs[at]);
        int fits = PyTuple_Size(args) == wanted + 1;
        for (Py_ssize_t need = 0; need < wanted && fits; need++) {
            PyObject *given = PyTuple_GetItem(args, need + 1);
            if (needs[at][need] == 't')
                fits = PyType_Check(given) && PyType_IsSubtype((PyTypeObject *)given, &PyTuple_Type);
        }
        if (fits)
            found = PyCFunction_NewEx(&twins[at], args, NULL);
        break;
    }
    if (!found && !PyErr_Occurred())
        PyErr_Format(PyExc_TypeError, "%S has no twin in this core that takes so much", name);
    Py_DECREF(name);
    return found;
}

static uint32_t by_table(uint32_t crc, const unsigned char *at, size_t size)
{
    return ~raw_by_table(~crc, at, size);
}

static PyObject *summed(PyObject *args, uint32_t (*sum)(uint32_t, const unsigned char *, size_t))
{
    PyObject *data;
    unsigned int crc = 0;
    Lent lent;
    if (!PyArg_ParseTuple(args, "O|I", &data, &crc))
        return NULL;
    if (!borrow(data, &lent)) {
        PyErr_SetString(PyExc_TypeError, "data must be bytes, bytearray or a memoryview of bytes");
        return NULL;
    }
    crc = sum(crc, lent.data, lent.size);
    give_back(&lent);
    return PyLong_FromUnsignedLong(crc);
}

static PyObject *crc32c_of(PyObject *module, PyObject *args)
{
    (void)module;
    return summed(args, crc32c);
}

static PyObject *table_crc32c_of(PyObject *module, PyObject *args)
{
    (void)module;
    return summed(args, by_table);
}

static PyMethodDef functions[] = {
    {"twin", twin, METH_VARARGS, "twin(python, *needs): what does the same as that function, faster."},
    {"crc32c", crc32c_of, METH_VARARGS, "crc32c(data, value=0), as this core sums frames."},
    {"table_crc32c", table_crc32c_of, METH_VARARGS, "The same, as a processor without an instruction for it does."},
    {NULL, NULL, 0, NULL}};

static int prepare(PyObject *module)
{
    PyObject *place = PyType_FromModuleAndSpec(module, &place_spec, NULL);
    int failed = !place || PyModule_AddObjectRef(module, "Place", place) < 0 ||
                 PyModule_AddStringConstant(module, "CHECKSUM", prepare_crc()) < 0 ||
                 PyModule_AddStringConstant(module, "SOURCES", WALPOOL_SOURCES) < 0 ||
                 pthread_atfork(NULL, NULL, count_fork) != 0;
    Py_XDECREF(place);
    return failed ? -1 : 0;
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, (void *)prepare}, {0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "walpool._core",
    .m_doc = "Compiled twins of walpool's hot functions: see walpool.native.select.",
    .m_methods = functions,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__core(void)
{
    return PyModuleDef_Init(&definition);
}
