/* Entries: 16 bytes and then key and value, one after another. The table is in format/entry.py, whose twin this is.
 *
 * Holds: a length is compared with its limit, and with the bytes there are, before anything is read or allocated.
 */
#ifndef WALPOOL_ENTRIES_H
#define WALPOOL_ENTRIES_H

#include "bytes.h"
#include "call.h"
#include "make.h"

#define ENTRY_BYTES 16u
#define MAX_KEY_BYTES (1u << 20)
#define MAX_VALUE_BYTES (10u << 20)
#define KEY_MASK ((1u << 28) - 1)
#define PUT 1u
#define DELETE 2u

/* The bytes that the entry at `at` takes, of `size` that are there; 0: there is none. */
static inline size_t entry_at(const unsigned char *at, size_t size)
{
    if (size < ENTRY_BYTES)
        return 0;
    uint32_t bits = load32(at), value_bytes = load32(at + 4);
    uint32_t key_bytes = bits & KEY_MASK, operation = bits >> 28;
    if ((operation != PUT && operation != DELETE) || key_bytes > MAX_KEY_BYTES || value_bytes > MAX_VALUE_BYTES)
        return 0;
    size_t entry_bytes = (size_t)ENTRY_BYTES + key_bytes + value_bytes;
    return entry_bytes <= size ? entry_bytes : 0;
}

/* Whether `size` bytes hold exactly `count` entries. */
static int are_entries(const unsigned char *at, size_t size, uint64_t count)
{
    for (; count; count--) {
        size_t entry_bytes = entry_at(at, size);
        if (!entry_bytes)
            return 0;
        at += entry_bytes;
        size -= entry_bytes;
    }
    return size == 0;
}

/* Make `count` entries, which `size` bytes were found to hold, into `list` from place `index` on; `maker` makes WALEntry.
 * 1: done; 0: they are not there any more; -1: an error. Memory that is asked for may make the collector run, and that
 * anything: so lengths are looked at again. */
static int decode_into(PyObject *list, Py_ssize_t index, Maker *maker, PyObject *const operations[2],
                       const unsigned char *at, size_t size, uint64_t count, uint64_t lsn)
{
    for (; count; count--, lsn++, index++) {
        size_t entry_bytes = entry_at(at, size);
        if (!entry_bytes)
            return 0;
        uint32_t bits = load32(at);
        Py_ssize_t key_bytes = (Py_ssize_t)(bits & KEY_MASK);
        Py_ssize_t value_bytes = (Py_ssize_t)(entry_bytes - ENTRY_BYTES) - key_bytes;
        uint64_t timestamp = load64(at + 8);
        PyObject *operation = operations[(bits >> 28) - PUT];
        const char *key = (const char *)at + ENTRY_BYTES;
        Py_INCREF(operation);
        if (!set_field(maker, 0, operation) || !set_field(maker, 1, PyBytes_FromStringAndSize(key, key_bytes)) ||
            !set_field(maker, 2, PyBytes_FromStringAndSize(key + key_bytes, value_bytes)) ||
            !set_number(maker, 3, timestamp) || !set_number(maker, 4, lsn))
            return -1;
        PyObject *entry = make_entry(maker);
        if (!entry || PyList_SetItem(list, index, entry) < 0)
            return -1;
        at += entry_bytes;
        size -= entry_bytes;
    }
    return 1;
}

/* One entry that is to be encoded: its parts, none of them with a reference of its own. */
typedef struct {
    PyObject *key, *value;
    Py_ssize_t key_bytes, value_bytes;
    uint64_t timestamp;
    uint32_t operation;
} Parts;

/* Whether these can be encoded as they are; for all else Python says what is wrong with it, or converts it. */
static int take_key_and_value(Parts *parts, PyObject *key, PyObject *value)
{
    if (!PyBytes_CheckExact(key) || !PyBytes_CheckExact(value))
        return 0;
    parts->key = key;
    parts->value = value;
    parts->key_bytes = PyBytes_Size(key);
    parts->value_bytes = PyBytes_Size(value);
    return parts->key_bytes <= (Py_ssize_t)MAX_KEY_BYTES && parts->value_bytes <= (Py_ssize_t)MAX_VALUE_BYTES;
}

static int take_parts(Parts *parts, PyObject *key, PyObject *value, PyObject *timestamp)
{
    return as_word(timestamp, UINT64_MAX, &parts->timestamp) && take_key_and_value(parts, key, value);
}

static int take_entry(Parts *parts, PyObject *entry, PyObject *type, PyObject *const operations[2])
{
    if (!Py_IS_TYPE(entry, (PyTypeObject *)type) || PyTuple_Size(entry) != 5)
        return 0;
    PyObject *operation = PyTuple_GetItem(entry, 0);
    if (operation == operations[0])
        parts->operation = PUT;
    else if (operation == operations[1])
        parts->operation = DELETE;
    else
        return 0;
    return take_parts(parts, PyTuple_GetItem(entry, 1), PyTuple_GetItem(entry, 2), PyTuple_GetItem(entry, 3));
}

static Py_ssize_t encoded_bytes(const Parts *parts)
{
    return (Py_ssize_t)ENTRY_BYTES + parts->key_bytes + parts->value_bytes;
}

static unsigned char *encode_head(unsigned char *at, const Parts *parts)
{
    at = store32(at, parts->operation << 28 | (uint32_t)parts->key_bytes);
    at = store32(at, (uint32_t)parts->value_bytes);
    return store64(at, parts->timestamp);
}

static unsigned char *encode_at(unsigned char *at, const Parts *parts)
{
    at = encode_head(at, parts);
    memcpy(at, PyBytes_AsString(parts->key), (size_t)parts->key_bytes);
    at += parts->key_bytes;
    memcpy(at, PyBytes_AsString(parts->value), (size_t)parts->value_bytes);
    return at + parts->value_bytes;
}

/* The twins that encode */

/* needs nothing */
static PyObject *encode_one(CALL)
{
    Parts parts;
    uint64_t bits;
    if (nargs != 4 || kwnames || !as_word(args[0], UINT32_MAX, &bits) || bits & KEY_MASK ||
        !take_parts(&parts, args[1], args[2], args[3]))
        return UNUSUAL;
    parts.operation = (uint32_t)bits >> 28;
    PyObject *body = PyBytes_FromStringAndSize(NULL, encoded_bytes(&parts));
    if (body)
        encode_at((unsigned char *)PyBytes_AsString(body), &parts);
    return body;
}

/* needs Body, WALEntry, Operation.PUT, Operation.DELETE */
static PyObject *encode_entries(CALL)
{
    if (nargs != 1 || kwnames)
        return UNUSUAL;
    int is_list = PyList_CheckExact(args[0]);
    if (!is_list && !PyTuple_CheckExact(args[0]))
        return UNUSUAL;
    PyObject *(*item)(PyObject *, Py_ssize_t) = is_list ? PyList_GetItem : PyTuple_GetItem;
    PyObject *const operations[2] = {NEED(2), NEED(3)};
    Py_ssize_t count = is_list ? PyList_Size(args[0]) : PyTuple_Size(args[0]), size = 0, largest = ENTRY_BYTES;
    Parts parts;
    for (Py_ssize_t at = 0; at < count; at++) {
        if (!take_entry(&parts, item(args[0], at), NEED(1), operations))
            return UNUSUAL;
        Py_ssize_t entry_bytes = encoded_bytes(&parts);
        if (entry_bytes > PY_SSIZE_T_MAX - size)
            return PyErr_NoMemory();
        size += entry_bytes;
        if (entry_bytes > largest)
            largest = entry_bytes;
    }
    PyObject *data = PyBytes_FromStringAndSize(NULL, size);
    if (!data)
        return NULL;
    unsigned char *to = (unsigned char *)PyBytes_AsString(data);
    for (Py_ssize_t at = 0; at < count; at++) { /* no Python has run since they were looked at */
        take_entry(&parts, item(args[0], at), NEED(1), operations);
        to = encode_at(to, &parts);
    }
    Maker maker;
    PyObject *body = NULL;
    if (!start_making(&maker, NEED(0), 3)) {
        Py_DECREF(data);
        return NULL;
    }
    if (set_field(&maker, 0, data) && set_field(&maker, 1, PyLong_FromSsize_t(count)) &&
        set_field(&maker, 2, PyLong_FromSsize_t(largest)))
        body = make(&maker);
    stop_making(&maker);
    return body;
}

/* needs WALEntry, Operation.PUT, time_ns */
static PyObject *make_put(CALL)
{
    if (nargs != 3 || kwnames || !PyBytes_CheckExact(args[0]) || !PyBytes_CheckExact(args[1]))
        return UNUSUAL;
    uint64_t number;
    PyObject *timestamp = args[2];
    if (timestamp == Py_None) {
        timestamp = PyObject_CallNoArgs(NEED(2));
        if (!timestamp)
            return NULL;
    } else if (as_word(timestamp, UINT64_MAX, &number)) {
        Py_INCREF(timestamp);
    } else {
        return UNUSUAL;
    }
    Maker maker;
    if (!start_making(&maker, NEED(0), 5)) {
        Py_DECREF(timestamp);
        return NULL;
    }
    PyObject *operation = NEED(1), *entry = NULL;
    Py_INCREF(operation);
    Py_INCREF(args[0]);
    Py_INCREF(args[1]);
    PyTuple_SetItem(maker.fields, 0, operation);
    PyTuple_SetItem(maker.fields, 1, args[0]);
    PyTuple_SetItem(maker.fields, 2, args[1]);
    PyTuple_SetItem(maker.fields, 3, timestamp);
    if (set_number(&maker, 4, 0))
        entry = PyLong_CheckExact(timestamp) ? make_entry(&maker) : make(&maker);
    stop_making(&maker);
    return entry;
}

/* The twins that decode */

typedef struct {
    Lent lent;
    const unsigned char *body;
    size_t size;
    uint64_t count;
} BodyOf;

/* Whether `args` begin with a buffer, the start and end of a body in it, and how many entries it holds: then they do,
 * and the buffer has to be given back. */
static int take_body(PyObject *const *args, BodyOf *of)
{
    uint64_t start, end;
    if (!as_word(args[1], PY_SSIZE_T_MAX, &start) || !as_word(args[2], PY_SSIZE_T_MAX, &end) ||
        !as_word(args[3], UINT32_MAX, &of->count) || !borrow(args[0], &of->lent))
        return 0;
    if (start <= end && end <= of->lent.size) {
        of->body = of->lent.data + start;
        of->size = (size_t)(end - start);
        if (are_entries(of->body, of->size, of->count))
            return 1;
    }
    give_back(&of->lent);
    return 0;
}

/* needs nothing */
static PyObject *check_body(CALL)
{
    BodyOf of;
    if (nargs != 4 || kwnames || !take_body(args, &of))
        return UNUSUAL;
    give_back(&of.lent);
    Py_RETURN_NONE;
}

/* Whether the only named argument is `name`, and false. */
static int is_off(PyObject *kwnames, PyObject *value, const char *name)
{
    return !kwnames || (PyTuple_Size(kwnames) == 1 && value == Py_False &&
                        PyUnicode_CompareWithASCIIString(PyTuple_GetItem(kwnames, 0), name) == 0);
}

/* needs WALEntry, Operation.PUT, Operation.DELETE */
static PyObject *decode_body(CALL)
{
    BodyOf of;
    uint64_t lsn, skip = 0, keep = UINT32_MAX;
    if ((nargs != 5 && nargs != 7) || !is_off(kwnames, kwnames ? args[nargs] : NULL, "views") ||
        !as_word(args[4], UINT64_MAX - UINT32_MAX, &lsn) ||
        (nargs == 7 && (!as_word(args[5], UINT32_MAX, &skip) || !as_word(args[6], UINT32_MAX, &keep))) ||
        !take_body(args, &of))
        return UNUSUAL;
    if (skip > of.count)
        skip = of.count;
    if (keep > of.count - skip)
        keep = of.count - skip;
    const unsigned char *at = of.body;
    for (uint64_t passed = 0; passed < skip; passed++) /* they were found to be there just now */
        at += entry_at(at, of.size - (size_t)(at - of.body));
    PyObject *const operations[2] = {NEED(1), NEED(2)};
    Maker maker;
    int done = -1;
    PyObject *entries = new_list(keep);
    if (entries && start_making(&maker, NEED(0), 5)) {
        done = decode_into(entries, 0, &maker, operations, at, of.size - (size_t)(at - of.body), keep, lsn + skip);
        stop_making(&maker);
    }
    give_back(&of.lent);
    if (done == 1) {
        PyObject_GC_Track(entries);
        return entries;
    }
    Py_XDECREF(entries);
    return done == 0 ? UNUSUAL : NULL;
}

#endif
