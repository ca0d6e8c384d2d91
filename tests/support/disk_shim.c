/* Between a process and its disk: writes down each change below a directory, and makes changes
   and reads slow or fail.

   Preloaded by `disk_shim.py`, which explains the variables and reads the log. One record is a line of
   fields separated by tabs (operation, inode, offset, length, path, second path), then `length` bytes. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/capability.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRITES (O_WRONLY | O_RDWR)

static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;
static const char *root, *log_path, *fault_path, *unreadable_path;
static size_t root_length;
static int log_file = -1;

/* Root's files obey their permissions then, as any user's do. */
static void be_bound_by_permissions(void) {
    struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
    struct __user_cap_data_struct sets[2];
    if (syscall(SYS_capget, &head, sets)) abort();
    unsigned kept = ~((1u << CAP_DAC_OVERRIDE) | (1u << CAP_DAC_READ_SEARCH));
    sets[0].effective &= kept;
    sets[0].permitted &= kept;
    sets[0].inheritable &= kept;
    if (syscall(SYS_capset, &head, sets)) abort();
}

__attribute__((constructor)) static void begin(void) {
    root = getenv("DISK_SHIM_ROOT");
    log_path = getenv("DISK_SHIM_LOG");
    fault_path = getenv("DISK_SHIM_FAULT");
    unreadable_path = getenv("DISK_SHIM_UNREADABLE");
    root_length = root ? strlen(root) : 0;
    if (getenv("DISK_SHIM_UNPRIVILEGED")) be_bound_by_permissions();
}

static int below(const char *path) {
    return root_length && !strncmp(path, root, root_length) && (path[root_length] == '/' || !path[root_length]);
}

/* The absolute path of a name, as the kernel would find it. */
static int locate(int directory, const char *name, char *path) {
    char link[64];
    if (name[0] == '/') return snprintf(path, PATH_MAX, "%s", name), below(path);
    if (directory == AT_FDCWD) snprintf(link, sizeof link, "/proc/self/cwd");
    else snprintf(link, sizeof link, "/proc/self/fd/%d", directory);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    snprintf(path + length, PATH_MAX - length, "/%s", name);
    return below(path);
}

static int locate_file(int file, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return below(path);
}

static unsigned long inode_of(int file) {
    struct stat status;
    return fstat(file, &status) ? 0 : status.st_ino;
}

/* What the test wants to go wrong: "ERRNO MICROSECONDS" in a file. Returns the errno, after the delay. */
static int fault(void) {
    char text[64] = "";
    if (!fault_path) return 0;
    int file = REAL(open)(fault_path, O_RDONLY | O_CLOEXEC);
    if (file < 0) return 0;
    ssize_t length = REAL(read)(file, text, sizeof text - 1);
    REAL(close)(file);
    int number = 0, delay = 0;
    if (length > 0) sscanf(text, "%d %d", &number, &delay);
    if (delay) usleep(delay);
    return number;
}

/* Whether a file's inode is among those that the test has written into another file, between spaces. */
static int is_unreadable(int file) {
    char text[PATH_MAX] = "", inode[64];
    if (!unreadable_path) return 0;
    int list = REAL(open)(unreadable_path, O_RDONLY | O_CLOEXEC);
    if (list < 0) return 0;
    ssize_t length = REAL(read)(list, text, sizeof text - 1);
    REAL(close)(list);
    snprintf(inode, sizeof inode, " %lu ", inode_of(file));
    return length > 0 && strstr(text, inode);
}

static void note(const char *what, unsigned long inode, long offset, size_t length, const void *data,
                 const char *path, const char *second) {
    int kept = errno;
    if (log_path) {
        char head[3 * PATH_MAX];
        int size = snprintf(head, sizeof head, "%s\t%lu\t%ld\t%zu\t%s\t%s\n", what, inode, offset,
                            data ? length : 0, path ? path : "", second ? second : "");
        if (log_file < 0) log_file = REAL(open)(log_path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
        struct iovec parts[2] = {{head, size}, {(void *)data, data ? length : 0}};
        if (writev(log_file, parts, 2) < 0) abort();
    }
    errno = kept;
}

/* Everything between BEGIN and END happens at once for all threads, so the log has it in the right order. */
#define BEGIN(result)                                                                                        \
    int number = fault();                                                                                    \
    if (number) return errno = number, (result);                                                             \
    pthread_mutex_lock(&turn);
#define END pthread_mutex_unlock(&turn)

static int opened(int directory, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    int (*real)(int, const char *, int, ...) = REAL(openat);
    if (!(flags & WRITES) || (flags & O_TMPFILE) == O_TMPFILE || !locate(directory, name, path))
        return real(directory, name, flags, mode);
    BEGIN(-1);
    int file = real(directory, name, flags, mode);
    if (file >= 0) {
        if (flags & O_CREAT) note("create", inode_of(file), 0, 0, NULL, path, NULL);
        if (flags & O_TRUNC) note("truncate", inode_of(file), 0, 0, NULL, path, NULL);
    }
    END;
    return file;
}

#define OPEN(name)                                                                                           \
    int name(const char *path, int flags, ...) {                                                             \
        va_list more;                                                                                        \
        va_start(more, flags);                                                                               \
        mode_t mode = va_arg(more, mode_t);                                                                  \
        va_end(more);                                                                                        \
        return opened(AT_FDCWD, path, flags, mode);                                                          \
    }
#define OPENAT(name)                                                                                         \
    int name(int directory, const char *path, int flags, ...) {                                              \
        va_list more;                                                                                        \
        va_start(more, flags);                                                                               \
        mode_t mode = va_arg(more, mode_t);                                                                  \
        va_end(more);                                                                                        \
        return opened(directory, path, flags, mode);                                                         \
    }
OPEN(open)
OPEN(open64)
OPENAT(openat64)
int __open_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }
int __open64_2(const char *path, int flags) { return opened(AT_FDCWD, path, flags, 0); }

#define READ(file, call) (is_unreadable(file) ? (errno = EIO, -1) : (call))
ssize_t read(int file, void *data, size_t length) { return READ(file, REAL(read)(file, data, length)); }
ssize_t pread(int file, void *data, size_t length, off_t offset) {
    return READ(file, REAL(pread)(file, data, length, offset));
}
ssize_t pread64(int file, void *data, size_t length, off64_t offset) {
    return READ(file, REAL(pread64)(file, data, length, offset));
}

ssize_t write(int file, const void *data, size_t length) {
    char path[PATH_MAX];
    ssize_t (*real)(int, const void *, size_t) = REAL(write);
    if (!locate_file(file, path)) return real(file, data, length);
    BEGIN(-1);
    ssize_t written = real(file, data, length);
    /* After the write, the position is its end, even if the file was opened to append. */
    if (written > 0)
        note("write", inode_of(file), lseek(file, 0, SEEK_CUR) - written, written, data, path, NULL);
    END;
    return written;
}

static ssize_t written_at(int file, const void *data, size_t length, off64_t offset) {
    char path[PATH_MAX];
    ssize_t (*real)(int, const void *, size_t, off64_t) = REAL(pwrite64);
    if (!locate_file(file, path)) return real(file, data, length, offset);
    BEGIN(-1);
    ssize_t written = real(file, data, length, offset);
    if (written > 0) note("write", inode_of(file), offset, written, data, path, NULL);
    END;
    return written;
}
ssize_t pwrite(int file, const void *data, size_t length, off_t offset) {
    return written_at(file, data, length, offset);
}
ssize_t pwrite64(int file, const void *data, size_t length, off64_t offset) {
    return written_at(file, data, length, offset);
}

/* Copying within the kernel would be invisible: programs then copy by reading and writing. */
ssize_t sendfile64(int out, int in, off64_t *offset, size_t length) {
    char path[PATH_MAX];
    ssize_t (*real)(int, int, off64_t *, size_t) = REAL(sendfile64);
    if (locate_file(out, path)) return errno = ENOTSOCK, -1;
    return READ(in, real(out, in, offset, length));
}
ssize_t sendfile(int out, int in, off_t *offset, size_t length) { return sendfile64(out, in, offset, length); }
ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t length, unsigned flags) {
    (void)in, (void)from, (void)out, (void)to, (void)length, (void)flags;
    return errno = EXDEV, -1;
}

static int truncated(int file, off64_t length) {
    char path[PATH_MAX];
    int (*real)(int, off64_t) = REAL(ftruncate64);
    if (!locate_file(file, path)) return real(file, length);
    BEGIN(-1);
    int result = real(file, length);
    if (!result) note("truncate", inode_of(file), length, 0, NULL, path, NULL);
    END;
    return result;
}
int ftruncate(int file, off_t length) { return truncated(file, length); }
int ftruncate64(int file, off64_t length) { return truncated(file, length); }

#define SYNC(name)                                                                                           \
    int name(int file) {                                                                                     \
        char path[PATH_MAX];                                                                                 \
        int (*real)(int) = REAL(name);                                                                       \
        if (!locate_file(file, path)) return real(file);                                                     \
        BEGIN(-1);                                                                                           \
        int result = real(file);                                                                             \
        if (!result) note("sync", inode_of(file), 0, 0, NULL, path, NULL);                                   \
        END;                                                                                                 \
        return result;                                                                                       \
    }
SYNC(fsync)
SYNC(fdatasync)

static int renamed(int from, const char *name, int to, const char *second) {
    char path[PATH_MAX], target[PATH_MAX];
    int (*real)(int, const char *, int, const char *) = REAL(renameat);
    int is_ours = locate(from, name, path), is_target = locate(to, second, target);
    if (!is_ours && !is_target) return real(from, name, to, second);
    BEGIN(-1);
    int result = real(from, name, to, second);
    if (!result) note("rename", 0, 0, 0, NULL, path, target);
    END;
    return result;
}
int rename(const char *name, const char *second) { return renamed(AT_FDCWD, name, AT_FDCWD, second); }

int linkat(int from, const char *name, int to, const char *second, int flags) {
    char path[PATH_MAX], target[PATH_MAX];
    int (*real)(int, const char *, int, const char *, int) = REAL(linkat);
    locate(from, name, path);
    if (!locate(to, second, target)) return real(from, name, to, second, flags);
    BEGIN(-1);
    int result = real(from, name, to, second, flags);
    if (!result) note("link", 0, 0, 0, NULL, path, target);
    END;
    return result;
}
int link(const char *name, const char *second) { return linkat(AT_FDCWD, name, AT_FDCWD, second, 0); }

int symlink(const char *content, const char *name) {
    char path[PATH_MAX];
    int (*real)(const char *, const char *) = REAL(symlink);
    if (!locate(AT_FDCWD, name, path)) return real(content, name);
    BEGIN(-1);
    int result = real(content, name);
    if (!result) note("symlink", 0, 0, 0, NULL, content, path);
    END;
    return result;
}

int unlinkat(int directory, const char *name, int flags) {
    char path[PATH_MAX];
    int (*real)(int, const char *, int) = REAL(unlinkat);
    if (!locate(directory, name, path)) return real(directory, name, flags);
    BEGIN(-1);
    int result = real(directory, name, flags);
    if (!result) note("unlink", 0, 0, 0, NULL, path, NULL);
    END;
    return result;
}
int unlink(const char *name) { return unlinkat(AT_FDCWD, name, 0); }
int rmdir(const char *name) { return unlinkat(AT_FDCWD, name, AT_REMOVEDIR); }

int mkdir(const char *name, mode_t mode) {
    char path[PATH_MAX];
    int (*real)(const char *, mode_t) = REAL(mkdir);
    if (!locate(AT_FDCWD, name, path)) return real(name, mode);
    BEGIN(-1);
    int result = real(name, mode);
    if (!result) note("mkdir", 0, 0, 0, NULL, path, NULL);
    END;
    return result;
}
