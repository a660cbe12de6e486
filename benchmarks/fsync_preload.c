/* Gives dcmtk's storescp the promise that we make: what was answered with Success survives a power cut.
 *
 * Preloaded into storescp (LD_PRELOAD). storescp writes each object with stdio and answers after fclose; so fclose of a
 * regular file that is open for writing flushes it, synchronises it, and synchronises the folder in which its name
 * stands, found by /proc/self/fd, before the real fclose. A failure is reported as fclose reports one.
 *
 *     cc -shared -fPIC -O2 -Wall -Werror -o fsync_preload.so fsync_preload.c -ldl
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* Returns 1 when the descriptor is a regular file open for writing. */
static int is_written_file(int descriptor) {
    struct stat status;
    int flags = fcntl(descriptor, F_GETFL);
    return flags >= 0 && (flags & O_ACCMODE) != O_RDONLY && fstat(descriptor, &status) == 0 && S_ISREG(status.st_mode);
}

/* Synchronises the folder that holds the descriptor's name; returns 0 or -1. */
static int synchronise_folder(int descriptor) {
    char link[64], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return -1;
    path[length] = '\0';
    char *slash = strrchr(path, '/');
    if (slash == NULL) return -1;
    slash[slash == path] = '\0';
    int folder = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (folder < 0) return -1;
    int failed = fsync(folder);
    close(folder);
    return failed;
}

int fclose(FILE *stream) {
    static int (*real_fclose)(FILE *);
    if (real_fclose == NULL) real_fclose = (int (*)(FILE *))dlsym(RTLD_NEXT, "fclose");
    int descriptor = fileno(stream), failed = 0, reason = 0;
    if (descriptor >= 0 && is_written_file(descriptor)) {
        failed = fflush(stream) != 0 || fsync(descriptor) != 0 || synchronise_folder(descriptor) != 0;
        reason = errno;
    }
    int closed = real_fclose(stream);
    if (!failed) return closed;
    errno = reason;
    return EOF;
}
