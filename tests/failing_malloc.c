// The next allocation of FAIL_SIZE bytes after the file FAIL_FILE appears fails, and the file is removed.

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

void * __libc_malloc(size_t size);

void * malloc(size_t size) {
    const char * want = getenv("FAIL_SIZE");
    const char * file = getenv("FAIL_FILE");
    if (want && file && size == strtoull(want, NULL, 10) && unlink(file) == 0) {
        errno = ENOMEM;
        return NULL;
    }

    return __libc_malloc(size);
}
