/*
 * CRC-32C (Castagnoli) and XXH64, the two checksums of the log.
 *
 * CRC-32C guards every batch. Three implementations give the same result: the x86 crc32 instruction in three
 * interleaved streams (the instruction has a latency of three cycles, so one stream leaves two thirds of the
 * unit idle), the ARMv8 instruction, and a table walk of eight bytes a step for every other processor. The
 * choice is made once, by crc32c_init(), which must run before anything else here.
 *
 * XXH64 (seed 0) is the hash of a record's key, stored next to the record so that compaction need not decode it.
 *
 * CRCs are passed around in their usual, finished form: crc32c(crc32c(0, a), b) is the CRC of a followed by b.
 */
#ifndef LIFTBRIDGE_CRC32C_H
#define LIFTBRIDGE_CRC32C_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if !defined(__BYTE_ORDER__) || __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the log is written as little-endian memory images; this processor is not little-endian"
#endif

#if defined(__x86_64__)
#include <nmmintrin.h>
#define CRC32C_HARDWARE_X86 1
#elif defined(__aarch64__)
#include <arm_acle.h>
#if defined(__linux__)
#include <sys/auxv.h>
#ifndef HWCAP_CRC32
#define HWCAP_CRC32 (1 << 7)
#endif
#endif
#define CRC32C_HARDWARE_ARM 1
#endif

#define CRC32C_POLYNOMIAL 0x82F63B78u /* reflected */
#define CRC32C_LANE 1024              /* bytes each of the three interleaved streams takes per round */

typedef uint32_t (*crc32c_function)(uint32_t crc, const uint8_t *data, size_t length);

static uint32_t crc32c_table[8][256];
static uint32_t crc32c_lane_shift[4][256]; /* the effect of CRC32C_LANE zero bytes on a CRC, byte by byte */
static crc32c_function crc32c_chosen;
static const char *crc32c_chosen_name;

static inline uint32_t load_u32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return v; }
static inline uint64_t load_u64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return v; }
static inline uint16_t load_u16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return v; }
static inline void store_u16(uint8_t *p, uint16_t v) { memcpy(p, &v, 2); }
static inline void store_u32(uint8_t *p, uint32_t v) { memcpy(p, &v, 4); }
static inline void store_u64(uint8_t *p, uint64_t v) { memcpy(p, &v, 8); }

static uint32_t crc32c_by_table(uint32_t crc, const uint8_t *data, size_t length)
{
    crc = ~crc;
    while (length >= 8) {
        uint32_t low = load_u32(data) ^ crc, high = load_u32(data + 4);
        crc = crc32c_table[7][low & 0xFF] ^ crc32c_table[6][(low >> 8) & 0xFF] ^
              crc32c_table[5][(low >> 16) & 0xFF] ^ crc32c_table[4][low >> 24] ^
              crc32c_table[3][high & 0xFF] ^ crc32c_table[2][(high >> 8) & 0xFF] ^
              crc32c_table[1][(high >> 16) & 0xFF] ^ crc32c_table[0][high >> 24];
        data += 8;
        length -= 8;
    }
    while (length--)
        crc = crc32c_table[0][(crc ^ *data++) & 0xFF] ^ (crc >> 8);
    return ~crc;
}

static inline uint32_t crc32c_shift_lane(uint32_t crc)
{
    return crc32c_lane_shift[0][crc & 0xFF] ^ crc32c_lane_shift[1][(crc >> 8) & 0xFF] ^
           crc32c_lane_shift[2][(crc >> 16) & 0xFF] ^ crc32c_lane_shift[3][crc >> 24];
}

#if defined(CRC32C_HARDWARE_X86)
__attribute__((target("sse4.2")))
static uint32_t crc32c_by_hardware(uint32_t crc, const uint8_t *data, size_t length)
{
    uint64_t a = ~crc;
    while (length >= 3 * CRC32C_LANE) {
        uint64_t b = 0, c = 0;
        for (size_t i = 0; i < CRC32C_LANE; i += 8) {
            a = _mm_crc32_u64(a, load_u64(data + i));
            b = _mm_crc32_u64(b, load_u64(data + CRC32C_LANE + i));
            c = _mm_crc32_u64(c, load_u64(data + 2 * CRC32C_LANE + i));
        }
        a = crc32c_shift_lane((uint32_t)a) ^ (uint32_t)b;
        a = crc32c_shift_lane((uint32_t)a) ^ (uint32_t)c;
        data += 3 * CRC32C_LANE;
        length -= 3 * CRC32C_LANE;
    }
    while (length >= 8) {
        a = _mm_crc32_u64(a, load_u64(data));
        data += 8;
        length -= 8;
    }
    while (length--)
        a = _mm_crc32_u8((uint32_t)a, *data++);
    return ~(uint32_t)a;
}

static int crc32c_hardware_present(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("sse4.2");
}
#elif defined(CRC32C_HARDWARE_ARM)
#if defined(__clang__)
__attribute__((target("crc")))
#else
__attribute__((target("+crc")))
#endif
static uint32_t crc32c_by_hardware(uint32_t crc, const uint8_t *data, size_t length)
{
    uint32_t a = ~crc;
    while (length >= 3 * CRC32C_LANE) {
        uint32_t b = 0, c = 0;
        for (size_t i = 0; i < CRC32C_LANE; i += 8) {
            a = __crc32cd(a, load_u64(data + i));
            b = __crc32cd(b, load_u64(data + CRC32C_LANE + i));
            c = __crc32cd(c, load_u64(data + 2 * CRC32C_LANE + i));
        }
        a = crc32c_shift_lane(a) ^ b;
        a = crc32c_shift_lane(a) ^ c;
        data += 3 * CRC32C_LANE;
        length -= 3 * CRC32C_LANE;
    }
    while (length >= 8) {
        a = __crc32cd(a, load_u64(data));
        data += 8;
        length -= 8;
    }
    while (length--)
        a = __crc32cb(a, *data++);
    return ~a;
}

static int crc32c_hardware_present(void)
{
#if defined(__linux__)
    return (getauxval(AT_HWCAP) & HWCAP_CRC32) != 0;
#else
    return 1; /* every 64-bit ARM Mac has it */
#endif
}
#else
#define crc32c_by_hardware crc32c_by_table
static int crc32c_hardware_present(void) { return 0; }
#endif

static void crc32c_init(void)
{
    static const uint8_t zeros[CRC32C_LANE];
    uint32_t basis[32];

    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t crc = byte;
        for (int bit = 0; bit < 8; bit++)
            crc = (crc >> 1) ^ ((crc & 1) ? CRC32C_POLYNOMIAL : 0);
        crc32c_table[0][byte] = crc;
    }
    for (int step = 1; step < 8; step++)
        for (int byte = 0; byte < 256; byte++) {
            uint32_t before = crc32c_table[step - 1][byte];
            crc32c_table[step][byte] = (before >> 8) ^ crc32c_table[0][before & 0xFF];
        }
    /* Appending zeros is linear in the CRC register: what it does to each bit gives what it does to any value. */
    for (int bit = 0; bit < 32; bit++)
        basis[bit] = ~crc32c_by_table(~((uint32_t)1 << bit), zeros, CRC32C_LANE);
    for (int byte = 0; byte < 4; byte++)
        for (uint32_t value = 0; value < 256; value++) {
            uint32_t crc = 0;
            for (int bit = 0; bit < 8; bit++)
                if (value & (1u << bit))
                    crc ^= basis[8 * byte + bit];
            crc32c_lane_shift[byte][value] = crc;
        }
    if (crc32c_hardware_present()) {
        crc32c_chosen = crc32c_by_hardware;
        crc32c_chosen_name = "hardware";
    } else {
        crc32c_chosen = crc32c_by_table;
        crc32c_chosen_name = "table";
    }
}

static inline uint32_t crc32c_any(uint32_t crc, const uint8_t *data, size_t length)
{
    return crc32c_chosen(crc, data, length);
}

#define XXH64_P1 0x9E3779B185EBCA87ull
#define XXH64_P2 0xC2B2AE3D27D4EB4Full
#define XXH64_P3 0x165667B19E3779F9ull
#define XXH64_P4 0x85EBCA77C2B2AE63ull
#define XXH64_P5 0x27D4EB2F165667C5ull

static inline uint64_t rotate_left(uint64_t v, int by) { return (v << by) | (v >> (64 - by)); }

static inline uint64_t xxh64_round(uint64_t lane, uint64_t input)
{
    return rotate_left(lane + input * XXH64_P2, 31) * XXH64_P1;
}

static uint64_t xxh64(const uint8_t *data, size_t length)
{
    const uint8_t *p = data, *end = data + length;
    uint64_t hash;

    if (length >= 32) {
        uint64_t lane[4] = {XXH64_P1 + XXH64_P2, XXH64_P2, 0, 0 - XXH64_P1};
        for (; end - p >= 32; p += 32)
            for (int i = 0; i < 4; i++)
                lane[i] = xxh64_round(lane[i], load_u64(p + 8 * i));
        hash = rotate_left(lane[0], 1) + rotate_left(lane[1], 7) + rotate_left(lane[2], 12) +
               rotate_left(lane[3], 18);
        for (int i = 0; i < 4; i++)
            hash = (hash ^ xxh64_round(0, lane[i])) * XXH64_P1 + XXH64_P4;
    } else {
        hash = XXH64_P5;
    }
    hash += length;
    for (; end - p >= 8; p += 8)
        hash = rotate_left(hash ^ xxh64_round(0, load_u64(p)), 27) * XXH64_P1 + XXH64_P4;
    if (end - p >= 4) {
        hash = rotate_left(hash ^ load_u32(p) * XXH64_P1, 23) * XXH64_P2 + XXH64_P3;
        p += 4;
    }
    for (; p < end; p++)
        hash = rotate_left(hash ^ *p * XXH64_P5, 11) * XXH64_P1;
    hash = (hash ^ (hash >> 33)) * XXH64_P2;
    hash = (hash ^ (hash >> 29)) * XXH64_P3;
    return hash ^ (hash >> 32);
}

#endif
