/* Frames: a batch as bytes on disk. The table is in format/frame.py, whose twin this is.
 *
 * Holds: only an intact frame is a frame; what else stands at a place, Python says.
 */
#ifndef WALPOOL_FRAMES_H
#define WALPOOL_FRAMES_H

#include "crc.h"
#include "entries.h"

#define FRAME_BYTES 48u
#define MAX_LSN ((1ull << 63) - 1)
#define RUN_BYTES (64u << 10) /* of frames whose entries are made in one call: see format/run.py */

typedef struct {
    uint32_t body_bytes, count;
    uint64_t first_lsn, appended_at, durable_lsn;
    uint16_t flags, writer;
} Frame;

/* Whether an intact frame stands at `at`, of which `available` bytes are there and `remaining` could be. */
static int is_frame(const unsigned char *at, size_t available, uint64_t remaining, uint32_t marker, uint64_t lsn,
                    Frame *frame)
{
    if (available < FRAME_BYTES || remaining < FRAME_BYTES || load32(at) != marker)
        return 0;
    frame->body_bytes = load32(at + 8);
    frame->count = load32(at + 12);
    frame->first_lsn = load64(at + 16);
    frame->appended_at = load64(at + 24);
    frame->durable_lsn = load64(at + 32);
    frame->flags = load16(at + 44);
    frame->writer = load16(at + 46);
    if (frame->body_bytes > remaining - FRAME_BYTES || frame->body_bytes > available - FRAME_BYTES)
        return 0;
    if (frame->count < 1 || frame->count > frame->body_bytes / ENTRY_BYTES)
        return 0;
    if ((lsn && frame->first_lsn != lsn) || frame->first_lsn > MAX_LSN - frame->count)
        return 0;
    uint32_t crc = crc32c(marker, at + FRAME_BYTES, frame->body_bytes);
    if (crc32c(crc, at + 8, FRAME_BYTES - 8) != load32(at + 4))
        return 0;
    return load32(at + 40) == frame->body_bytes || frame->flags;
}

/* What a run of frames adds up to; `end` is an offset from where it began. */
typedef struct {
    size_t end, last;
    uint64_t next_lsn, batches, entries, last_append_ns, durable_lsn, largest_single;
    Frame last_frame;
} Run;

/* Frames of entries that add up, one after another from `at` on, none of them past `end_lsn`; none that begins `most`
 * bytes or more behind `at`. */
static void find_run(Run *run, const unsigned char *at, size_t available, uint64_t remaining, uint32_t marker,
                     uint64_t lsn, uint64_t end_lsn, size_t most)
{
    memset(run, 0, sizeof *run);
    run->next_lsn = lsn;
    Frame frame;
    while (run->end < most && is_frame(at + run->end, available - run->end, remaining - run->end, marker,
                                       run->next_lsn, &frame)) {
        uint64_t next_lsn = frame.first_lsn + frame.count;
        if (frame.flags || next_lsn > end_lsn ||
            !are_entries(at + run->end + FRAME_BYTES, frame.body_bytes, frame.count))
            break;
        run->last = run->end;
        run->last_frame = frame;
        run->end += (size_t)FRAME_BYTES + frame.body_bytes;
        run->next_lsn = next_lsn;
        run->batches++;
        run->entries += frame.count;
        if (frame.appended_at > run->last_append_ns)
            run->last_append_ns = frame.appended_at;
        if (frame.durable_lsn > run->durable_lsn)
            run->durable_lsn = frame.durable_lsn;
        if (frame.count == 1 && frame.body_bytes > run->largest_single)
            run->largest_single = frame.body_bytes;
    }
}

/* The frame at `offset` of its buffer, of the class that `type` is. */
static PyObject *make_frame(PyObject *type, uint64_t offset, const Frame *frame)
{
    Maker maker;
    if (!start_making(&maker, type, 9))
        return NULL;
    uint64_t body = offset + FRAME_BYTES;
    PyObject *made = NULL;
    if (set_number(&maker, 0, offset) && set_number(&maker, 1, body) &&
        set_number(&maker, 2, body + frame->body_bytes) && set_number(&maker, 3, frame->first_lsn) &&
        set_number(&maker, 4, frame->count) && set_number(&maker, 5, frame->appended_at) &&
        set_number(&maker, 6, frame->durable_lsn) && set_number(&maker, 7, frame->flags) &&
        set_number(&maker, 8, frame->writer))
        made = make(&maker);
    stop_making(&maker);
    return made;
}

/* The twins */

/* needs Frame */
static PyObject *read_frame(CALL)
{
    uint64_t offset, marker, lsn, remaining;
    Lent lent;
    if (nargs < 4 || nargs > 5 || kwnames || !as_word(args[1], PY_SSIZE_T_MAX, &offset) ||
        !as_word(args[2], UINT32_MAX, &marker) || !as_word(args[3], MAX_LSN, &lsn))
        return UNUSUAL;
    int bounded = nargs == 5 && args[4] != Py_None;
    if ((bounded && !as_word(args[4], INT64_MAX, &remaining)) || !borrow(args[0], &lent))
        return UNUSUAL;
    Frame frame;
    size_t available = offset <= lent.size ? lent.size - (size_t)offset : 0;
    int found = available && is_frame(lent.data + offset, available, bounded ? remaining : available,
                                      (uint32_t)marker, lsn, &frame);
    give_back(&lent);
    return found ? make_frame(NEED(0), offset, &frame) : UNUSUAL;
}

/* The entries of a run, or none; see decode_into. */
static int decode_run(PyObject *self, PyObject *entries, const unsigned char *at, const Run *run, uint64_t lsn)
{
    PyObject *const operations[2] = {NEED(3), NEED(4)};
    Maker maker;
    if (!start_making(&maker, NEED(2), 5))
        return -1;
    int done = 1;
    Py_ssize_t index = 0;
    for (size_t left = run->end; left && done == 1;) { /* lengths are looked at again: see decode_into */
        size_t body_bytes = left < FRAME_BYTES ? 0 : load32(at + 8);
        uint64_t count = left < FRAME_BYTES ? 0 : load32(at + 12);
        if (!count || body_bytes > left - FRAME_BYTES || count > run->entries - (uint64_t)index) {
            done = 0;
            break;
        }
        done = decode_into(entries, index, &maker, operations, at + FRAME_BYTES, body_bytes, count,
                           lsn + (uint64_t)index);
        index += (Py_ssize_t)count;
        at += FRAME_BYTES + body_bytes;
        left -= FRAME_BYTES + body_bytes;
    }
    stop_making(&maker);
    return done == 1 && (uint64_t)index != run->entries ? 0 : done;
}

static PyObject *make_run(PyObject *type, PyObject *frame_type, const Run *run, uint64_t offset, PyObject *entries)
{
    Maker maker;
    PyObject *made = NULL, *last = Py_None;
    if (run->batches)
        last = make_frame(frame_type, offset + run->last, &run->last_frame);
    else
        Py_INCREF(last);
    if (!last || !start_making(&maker, type, 9)) {
        Py_XDECREF(last);
        return NULL;
    }
    Py_INCREF(entries);
    if (set_field(&maker, 7, last) && set_field(&maker, 8, entries) && set_number(&maker, 0, run->end) &&
        set_number(&maker, 1, run->entries) && set_number(&maker, 2, run->next_lsn) &&
        set_number(&maker, 3, run->batches) && set_number(&maker, 4, run->last_append_ns) &&
        set_number(&maker, 5, run->durable_lsn) && set_number(&maker, 6, run->largest_single))
        made = make(&maker);
    stop_making(&maker);
    return made;
}

/* needs Run, Frame, WALEntry, Operation.PUT, Operation.DELETE */
static PyObject *read_run(CALL)
{
    uint64_t offset, marker, lsn, remaining, end_lsn;
    Lent lent;
    if (nargs != 7 || kwnames || !as_word(args[1], PY_SSIZE_T_MAX, &offset) ||
        !as_word(args[2], UINT32_MAX, &marker) || !as_word(args[3], MAX_LSN, &lsn) || !lsn ||
        !as_word(args[4], INT64_MAX, &remaining) || !as_word(args[5], MAX_LSN, &end_lsn) ||
        !PyBool_Check(args[6]) || !borrow(args[0], &lent))
        return UNUSUAL;
    int decode = args[6] == Py_True, done = 1;
    Run run;
    const unsigned char *at = lent.data + (offset <= lent.size ? offset : lent.size);
    size_t available = offset <= lent.size ? lent.size - (size_t)offset : 0;
    find_run(&run, at, available, remaining, (uint32_t)marker, lsn, end_lsn, decode ? RUN_BYTES : SIZE_MAX);
    PyObject *entries = new_list(decode ? run.entries : 0), *made = NULL;
    if (!entries)
        done = -1;
    else if (decode && run.batches)
        done = decode_run(self, entries, at, &run, lsn);
    give_back(&lent);
    if (done == 1) {
        PyObject_GC_Track(entries);
        made = make_run(NEED(0), NEED(1), &run, offset, entries);
    }
    Py_XDECREF(entries);
    return done == 0 ? UNUSUAL : made;
}

#endif
