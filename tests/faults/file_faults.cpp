// Counts the file operations below a folder, and makes one of them the last, or all from one on fail.
//
// Preloaded (LD_PRELOAD), it stands before the C library, through which Python, Arrow and safetensors all write.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

namespace {

char folder[PATH_MAX];     // "" while nothing is counted
char whole[2 * PATH_MAX];  // path of the operation that is looked at
size_t folder_length;
long count, fatal;  // operations so far, and the number (from 1) of the one that something happens to; 0: none
int failure;        // errno of that one and all that follow; 0: the process is killed instead
int journal = -1;   // descriptor that operations are listed to

enum class Does { fill, change, remove };  // fill: takes room on the disk

template <typename F>
F* next(const char* name) {
  return reinterpret_cast<F*>(dlsym(RTLD_NEXT, name));
}

bool inside(int at, const char* path) {
  if (!folder[0] || !path) return false;
  if (path[0] == '/') {
    snprintf(whole, sizeof whole, "%s", path);
  } else {
    char link[64];
    at == AT_FDCWD ? snprintf(link, sizeof link, "/proc/self/cwd") : snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    char base[PATH_MAX];
    const ssize_t length = readlink(link, base, sizeof base - 1);
    if (length < 0) return false;
    base[length] = 0;
    snprintf(whole, sizeof whole, "%s%s%s", base, path[0] ? "/" : "", path);
  }
  return strncmp(whole, folder, folder_length) == 0;
}

// Count an operation; say whether it goes on as it would. `half` does a part of it first.
template <typename Half>
bool goes_on(Does does, const char* what, int at, const char* path, Half half) {
  const int before = errno;
  const bool counted = inside(at, path);
  errno = before;
  if (!counted) return true;
  ++count;
  if (journal >= 0) dprintf(journal, "%s %s\n", what, whole + folder_length);
  if (!fatal || count < fatal) return true;
  if (!failure) {
    half();
    raise(SIGKILL);
  }
  if (failure == ENOSPC && does != Does::fill) return true;  // a full disk lets go of things
  if (count == fatal) half();
  errno = failure;
  return false;
}

bool goes_on(Does does, const char* what, int at, const char* path) {
  return goes_on(does, what, at, path, [] {});
}

bool writes(int flags) { return (flags & O_ACCMODE) != O_RDONLY || (flags & (O_CREAT | O_TRUNC)); }

Does opens(int at, const char* path, int flags) {
  return (flags & O_CREAT) && faccessat(at, path, F_OK, 0) ? Does::fill : Does::change;
}

}  // namespace

extern "C" {

// Begin to count below a folder ("" ends it).
void arm_faults(const char* below, long at, int error, int list_to) {
  snprintf(folder, sizeof folder, "%s", below);
  folder_length = strlen(folder);
  count = 0;
  fatal = at;
  failure = error;
  journal = list_to;
}

#define OPEN(name)                                                                            \
  int name(const char* path, int flags, ...) {                                                \
    va_list more;                                                                             \
    va_start(more, flags);                                                                    \
    const mode_t mode = va_arg(more, mode_t);                                                 \
    va_end(more);                                                                             \
    if (writes(flags) && !goes_on(opens(AT_FDCWD, path, flags), "open", AT_FDCWD, path)) return -1; \
    return next<int(const char*, int, ...)>(#name)(path, flags, mode);                        \
  }
OPEN(open)
OPEN(open64)

#define OPEN_AT(name)                                                                  \
  int name(int at, const char* path, int flags, ...) {                                 \
    va_list more;                                                                      \
    va_start(more, flags);                                                             \
    const mode_t mode = va_arg(more, mode_t);                                          \
    va_end(more);                                                                      \
    if (writes(flags) && !goes_on(opens(at, path, flags), "open", at, path)) return -1; \
    return next<int(int, const char*, int, ...)>(#name)(at, path, flags, mode);        \
  }
OPEN_AT(openat)
OPEN_AT(openat64)

ssize_t write(int file, const void* data, size_t size) {
  auto* real = next<ssize_t(int, const void*, size_t)>("write");
  return goes_on(Does::fill, "write", file, "", [&] { real(file, data, size / 2); }) ? real(file, data, size) : -1;
}

#define PWRITE(name)                                                                           \
  ssize_t name(int file, const void* data, size_t size, off_t offset) {                        \
    auto* real = next<ssize_t(int, const void*, size_t, off_t)>(#name);                        \
    const auto half = [&] { real(file, data, size / 2, offset); };                             \
    return goes_on(Does::fill, "write", file, "", half) ? real(file, data, size, offset) : -1; \
  }
PWRITE(pwrite)
PWRITE(pwrite64)

ssize_t writev(int file, const struct iovec* parts, int number) {
  auto* real = next<ssize_t(int, const struct iovec*, int)>("writev");
  const auto half = [&] { real(file, parts, number / 2); };
  return goes_on(Does::fill, "write", file, "", half) ? real(file, parts, number) : -1;
}

#define SENDFILE(name)                                                               \
  ssize_t name(int to, int from, off_t* offset, size_t size) {                       \
    auto* real = next<ssize_t(int, int, off_t*, size_t)>(#name);                     \
    const auto half = [&] { real(to, from, offset, size / 2); };                     \
    return goes_on(Does::fill, "write", to, "", half) ? real(to, from, offset, size) : -1; \
  }
SENDFILE(sendfile)
SENDFILE(sendfile64)

ssize_t copy_file_range(int from, off_t* start, int to, off_t* offset, size_t size, unsigned flags) {
  auto* real = next<ssize_t(int, off_t*, int, off_t*, size_t, unsigned)>("copy_file_range");
  return goes_on(Does::fill, "write", to, "") ? real(from, start, to, offset, size, flags) : -1;
}

#define CHANGE(does, name, at, path, parameters, ...)                            \
  int name parameters {                                                          \
    if (!goes_on(Does::does, #name, at, path)) return -1;                        \
    return next<int parameters>(#name)(__VA_ARGS__);                             \
  }
CHANGE(fill, fsync, file, "", (int file), file)
CHANGE(fill, fdatasync, file, "", (int file), file)
CHANGE(change, ftruncate, file, "", (int file, off_t size), file, size)
CHANGE(change, ftruncate64, file, "", (int file, off64_t size), file, size)
CHANGE(change, rename, AT_FDCWD, to, (const char* from, const char* to), from, to)
CHANGE(change, renameat, b, to, (int a, const char* from, int b, const char* to), a, from, b, to)
CHANGE(remove, unlink, AT_FDCWD, path, (const char* path), path)
CHANGE(remove, unlinkat, at, path, (int at, const char* path, int flags), at, path, flags)
CHANGE(remove, rmdir, AT_FDCWD, path, (const char* path), path)
CHANGE(fill, mkdir, AT_FDCWD, path, (const char* path, mode_t mode), path, mode)
CHANGE(fill, mkdirat, at, path, (int at, const char* path, mode_t mode), at, path, mode)
CHANGE(change, chmod, AT_FDCWD, path, (const char* path, mode_t mode), path, mode)
CHANGE(change, fchmod, file, "", (int file, mode_t mode), file, mode)
CHANGE(change, fchmodat, at, path, (int at, const char* path, mode_t mode, int flags), at, path, mode, flags)
}
