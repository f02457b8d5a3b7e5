/*
 * A disk that can be watched, broken and cut off: preloaded (LD_PRELOAD) below a real process, it sits between that
 * process and the C library for every file below one directory.
 *
 * It writes down in a journal, outside of that directory, what was changed and what was synced, in the order in which it
 * happened; powerloss.py computes from it what a loss of power may leave. It counts calls, and at a chosen one returns
 * an error, writes a part only, or kills the process. It never syncs anything: what is durable is the model's to say,
 * and a kill leaves the page cache alone.
 *
 * One lock makes a call and its place in the journal one step. Which file a descriptor stands for is asked of the kernel
 * each time (/proc/self/fd, fstat), so duplicates, forks and reused descriptors need no bookkeeping. What would change a
 * file in a way that is not recorded ends the process with a message, so that no test believes half a journal.
 *
 * A process is watched from its start when DISK_ROOT, DISK_JOURNAL and, to break something, DISK_PLAN are set: five
 * numbers, the arguments of disk_plan. One that is running calls disk_start, disk_plan and disk_note itself.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* musl defines the names with 64 as macros for those without. */
#undef open64
#undef openat64
#undef creat64
#undef pread64
#undef preadv64
#undef preadv64v2
#undef pwrite64
#undef pwritev64
#undef pwritev64v2
#undef ftruncate64
#undef truncate64
#undef fallocate64
#undef posix_fallocate64

_Static_assert(sizeof(off_t) == 8, "offsets must have 64 bits");

/* Kinds of calls, and of events in the journal; powerloss.py has the same numbers. */
enum { OPEN, READ, CREATE, WRITE, RESIZE, ALLOCATE, RENAME, UNLINK, MKDIR, RMDIR, SYNC, SYNC_DIRECTORY, NOTE };

enum { NOTHING, FAIL, SHORT, KILL_BEFORE, KILL_AFTER, KILL_TORN };

typedef struct {
    uint32_t length; /* of what follows: the name, then the data */
    uint32_t kind;
    uint64_t inode;
    int64_t position; /* WRITE: where; RESIZE: the new length */
    uint32_t name_length;
    uint32_t error; /* the call failed with this errno; syncs only */
} event;

static struct {
    unsigned kinds; /* a bit for each kind that counts */
    long at;        /* the call to act on, from 1; 0 for none */
    int action, error, onwards;
    long calls;
} plan;

static char root[PATH_MAX];
static size_t root_length;
static int journal = -1;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    if (found == NULL)
        abort();
    return found;
}

static void die(const char *what)
{
    fprintf(stderr, "simulated disk: %s\n", what);
    abort();
}

/* ---- the journal ---- */

static void record(uint32_t kind, uint64_t inode, int64_t position, uint32_t error, const char *name,
                   size_t name_length, const void *data, size_t length)
{
    event e = {(uint32_t)(name_length + length), kind, inode, position, (uint32_t)name_length, error};
    struct iovec parts[3] = {{&e, sizeof e}, {(void *)name, name_length}, {(void *)data, length}};
    size_t whole = sizeof e + name_length + length;
    if (REAL(writev)(journal, parts, 3) != (ssize_t)whole)
        die("the journal cannot be written");
}

static void record_file(uint32_t kind, int fd, int64_t position, const void *data, size_t length)
{
    struct stat status;
    if (fstat(fd, &status) < 0)
        die("fstat failed");
    record(kind, status.st_ino, position, 0, NULL, 0, data, length);
}

/* ---- what to do with a call ---- */

/* Counts a call and returns what is to happen to it; the lock is held from here to `finish`. */
static int judge(int kind)
{
    pthread_mutex_lock(&lock);
    if (!(plan.kinds >> kind & 1))
        return NOTHING;
    plan.calls++;
    if (plan.at == 0 || plan.calls < plan.at || (plan.calls > plan.at && !plan.onwards))
        return NOTHING;
    if (plan.action == KILL_BEFORE)
        kill(getpid(), SIGKILL);
    return plan.action;
}

static long finish(int action, long result)
{
    int error = errno;
    if (action == KILL_AFTER || action == KILL_TORN)
        kill(getpid(), SIGKILL);
    pthread_mutex_unlock(&lock);
    errno = error;
    return result;
}

static int fails(int action)
{
    if (action != FAIL && action != SHORT)
        return 0;
    errno = plan.error;
    return 1;
}

/* How much of a write is to be done; after a short write the next one fails, as on a full disk. */
static size_t part_of(int action, size_t length)
{
    if (action == KILL_TORN)
        return length / 2;
    if (action == SHORT && length > 1) {
        plan.action = FAIL;
        plan.at = plan.calls + 1;
        return length / 2;
    }
    return length;
}

/* ---- which file is it ---- */

/* Where the watched part of a path begins; NULL for a path that is not watched. */
static const char *below_root(const char *path)
{
    if (journal < 0 || strncmp(path, root, root_length) != 0)
        return NULL;
    if (path[root_length] == '\0')
        return "";
    return path[root_length] == '/' ? path + root_length + 1 : NULL;
}

static const char *path_of(int fd, char buffer[PATH_MAX])
{
    char link[64];
    if (journal < 0 || fd == journal)
        return NULL;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, buffer, PATH_MAX - 1);
    if (length < 0)
        return NULL;
    buffer[length] = '\0';
    return below_root(buffer);
}

static const char *path_at(int directory, const char *path, char buffer[PATH_MAX])
{
    if (journal < 0)
        return NULL;
    if (path[0] == '/')
        return below_root(path);
    if (directory == AT_FDCWD) {
        if (getcwd(buffer, PATH_MAX) == NULL)
            return NULL;
    } else if (path_of(directory, buffer) == NULL) {
        return NULL;
    }
    size_t length = strlen(buffer);
    snprintf(buffer + length, PATH_MAX - length, "/%s", path);
    return below_root(buffer);
}

/* ---- control ---- */

void disk_start(const char *directory, const char *journal_path)
{
    pthread_mutex_lock(&lock);
    if (journal >= 0)
        close(journal);
    root_length = strlen(directory);
    memcpy(root, directory, root_length + 1);
    journal = REAL(open)(journal_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (journal < 0)
        die("the journal cannot be opened");
    memset(&plan, 0, sizeof plan);
    pthread_mutex_unlock(&lock);
}

/* From now on, counting from 1, the call number `at` of these kinds meets the action; with `onwards` all after it do. */
void disk_plan(unsigned kinds, long at, int action, int error, int onwards)
{
    pthread_mutex_lock(&lock);
    plan.kinds = kinds;
    plan.at = at;
    plan.action = action;
    plan.error = error;
    plan.onwards = onwards;
    plan.calls = 0;
    pthread_mutex_unlock(&lock);
}

/* How many calls of the plan's kinds there were. */
long disk_calls(void)
{
    return plan.calls;
}

/* Writes down what the process has told, or is about to do. */
void disk_note(const char *text, size_t length)
{
    pthread_mutex_lock(&lock);
    record(NOTE, 0, 0, 0, NULL, 0, text, length);
    pthread_mutex_unlock(&lock);
}

__attribute__((constructor)) static void start_from_environment(void)
{
    const char *directory = getenv("DISK_ROOT"), *path = getenv("DISK_JOURNAL"), *numbers = getenv("DISK_PLAN");
    unsigned kinds;
    long at;
    int action, error, onwards;
    if (directory == NULL || path == NULL)
        return;
    disk_start(directory, path);
    if (numbers == NULL)
        return;
    if (sscanf(numbers, "%u %ld %d %d %d", &kinds, &at, &action, &error, &onwards) != 5)
        die("DISK_PLAN is not five numbers");
    disk_plan(kinds, at, action, error, onwards);
}

/* ---- opening ---- */

static int open_file(int directory, const char *path, int flags, mode_t mode)
{
    char buffer[PATH_MAX];
    const char *name = path_at(directory, path, buffer);
    if (name == NULL)
        return REAL(openat)(directory, path, flags, mode);
    if ((flags & (O_DSYNC | O_APPEND)) || (flags & O_TMPFILE) == O_TMPFILE)
        die("O_SYNC, O_DSYNC, O_APPEND and O_TMPFILE are not modelled");
    int missing = faccessat(directory, path, F_OK, AT_SYMLINK_NOFOLLOW) < 0;
    int creates = (flags & O_CREAT) && missing;
    int empties = (flags & O_TRUNC) && !missing;
    int action = judge(creates ? CREATE : empties ? RESIZE : OPEN);
    int fd = fails(action) ? -1 : REAL(openat)(directory, path, flags, mode);
    if (fd >= 0 && creates) {
        struct stat status;
        if (fstat(fd, &status) < 0)
            die("fstat failed");
        record(CREATE, status.st_ino, 0, 0, name, strlen(name), NULL, 0);
    } else if (fd >= 0 && empties) {
        record_file(RESIZE, fd, 0, NULL, 0);
    }
    return (int)finish(action, fd);
}

#define MODE_OF(flags)                                                                                                 \
    mode_t mode = 0;                                                                                                   \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                                             \
        va_list more;                                                                                                  \
        va_start(more, flags);                                                                                         \
        mode = va_arg(more, mode_t);                                                                                   \
        va_end(more);                                                                                                  \
    }

#define OPEN_AS(name)                                                                                                  \
    int name(const char *path, int flags, ...)                                                                         \
    {                                                                                                                  \
        MODE_OF(flags)                                                                                                 \
        return open_file(AT_FDCWD, path, flags, mode);                                                                 \
    }
#define OPENAT_AS(name)                                                                                                \
    int name(int directory, const char *path, int flags, ...)                                                          \
    {                                                                                                                  \
        MODE_OF(flags)                                                                                                 \
        return open_file(directory, path, flags, mode);                                                                \
    }
OPEN_AS(open)
OPEN_AS(open64)
OPEN_AS(__open_2)
OPEN_AS(__open64_2)
OPENAT_AS(openat)
OPENAT_AS(openat64)
OPENAT_AS(__openat_2)
OPENAT_AS(__openat64_2)

int creat(const char *path, mode_t mode)
{
    return open_file(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int creat64(const char *path, mode_t mode)
{
    return open_file(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

/* ---- reading: not recorded, but it can fail ---- */

#define READ_AS(name, arguments, call)                                                                                 \
    ssize_t name arguments                                                                                             \
    {                                                                                                                  \
        char buffer[PATH_MAX];                                                                                         \
        if (path_of(fd, buffer) == NULL)                                                                               \
            return call;                                                                                               \
        int action = judge(READ);                                                                                      \
        return finish(action, fails(action) ? -1 : call);                                                              \
    }
READ_AS(read, (int fd, void *data, size_t length), REAL(read)(fd, data, length))
READ_AS(pread, (int fd, void *data, size_t length, off_t at), REAL(pread)(fd, data, length, at))
READ_AS(pread64, (int fd, void *data, size_t length, off_t at), REAL(pread)(fd, data, length, at))
READ_AS(__read_chk, (int fd, void *data, size_t length, size_t room), ((void)room, REAL(read)(fd, data, length)))
READ_AS(__pread_chk, (int fd, void *data, size_t length, off_t at, size_t room),
        ((void)room, REAL(pread)(fd, data, length, at)))
READ_AS(__pread64_chk, (int fd, void *data, size_t length, off_t at, size_t room),
        ((void)room, REAL(pread)(fd, data, length, at)))
READ_AS(readv, (int fd, const struct iovec *parts, int count), REAL(readv)(fd, parts, count))
READ_AS(preadv, (int fd, const struct iovec *parts, int count, off_t at), REAL(preadv)(fd, parts, count, at))
READ_AS(preadv64, (int fd, const struct iovec *parts, int count, off_t at), REAL(preadv)(fd, parts, count, at))
#ifdef RWF_NOWAIT /* a C library without it has no such calls */
READ_AS(preadv2, (int fd, const struct iovec *parts, int count, off_t at, int flags),
        REAL(preadv2)(fd, parts, count, at, flags))
READ_AS(preadv64v2, (int fd, const struct iovec *parts, int count, off_t at, int flags),
        REAL(preadv2)(fd, parts, count, at, flags))
#endif

/* ---- writing ---- */

/* Writes at a position; at -1 where the descriptor stands. */
static ssize_t write_file(int fd, const void *data, size_t length, off_t at)
{
    char buffer[PATH_MAX];
    if (path_of(fd, buffer) == NULL)
        return at < 0 ? REAL(write)(fd, data, length) : REAL(pwrite)(fd, data, length, at);
    int action = judge(WRITE);
    ssize_t written = -1;
    if (!fails(action) || (action == SHORT && length > 1)) {
        off_t from = at < 0 ? lseek(fd, 0, SEEK_CUR) : at;
        size_t part = part_of(action, length);
        written = at < 0 ? REAL(write)(fd, data, part) : REAL(pwrite)(fd, data, part, at);
        if (written > 0)
            record_file(WRITE, fd, from, data, (size_t)written);
    }
    return finish(action, written);
}

/* A vector becomes one buffer: a write call is one event. */
static ssize_t write_vector(int fd, const struct iovec *parts, int count, off_t at)
{
    char buffer[PATH_MAX];
    if (path_of(fd, buffer) == NULL)
        return at < 0 ? REAL(writev)(fd, parts, count) : REAL(pwritev)(fd, parts, count, at);
    size_t length = 0;
    for (int i = 0; i < count; i++)
        length += parts[i].iov_len;
    uint8_t *whole = malloc(length + 1), *to = whole;
    if (whole == NULL)
        die("no memory");
    for (int i = 0; i < count; i++)
        to = (uint8_t *)mempcpy(to, parts[i].iov_base, parts[i].iov_len);
    ssize_t written = write_file(fd, whole, length, at);
    int error = errno;
    free(whole);
    errno = error;
    return written;
}

ssize_t write(int fd, const void *data, size_t length)
{
    return write_file(fd, data, length, -1);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t at)
{
    return write_file(fd, data, length, at);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off_t at)
{
    return write_file(fd, data, length, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count)
{
    return write_vector(fd, parts, count, -1);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at)
{
    return write_vector(fd, parts, count, at);
}

ssize_t pwritev64(int fd, const struct iovec *parts, int count, off_t at)
{
    return write_vector(fd, parts, count, at);
}

#ifdef RWF_NOWAIT
ssize_t pwritev2(int fd, const struct iovec *parts, int count, off_t at, int flags)
{
    char buffer[PATH_MAX];
    if (path_of(fd, buffer) == NULL)
        return REAL(pwritev2)(fd, parts, count, at, flags);
    if (flags)
        die("flags of pwritev2 are not modelled");
    return write_vector(fd, parts, count, at);
}

ssize_t pwritev64v2(int fd, const struct iovec *parts, int count, off_t at, int flags)
{
    return pwritev2(fd, parts, count, at, flags);
}
#endif

/* ---- sizes ---- */

int ftruncate(int fd, off_t length)
{
    char buffer[PATH_MAX];
    if (path_of(fd, buffer) == NULL)
        return REAL(ftruncate)(fd, length);
    int action = judge(RESIZE);
    int rc = fails(action) ? -1 : REAL(ftruncate)(fd, length);
    if (rc == 0)
        record_file(RESIZE, fd, length, NULL, 0);
    return (int)finish(action, rc);
}

int ftruncate64(int fd, off_t length)
{
    return ftruncate(fd, length);
}

int truncate(const char *path, off_t length)
{
    char buffer[PATH_MAX];
    if (path_at(AT_FDCWD, path, buffer) == NULL)
        return REAL(truncate)(path, length);
    int fd = open_file(AT_FDCWD, path, O_WRONLY | O_CLOEXEC, 0);
    if (fd < 0)
        return -1;
    int rc = ftruncate(fd, length), error = errno;
    close(fd);
    errno = error;
    return rc;
}

int truncate64(const char *path, off_t length)
{
    return truncate(path, length);
}

/* Room beyond the data reads as zeros, so to the model it is nothing but a new length. */
int fallocate(int fd, int mode, off_t at, off_t length)
{
    char buffer[PATH_MAX];
    if (path_of(fd, buffer) == NULL)
        return REAL(fallocate)(fd, mode, at, length);
    if (mode & ~FALLOC_FL_KEEP_SIZE)
        die("only the allocating modes of fallocate are modelled");
    int action = judge(ALLOCATE);
    struct stat status;
    if (fstat(fd, &status) < 0)
        die("fstat failed");
    int rc = fails(action) ? -1 : REAL(fallocate)(fd, mode, at, length);
    if (rc == 0 && mode == 0 && at + length > status.st_size)
        record_file(RESIZE, fd, at + length, NULL, 0);
    return (int)finish(action, rc);
}

int fallocate64(int fd, int mode, off_t at, off_t length)
{
    return fallocate(fd, mode, at, length);
}

int posix_fallocate(int fd, off_t at, off_t length)
{
    char buffer[PATH_MAX];
    if (path_of(fd, buffer) == NULL)
        return REAL(posix_fallocate)(fd, at, length);
    return fallocate(fd, 0, at, length) == 0 ? 0 : errno;
}

int posix_fallocate64(int fd, off_t at, off_t length)
{
    return posix_fallocate(fd, at, length);
}

/* ---- names ---- */

static int rename_file(int from_directory, const char *from, int to_directory, const char *to)
{
    char one[PATH_MAX], other[PATH_MAX], names[2 * PATH_MAX];
    const char *before = path_at(from_directory, from, one), *after = path_at(to_directory, to, other);
    if (before == NULL && after == NULL)
        return REAL(renameat)(from_directory, from, to_directory, to);
    if (before == NULL || after == NULL)
        die("a rename across the border is not modelled");
    int length = snprintf(names, sizeof names, "%s%c%s", before, '\0', after);
    int action = judge(RENAME);
    int rc = fails(action) ? -1 : REAL(renameat)(from_directory, from, to_directory, to);
    if (rc == 0)
        record(RENAME, 0, 0, 0, names, (size_t)length, NULL, 0);
    return (int)finish(action, rc);
}

int renameat(int from_directory, const char *from, int to_directory, const char *to)
{
    return rename_file(from_directory, from, to_directory, to);
}

int renameat2(int from_directory, const char *from, int to_directory, const char *to, unsigned flags)
{
    if (flags)
        die("flags of renameat2 are not modelled");
    return rename_file(from_directory, from, to_directory, to);
}

int rename(const char *from, const char *to)
{
    return rename_file(AT_FDCWD, from, AT_FDCWD, to);
}

int unlinkat(int directory, const char *path, int flags)
{
    char buffer[PATH_MAX];
    const char *name = path_at(directory, path, buffer);
    if (name == NULL)
        return REAL(unlinkat)(directory, path, flags);
    int kind = flags & AT_REMOVEDIR ? RMDIR : UNLINK;
    int action = judge(kind);
    int rc = fails(action) ? -1 : REAL(unlinkat)(directory, path, flags);
    if (rc == 0)
        record((uint32_t)kind, 0, 0, 0, name, strlen(name), NULL, 0);
    return (int)finish(action, rc);
}

int unlink(const char *path)
{
    return unlinkat(AT_FDCWD, path, 0);
}

int rmdir(const char *path)
{
    return unlinkat(AT_FDCWD, path, AT_REMOVEDIR);
}

int mkdirat(int directory, const char *path, mode_t mode)
{
    char buffer[PATH_MAX];
    const char *name = path_at(directory, path, buffer);
    if (name == NULL)
        return REAL(mkdirat)(directory, path, mode);
    int action = judge(MKDIR);
    int rc = fails(action) ? -1 : REAL(mkdirat)(directory, path, mode);
    if (rc == 0) {
        struct stat status;
        if (fstatat(directory, path, &status, 0) < 0)
            die("fstatat failed");
        record(MKDIR, status.st_ino, 0, 0, name, strlen(name), NULL, 0);
    }
    return (int)finish(action, rc);
}

int mkdir(const char *path, mode_t mode)
{
    return mkdirat(AT_FDCWD, path, mode);
}

/* ---- syncs ---- */

int fsync(int fd)
{
    char buffer[PATH_MAX];
    const char *name = path_of(fd, buffer);
    if (name == NULL)
        return REAL(fsync)(fd);
    struct stat status;
    if (fstat(fd, &status) < 0)
        die("fstat failed");
    int kind = S_ISDIR(status.st_mode) ? SYNC_DIRECTORY : SYNC;
    int action = judge(kind);
    int rc = fails(action) ? -1 : 0;
    record((uint32_t)kind, status.st_ino, 0, rc ? (uint32_t)errno : 0, name, strlen(name), NULL, 0);
    return (int)finish(action, rc);
}

int fdatasync(int fd)
{
    char buffer[PATH_MAX];
    return path_of(fd, buffer) == NULL ? REAL(fdatasync)(fd) : fsync(fd);
}

/* ---- what is not modelled ---- */

int linkat(int from_directory, const char *from, int to_directory, const char *to, int flags)
{
    char one[PATH_MAX], other[PATH_MAX];
    if (path_at(from_directory, from, one) != NULL || path_at(to_directory, to, other) != NULL)
        die("hard links are not modelled");
    return REAL(linkat)(from_directory, from, to_directory, to, flags);
}

int link(const char *from, const char *to)
{
    return linkat(AT_FDCWD, from, AT_FDCWD, to, 0);
}

int symlinkat(const char *target, int directory, const char *path)
{
    char buffer[PATH_MAX];
    if (path_at(directory, path, buffer) != NULL)
        die("symbolic links are not modelled");
    return REAL(symlinkat)(target, directory, path);
}

int symlink(const char *target, const char *path)
{
    return symlinkat(target, AT_FDCWD, path);
}

ssize_t copy_file_range(int in, off_t *in_at, int out, off_t *out_at, size_t length, unsigned flags)
{
    char buffer[PATH_MAX];
    if (path_of(out, buffer) != NULL)
        die("copy_file_range is not modelled");
    return REAL(copy_file_range)(in, in_at, out, out_at, length, flags);
}

ssize_t sendfile(int out, int in, off_t *at, size_t length)
{
    char buffer[PATH_MAX];
    if (path_of(out, buffer) != NULL)
        die("sendfile into a file is not modelled");
    return ((ssize_t(*)(int, int, off_t *, size_t))real("sendfile"))(out, in, at, length);
}
