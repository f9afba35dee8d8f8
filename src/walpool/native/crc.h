/* CRC32C: the checksum of headers and frames, in the processor's own instruction where it has one.
 *
 * Holds: `crc32c` gives what the package of that name gives, whichever way is taken. The tables are written once, when
 * the module is loaded.
 *
 * The instruction's result is ready three cycles after it was asked for, and one can be asked for in every cycle: so
 * long bytes are taken in three lanes at once, and the lanes are put together by what a lane of zeros makes of a value.
 */
#ifndef WALPOOL_CRC_H
#define WALPOOL_CRC_H

#include "bytes.h"

#define POLYNOMIAL 0x82F63B78u
#define LANE 512                  /* bytes */
#define PATIENT_BYTES (64u << 10) /* so many are summed without keeping other threads waiting */

static uint32_t of_byte[8][256];   /* of a byte that so many zero bytes follow */
static uint32_t behind_lane[4][256]; /* what a lane of zeros makes of a value, for each of its bytes */

#if defined(WALPOOL_TABLE_CRC) /* for tests: as on a processor that has none */
#elif defined(__x86_64__) && defined(__GNUC__)
#include <nmmintrin.h>
#define HARDWARE "SSE4.2"
#if defined(__clang__) && __clang_major__ >= 14 /* a feature of its own there, which sse4.2 need not bring */
#define WITH_CRC __attribute__((target("sse4.2,crc32")))
#else
#define WITH_CRC __attribute__((target("sse4.2")))
#endif
#define STEP64(crc, word) ((uint32_t)_mm_crc32_u64(crc, word))
#define STEP8(crc, byte) _mm_crc32_u8(crc, byte)

static int has_hardware(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("sse4.2");
}

#elif defined(__aarch64__) && defined(__GNUC__)
#define HARDWARE "ARMv8"
#define WITH_CRC

static inline uint32_t STEP64(uint32_t crc, uint64_t word)
{
    __asm__(".arch_extension crc\n\tcrc32cx %w0, %w0, %x1" : "+r"(crc) : "r"(word));
    return crc;
}

static inline uint32_t STEP8(uint32_t crc, unsigned char byte)
{
    __asm__(".arch_extension crc\n\tcrc32cb %w0, %w0, %w1" : "+r"(crc) : "r"((uint32_t)byte));
    return crc;
}

#if defined(__linux__)
#include <sys/auxv.h>
static int has_hardware(void)
{
    return (getauxval(AT_HWCAP) >> 7 & 1) != 0; /* HWCAP_CRC32 */
}
#elif defined(__APPLE__)
static int has_hardware(void)
{
    return 1; /* every processor of theirs */
}
#else
static int has_hardware(void)
{
    return 0;
}
#endif
#endif

static uint32_t raw_by_table(uint32_t crc, const unsigned char *at, size_t size)
{
    for (; size >= 8; at += 8, size -= 8) {
        uint32_t low = crc ^ load32(at), high = load32(at + 4);
        crc = of_byte[7][low & 0xFF] ^ of_byte[6][low >> 8 & 0xFF] ^ of_byte[5][low >> 16 & 0xFF] ^
              of_byte[4][low >> 24] ^ of_byte[3][high & 0xFF] ^ of_byte[2][high >> 8 & 0xFF] ^
              of_byte[1][high >> 16 & 0xFF] ^ of_byte[0][high >> 24];
    }
    for (; size; at++, size--)
        crc = crc >> 8 ^ of_byte[0][(crc ^ *at) & 0xFF];
    return crc;
}

static uint32_t (*raw_crc)(uint32_t, const unsigned char *, size_t) = raw_by_table;

#ifdef HARDWARE
static inline uint32_t past_lane(uint32_t crc)
{
    return behind_lane[0][crc & 0xFF] ^ behind_lane[1][crc >> 8 & 0xFF] ^ behind_lane[2][crc >> 16 & 0xFF] ^
           behind_lane[3][crc >> 24];
}

WITH_CRC static uint32_t raw_by_hardware(uint32_t crc, const unsigned char *at, size_t size)
{
    for (; size >= 3 * LANE; at += 3 * LANE, size -= 3 * LANE) {
        uint32_t second = 0, third = 0;
        for (size_t i = 0; i < LANE; i += 8) {
            crc = STEP64(crc, load64(at + i));
            second = STEP64(second, load64(at + LANE + i));
            third = STEP64(third, load64(at + 2 * LANE + i));
        }
        crc = past_lane(past_lane(crc) ^ second) ^ third;
    }
    for (; size >= 8; at += 8, size -= 8)
        crc = STEP64(crc, load64(at));
    for (; size; at++, size--)
        crc = STEP8(crc, *at);
    return crc;
}
#endif

/* Of bytes that are lent: see bytes.h. The interpreter's lock is let go of here, and nowhere else. */
static inline uint32_t crc32c(uint32_t crc, const unsigned char *at, size_t size)
{
    if (size < PATIENT_BYTES)
        return ~raw_crc(~crc, at, size);
    Py_BEGIN_ALLOW_THREADS
    crc = ~raw_crc(~crc, at, size);
    Py_END_ALLOW_THREADS
    return crc;
}

/* Fill the tables, and choose; the name of the way that was chosen. */
static const char *prepare_crc(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = crc >> 1 ^ (POLYNOMIAL & (0u - (crc & 1)));
        of_byte[0][byte] = crc;
    }
    for (int zeros = 1; zeros < 8; zeros++)
        for (int byte = 0; byte < 256; byte++)
            of_byte[zeros][byte] = of_byte[zeros - 1][byte] >> 8 ^ of_byte[0][of_byte[zeros - 1][byte] & 0xFF];
    static const unsigned char lane[LANE];
    for (int place = 0; place < 4; place++)
        for (uint32_t byte = 0; byte < 256; byte++)
            behind_lane[place][byte] = raw_by_table(byte << 8 * place, lane, LANE);
#ifdef HARDWARE
    if (has_hardware()) {
        raw_crc = raw_by_hardware;
        return HARDWARE;
    }
#endif
    return "table";
}

#endif
