// Sends the process a SIGTERM while its first thread holds the lock that it takes as number SIGNAL_AT, counted from where
// the signal has a handler.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>

static int count; // of the first thread only
static int armed;

int sigaction(int number, const struct sigaction * act, struct sigaction * old) {
    int (*next)(int, const struct sigaction *, struct sigaction *);
    *(void **) &next = dlsym(RTLD_NEXT, "sigaction");
    if (!next) {
        abort();
    }

    const int ret = next(number, act, old);
    if (number == SIGTERM && act && act->sa_handler != SIG_DFL && act->sa_handler != SIG_IGN) {
        armed = 1;
    }

    return ret;
}

int pthread_mutex_lock(pthread_mutex_t * mutex) {
    static int (*next)(pthread_mutex_t *);
    if (!next) {
        *(void **) &next = dlsym(RTLD_NEXT, "pthread_mutex_lock");
        if (!next) {
            abort();
        }
    }

    const int ret = next(mutex);
    const char * at = getenv("SIGNAL_AT");
    if (armed && gettid() == getpid() && at && ++count == atoi(at)) {
        raise(SIGTERM);
    }

    return ret;
}
