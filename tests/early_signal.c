// Sends the process a SIGTERM as soon as it has a handler for it.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdlib.h>

int sigaction(int number, const struct sigaction * act, struct sigaction * old) {
    int (*next)(int, const struct sigaction *, struct sigaction *);
    *(void **) &next = dlsym(RTLD_NEXT, "sigaction");
    if (!next) {
        abort();
    }

    const int ret = next(number, act, old);
    if (number == SIGTERM && act && act->sa_handler != SIG_DFL && act->sa_handler != SIG_IGN) {
        raise(number);
    }

    return ret;
}
