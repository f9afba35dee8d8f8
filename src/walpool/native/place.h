/* Place: what write/writer.py and write/handle.py call for an append first, and what it may do, write/appender.py says.
 *
 * Holds: what is not plain is Python's: then 0 is returned. No Python runs in a call. Nobody waits for the interpreter's
 * lock while he has the log's: it is kept all the time, or let go of before and taken again behind (where the log's lock
 * is waited for, or much is written), with the mutex held in between. The mutex is Python's own, and knows its owner.
 * Lock: `ready` is changed by whoever has the mutex, and in a child, where nobody else is.
 */
#ifndef WALPOOL_PLACE_H
#define WALPOOL_PLACE_H

#include <pthread.h>
#include <structmember.h>

#include "entries.h"
#include "frames.h"
#include "placing.h"

enum { CONTENDED_FOR = 64, TIMED_WAITS = 8 }; /* of write/waits.py */

/* Python's numbers for all of them, in this order, or no Place is made. */
static const unsigned int layout[] = {STOP, COMMIT, INTENT, DURABLE, COPY_A, COPY_B, GROWTH, FIELDS, ROW_BATCHES,
                                      ROW_MORE, ROW_BYTES, ROW_SIZES, SIZES, CONTENDED_FOR, TIMED_WAITS};
#define LAYOUTS (sizeof layout / sizeof *layout)

typedef struct {
    PyObject_HEAD
    PyObject *waits, *chores, *others, *acquire, *release, *is_owned, *no_wait, *contended, *sample, *due;
    PyObject *last_body; /* as in write/place.py */
    unsigned long long last_lsn;
    Py_buffer block, row, segment; /* of the mmaps, and not of views of them, which could not be released then */
    Ready ready;
    int may_wait, refused, inside;
    unsigned int forks;
} Place;

static unsigned int forks; /* between this process and the one that loaded the module */

static void count_fork(void)
{
    forks++;
}

/* Whether `call()` returns True. */
static int is_true(PyObject *call, PyObject *args)
{
    PyObject *answer = PyObject_Call(call, args, NULL);
    Py_XDECREF(answer);
    return answer == Py_True;
}

/* How the lock is taken: at once or not at all, or waited for, as write/waits.py counts; -1: as Python does. */
static int how_to_lock(const Place *place)
{
    uint64_t contended;
    PyObject *number = PyObject_GetAttr(place->waits, place->contended);
    int known = number && as_word(number, CONTENDED_FOR + 1, &contended);
    Py_XDECREF(number);
    if (!known)
        return -1;
    if (!contended)
        return LOCK_EX | LOCK_NB;
    if (!place->may_wait || contended == CONTENDED_FOR + 1 || (contended - 1) % TIMED_WAITS == 0 ||
        PyList_Size(place->others) != 1)
        return -1;
    number = PyLong_FromUnsignedLongLong(contended - 1);
    int failed = !number || PyObject_SetAttr(place->waits, place->contended, number) < 0;
    Py_XDECREF(number);
    return failed ? -1 : LOCK_EX;
}

/* What was the parent's is not a child's, whether or not it heard of it. */
static int is_refused(const Place *place)
{
    return place->refused || place->forks != forks;
}

static void let_go_of_segment(Place *place)
{
    place->ready.ready_to = 0;
    place->ready.mapped = NULL;
    if (place->segment.obj)
        PyBuffer_Release(&place->segment);
}

static void let_go_of_memory(Place *place)
{
    let_go_of_segment(place);
    if (place->block.obj)
        PyBuffer_Release(&place->block);
    if (place->row.obj)
        PyBuffer_Release(&place->row);
    place->ready.words = place->ready.row = NULL;
}

/* The first LSN; 0: it is Python's; an error only where there is no memory. `wanted` was made for this place. */
static uint64_t place_frame(Place *place, Wanted *wanted)
{
    uint64_t lsn = 0;
    PyObject *nothing = PyTuple_New(0);
    int is_long = wanted->body_bytes >= PATIENT_BYTES;
    sum_body(wanted);
    if (nothing && !is_true(place->is_owned, nothing) && is_true(place->acquire, place->no_wait)) {
        int operation = is_refused(place) ? -1 : how_to_lock(place);
        if (operation >= 0 && (operation == LOCK_EX || is_long)) {
            place->inside = 1;
            Py_BEGIN_ALLOW_THREADS
            lsn = lock_and_publish(&place->ready, wanted, operation);
            Py_END_ALLOW_THREADS
            place->inside = 0;
            if (place->refused)
                let_go_of_memory(place);
        } else if (operation >= 0) {
            lsn = lock_and_publish(&place->ready, wanted, operation);
        }
        Py_XDECREF(PyObject_Call(place->release, nothing, NULL));
    }
    Py_XDECREF(nothing);
    if (!lsn)
        PyErr_Clear(); /* Python finds it again, and says it */
    return lsn;
}

/* put(key, value, timestamp): the LSN, or 0. */
static PyObject *place_put(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    Place *place = (Place *)self;
    Parts parts = {.operation = PUT};
    Wanted wanted;
    uint64_t lsn = 0;
    if (nargs != 3 || is_refused(place) || !PyBytes_CheckExact(args[0]) || !PyBytes_CheckExact(args[1]))
        return PyLong_FromLong(0);
    PyObject *sample = PyObject_GetAttr(place->waits, place->sample), *due = PyObject_GetAttr(place->chores, place->due);
    int plain = sample == Py_False && due == Py_False;
    Py_XDECREF(sample);
    Py_XDECREF(due);
    if (plain && take_key_and_value(&parts, args[0], args[1]) &&
        (args[2] == Py_None ? (parts.timestamp = wall_ns()) != 0 : as_word(args[2], UINT64_MAX, &parts.timestamp))) {
        start_frame(&wanted, &place->ready, 1, (uint64_t)encoded_bytes(&parts));
        encode_head(wanted.entry, &parts);
        add_piece(&wanted, wanted.entry, ENTRY_BYTES);
        add_piece(&wanted, PyBytes_AsString(args[0]), (size_t)parts.key_bytes);
        add_piece(&wanted, PyBytes_AsString(args[1]), (size_t)parts.value_bytes);
        lsn = place_frame(place, &wanted);
    }
    PyErr_Clear();
    return PyLong_FromUnsignedLongLong(lsn);
}

/* append(data, count, largest): the first LSN, or 0. */
static PyObject *place_append(PyObject *self, PyObject *const *args, Py_ssize_t nargs)
{
    Place *place = (Place *)self;
    Wanted wanted;
    uint64_t count, largest, lsn = 0;
    if (nargs == 3 && !is_refused(place) && PyBytes_CheckExact(args[0]) && PyBytes_Size(args[0]) <= INT32_MAX &&
        as_word(args[1], UINT32_MAX, &count) && as_word(args[2], UINT32_MAX, &largest) && count) {
        start_frame(&wanted, &place->ready, count, largest);
        add_piece(&wanted, PyBytes_AsString(args[0]), (size_t)PyBytes_Size(args[0]));
        lsn = place_frame(place, &wanted);
    }
    if (lsn) {
        PyObject *old = place->last_body;
        Py_INCREF(args[0]);
        place->last_body = args[0];
        place->last_lsn = lsn;
        Py_XDECREF(old);
    }
    return PyLong_FromUnsignedLongLong(lsn);
}

/* count(entries, frame_bytes), of a frame that Python has placed. */
static PyObject *place_count(PyObject *self, PyObject *args)
{
    unsigned long long count, frame_bytes;
    if (!PyArg_ParseTuple(args, "KK", &count, &frame_bytes))
        return NULL;
    count_frame(&((Place *)self)->ready, count, frame_bytes);
    Py_RETURN_NONE;
}

/* ready(first_lsn, marker, fd, ready_to, next_look_lsn, looked_ns, next_look_ns, mapped): what is plain from now on. */
static PyObject *place_ready(PyObject *self, PyObject *args)
{
    Place *place = (Place *)self;
    unsigned long long first_lsn, ready_to, next_look_lsn, looked_ns, next_look_ns;
    unsigned int marker;
    int fd;
    PyObject *mapped;
    if (!PyArg_ParseTuple(args, "KIiKKKKO", &first_lsn, &marker, &fd, &ready_to, &next_look_lsn, &looked_ns,
                          &next_look_ns, &mapped))
        return NULL;
    let_go_of_segment(place);
    if (mapped != Py_None && !place->refused) {
        if (PyObject_GetBuffer(mapped, &place->segment, PyBUF_WRITABLE) != 0)
            return NULL;
        if (ready_to > (unsigned long long)place->segment.len)
            ready_to = (unsigned long long)place->segment.len;
        place->ready.mapped = place->segment.buf;
    }
    place->ready.first_lsn = first_lsn;
    place->ready.marker = marker;
    place->ready.fd = fd;
    place->ready.ready_to = place->refused ? 0 : ready_to;
    place->ready.next_look_lsn = next_look_lsn;
    place->ready.looked_ns = looked_ns;
    place->ready.next_look_ns = next_look_ns;
    Py_RETURN_NONE;
}

/* look_first(): nothing is plain before the next `ready`. */
static PyObject *place_look_first(PyObject *self, PyObject *nothing)
{
    Place *place = (Place *)self;
    (void)nothing;
    if (!place->inside) /* who has the append lock looks; in a child, `refuse` comes first */
        let_go_of_segment(place);
    place->ready.ready_to = 0;
    Py_RETURN_NONE;
}

/* refuse(): nothing is plain any more; the memory is let go of. */
static PyObject *place_refuse(PyObject *self, PyObject *nothing)
{
    Place *place = (Place *)self;
    place_look_first(self, nothing);
    place->refused = 1;
    if (!place->inside || place->forks != forks) /* who was inside when the process was forked is not here */
        let_go_of_memory(place);
    Py_RETURN_NONE;
}

static void free_place(PyObject *self)
{
    Place *place = (Place *)self;
    PyObject *held[] = {place->waits,    place->chores,    place->others, place->acquire, place->release, place->is_owned,
                        place->no_wait, place->contended, place->sample, place->due,     place->last_body};
    PyTypeObject *type = Py_TYPE(self);
    let_go_of_memory(place);
    for (size_t at = 0; at < sizeof held / sizeof *held; at++)
        Py_XDECREF(held[at]);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

/* Place(layout, block, row or None, mutex, others, waits, chores, lock_fd, slot, may_wait) */
static PyObject *new_place(PyTypeObject *type, PyObject *args, PyObject *named)
{
    PyObject *numbers, *block, *row, *mutex, *others, *waits, *chores;
    int lock_fd, may_wait;
    unsigned short slot;
    if (named && PyDict_Size(named))
        return PyErr_Format(PyExc_TypeError, "Place() takes no arguments by name");
    if (!PyArg_ParseTuple(args, "O!OOOO!OOiHp", &PyTuple_Type, &numbers, &block, &row, &mutex, &PyList_Type,
                                   &others, &waits, &chores, &lock_fd, &slot, &may_wait))
        return NULL;
    uint64_t number = 0;
    int same = PyTuple_Size(numbers) == (Py_ssize_t)LAYOUTS;
    for (size_t at = 0; same && at < LAYOUTS; at++)
        same = as_word(PyTuple_GetItem(numbers, (Py_ssize_t)at), UINT32_MAX, &number) && number == layout[at];
    if (!same)
        return PyErr_Format(PyExc_ValueError, "the core was built for another layout");
    Place *place = (Place *)((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
    if (!place)
        return NULL;
    place->ready.lock_fd = lock_fd;
    place->ready.fd = -1;
    place->ready.slot = slot;
    place->may_wait = may_wait;
    place->forks = forks;
    place->acquire = PyObject_GetAttrString(mutex, "acquire");
    place->release = PyObject_GetAttrString(mutex, "release");
    place->is_owned = PyObject_GetAttrString(mutex, "_is_owned");
    place->no_wait = Py_BuildValue("(O)", Py_False);
    place->contended = PyUnicode_InternFromString("contended");
    place->sample = PyUnicode_InternFromString("sample");
    place->due = PyUnicode_InternFromString("due");
    Py_INCREF(place->others = others);
    Py_INCREF(place->waits = waits);
    Py_INCREF(place->chores = chores);
    if (place->acquire && place->release && place->is_owned && place->no_wait && place->contended && place->sample &&
        place->due && PyObject_GetBuffer(block, &place->block, PyBUF_WRITABLE) == 0 &&
        (row == Py_None || PyObject_GetBuffer(row, &place->row, PyBUF_WRITABLE) == 0)) {
        if (place->block.len >= (GROWN + 1) * 8 && (row == Py_None || place->row.len >= (ROW_SIZES + SIZES) * 8)) {
            place->ready.words = place->block.buf;
            place->ready.row = place->row.buf;
            return (PyObject *)place;
        }
        PyErr_SetString(PyExc_ValueError, "the memory is too short");
    }
    Py_DECREF(place);
    return NULL;
}

static PyMemberDef place_members[] = {{"last_body", T_OBJECT, offsetof(Place, last_body), READONLY, NULL},
                                      {"last_lsn", T_ULONGLONG, offsetof(Place, last_lsn), READONLY, NULL},
                                      {NULL, 0, 0, 0, NULL}};

static PyMethodDef place_methods[] = {
    {"put", (PyCFunction)(void (*)(void))place_put, METH_FASTCALL, "put(key, value, timestamp): the LSN, or 0."},
    {"append", (PyCFunction)(void (*)(void))place_append, METH_FASTCALL, "append(data, count, largest): the LSN, or 0."},
    {"count", place_count, METH_VARARGS, "count(entries, frame_bytes), of a frame that Python has placed."},
    {"ready", place_ready, METH_VARARGS, "ready(...): what is plain from now on."},
    {"look_first", place_look_first, METH_NOARGS, "Nothing is plain before the next ready()."},
    {"refuse", place_refuse, METH_NOARGS, "Nothing is plain any more."},
    {NULL, NULL, 0, NULL}};

static PyType_Slot place_slots[] = {{Py_tp_new, (void *)new_place},
                                    {Py_tp_dealloc, (void *)free_place},
                                    {Py_tp_methods, place_methods},
                                    {Py_tp_members, place_members},
                                    {0, NULL}};

static PyType_Spec place_spec = {"walpool._core.Place", sizeof(Place), 0, Py_TPFLAGS_DEFAULT, place_slots};

#endif
