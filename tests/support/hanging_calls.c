/* Makes calls of the C library on some paths hang, as those on a share without its server do.
 *
 * The directory $HANG_DIR contains one file for each kind of call that hangs: `open`, `stat` or
 * `readdir`, each with a path. Calls on it and on everything below it wait until the file is removed. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static int must_hang(const char *call, const char *path) {
    const char *control = getenv("HANG_DIR");
    char name[PATH_MAX], prefix[PATH_MAX];
    if (control == NULL || path == NULL) return 0;
    snprintf(name, sizeof name, "%s/%s", control, call);
    int file = syscall(SYS_openat, AT_FDCWD, name, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    ssize_t length = syscall(SYS_read, file, prefix, sizeof prefix);
    syscall(SYS_close, file);
    if (length <= 0 || strncmp(path, prefix, length) != 0) return 0;
    return path[length] == '\0' || path[length] == '/';
}

static void hang(const char *call, const char *path) {
    struct timespec pause = {0, 10 * 1000 * 1000};
    int before = errno;
    while (must_hang(call, path)) nanosleep(&pause, NULL);
    /* The end of a directory is no error only if this is unchanged. */
    errno = before;
}

#define OPEN(name)                                              \
    int name(const char *path, int flags, ...) {                \
        va_list more;                                           \
        va_start(more, flags);                                  \
        mode_t mode = va_arg(more, mode_t);                     \
        va_end(more);                                           \
        hang("open", path);                                     \
        return NEXT(name)(path, flags, mode);                   \
    }
OPEN(open)
OPEN(open64)

DIR *opendir(const char *path) {
    hang("open", path);
    return NEXT(opendir)(path);
}

struct dirent64 *readdir64(DIR *directory) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", dirfd(directory));
    int before = errno;
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length > 0) {
        path[length] = '\0';
        hang("readdir", path);
    }
    return NEXT(readdir64)(directory);
}

int statx(int directory, const char *restrict path, int flags, unsigned mask,
          struct statx *restrict found) {
    hang("stat", path);
    return NEXT(statx)(directory, path, flags, mask, found);
}

#define STAT(name)                                              \
    int name(const char *restrict path, struct stat64 *restrict found) { \
        hang("stat", path);                                     \
        return NEXT(name)(path, found);                         \
    }
STAT(stat64)
STAT(lstat64)

char *realpath(const char *restrict path, char *restrict resolved) {
    hang("stat", path);
    return NEXT(realpath)(path, resolved);
}
