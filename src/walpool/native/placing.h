/* Placing: one frame behind the last, from the lock to the counts. The twin of the plain case in write/place.py.
 *
 * Holds: nothing here knows of Python, so that it runs with the interpreter's lock and without it, and no signal handler,
 * finaliser or interrupt comes into the middle. What is not plain changes nothing but bytes behind the tail, which are
 * nobody's, and the note that an append is under way.
 * Lock: the mutex, of whoever calls.
 *
 * The layout of the words is in shared/control.py and shared/slot_rows.py: see `layout`.
 */
#ifndef WALPOOL_PLACING_H
#define WALPOOL_PLACING_H

#include <errno.h>
#include <sys/file.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif

#include "crc.h"

#ifdef WALPOOL_FAILPOINTS
#include WALPOOL_FAILPOINTS /* for tests alone: where to die, and calls of the system that fail */
#else
#define AT(point)
#endif

enum { STOP = 6, COMMIT = 16, INTENT = 17, DURABLE = 24, COPY_A = 32, COPY_B = 48, GROWTH = 64, GROWN = 65 };
enum { SEGMENT, SEQUENCE, MARKER, TAIL, NEXT_LSN, LAST_NS, ENTRIES, FRAMES, BYTES, MAX_ENTRY, LAST_FRAME, FIELDS };
enum { ROW_BATCHES = 16, ROW_MORE = 17, ROW_BYTES = 18, ROW_SIZES = 1328, SIZES = 400 };
#define FRAME_BYTES 48u
#define PIECES 4 /* of a frame at most: its header, then the body */
#define GATHERED 4096u /* a frame that is written from one place: three cost more than this copy */
#define UNLOCK_TRIES 8

/* What write/place.py has by the same names, as it was when names were compared last. */
typedef struct {
    uint64_t *words, *row; /* row: NULL where nothing is counted */
    unsigned char *mapped; /* the segment's first byte, where frames are stored; NULL where they are written */
    uint64_t first_lsn, ready_to, next_look_lsn, looked_ns, next_look_ns;
    uint32_t marker;
    int fd, lock_fd;
    uint16_t slot;
} Ready;

/* A frame that is to be placed. */
typedef struct {
    struct iovec pieces[PIECES];
    int count_of_pieces;
    uint32_t body_bytes, count, body_crc, marker;
    uint64_t largest;
    unsigned char header[FRAME_BYTES], entry[16];
} Wanted;

static inline uint64_t look(const uint64_t *word)
{
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline void store(uint64_t *word, uint64_t value)
{
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

static uint64_t wall_ns(void)
{
    struct timespec now;
    return clock_gettime(CLOCK_REALTIME, &now) == 0 && now.tv_sec >= 0
               ? (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec
               : 0; /* Python says what it thinks of such a clock */
}

static void add_piece(Wanted *wanted, const void *at, size_t size)
{
    wanted->pieces[wanted->count_of_pieces++] = (struct iovec){(void *)(uintptr_t)at, size};
    wanted->body_bytes += (uint32_t)size;
}

static void start_frame(Wanted *wanted, const Ready *ready, uint64_t count, uint64_t largest)
{
    wanted->pieces[0] = (struct iovec){wanted->header, FRAME_BYTES};
    wanted->count_of_pieces = 1;
    wanted->body_bytes = 0;
    wanted->count = (uint32_t)count;
    wanted->largest = largest;
    wanted->marker = ready->marker;
}

/* Before the lock: nobody waits for it. With the interpreter's, which a large sum lets go of. */
static void sum_body(Wanted *wanted)
{
    wanted->body_crc = wanted->marker;
    for (int at = 1; at < wanted->count_of_pieces; at++)
        wanted->body_crc = crc32c(wanted->body_crc, wanted->pieces[at].iov_base, wanted->pieces[at].iov_len);
}

static int write_frame(int fd, const Wanted *wanted, uint64_t offset)
{
    size_t size = (size_t)FRAME_BYTES + wanted->body_bytes;
    if (size > GATHERED)
        return pwritev(fd, wanted->pieces, wanted->count_of_pieces, (off_t)offset) == (ssize_t)size;
    unsigned char frame[GATHERED], *to = frame;
    for (int at = 0; at < wanted->count_of_pieces; to += wanted->pieces[at++].iov_len)
        memcpy(to, wanted->pieces[at].iov_base, wanted->pieces[at].iov_len);
    return pwrite(fd, frame, size, (off_t)offset) == (ssize_t)size;
}

/* Into pages that the file has: see write/appender.py. */
static void store_frame(unsigned char *to, const Wanted *wanted)
{
    __atomic_thread_fence(__ATOMIC_RELEASE); /* behind the note that an append is under way */
    for (int at = 0; at < wanted->count_of_pieces; to += wanted->pieces[at++].iov_len) {
        memcpy(to, wanted->pieces[at].iov_base, wanted->pieces[at].iov_len);
        AT(storing)
    }
}

/* Publish the frame; its first LSN, or 0. Lock: append. */
static uint64_t publish(const Ready *ready, Wanted *wanted, uint64_t *commit)
{
    uint64_t *words = ready->words, frame_bytes = (uint64_t)FRAME_BYTES + wanted->body_bytes;
    *commit = look(words + COMMIT);
    uint64_t *state = words + (*commit & 1 ? COPY_B : COPY_A), *next = words + (*commit & 1 ? COPY_A : COPY_B);
    uint64_t tail = state[TAIL], lsn = state[NEXT_LSN], now = wall_ns(), figures = *commit;
    for (int field = 0; field < FIELDS; field++)
        figures |= state[field];
    if (!lsn || figures >> 63 || /* no log has such: 0 says "not done", and a sum must not pass 64 bits */
        look(words + STOP) || state[SEGMENT] != ready->first_lsn || state[MARKER] != wanted->marker ||
        tail > ready->ready_to || frame_bytes > ready->ready_to - tail || lsn >= ready->next_look_lsn ||
        now < ready->looked_ns || now >= ready->next_look_ns)
        return 0;
    if (now < state[LAST_NS])
        now = state[LAST_NS]; /* the clock was set back; appended_at never is */
    unsigned char *at = store32(wanted->header + 8, wanted->body_bytes);
    at = store64(store64(store32(at, wanted->count), lsn), now);
    at = store32(store64(at, look(words + DURABLE)), wanted->body_bytes);
    store32(at, (uint32_t)ready->slot << 16);
    store32(wanted->header, wanted->marker);
    store32(wanted->header + 4, crc32c(wanted->body_crc, wanted->header + 8, FRAME_BYTES - 8));
    AT(locked)
    store(words + INTENT, *commit + ((uint64_t)ready->slot << 48) + 1);
    AT(intent)
    if (ready->mapped)
        store_frame(ready->mapped + tail, wanted);
    else if (!write_frame(ready->fd, wanted, tail))
        return 0; /* Python writes it again, and says what is wrong */
    AT(written)
    const uint64_t filled[FIELDS] = {
        state[SEGMENT], state[SEQUENCE], state[MARKER], tail + frame_bytes, lsn + wanted->count, now,
        state[ENTRIES] + wanted->count, state[FRAMES] + 1, state[BYTES] + frame_bytes,
        wanted->largest > state[MAX_ENTRY] ? wanted->largest : state[MAX_ENTRY], tail};
    for (int field = 0; field < FIELDS; field++) {
        AT(filling)
        store(next + field, filled[field]);
    }
    AT(filled)
    __atomic_store_n(words + COMMIT, *commit + 1, __ATOMIC_RELEASE); /* last: this one store publishes all of it */
    AT(committed)
    return lsn;
}

static void count_frame(const Ready *ready, uint64_t count, uint64_t frame_bytes)
{
    uint64_t *row = ready->row;
    if (!row)
        return;
    store(row + ROW_BATCHES, row[ROW_BATCHES] + 1);
    store(row + ROW_BYTES, row[ROW_BYTES] + frame_bytes);
    if (count == 1)
        return;
    store(row + ROW_MORE, row[ROW_MORE] + count - 1);
    uint64_t octave = 0; /* bucket_of: see figures/histogram.py */
    while (count >> octave >= 32)
        octave++;
    uint64_t bucket = octave * 16 + (count >> octave);
    row += ROW_SIZES + (bucket < SIZES ? bucket : SIZES - 1);
    store(row, *row + 1);
}

/* Wake who waits for the log to grow: see shared/wakeups.py. Lock: none. */
static void wake(const Ready *ready, uint64_t commit)
{
    uint64_t *words = ready->words;
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
    if (!look(words + GROWTH))
        return;
    store(words + GROWTH, 0);
    uint32_t *woken = (uint32_t *)(words + GROWN);
    __atomic_store_n(woken, (uint32_t)commit, __ATOMIC_RELEASE);
    AT(waking)
#ifdef SYS_futex
    syscall(SYS_futex, woken, 1 /* FUTEX_WAKE */, INT32_MAX, NULL, NULL, 0);
#endif
}

/* With the mutex, from the lock to the counts. */
static uint64_t lock_and_publish(const Ready *ready, Wanted *wanted, int operation)
{
    uint64_t commit;
    AT(entered)
    if (flock(ready->lock_fd, operation) != 0)
        return 0; /* it is not free, or a signal came: then Python runs its handler, and nothing is held */
    uint64_t lsn = publish(ready, wanted, &commit);
    AT(unlocking)
    for (int tries = 0; flock(ready->lock_fd, LOCK_UN) != 0 && tries < UNLOCK_TRIES; tries++)
        ;
    AT(unlocked)
    if (lsn) {
        count_frame(ready, wanted->count, (uint64_t)FRAME_BYTES + wanted->body_bytes);
        wake(ready, commit);
    }
    return lsn;
}

#endif
