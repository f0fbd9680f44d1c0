"""The cffi builder: compiles the extension against the patched header.

It knows where the build put headers and libraries (overridable, see below), and nothing of what they do.
LLAMACKPT_INCLUDE: include directories, separated by os.pathsep. LLAMACKPT_LIB: the directory of the libraries.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from cffi import FFI

PACKAGE = Path(__file__).resolve().parent
SOURCE = PACKAGE.parent / "vendor" / "llama.cpp"

INCLUDE = os.environ.get("LLAMACKPT_INCLUDE") or os.pathsep.join(
    [str(SOURCE / "include"), str(SOURCE / "ggml" / "include")]
)
LIB = os.environ.get("LLAMACKPT_LIB") or str(PACKAGE / "lib")

# a signal handler of Python runs only in Python, and llama_decode() can take minutes: the abort callback, which ggml calls
# in the thread that decodes, looks at the clock now and then and lets Python run its handlers
C_SOURCE = r"""
#include "llama.h"
#include "ggml-rpc.h"

#include <string.h>
#include <time.h>

static void llamackpt_on_log(int level, const char * text);
static bool llamackpt_on_poll(void);

static void llamackpt_log_forward(enum ggml_log_level level, const char * text, void * user_data) {
    (void) user_data;
    if (level >= GGML_LOG_LEVEL_INFO) { // debug is for the debugger
        llamackpt_on_log((int) level, text);
    }
}

static void llamackpt_log_drop(enum ggml_log_level level, const char * text, void * user_data) {
    (void) level;
    (void) text;
    (void) user_data;
}

static void llamackpt_log_enable(void)  { llama_log_set(llamackpt_log_forward, NULL); }
static void llamackpt_log_disable(void) { llama_log_set(llamackpt_log_drop,    NULL); }

// the result is in memory of Python's before Python runs again: where a signal handler raises then, it is not lost

static void llamackpt_load(const char * path, struct llama_model_params params, struct llama_model ** model) {
    *model = llama_model_load_from_file(path, params);
}

static void llamackpt_init(struct llama_model * model, struct llama_context_params params, struct llama_context ** ctx) {
    *ctx = llama_init_from_model(model, params);
}

static void llamackpt_decode(struct llama_context * ctx, struct llama_batch batch, int32_t * status) {
    *status = llama_decode(ctx, batch);
}

static void llamackpt_checkpoint_save(llama_memory_t mem, llama_seq_id seq_id, uint32_t flags, llama_checkpoint_id * id) {
    *id = llama_memory_checkpoint_save(mem, seq_id, flags);
}

// a fork has none of the threads that OpenMP keeps, and GNU's would wait for them: it ends them here, and starts others later
// the libraries of llama.cpp bring OpenMP, or do not
#ifdef __linux__
extern int omp_pause_resource_all(int kind) __attribute__((weak));

static void llamackpt_before_fork(void) {
    if (omp_pause_resource_all) {
        omp_pause_resource_all(2); // omp_pause_hard
    }
}
#else
static void llamackpt_before_fork(void) {
}
#endif

static double llamackpt_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return 1e6*t.tv_sec + 1e-3*t.tv_nsec;
}

// data: { calls, time of the last poll in us }
static bool llamackpt_abort_poll(void * data) {
    double * state = (double *) data;

    state[0] += 1;
    if (state[0] < 32) {
        return false;
    }
    state[0] = 0;

    const double now = llamackpt_now();
    if (now - state[1] < 20e3) {
        return false;
    }
    state[1] = now;

    return llamackpt_on_poll();
}

// the same loop as in Python, for the benchmark: microseconds for n tokens, negative on failure
static double llamackpt_decode_loop(struct llama_context * ctx, llama_token token, int32_t n) {
    const double start = llamackpt_now();
    for (int32_t i = 0; i < n; i++) {
        if (llama_decode(ctx, llama_batch_get_one(&token, 1)) != 0 || !llama_get_logits_ith(ctx, -1)) {
            return -1;
        }
    }
    return llamackpt_now() - start;
}
"""

ffibuilder = FFI()
for declarations in ("_cdef.h", "_cdef_sampling.h"):
    ffibuilder.cdef((PACKAGE / declarations).read_text())

ffibuilder.set_source(
    "llamackpt._llama",
    C_SOURCE,
    include_dirs=INCLUDE.split(os.pathsep),
    library_dirs=[LIB],
    libraries=["llama", "ggml", "ggml-base"],
    extra_link_args=[f"-Wl,-rpath,{'@loader_path' if sys.platform == 'darwin' else '$ORIGIN'}/lib"],
    py_limited_api=True,
)

if __name__ == "__main__":
    ffibuilder.compile(tmpdir=str(PACKAGE.parent), verbose=True)
