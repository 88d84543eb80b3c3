/* Counts the system calls that change one folder, and at one of them fails or kills the process. Loaded with LD_PRELOAD by
 * tests/soak/shim.py; nothing happens before `arm`. What goes to the kernel past the C library (io_uring, a memory map) is not seen.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { COUNT, KILL_BEFORE, KILL_AFTER, KILL_HALF, FAIL_ONCE, FAIL_ON };  /* as tests/soak/shim.py numbers them */
enum { GO_ON, FAIL, HALF, DIE_AFTER };                                   /* what becomes of one call */

static char folder[PATH_MAX];
static long target;
static int how, number_of_error, trace = -1;
static atomic_long calls;

/* Count the calls below `path` from now on; the one with number `at`, from 1, meets what `what` says. Every call is a line in `fd`. */
void arm(const char *path, long at, int what, int error, int fd) {
    target = at, how = what, number_of_error = error, trace = fd;
    atomic_store(&calls, 0);
    snprintf(folder, sizeof folder, "%s", path);
}

static int path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length < 0 ? 0 : length] = 0;
    return length > 0;
}

/* What is to be done with this call. `grows`: a full disk refuses it; `bytes`: what it writes, 0 where it writes none. */
static int fate(const char *call, const char *path, int grows, size_t bytes) {
    size_t length = strlen(folder);
    if (!length || strncmp(path, folder, length) || (path[length] && path[length] != '/')) return GO_ON;
    long number = atomic_fetch_add(&calls, 1) + 1;
    char line[PATH_MAX + 64];
    int written = snprintf(line, sizeof line, "%ld %s %s\n", number, call, path[length] ? path + length + 1 : ".");
    syscall(SYS_write, trace, line, written);
    if (how == FAIL_ON && number > target) return grows || number_of_error != ENOSPC ? FAIL : GO_ON;
    if (number != target || how == COUNT) return GO_ON;
    if (how == KILL_BEFORE) kill(getpid(), SIGKILL);
    if (how == KILL_AFTER) return DIE_AFTER;
    if (how == KILL_HALF) return bytes > 1 ? HALF : DIE_AFTER;
    return how == FAIL_ON && number_of_error == ENOSPC && bytes > 1 ? HALF : FAIL;
}

static int fate_at(const char *call, int dir, const char *path, int grows) {
    char whole[2 * PATH_MAX];
    if (path[0] == '/') return fate(call, path, grows, 0);
    if (dir == AT_FDCWD ? !getcwd(whole, PATH_MAX) : !path_of(dir, whole)) return GO_ON;
    size_t length = strlen(whole);
    snprintf(whole + length, sizeof whole - length, "/%s", path);
    return fate(call, whole, grows, 0);
}

static int fate_of(const char *call, int fd, int grows, size_t bytes) {
    char path[PATH_MAX];
    return folder[0] && path_of(fd, path) ? fate(call, path, grows, bytes) : GO_ON;
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name)) dlsym(RTLD_NEXT, #name)
#define END(what, act) do { int f = (what); if (f == FAIL) { errno = number_of_error; return -1; } \
    __auto_type r = (act); if (f == DIE_AFTER) kill(getpid(), SIGKILL); return r; } while (0)

#define WRITES(name, parameters, arguments, halved) ssize_t name parameters { \
    REAL(name); int f = fate_of("write", fd, 1, n); \
    if (f == FAIL) { errno = number_of_error; return -1; } \
    ssize_t r = f == HALF ? real halved : real arguments; \
    if (f == DIE_AFTER || (f == HALF && how == KILL_HALF)) kill(getpid(), SIGKILL); \
    return r; }
WRITES(write, (int fd, const void *data, size_t n), (fd, data, n), (fd, data, n / 2))
WRITES(pwrite, (int fd, const void *data, size_t n, off_t at), (fd, data, n, at), (fd, data, n / 2, at))
WRITES(pwrite64, (int fd, const void *data, size_t n, off64_t at), (fd, data, n, at), (fd, data, n / 2, at))
ssize_t writev(int fd, const struct iovec *parts, int n) { REAL(writev); END(fate_of("write", fd, 1, 0), real(fd, parts, n)); }

#define OPENS(name, dir, first, passed) int name first { \
    mode_t mode = 0; \
    if (flags & (O_CREAT | O_TMPFILE)) { va_list rest; va_start(rest, flags); mode = va_arg(rest, mode_t); va_end(rest); } \
    REAL(name); \
    END((flags & O_ACCMODE) == O_RDONLY ? GO_ON : fate_at("open", dir, path, (flags & O_CREAT) != 0), real passed); }
OPENS(open, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPENS(open64, AT_FDCWD, (const char *path, int flags, ...), (path, flags, mode))
OPENS(openat, dir, (int dir, const char *path, int flags, ...), (dir, path, flags, mode))
OPENS(openat64, dir, (int dir, const char *path, int flags, ...), (dir, path, flags, mode))
FILE *fopen64(const char *path, const char *mode) {
    REAL(fopen64);
    int f = mode[0] == 'r' && !strchr(mode, '+') ? GO_ON : fate_at("open", AT_FDCWD, path, 1);
    if (f == FAIL) { errno = number_of_error; return NULL; }
    FILE *r = real(path, mode);
    if (f == DIE_AFTER) kill(getpid(), SIGKILL);
    return r;
}

int fsync(int fd) { REAL(fsync); END(fate_of("fsync", fd, 1, 0), real(fd)); }
int fdatasync(int fd) { REAL(fdatasync); END(fate_of("fsync", fd, 1, 0), real(fd)); }
int ftruncate64(int fd, off64_t n) { REAL(ftruncate64); END(fate_of("truncate", fd, 1, 0), real(fd, n)); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); END(fate_at("mkdir", AT_FDCWD, path, 1), real(path, mode)); }
int mkdirat(int d, const char *path, mode_t mode) { REAL(mkdirat); END(fate_at("mkdir", d, path, 1), real(d, path, mode)); }
int rmdir(const char *path) { REAL(rmdir); END(fate_at("rmdir", AT_FDCWD, path, 0), real(path)); }
int unlink(const char *path) { REAL(unlink); END(fate_at("unlink", AT_FDCWD, path, 0), real(path)); }
int unlinkat(int d, const char *path, int flags) { REAL(unlinkat); END(fate_at("unlink", d, path, 0), real(d, path, flags)); }
int rename(const char *a, const char *b) { REAL(rename); END(fate_at("rename", AT_FDCWD, b, 0), real(a, b)); }
int renameat(int d, const char *a, int e, const char *b) { REAL(renameat); END(fate_at("rename", e, b, 0), real(d, a, e, b)); }
int link(const char *a, const char *b) { REAL(link); END(fate_at("link", AT_FDCWD, b, 1), real(a, b)); }
int linkat(int d, const char *a, int e, const char *b, int flags) { REAL(linkat); END(fate_at("link", e, b, 1), real(d, a, e, b, flags)); }
int symlink(const char *a, const char *b) { REAL(symlink); END(fate_at("link", AT_FDCWD, b, 1), real(a, b)); }
