/*
 * The batch: how records lie in a segment file, how they are checked, and how they leave as gRPC frames.
 *
 * All integers are little-endian. A batch is an 80-byte header and its records:
 *
 *    0  u32  magic, never zero: a zero word where a batch should begin is the end of the data
 *    4  u32  length of the whole batch, header included
 *    8  u32  CRC-32C of everything after this field, body included
 *   12  u16  attributes: bits 0-2 codec of the body (0 none, 1 lz4, 2 zstd), 3 encrypted, 4 control,
 *            5 has tombstones, 6 has records that expire; others are refused unless zero
 *   14  u16  version of this header, 1
 *   16  i64  base offset: the offset of a record is this plus its delta
 *   24  u32  last offset delta
 *   28  u32  number of records; less than last delta + 1 once compaction has removed some
 *   32  u64  leader epoch
 *   40  i64  timestamp of the first record, ns since the epoch
 *   48  i64  largest timestamp of the batch
 *   56  i64  producer id, -1 for none
 *   64  i32  first sequence, -1 for none
 *   68  i16  producer epoch, -1 for none
 *   70  u16  how many records in front of this batch were not known to be on disk when it was written; from 32768
 *            on in steps of 128. A batch that is there so proves what else was
 *   72  u32  CRC of the batch before this one in the log, 0 when there is none or when it may be another one
 *   76  u32  length of the records, before compression and encryption
 *
 * The body is the records, compressed and then encrypted as the attributes say (log/codec.py); the checksum is over
 * the body as it is stored, so a file can be checked without a key. A control batch has no records and no body. It
 * says that the leader epoch in its header begins at its base offset, and takes no offset itself; or, with a last
 * offset delta that is not 0, that so many offsets from its base on had their records removed before this log was
 * copied from another one.
 *
 * A record:
 *
 *    0  u32  length of the whole record, these fields included
 *    4  u32  offset delta
 *    8  u16  flags: 1 has a key, 2 has a value (an absent value is a tombstone, an empty one is not), 4 expires
 *   10  u16  length of the subject
 *   12  u16  length of the reply subject
 *   14  u16  reserved, zero
 *   16  u64  XXH64 of the key   } only with flag 1
 *   24  u32  length of the key  }
 *        i64  when the record expires, ns since the epoch; only with flag 4
 *        .   payload: fields of the client's Message as protobuf encodes them, in this order: timestamp (4,
 *            always), subject (7, unless empty), replySubject (8, unless empty), key (2, with flag 1),
 *            value (3, unless empty), entries of headers (9)
 *
 * The payload is what does not change between subscribers, so a frame is a few bytes in front of it and the
 * two header entries that the server always adds behind it. They come last because the last entry of a map
 * wins: a publisher's own "subject" or "reply" header is overridden without looking for it.
 *
 * Invariant: nothing of a batch but its length is used before batch_check has accepted it, and no record
 * before record_check has; both accept any bytes. What a codec made of a body is as little trusted as the body.
 */
#ifndef LIFTBRIDGE_BATCH_H
#define LIFTBRIDGE_BATCH_H

#include <stdlib.h>

#include "_crc32c.h"

#define BATCH_MAGIC 0x4C42AB0Eu
#define BATCH_VERSION 1
#define BATCH_HEADER 80
#define BATCH_MAX (128u * 1024 * 1024) /* a record may be as long as NATS' largest payload, 64 MiB */

#define BATCH_CODEC 7
#define BATCH_ENCRYPTED 8
#define BATCH_CONTROL 16
#define BATCH_TOMBSTONES 32
#define BATCH_EXPIRY 64
#define BATCH_CODED (BATCH_CODEC | BATCH_ENCRYPTED) /* the body is not the records themselves */
#define BATCH_CODEC_LAST 2
#define CODED_SLACK 64 /* bytes that a coded body may be longer than its records: nonce and tag, with room */

#define RECORD_HEADER 16
#define RECORD_KEY_HEADER 12
#define RECORD_EXPIRY_HEADER 8
#define RECORD_SMALLEST (RECORD_HEADER + 2)
#define RECORD_HAS_KEY 1
#define RECORD_HAS_VALUE 2
#define RECORD_EXPIRES 4

#define TAG_KEY 0x12
#define TAG_VALUE 0x1A
#define TAG_TIMESTAMP 0x20
#define TAG_SUBJECT 0x3A
#define TAG_REPLY 0x42
#define TAG_HEADERS 0x4A

/* The entry's own key field, ready to copy: tag 1, length, name, then the tag of the value. */
#define SUBJECT_ENTRY "\x0A\x07subject\x12"
#define REPLY_ENTRY "\x0A\x05reply\x12"
#define SUBJECT_ENTRY_LENGTH (sizeof(SUBJECT_ENTRY) - 1)
#define REPLY_ENTRY_LENGTH (sizeof(REPLY_ENTRY) - 1)

static inline size_t varint_size(uint64_t v)
{
    return (size_t)((63 - __builtin_clzll(v | 1)) / 7 + 1);
}

static inline uint8_t *varint_write(uint8_t *out, uint64_t v)
{
    while (v >= 0x80) {
        *out++ = (uint8_t)v | 0x80;
        v >>= 7;
    }
    *out++ = (uint8_t)v;
    return out;
}

/* Returns the byte after the varint, or NULL when it does not end before `end` or within ten bytes. */
static inline const uint8_t *varint_read(const uint8_t *p, const uint8_t *end, uint64_t *value)
{
    uint64_t v = 0;
    for (int shift = 0; shift < 70 && p < end; shift += 7) {
        uint8_t byte = *p++;
        v |= (uint64_t)(byte & 0x7F) << shift;
        if (byte < 0x80) {
            *value = v;
            return p;
        }
    }
    return NULL;
}

static inline size_t field_size(size_t length) { return 1 + varint_size(length) + length; }

static inline uint8_t *field_write(uint8_t *out, uint8_t tag, const uint8_t *data, size_t length)
{
    *out++ = tag;
    out = varint_write(out, length);
    if (length)
        memcpy(out, data, length);
    return out + length;
}

/* ---- writing ---- */

typedef struct {
    const uint8_t *subject, *reply, *key, *value, *headers;
    size_t subject_len, reply_len, key_len, value_len, headers_len;
    int has_key, has_value;
    int64_t timestamp;
    int64_t expiry; /* 0 for never */
} record_fields;

static inline size_t record_size(const record_fields *r)
{
    size_t size = RECORD_HEADER + 1 + varint_size((uint64_t)r->timestamp);
    if (r->subject_len)
        size += field_size(r->subject_len);
    if (r->reply_len)
        size += field_size(r->reply_len);
    if (r->has_key)
        size += RECORD_KEY_HEADER + field_size(r->key_len);
    if (r->expiry)
        size += RECORD_EXPIRY_HEADER;
    if (r->value_len)
        size += field_size(r->value_len);
    return size + r->headers_len;
}

static inline void record_write(uint8_t *out, const record_fields *r, size_t size, uint32_t delta)
{
    store_u32(out, (uint32_t)size);
    store_u32(out + 4, delta);
    store_u16(out + 8, (uint16_t)((r->has_key ? RECORD_HAS_KEY : 0) | (r->has_value ? RECORD_HAS_VALUE : 0) |
                                  (r->expiry ? RECORD_EXPIRES : 0)));
    store_u16(out + 10, (uint16_t)r->subject_len);
    store_u16(out + 12, (uint16_t)r->reply_len);
    store_u16(out + 14, 0);
    out += RECORD_HEADER;
    if (r->has_key) {
        store_u64(out, xxh64(r->key, r->key_len));
        store_u32(out + 8, (uint32_t)r->key_len);
        out += RECORD_KEY_HEADER;
    }
    if (r->expiry) {
        store_u64(out, (uint64_t)r->expiry);
        out += RECORD_EXPIRY_HEADER;
    }
    *out++ = TAG_TIMESTAMP;
    out = varint_write(out, (uint64_t)r->timestamp);
    if (r->subject_len)
        out = field_write(out, TAG_SUBJECT, r->subject, r->subject_len);
    if (r->reply_len)
        out = field_write(out, TAG_REPLY, r->reply, r->reply_len);
    if (r->has_key)
        out = field_write(out, TAG_KEY, r->key, r->key_len);
    if (r->value_len)
        out = field_write(out, TAG_VALUE, r->value, r->value_len);
    if (r->headers_len)
        memcpy(out, r->headers, r->headers_len);
}

typedef struct {
    uint32_t length, crc, last_delta, count, prev_crc, raw_length;
    uint16_t attributes, unsynced;
    int64_t base_offset, base_timestamp, max_timestamp;
    uint64_t epoch;
} batch_info;

/* The number at 70, never less than `records`; what is beyond its range is no proof of anything. */
static inline uint16_t unsynced_encode(int64_t records)
{
    if (records < 32768)
        return (uint16_t)(records < 0 ? 0 : records);
    int64_t steps = (records - 32768 + 127) / 128;
    return steps < 32767 ? (uint16_t)(32768 + steps) : 65535;
}

/* Everything below this offset was on disk when the batch was written. */
static inline int64_t unsynced_proof(uint16_t number, int64_t base_offset)
{
    if (number == 65535)
        return 0;
    return base_offset - (number < 32768 ? number : 32768 + (int64_t)(number - 32768) * 128);
}

/* The offset behind a batch: a control batch takes none, or those that it stands for. */
static inline int64_t batch_next(const batch_info *info)
{
    return info->base_offset + info->last_delta + (info->attributes & BATCH_CONTROL ? 0 : 1);
}

/* Fills the header in front of the body, checksum included; sets info->crc. */
static void batch_finish(uint8_t *batch, batch_info *info)
{
    store_u32(batch, BATCH_MAGIC);
    store_u32(batch + 4, info->length);
    store_u16(batch + 12, info->attributes);
    store_u16(batch + 14, BATCH_VERSION);
    store_u64(batch + 16, (uint64_t)info->base_offset);
    store_u32(batch + 24, info->last_delta);
    store_u32(batch + 28, info->count);
    store_u64(batch + 32, info->epoch);
    store_u64(batch + 40, (uint64_t)info->base_timestamp);
    store_u64(batch + 48, (uint64_t)info->max_timestamp);
    store_u64(batch + 56, (uint64_t)-1);
    store_u32(batch + 64, (uint32_t)-1);
    store_u16(batch + 68, (uint16_t)-1);
    store_u16(batch + 70, info->unsynced);
    store_u32(batch + 72, info->prev_crc);
    store_u32(batch + 76, info->raw_length);
    info->crc = crc32c_any(0, batch + 12, info->length - 12);
    store_u32(batch + 8, info->crc);
}

/* ---- checking ---- */

/* The length a batch claims, or 0 when no batch can begin here. Needs eight bytes. */
static inline uint32_t batch_length(const uint8_t *p)
{
    uint32_t length = load_u32(p + 4);
    if (load_u32(p) != BATCH_MAGIC || length < BATCH_HEADER || length > BATCH_MAX)
        return 0;
    return length;
}

/* Whether the attributes, the lengths and the count of a batch agree with each other. */
static int batch_shape_agrees(const batch_info *info)
{
    uint32_t body = info->length - BATCH_HEADER;
    if (info->attributes & BATCH_CONTROL)
        return info->attributes == BATCH_CONTROL && body == 0 && info->raw_length == 0 && info->count == 0;
    if (info->attributes & BATCH_CODED ? info->raw_length > BATCH_MAX - BATCH_HEADER || body == 0 ||
                                             body > info->raw_length + CODED_SLACK
                                       : info->raw_length != body)
        return 0;
    return info->count > 0 && info->count <= info->raw_length / RECORD_SMALLEST && info->last_delta >= info->count - 1;
}

/* What is wrong with the `length` bytes of a batch, or NULL; length must be batch_length(p). */
static const char *batch_check(const uint8_t *p, uint32_t length, batch_info *info)
{
    info->length = length;
    info->crc = load_u32(p + 8);
    if (crc32c_any(0, p + 12, length - 12) != info->crc)
        return "its checksum does not match";
    if (load_u16(p + 14) != BATCH_VERSION)
        return "its header version is unknown";
    info->attributes = load_u16(p + 12);
    if (info->attributes & ~(BATCH_CODED | BATCH_CONTROL | BATCH_TOMBSTONES | BATCH_EXPIRY) ||
        (info->attributes & BATCH_CODEC) > BATCH_CODEC_LAST)
        return "it has attributes this version does not know";
    info->base_offset = (int64_t)load_u64(p + 16);
    info->last_delta = load_u32(p + 24);
    info->count = load_u32(p + 28);
    info->epoch = load_u64(p + 32);
    info->base_timestamp = (int64_t)load_u64(p + 40);
    info->max_timestamp = (int64_t)load_u64(p + 48);
    info->unsynced = load_u16(p + 70);
    info->prev_crc = load_u32(p + 72);
    info->raw_length = load_u32(p + 76);
    if (!batch_shape_agrees(info))
        return "its lengths and its record count do not match";
    if (info->base_offset < 0 || info->base_offset > INT64_MAX - 1 - (int64_t)info->last_delta)
        return "its offsets are impossible";
    if (info->max_timestamp < info->base_timestamp)
        return "its timestamps are impossible";
    return NULL;
}

/* One record found good, as a frame will need it. */
typedef struct {
    const uint8_t *payload;
    int64_t offset;
    int64_t expiry;      /* 0 for never */
    uint32_t payload_len;
    uint32_t body_len;   /* of the frame's message; set by frame_measure */
    uint32_t subject_at; /* in the payload */
    uint32_t reply_at;
    uint16_t subject_len, reply_len;
} record_ref;

static inline const uint8_t *field_skip(const uint8_t *p, const uint8_t *end, uint8_t tag, size_t length)
{
    uint64_t found;
    if (p >= end || *p != tag || (p = varint_read(p + 1, end, &found)) == NULL || found != length ||
        (size_t)(end - p) < length)
        return NULL;
    return p + length;
}

/* Checks the record at p, which ends before `end`. Returns the byte after it, or NULL when it is malformed. */
static inline const uint8_t *record_check(const uint8_t *p, const uint8_t *end, uint32_t *delta,
                                          int64_t *timestamp, record_ref *ref)
{
    if (end - p < RECORD_HEADER)
        return NULL;
    uint32_t size = load_u32(p), start = RECORD_HEADER;
    uint16_t flags = load_u16(p + 8);
    if (flags & ~(RECORD_HAS_KEY | RECORD_HAS_VALUE | RECORD_EXPIRES))
        return NULL;
    if (flags & RECORD_HAS_KEY)
        start += RECORD_KEY_HEADER;
    if (flags & RECORD_EXPIRES)
        start += RECORD_EXPIRY_HEADER;
    if (size > (size_t)(end - p) || size < start + 2)
        return NULL;
    ref->expiry = flags & RECORD_EXPIRES ? (int64_t)load_u64(p + start - RECORD_EXPIRY_HEADER) : 0;
    const uint8_t *payload = p + start, *stop = p + size, *q;
    uint64_t stamp;
    if (*payload != TAG_TIMESTAMP || (q = varint_read(payload + 1, stop, &stamp)) == NULL)
        return NULL;
    *delta = load_u32(p + 4);
    *timestamp = (int64_t)stamp;
    ref->payload = payload;
    ref->payload_len = size - start;
    ref->subject_len = load_u16(p + 10);
    ref->reply_len = load_u16(p + 12);
    ref->subject_at = ref->reply_at = 0;
    if (ref->subject_len) {
        if ((q = field_skip(q, stop, TAG_SUBJECT, ref->subject_len)) == NULL)
            return NULL;
        ref->subject_at = (uint32_t)(q - payload) - ref->subject_len;
    }
    if (ref->reply_len) {
        if ((q = field_skip(q, stop, TAG_REPLY, ref->reply_len)) == NULL)
            return NULL;
        ref->reply_at = (uint32_t)(q - payload) - ref->reply_len;
    }
    return stop;
}

/* ---- a list of records, grown a batch at a time ---- */

typedef struct {
    record_ref *refs;
    size_t count, capacity;
} record_list;

static inline int record_list_reserve(record_list *list, size_t more)
{
    if (list->count + more > list->capacity) {
        size_t capacity = (list->count + more) * 2;
        record_ref *refs = realloc(list->refs, capacity * sizeof *refs);
        if (refs == NULL)
            return -1;
        list->refs = refs;
        list->capacity = capacity;
    }
    return 0;
}

#define RECORDS_OUT_OF_MEMORY "memory is short"

/*
 * Adds to the list the records of a checked batch whose offset is at least `first` and below `limit`, and which have
 * not expired at `now`. `records` are those of the batch, decoded. Returns NULL, or what is wrong with the batch (then
 * the list is as before).
 */
static const char *batch_records(const uint8_t *records, const batch_info *info, int64_t first, int64_t limit,
                                 int64_t now, record_list *list)
{
    const uint8_t *p = records, *end = records + info->raw_length;
    size_t before = list->count;
    int64_t last_delta = -1, timestamp;
    uint32_t delta;

    if (record_list_reserve(list, info->count) < 0)
        return RECORDS_OUT_OF_MEMORY;
    for (uint32_t i = 0; i < info->count; i++) {
        record_ref *ref = &list->refs[list->count];
        p = record_check(p, end, &delta, &timestamp, ref);
        if (p == NULL || (int64_t)delta <= last_delta || delta > info->last_delta) {
            list->count = before;
            return "a record in it is malformed";
        }
        last_delta = delta;
        ref->offset = info->base_offset + delta;
        if (ref->offset >= first && ref->offset < limit && (ref->expiry == 0 || ref->expiry > now))
            list->count++;
    }
    if (p != end) {
        list->count = before;
        return "bytes are left over after its records";
    }
    return NULL;
}

/* The offset of the first record of a checked batch with a timestamp of at least `wanted`; -1 for none, -2 if bad. */
static int64_t batch_first_since(const uint8_t *records, const batch_info *info, int64_t wanted)
{
    const uint8_t *p = records, *end = records + info->raw_length;
    record_ref ref;
    int64_t timestamp;
    uint32_t delta;

    for (uint32_t i = 0; i < info->count; i++) {
        p = record_check(p, end, &delta, &timestamp, &ref);
        if (p == NULL)
            return -2;
        if (timestamp >= wanted)
            return info->base_offset + delta;
    }
    return -1;
}

/* The latest time at which a record of a checked batch expires; INT64_MAX when one never does, -1 if bad. */
static int64_t batch_last_expiry(const uint8_t *records, const batch_info *info)
{
    const uint8_t *p = records, *end = records + info->raw_length;
    int64_t timestamp, latest = 0;
    uint32_t delta;
    record_ref ref;

    for (uint32_t i = 0; i < info->count; i++) {
        p = record_check(p, end, &delta, &timestamp, &ref);
        if (p == NULL)
            return -1;
        if (ref.expiry == 0)
            return INT64_MAX;
        if (ref.expiry > latest)
            latest = ref.expiry;
    }
    return latest;
}

/* ---- frames: byte 0, big-endian length, Message ---- */

#define FRAME_HEADER 5

static inline size_t frame_measure(record_ref *ref, size_t prefix_len)
{
    size_t subject = SUBJECT_ENTRY_LENGTH + varint_size(ref->subject_len) + ref->subject_len;
    size_t reply = REPLY_ENTRY_LENGTH + varint_size(ref->reply_len) + ref->reply_len;
    size_t body = (ref->offset ? 1 + varint_size((uint64_t)ref->offset) : 0) + prefix_len + ref->payload_len +
                  field_size(subject) + field_size(reply);
    ref->body_len = (uint32_t)body;
    return FRAME_HEADER + body;
}

static inline uint8_t *entry_write(uint8_t *out, const char *name, size_t name_len, const uint8_t *text,
                                   size_t length)
{
    *out++ = TAG_HEADERS;
    out = varint_write(out, name_len + varint_size(length) + length);
    memcpy(out, name, name_len);
    out = varint_write(out + name_len, length);
    memcpy(out, text, length);
    return out + length;
}

static inline uint8_t *frame_write(uint8_t *out, const record_ref *ref, const uint8_t *prefix, size_t prefix_len)
{
    *out++ = 0;
    store_u32(out, __builtin_bswap32(ref->body_len));
    out += 4;
    if (ref->offset) {
        *out++ = 0x08;
        out = varint_write(out, (uint64_t)ref->offset);
    }
    if (prefix_len) /* an empty one may be NULL, which memcpy must not be given */
        memcpy(out, prefix, prefix_len);
    out += prefix_len;
    memcpy(out, ref->payload, ref->payload_len);
    out += ref->payload_len;
    out = entry_write(out, SUBJECT_ENTRY, SUBJECT_ENTRY_LENGTH, ref->payload + ref->subject_at, ref->subject_len);
    return entry_write(out, REPLY_ENTRY, REPLY_ENTRY_LENGTH, ref->payload + ref->reply_at, ref->reply_len);
}

#endif
