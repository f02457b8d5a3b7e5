/*
 * Compaction by key: which records survive, and the map of keys that decides it.
 *
 * The map holds, for every key seen, the offset of its last record. A key is known by two hashes of 64 bits: the
 * XXH64 that is stored with the record, and SipHash-1-3 under a secret of this run. XXH64 has no secret, so somebody
 * can make keys that collide in it; were it the only one, a message could be removed as if it were an old value of
 * another key. The secret hash also says where in the map a key lies, so nobody can make the map slow either.
 *
 * Invariants:
 *
 * - A record whose offset is not below `limit` survives, and so does a record without a key or with an empty one,
 *   unless it has expired.
 * - Of what survives, nothing changes but what is around it: records are copied as they are.
 */
#ifndef LIFTBRIDGE_COMPACT_H
#define LIFTBRIDGE_COMPACT_H

#include "_segment.h"

/* ---- SipHash-1-3 ---- */

#define SIP_ROUND(a, b, c, d)                                                                                        \
    do {                                                                                                             \
        a += b, b = rotate_left(b, 13) ^ a, a = rotate_left(a, 32);                                                  \
        c += d, d = rotate_left(d, 16) ^ c;                                                                          \
        a += d, d = rotate_left(d, 21) ^ a;                                                                          \
        c += b, b = rotate_left(b, 17) ^ c, c = rotate_left(c, 32);                                                  \
    } while (0)

static uint64_t siphash13(const uint64_t secret[2], const uint8_t *data, size_t length)
{
    uint64_t a = secret[0] ^ 0x736F6D6570736575ull, b = secret[1] ^ 0x646F72616E646F6Dull;
    uint64_t c = secret[0] ^ 0x6C7967656E657261ull, d = secret[1] ^ 0x7465646279746573ull;
    uint64_t word, last = (uint64_t)length << 56;
    const uint8_t *end = data + length / 8 * 8;

    for (; data < end; data += 8) {
        word = load_u64(data);
        d ^= word;
        SIP_ROUND(a, b, c, d);
        a ^= word;
    }
    for (size_t i = 0; i < length % 8; i++)
        last |= (uint64_t)data[i] << (8 * i);
    d ^= last;
    SIP_ROUND(a, b, c, d);
    a ^= last;
    c ^= 0xFF;
    for (int i = 0; i < 3; i++)
        SIP_ROUND(a, b, c, d);
    return a ^ b ^ c ^ d;
}

/* ---- the map ---- */

typedef struct {
    uint64_t secret_hash, stored_hash;
    int64_t behind; /* the offset behind the key's last record; 0 while the slot is free */
} key_slot;

typedef struct {
    key_slot *slots;
    uint32_t capacity, room, used; /* at most `room` slots are used, so that a search meets a free one soon */
    uint64_t secret[2];
} key_map;

/* Where the search for a key begins. */
static inline size_t key_home(const key_map *map, uint64_t secret_hash)
{
    return (size_t)((secret_hash >> 32) * map->capacity >> 32);
}

/* The slot of a key, or the free one where it would go. */
static inline key_slot *key_find(const key_map *map, uint64_t secret_hash, uint64_t stored_hash)
{
    size_t at = key_home(map, secret_hash);
    for (;; at = at + 1 == map->capacity ? 0 : at + 1) {
        key_slot *slot = &map->slots[at];
        if (slot->behind == 0 || (slot->secret_hash == secret_hash && slot->stored_hash == stored_hash))
            return slot;
    }
}

/* ---- a record as compaction sees it ---- */

typedef struct {
    const uint8_t *start, *end;
    int64_t offset, timestamp, expiry;
    uint64_t secret_hash, stored_hash; /* of the key */
    uint16_t flags;
    uint8_t keyed; /* has a key that is not empty: an empty one counts as none */
} compact_record;

/* The map is far larger than a cache, so records are taken in groups whose slots are fetched side by side. */
#define GROUP 32

/* Where the key's bytes are: behind timestamp, subject and reply subject; NULL when they are not there. */
static inline const uint8_t *record_key(const record_ref *ref, const uint8_t *stop, uint32_t length)
{
    const uint8_t *at;
    uint64_t timestamp;
    if (ref->reply_len)
        at = ref->payload + ref->reply_at + ref->reply_len;
    else if (ref->subject_len)
        at = ref->payload + ref->subject_at + ref->subject_len;
    else if ((at = varint_read(ref->payload + 1, stop, &timestamp)) == NULL)
        return NULL;
    at = field_skip(at, stop, TAG_KEY, length);
    return at == NULL ? NULL : at - length;
}

/* Checks the record at p. Returns the byte after it, or NULL when it is malformed. */
static inline const uint8_t *compact_record_check(const key_map *map, const uint8_t *p, const uint8_t *end,
                                                  const batch_info *info, int64_t *last_delta,
                                                  compact_record *record)
{
    record_ref ref;
    uint32_t delta;
    const uint8_t *stop = record_check(p, end, &delta, &record->timestamp, &ref);
    if (stop == NULL || (int64_t)delta <= *last_delta || delta > info->last_delta)
        return NULL;
    *last_delta = delta;
    record->start = p;
    record->end = stop;
    record->offset = info->base_offset + delta;
    record->expiry = ref.expiry;
    record->flags = load_u16(p + 8);
    record->keyed = 0;
    if (record->flags & RECORD_HAS_KEY) {
        uint32_t key_len = load_u32(p + RECORD_HEADER + 8);
        const uint8_t *key = record_key(&ref, stop, key_len);
        if (key == NULL)
            return NULL;
        if (key_len) {
            record->keyed = 1;
            record->stored_hash = load_u64(p + RECORD_HEADER);
            record->secret_hash = siphash13(map->secret, key, key_len);
            __builtin_prefetch(&map->slots[key_home(map, record->secret_hash)], 1);
        }
    }
    return stop;
}

typedef struct {
    const uint8_t *next, *end; /* where the next record begins, where the records end */
    int64_t last_delta;
    uint32_t left; /* records behind this group */
    int count;
    compact_record records[GROUP];
} record_group;

static inline void group_begin(record_group *group, const uint8_t *records, const batch_info *info)
{
    group->next = records;
    group->end = records + info->raw_length;
    group->last_delta = -1;
    group->left = info->count;
    group->count = 0;
}

/* Reads the next records of the batch; group->count is 0 behind the last. Returns NULL, or what is wrong with them. */
static const char *group_read(record_group *group, const key_map *map, const batch_info *info)
{
    group->count = 0;
    if (group->left == 0)
        return group->next == group->end ? NULL : "bytes are left over after its records";
    while (group->left && group->count < GROUP) {
        group->next = compact_record_check(map, group->next, group->end, info, &group->last_delta,
                                           &group->records[group->count]);
        if (group->next == NULL)
            return "a record in it is malformed";
        group->count++;
        group->left--;
    }
    return NULL;
}

/*
 * Notes the keys of those records of a checked batch that have first <= offset < limit. Sets *stop to the first
 * offset that is not noted because it reaches the limit or the map is full; leaves it alone when there is none.
 * Returns NULL, or what is wrong with the batch.
 */
static const char *keys_note(key_map *map, const uint8_t *records, const batch_info *info, int64_t first,
                             int64_t limit, int64_t *stop)
{
    const char *reason;
    record_group group;

    group_begin(&group, records, info);
    while ((reason = group_read(&group, map, info)) == NULL && group.count)
        for (int i = 0; i < group.count; i++) {
            const compact_record *record = &group.records[i];
            if (record->offset >= limit) {
                *stop = limit;
                return NULL;
            }
            if (record->offset < first || !record->keyed)
                continue;
            key_slot *slot = key_find(map, record->secret_hash, record->stored_hash);
            if (slot->behind == 0) {
                if (map->used == map->room) {
                    *stop = record->offset;
                    return NULL;
                }
                map->used++;
                slot->secret_hash = record->secret_hash;
                slot->stored_hash = record->stored_hash;
            }
            slot->behind = record->offset + 1;
        }
    return reason;
}

/* ---- what survives ---- */

typedef struct {
    int64_t limit;            /* nothing at or above this offset is removed */
    int64_t tombstones_below; /* tombstones below this offset have been kept for long enough */
    int64_t expired_below;    /* records below this offset may go when they have expired */
    int64_t now;              /* ns since the epoch */
    int64_t counted_from;     /* tombstones from this offset on are counted, up to the limit */
} survival;

typedef struct {
    size_t length; /* bytes of records */
    uint32_t count, tombstones;
    int64_t first_timestamp, last_timestamp;
    uint16_t attributes;
} survivors;

static inline int record_survives(const key_map *map, const survival *rules, const compact_record *record)
{
    if (record->offset >= rules->limit)
        return 1;
    if (record->expiry && record->expiry <= rules->now && record->offset < rules->expired_below)
        return 0;
    if (!record->keyed)
        return 1;
    if (!(record->flags & RECORD_HAS_VALUE) && record->offset < rules->tombstones_below)
        return 0;
    return key_find(map, record->secret_hash, record->stored_hash)->behind <= record->offset + 1;
}

static inline void survivor_count(survivors *kept, const survival *rules, const compact_record *record)
{
    if (kept->count++ == 0)
        kept->first_timestamp = record->timestamp;
    kept->last_timestamp = record->timestamp;
    kept->length += (size_t)(record->end - record->start);
    if (record->flags & RECORD_EXPIRES)
        kept->attributes |= BATCH_EXPIRY;
    if ((record->flags & RECORD_HAS_KEY) && !(record->flags & RECORD_HAS_VALUE)) {
        kept->attributes |= BATCH_TOMBSTONES;
        kept->tombstones += record->keyed && record->offset >= rules->counted_from && record->offset < rules->limit;
    }
}

static inline uint8_t *run_copy(uint8_t *out, const uint8_t *run, const uint8_t *end)
{
    if (out == NULL || run == end)
        return out;
    memcpy(out, run, (size_t)(end - run));
    return out + (end - run);
}

/*
 * Copies the surviving records of a checked batch to `out`, which has room for all of them, or only counts them when
 * it is NULL. Returns NULL, or what is wrong with the batch.
 */
static const char *survivors_copy(const key_map *map, const survival *rules, const uint8_t *records,
                                  const batch_info *info, uint8_t *out, survivors *kept)
{
    const uint8_t *run = records; /* what survives and is not copied yet begins here */
    const char *reason;
    record_group group;

    memset(kept, 0, sizeof *kept);
    group_begin(&group, records, info);
    while ((reason = group_read(&group, map, info)) == NULL && group.count)
        for (int i = 0; i < group.count; i++) {
            const compact_record *record = &group.records[i];
            if (record_survives(map, rules, record)) {
                survivor_count(kept, rules, record);
                continue;
            }
            out = run_copy(out, run, record->start);
            run = record->end;
        }
    if (reason == NULL)
        run_copy(out, run, group.end);
    return reason;
}

/*
 * Makes of a batch's header that of its survivors. Offset, last delta and epoch stay; a batch without survivors is a
 * control batch afterwards, which says where the epoch began.
 */
static inline void survivors_header(batch_info *info, const survivors *kept)
{
    info->attributes = kept->count ? kept->attributes : BATCH_CONTROL;
    info->count = kept->count;
    info->raw_length = (uint32_t)kept->length;
    info->length = BATCH_HEADER + info->raw_length;
    info->prev_crc = 0; /* the batch in front of it may be another one now */
    if (kept->count) {
        info->base_timestamp = kept->first_timestamp;
        info->max_timestamp = kept->last_timestamp;
    } else {
        info->last_delta = 0;
        info->max_timestamp = info->base_timestamp;
    }
}

#endif
