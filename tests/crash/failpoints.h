/* Failpoints: where an append of the core dies, is interrupted, or has a call of the system that fails. For tests alone.
 *
 * Holds: one of them is armed at a time, by `walpool_arm`; it strikes once.
 */
#include <signal.h>
#include <string.h>

enum { KILL = -1, SIGNAL = -2, SHORT = -3, TORN = -4, STOP_HERE = -5 }; /* what happens there; else the number of an error */

static const char *armed_point = "";
static int armed_what;
static long armed_left, times_met[32];

static const char *const points[] = {"entered", "locked",  "intent",   "written", "storing", "filling", "filled", "committed",
                                     "unlocking", "unlocked", "waking", "flock",   "unlock",  "pwrite", "pwritev", NULL};

#define SHOWN __attribute__((visibility("default")))

SHOWN void walpool_arm(const char *point, int what, long after)
{
    armed_point = strdup(point);
    armed_what = what;
    armed_left = after;
    memset(times_met, 0, sizeof times_met);
}

SHOWN long walpool_met(const char *point)
{
    for (int at = 0; points[at]; at++)
        if (strcmp(points[at], point) == 0)
            return times_met[at];
    return -1;
}

/* Whether the point is armed, and this is the time. */
static int strikes(const char *point)
{
    for (int at = 0; points[at]; at++)
        if (strcmp(points[at], point) == 0)
            times_met[at]++;
    return strcmp(point, armed_point) == 0 && armed_left-- == 0;
}

static void at_point(const char *point)
{
    if (!strikes(point))
        return;
    if (armed_what == KILL)
        kill(getpid(), SIGKILL);
    else if (armed_what == SIGNAL)
        raise(SIGUSR1);
    else if (armed_what == STOP_HERE)
        raise(SIGSTOP);
}

#define AT(point) at_point(#point);

static int failing_flock(int fd, int operation)
{
    if (strikes(operation == LOCK_UN ? "unlock" : "flock")) {
        errno = armed_what;
        return -1;
    }
    return flock(fd, operation);
}

static ssize_t struck(ssize_t written)
{
    if (armed_what == TORN)
        kill(getpid(), SIGKILL);
    return written;
}

static ssize_t failing_pwrite(int fd, const void *data, size_t size, off_t offset)
{
    if (!strikes("pwrite"))
        return pwrite(fd, data, size, offset);
    if (armed_what == SHORT || armed_what == TORN)
        return struck(pwrite(fd, data, size / 2, offset));
    errno = armed_what;
    return -1;
}

static ssize_t failing_pwritev(int fd, const struct iovec *pieces, int count, off_t offset)
{
    if (!strikes("pwritev"))
        return pwritev(fd, pieces, count, offset);
    if (armed_what == SHORT || armed_what == TORN)
        return struck(pwritev(fd, pieces, count - 1, offset)); /* all but the last piece */
    errno = armed_what;
    return -1;
}

#define flock(fd, operation) failing_flock(fd, operation)
#define pwrite(fd, data, size, offset) failing_pwrite(fd, data, size, offset)
#define pwritev(fd, pieces, count, offset) failing_pwritev(fd, pieces, count, offset)
