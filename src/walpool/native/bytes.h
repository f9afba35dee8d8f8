/* Bytes: what a Python object lends to read from, and little-endian words in it.
 *
 * Holds: what is lent stays where it is, and is not freed or resized, until it is given back. Nothing but plain bytes is
 * taken: for any other form (items of several bytes, several dimensions, gaps) the answer is "unusual".
 */
#ifndef WALPOOL_BYTES_H
#define WALPOOL_BYTES_H

#include <stdint.h>
#include <string.h>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
#define LITTLE(bits, word) __builtin_bswap##bits(word)
#else
#define LITTLE(bits, word) (word)
#endif

static inline uint16_t load16(const unsigned char *at)
{
    uint16_t word;
    memcpy(&word, at, sizeof word);
    return LITTLE(16, word);
}

static inline uint32_t load32(const unsigned char *at)
{
    uint32_t word;
    memcpy(&word, at, sizeof word);
    return LITTLE(32, word);
}

static inline uint64_t load64(const unsigned char *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return LITTLE(64, word);
}

static inline unsigned char *store32(unsigned char *at, uint32_t word)
{
    word = LITTLE(32, word);
    memcpy(at, &word, sizeof word);
    return at + sizeof word;
}

static inline unsigned char *store64(unsigned char *at, uint64_t word)
{
    word = LITTLE(64, word);
    memcpy(at, &word, sizeof word);
    return at + sizeof word;
}

typedef struct {
    const unsigned char *data;
    size_t size;
    int pinned; /* `view` has to be released */
    Py_buffer view;
} Lent;

/* Whether `object` lends its bytes; if not, no error is set. */
static int borrow(PyObject *object, Lent *lent)
{
    lent->pinned = 0;
    if (PyBytes_CheckExact(object)) { /* cannot change, and its caller holds it */
        char *data;
        Py_ssize_t size;
        if (PyBytes_AsStringAndSize(object, &data, &size) < 0) {
            PyErr_Clear();
            return 0;
        }
        lent->data = (const unsigned char *)data;
        lent->size = (size_t)size;
        return 1;
    }
    if (!PyMemoryView_Check(object) && !PyByteArray_CheckExact(object))
        return 0;
    if (PyObject_GetBuffer(object, &lent->view, PyBUF_CONTIG_RO | PyBUF_FORMAT) < 0) {
        PyErr_Clear(); /* it was released, or has gaps */
        return 0;
    }
    const Py_buffer *view = &lent->view;
    if (view->ndim != 1 || view->itemsize != 1 || (view->format && strcmp(view->format, "B") != 0)) {
        PyBuffer_Release(&lent->view);
        return 0;
    }
    lent->pinned = 1;
    lent->data = view->buf;
    lent->size = (size_t)view->len;
    return 1;
}

static void give_back(Lent *lent)
{
    if (lent->pinned)
        PyBuffer_Release(&lent->view);
}

/* Whether `object` is exactly an int from 0 to `most`; if not, no error is set. */
static int as_word(PyObject *object, uint64_t most, uint64_t *word)
{
    if (!PyLong_CheckExact(object))
        return 0;
    *word = PyLong_AsUnsignedLongLong(object);
    if (*word == UINT64_MAX && PyErr_Occurred()) {
        PyErr_Clear();
        return 0;
    }
    return *word <= most;
}

#endif
