/* Sums standard input, for processors that no test runs on: see test_builds.py.
 *
 * Prints how this processor sums, then for each three arguments (start, size, value before) the sum as it does and by
 * the tables.
 */
#include <Python.h>
#include <stdio.h>
#include <stdlib.h>
#undef Py_BEGIN_ALLOW_THREADS
#undef Py_END_ALLOW_THREADS
#define Py_BEGIN_ALLOW_THREADS {
#define Py_END_ALLOW_THREADS }
#include "../../src/walpool/native/crc.h"

static unsigned char data[1 << 20];

int main(int count, char **args)
{
    if (!fread(data, 1, sizeof data, stdin))
        return 1;
    puts(prepare_crc());
    for (int at = 1; at + 2 < count; at += 3) {
        const unsigned char *from = data + strtoul(args[at], NULL, 10);
        size_t size = strtoul(args[at + 1], NULL, 10);
        uint32_t before = (uint32_t)strtoul(args[at + 2], NULL, 10);
        printf("%u %u\n", crc32c(before, from, size), ~raw_by_table(~before, from, size));
    }
    return 0;
}
