/*
 * A segment file under the hands: bounded reads into a window, walks over batches, whole writes.
 *
 * A window is a stretch of one file in memory. Every walk asks it for the next batch; what it hands out has been
 * checked against the bounds of the file and against its checksum. Asking may move the bytes in memory, so a walk
 * that has kept pointers into the window stops where the window ends instead of asking for more.
 *
 * Nothing here touches Python; all of it runs with the GIL released.
 */
#ifndef LIFTBRIDGE_SEGMENT_H
#define LIFTBRIDGE_SEGMENT_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <fcntl.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include "_batch.h"

#define WINDOW_AHEAD (1024 * 1024) /* bytes a scan reads at a time */
#define SCANNED_PER_READ 16        /* a read that finds nothing gives up after so many times what was asked for */

struct window;

/* Decodes the body of a coded batch. What it returns, raw_length bytes, lives as long as the window's context does;
 * NULL with w->error or w->reason set. */
typedef const uint8_t *(*body_opener)(struct window *w, const uint8_t *batch, const batch_info *info);

typedef struct window {
    int fd;
    int nowait;         /* read only what is in the page cache */
    uint8_t *data;      /* the bytes [position, position + length) of the file */
    size_t capacity, length, ahead;
    uint64_t position;
    uint64_t end;       /* of the data in the file */
    int error;          /* errno of a failed call, else 0 */
    const char *reason; /* what is wrong with the bytes at bad_at, else NULL */
    uint64_t bad_at;
    int64_t bad_first;  /* the offsets that are lost with the bytes at bad_at, -1 when that is not known */
    int64_t bad_next;
    int64_t now;        /* records that have expired by then are passed over; 0 means the clock, once it matters */
    int all_coded;      /* a batch that is not coded does not belong here: the opener tells why */
    body_opener opener;
    void *context;      /* the opener's */
    int64_t expected;   /* base offset of the batch that a read comes to next; -1 where it is not known */
    int sparse;         /* batches may be missing: the next one may also lie beyond `expected` */
} window;

/* Writes everything or returns the errno. */
static int write_all(int fd, const uint8_t *data, size_t length, uint64_t position)
{
    while (length) {
        ssize_t n = pwrite(fd, data, length, (off_t)position);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            return errno;
        }
        if (n == 0)
            return EIO;
        data += n;
        length -= (size_t)n;
        position += (size_t)n;
    }
    return 0;
}

/* Makes room for the bytes up to `length`, which then read as zeros; returns the errno, 0 where this is not known. */
static int allocate_to(int fd, uint64_t from, uint64_t length)
{
#if defined(__linux__)
    int rc;
    while ((rc = fallocate(fd, 0, (off_t)from, (off_t)(length - from))) < 0 && errno == EINTR) {
    }
    return rc < 0 ? errno : 0;
#else
    (void)fd, (void)from, (void)length;
    return EOPNOTSUPP;
#endif
}

static int truncate_to(int fd, uint64_t length)
{
    int rc;
    while ((rc = ftruncate(fd, (off_t)length)) < 0 && errno == EINTR) {
    }
    return rc < 0 ? errno : 0;
}

static ssize_t read_cached(int fd, uint8_t *data, size_t length, uint64_t position)
{
#if defined(RWF_NOWAIT)
    static int supported = 1; /* a race only repeats the discovery */
    if (supported) {
        struct iovec part = {data, length};
        ssize_t n = preadv2(fd, &part, 1, (off_t)position, RWF_NOWAIT);
        if (n >= 0 || (errno != EOPNOTSUPP && errno != ENOSYS && errno != EINVAL))
            return n;
        if (errno == ENOSYS)
            supported = 0;
    }
#endif
    return pread(fd, data, length, (off_t)position);
}

/* Fills the window up to `length` bytes; true when it has at least `needed` of them. */
static int window_fill(window *w, size_t needed, size_t length)
{
    while (w->length < needed) {
        uint8_t *to = w->data + w->length;
        uint64_t at = w->position + w->length;
        size_t more = length - w->length;
        ssize_t n = w->nowait ? read_cached(w->fd, to, more, at) : pread(w->fd, to, more, (off_t)at);
        if (n < 0) {
            if (errno == EINTR)
                continue;
            w->error = errno;
            return 0;
        }
        if (n == 0) {
            w->reason = "the file is shorter than its data";
            w->bad_at = at;
            return 0;
        }
        w->length += (size_t)n;
    }
    return 1;
}

static inline int window_holds(const window *w, uint64_t position, size_t length)
{
    return position >= w->position && position + length <= w->position + w->length;
}

/* The `needed` bytes at `position`, which lie before w->end; NULL with w->error or w->reason set. */
static const uint8_t *window_at(window *w, uint64_t position, size_t needed)
{
    if (window_holds(w, position, needed))
        return w->data + (position - w->position);
    if (position >= w->position && position < w->position + w->length) {
        w->length -= position - w->position;
        memmove(w->data, w->data + (position - w->position), w->length);
    } else {
        w->length = 0;
    }
    w->position = position;
    size_t length = needed > w->ahead ? needed : w->ahead;
    if (length > w->end - position)
        length = w->end - position;
    if (length > w->capacity) {
        uint8_t *data = realloc(w->data, length);
        if (data == NULL) {
            w->error = ENOMEM;
            return NULL;
        }
        w->data = data;
        w->capacity = length;
    }
    return window_fill(w, needed, length) ? w->data : NULL;
}

static const uint8_t *window_bad(window *w, uint64_t position, const char *reason)
{
    w->reason = reason;
    w->bad_at = position;
    return NULL;
}

/* The checked batch at `position`; NULL with w->error or w->reason set. */
static const uint8_t *window_batch(window *w, uint64_t position, batch_info *info)
{
    const char *reason;
    if (w->end - position < BATCH_HEADER)
        return window_bad(w, position, "the file ends inside its header");
    const uint8_t *p = window_at(w, position, BATCH_HEADER);
    if (p == NULL)
        return NULL;
    uint32_t length = batch_length(p);
    if (length == 0)
        return window_bad(w, position, "its magic number or its length is wrong");
    if (length > w->end - position)
        return window_bad(w, position, "the file ends inside it");
    p = window_at(w, position, length);
    if (p == NULL)
        return NULL;
    reason = batch_check(p, length, info);
    return reason == NULL ? p : window_bad(w, position, reason);
}

/* The records of a batch that window_batch has returned; NULL with w->error or w->reason set. */
static const uint8_t *window_records(window *w, const uint8_t *batch, const batch_info *info)
{
    if (info->attributes & BATCH_CONTROL) /* it has none, so there is nothing to open */
        return batch + BATCH_HEADER;
    if (info->attributes & BATCH_CODED || w->all_coded)
        return w->opener(w, batch, info);
    return batch + BATCH_HEADER;
}

static int64_t window_now(window *w, const batch_info *info)
{
    if (w->now == 0 && info->attributes & BATCH_EXPIRY) {
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        w->now = (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }
    return w->now;
}

/*
 * Whether a checked batch is the one that belongs here; false with w->reason set. Where an index is believed no scan
 * has seen the batches, and a good one in the place of another must be served neither twice nor out of order.
 */
static int window_follows(window *w, uint64_t position, const batch_info *info)
{
    if (info->base_offset < w->expected || (info->base_offset > w->expected && w->expected >= 0 && !w->sparse)) {
        window_bad(w, position, "its base offset is not the next one");
        return 0;
    }
    w->expected = batch_next(info);
    return 1;
}

/* Adds the wanted records of the batch at `position` to the list; false with w->error or w->reason set. */
static int window_collect(window *w, uint64_t position, int64_t first, int64_t limit, batch_info *info,
                          record_list *list)
{
    const uint8_t *batch = window_batch(w, position, info);
    if (batch == NULL || !window_follows(w, position, info))
        return 0;
    if (batch_next(info) <= first)
        return 1;
    const uint8_t *records = window_records(w, batch, info);
    w->bad_at = position;
    w->bad_first = info->base_offset;
    w->bad_next = batch_next(info);
    if (records == NULL)
        return 0;
    const char *reason = batch_records(records, info, first, limit, window_now(w, info), list);
    if (reason == NULL)
        w->bad_first = w->bad_next = -1;
    else if (strcmp(reason, RECORDS_OUT_OF_MEMORY) == 0)
        w->error = ENOMEM;
    else
        w->reason = reason;
    return reason == NULL;
}

/* Whether the batch at `position` can be had without moving the window. */
static int window_holds_batch(const window *w, uint64_t position)
{
    if (!window_holds(w, position, BATCH_HEADER))
        return 0;
    uint32_t length = batch_length(w->data + (position - w->position));
    return length != 0 && window_holds(w, position, length);
}

/*
 * Collects the records with first <= offset < limit from `position` on: whole batches until their frames reach
 * `soft` bytes, a part of a batch when they reach `hard`. Adds the frames' bytes to *total, sets *next to where the
 * next read should begin; the list may stay empty, because records were removed or have expired, and then *next has
 * moved all the same. Returns 0; or -1 with w->error or w->reason set, and then the list is empty.
 */
static int collect_forward(window *w, uint64_t position, int64_t first, int64_t limit, size_t prefix_len,
                           size_t soft, size_t hard, record_list *list, size_t *total, int64_t *next)
{
    batch_info info;
    uint64_t give_up = position + (uint64_t)soft * SCANNED_PER_READ;
    while (position < w->end && *total < soft) {
        if (list->count ? !window_holds_batch(w, position) : position > give_up && *next > first)
            return 0;
        size_t i = list->count;
        if (!window_collect(w, position, first, limit, &info, list)) {
            if (list->count == 0)
                return -1;
            w->error = 0;
            w->reason = NULL;
            return 0; /* deliver what is good; the next read begins at the bad batch */
        }
        for (; i < list->count; i++) {
            *total += frame_measure(&list->refs[i], prefix_len);
            if (*total >= hard && i + 1 < list->count) {
                list->count = i + 1;
                *next = list->refs[i].offset + 1;
                return 0;
            }
        }
        position += info.length;
        int64_t after = batch_next(&info);
        if (after > *next)
            *next = after < limit ? after : limit;
        if (after >= limit)
            return 0;
    }
    if (position >= w->end)
        *next = limit; /* what the segment's range has behind its last batch was removed */
    return 0;
}

/*
 * Collects the records with floor <= offset <= last from the batches in [position, stop), then drops from the front
 * until the frames of the rest fit about `hard` bytes, at least one kept. Sets *next to where the next reverse read
 * should begin. Returns as collect_forward.
 */
static int collect_reverse(window *w, uint64_t position, uint64_t stop, int64_t floor, int64_t last,
                           size_t prefix_len, size_t hard, record_list *list, size_t *total, int64_t *next)
{
    batch_info info;
    int64_t before = last; /* everything from here to `last` has been looked at */
    if (window_at(w, position, stop - position) == NULL)
        return -1;
    for (uint64_t at = position; at < stop; at += info.length) {
        if (!window_collect(w, at, floor, last + 1, &info, list)) {
            if (w->error || w->bad_first < 0 || (w->bad_first <= last && last < w->bad_next))
                return -1;
            /* A whole batch with records that cannot be read: those of the others are not lost with them. */
            if (w->bad_first <= last) {
                list->count = 0;
                before = w->bad_next - 1;
            }
            w->reason = NULL;
            w->bad_first = w->bad_next = -1;
        } else if (at == position && info.base_offset <= last)
            before = info.base_offset - 1;
        if (info.base_offset > last)
            break;
    }
    size_t start = list->count;
    while (start > 0 && (start == list->count || *total < hard))
        *total += frame_measure(&list->refs[--start], prefix_len);
    *next = start > 0 ? list->refs[start].offset - 1 : before;
    memmove(list->refs, list->refs + start, (list->count - start) * sizeof *list->refs);
    list->count -= start;
    return 0;
}

static void write_frames(uint8_t *out, const record_list *list, int reverse, const uint8_t *prefix, size_t prefix_len)
{
    for (size_t i = 0; i < list->count; i++)
        out = frame_write(out, &list->refs[reverse ? list->count - 1 - i : i], prefix, prefix_len);
}

/* Whether the 80 bytes at p agree with each other that a batch of `length` bytes begins here. */
static int header_agrees(const uint8_t *p, uint32_t length)
{
    return load_u16(p + 14) == BATCH_VERSION &&
           (load_u32(p + 76) == length - BATCH_HEADER || load_u16(p + 12) & BATCH_CODED);
}

/*
 * The first position >= start at which a whole valid batch with an offset >= next_offset lies; UINT64_MAX for none.
 *
 * A batch that is bad at `start` itself, but whose header agrees with itself, is passed over as a whole: a payload
 * in it may look like a batch, by chance or by malice, and must not turn a torn write into damage.
 */
static uint64_t find_batch_from(window *w, uint64_t start, int64_t next_offset)
{
    static const uint32_t magic = BATCH_MAGIC;
    batch_info info;
    uint64_t position = start;
    while (position < w->end && w->end - position >= BATCH_HEADER) {
        const uint8_t *p = window_at(w, position, BATCH_HEADER);
        if (p == NULL)
            return UINT64_MAX;
        size_t stretch = w->length - (position - w->position) - (BATCH_HEADER - 1); /* where a header still fits */
        const uint8_t *hit = memchr(p, (int)(magic & 0xFF), stretch);
        if (hit == NULL) {
            position += stretch;
            continue;
        }
        position += (size_t)(hit - p);
        uint32_t length = batch_length(hit);
        int plausible = length && header_agrees(hit, length);
        int64_t offset = (int64_t)load_u64(hit + 16);
        uint64_t skip = position == start && plausible && offset == next_offset ? length : 1;
        /* The cheap fields first: arbitrary payloads must not cost a checksum per magic number in them. */
        if (plausible && length <= w->end - position && offset >= next_offset) {
            if (window_batch(w, position, &info) != NULL)
                return position;
            if (w->error)
                return UINT64_MAX;
            w->reason = NULL;
        }
        position += skip;
    }
    return UINT64_MAX;
}

#endif
