// every allocation of a checkpoint call fails once: the call must say so, change nothing and lose nothing
// usage: alloc_failures MODEL.gguf
//
// each failure is tried in a process of its own, as there are allocations in ggml that abort when they fail
// what is wrong is printed as "WRONG: call: what: where the allocation was"

#include "decode_text.h"
#include "llama.h"

#include <cxxabi.h>
#include <dlfcn.h>
#include <execinfo.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

//
// the allocator: glibc's, with a counter
//

extern "C" {
void * __libc_malloc  (size_t size);
void * __libc_calloc  (size_t n, size_t size);
void * __libc_realloc (void * ptr, size_t size);
void * __libc_memalign(size_t alignment, size_t size);
void   __libc_free    (void * ptr);
}

static thread_local long fail_in = -1; // allocations until the one that fails, negative for none
static thread_local bool failed  = false;

static long n_live = 0;

static void * fail_stack[64];
static int    fail_depth = 0;

static bool fails() {
    if (fail_in < 0 || fail_in-- > 0) {
        return false;
    }

    failed     = true;
    fail_depth = backtrace(fail_stack, 64);

    return true;
}

static void * counted(void * ptr) {
    if (ptr) {
        __atomic_add_fetch(&n_live, 1, __ATOMIC_RELAXED);
    } else {
        errno = ENOMEM;
    }
    return ptr;
}

extern "C" {
void * malloc(size_t size)                          { return counted(fails() ? nullptr : __libc_malloc(size)); }
void * calloc(size_t n, size_t size)                { return counted(fails() ? nullptr : __libc_calloc(n, size)); }
void * memalign(size_t alignment, size_t size)      { return counted(fails() ? nullptr : __libc_memalign(alignment, size)); }
void * aligned_alloc(size_t alignment, size_t size) { return counted(fails() ? nullptr : __libc_memalign(alignment, size)); }

int posix_memalign(void ** ptr, size_t alignment, size_t size) {
    void * res = memalign(alignment, size);
    if (!res) {
        return ENOMEM;
    }
    *ptr = res;
    return 0;
}

void * realloc(void * ptr, size_t size) {
    if (!ptr) {
        return malloc(size);
    }
    if (fails()) {
        errno = ENOMEM;
        return nullptr;
    }
    return __libc_realloc(ptr, size);
}

void free(void * ptr) {
    if (ptr) {
        __atomic_sub_fetch(&n_live, 1, __ATOMIC_RELAXED);
    }
    __libc_free(ptr);
}
}

//
// a context with two sequences and a checkpoint of each kind
//

static const llama_seq_id n_seq = 3; // the last one is empty

struct state {
    llama_context * ctx;
    llama_memory_t  mem;

    std::vector<llama_checkpoint_id> ids;

    // what can be seen of it
    std::vector<int64_t> seen() const {
        std::vector<int64_t> res;
        for (llama_seq_id s = 0; s < n_seq; s++) {
            res.push_back(llama_memory_seq_pos_min(mem, s));
            res.push_back(llama_memory_seq_pos_max(mem, s));
        }
        for (const auto id : ids) {
            llama_checkpoint_info info = {};
            res.push_back(llama_memory_checkpoint_get_info(mem, id, &info));
            for (const int64_t x : { (int64_t) info.seq_id, (int64_t) info.pos, (int64_t) info.tier, (int64_t) info.restorable,
                                     (int64_t) info.size_device, (int64_t) info.size_host }) {
                res.push_back(x);
            }
        }
        return res;
    }

    bool decode(llama_seq_id seq_id, int n_tokens, std::vector<float> * logits = nullptr) const {
        const bool ok = decode_text(ctx, seq_id, n_tokens, seq_id);

        if (ok && logits) {
            const float * data = llama_get_logits_ith(ctx, -1);
            logits->insert(logits->end(), data, data + llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx))));
        }

        return ok;
    }

    // how the sequences go on, and then the checkpoints
    std::vector<float> future() const {
        std::vector<float> res;
        for (llama_seq_id s = 0; s < n_seq; s++) {
            decode(s, 2, &res);
        }
        for (const auto id : ids) {
            llama_checkpoint_info info = {};
            llama_memory_checkpoint_get_info(mem, id, &info);
            if (llama_memory_checkpoint_restore(mem, info.seq_id, id) == LLAMA_CHECKPOINT_OK) {
                decode(info.seq_id, 2, &res);
            }
        }
        return res;
    }
};

static bool kv_unified = true;
static bool reserved   = true;

static state make_state(llama_model * model) {
    llama_context_params params = llama_context_default_params();
    params.n_ctx           = 256;
    params.n_batch         = 64;
    params.n_ubatch        = 16;
    params.n_seq_max       = n_seq;
    params.n_threads       = 1;
    params.n_threads_batch = 1;
    params.kv_unified      = kv_unified;

    state res;
    res.ctx = llama_init_from_model(model, params);
    res.mem = llama_get_memory(res.ctx);

    if (reserved) {
        llama_memory_checkpoint_reserve(res.mem, 2);
    }

    res.decode(0, 5);
    res.decode(1, 3);

    const uint32_t flags[] = { 0, LLAMA_CHECKPOINT_FULL, LLAMA_CHECKPOINT_DEVICE, LLAMA_CHECKPOINT_HOST | LLAMA_CHECKPOINT_FULL };
    for (const auto f : flags) {
        const llama_checkpoint_id id = llama_memory_checkpoint_save(res.mem, 0, f);
        if (id >= 0) {
            res.ids.push_back(id);
        }
    }

    res.decode(0, 4);

    return res;
}

//
// the calls
//

struct call {
    const char * name;

    std::function<int64_t(state & s)> fn;
};

static uint8_t data[1 << 22];

static int64_t read(state & s, size_t i) {
    return llama_memory_checkpoint_get_data(s.mem, s.ids[i], data, sizeof(data), 0) > 0 ? LLAMA_CHECKPOINT_OK : LLAMA_CHECKPOINT_NO_MEMORY;
}

static const call calls[] = {
    { "reserve more",                  [](state & s) { return llama_memory_checkpoint_reserve(s.mem, 5); } },
    { "reserve less",                  [](state & s) { return llama_memory_checkpoint_reserve(s.mem, 0); } },
    { "save",                          [](state & s) { return llama_memory_checkpoint_save(s.mem, 1, 0); } },
    { "save full",                     [](state & s) { return llama_memory_checkpoint_save(s.mem, 1, LLAMA_CHECKPOINT_FULL); } },
    { "save on the device",            [](state & s) { return llama_memory_checkpoint_save(s.mem, 1, LLAMA_CHECKPOINT_DEVICE); } },
    { "save on the host",              [](state & s) { return llama_memory_checkpoint_save(s.mem, 1, LLAMA_CHECKPOINT_HOST); } },
    { "save full on the host",         [](state & s) { return llama_memory_checkpoint_save(s.mem, 1, LLAMA_CHECKPOINT_HOST | LLAMA_CHECKPOINT_FULL); } },
    { "restore the first",             [](state & s) { return llama_memory_checkpoint_restore(s.mem, 0, s.ids[0]); } },
    { "restore the second",            [](state & s) { return llama_memory_checkpoint_restore(s.mem, 0, s.ids[1]); } },
    { "restore the second elsewhere",  [](state & s) { return llama_memory_checkpoint_restore(s.mem, 2, s.ids[1]); } },
    { "restore the last but one",      [](state & s) { return llama_memory_checkpoint_restore(s.mem, 0, s.ids[s.ids.size() - 2]); } },
    { "restore the last",              [](state & s) { return llama_memory_checkpoint_restore(s.mem, 0, s.ids.back()); } },
    { "restore the last elsewhere",    [](state & s) { return llama_memory_checkpoint_restore(s.mem, 2, s.ids.back()); } },
    { "read the first",                [](state & s) { return read(s, 0); } },
    { "read the second",               [](state & s) { return read(s, 1); } },
    { "restore the last over another", [](state & s) { return llama_memory_checkpoint_restore(s.mem, 1, s.ids.back()); } },
};

enum result {
    RESULT_REFUSED, // with an error, and nothing has changed
    RESULT_MANAGED, // it did without
    RESULT_DONE,    // there are no more allocations
    RESULT_WRONG,

    N_RESULTS,
};

static const char * call_name = "";

static int wrong(const std::string & what) {
    fail_in = -1;

    std::string where;
    for (int i = 0; i < fail_depth; i++) {
        Dl_info info;
        if (dladdr(fail_stack[i], &info) && info.dli_sname) {
            int status = 0;
            char * name = abi::__cxa_demangle(info.dli_sname, nullptr, nullptr, &status);
            where += (where.empty() ? "" : " < ") + std::string(status == 0 ? name : info.dli_sname);
            free(name);
        }
    }

    printf("WRONG: %s: %s: %s\n", call_name, what.c_str(), where.c_str());
    fflush(stdout);

    return RESULT_WRONG;
}

static void on_signal(int sig) {
    _exit(wrong(sig == SIGABRT ? "aborts" : "crashes"));
}

// what was put back from the host can be in other cells, and its sums are rounded in another order
static bool is_close(const std::vector<float> & a, const std::vector<float> & b) {
    if (a.size() != b.size()) {
        return false;
    }
    double err = 0.0;
    double sum = 0.0;
    for (size_t i = 0; i < a.size(); i++) {
        err += (a[i] - b[i])*(a[i] - b[i]);
        sum += b[i]*b[i];
    }
    return std::isfinite(err) && err <= 1e-9*sum;
}

// with the allocation k failing, twice: some memory is allocated once and stays
static int try_one(llama_model * model, const call & c, long k, const std::vector<int64_t> & seen, const std::vector<float> & future) {
    int  res    = RESULT_WRONG;
    long n_lost = 0;

    for (int i = 0; i < 2; i++) {
        n_lost = n_live;

        state s = make_state(model);
        if (s.seen() != seen) {
            return wrong("the two contexts are not the same");
        }

        const bool supported = llama_memory_checkpoint_supported(s.mem);

        int64_t ret = 0;

        failed  = false;
        fail_in = k;
        try {
            ret = c.fn(s);
        } catch (const std::exception & err) {
            return wrong("an exception crosses the C API");
        }
        fail_in = -1;

        if (!failed) {
            const bool expected = ret >= 0 || (ret == LLAMA_CHECKPOINT_UNSUPPORTED && !supported);
            return expected ? RESULT_DONE : wrong("fails by itself");
        }

        res = ret < 0 ? RESULT_REFUSED : RESULT_MANAGED;

        if (ret < 0) {
            if (ret != LLAMA_CHECKPOINT_NO_MEMORY) {
                return wrong("returns status " + std::to_string(ret));
            }
            if (s.seen() != seen) {
                return wrong("fails and changes what can be seen");
            }
            if (!is_close(s.future(), future)) {
                return wrong("fails and changes the logits");
            }
        }

        llama_free(s.ctx);
        s = {};

        n_lost = n_live - n_lost;
    }

    return n_lost != 0 ? wrong("loses memory") : res;
}

int main(int argc, char ** argv) {
    if (argc < 2) {
        fprintf(stderr, "usage: %s MODEL.gguf [streams | unreserved]\n", argv[0]);
        return 2;
    }

    const std::string option = argc > 2 ? argv[2] : "";

    kv_unified = option != "streams";    // a cache for each sequence
    reserved   = option != "unreserved"; // sliding windows are copied

    signal(SIGABRT, on_signal);
    signal(SIGSEGV, on_signal);
    setenv("GGML_NO_BACKTRACE", "1", 1);

    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_backend_init();

    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        return 1;
    }

    fail_depth = backtrace(fail_stack, 64); // loads what it needs

    state ref = make_state(model);
    const auto seen   = ref.seen();
    const auto future = ref.future();
    llama_free(ref.ctx);

    int n_wrong = 0;

    for (const auto & c : calls) {
        int n[N_RESULTS] = { 0 };

        call_name = c.name;

        for (long k = 0; n[RESULT_DONE] == 0 && k < 10000; k++) {
            fflush(stdout);

            const pid_t pid = fork();
            if (pid == 0) {
                _exit(try_one(model, c, k, seen, future));
            }

            int status = 0;
            waitpid(pid, &status, 0);

            n[WIFEXITED(status) && WEXITSTATUS(status) < N_RESULTS ? WEXITSTATUS(status) : RESULT_WRONG]++;
        }

        printf("%-32s refused %4d, managed %4d, wrong %4d\n", c.name, n[RESULT_REFUSED], n[RESULT_MANAGED], n[RESULT_WRONG]);
        n_wrong += n[RESULT_WRONG];
    }

    llama_model_free(model);

    return n_wrong == 0 ? 0 : 1;
}
