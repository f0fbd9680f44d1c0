// Loaded before libllama into a test of upstream's, which knows nothing of checkpoints: every context gets room for some.
// With HOLD_CHECKPOINTS=1 a full and a rollback checkpoint of a sequence are saved after its context's first decode, and held.
// The last line on stderr says how often that was done.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>

#include "llama.h"

#define N_CHECKPOINTS 2
#define N_CONTEXTS_MAX 16384

static struct llama_context * fresh[N_CONTEXTS_MAX]; // contexts that have not decoded yet
static int n_fresh, n_contexts, n_reserved, n_held;

static void * next(const char * name) {
    void * function = dlsym(RTLD_NEXT, name);
    if (function == NULL) {
        fprintf(stderr, "reserve_checkpoints: no %s\n", name);
        abort();
    }
    return function;
}

struct llama_context * llama_init_from_model(struct llama_model * model, struct llama_context_params params) {
    struct llama_context * (*init)(struct llama_model *, struct llama_context_params) = next(__func__);
    struct llama_context * ctx = init(model, params);
    llama_memory_t mem = ctx == NULL ? NULL : llama_get_memory(ctx);
    if (mem == NULL) {
        return ctx;
    }
    n_contexts++;
    if (llama_memory_checkpoint_supported(mem)) {
        if (llama_memory_checkpoint_reserve(mem, N_CHECKPOINTS) != LLAMA_CHECKPOINT_OK) {
            fprintf(stderr, "reserve_checkpoints: no room\n");
            abort();
        }
        n_reserved++;
    }
    if (n_fresh < N_CONTEXTS_MAX) {
        fresh[n_fresh++] = ctx;
    }
    return ctx;
}

static void hold(struct llama_context * ctx) {
    llama_memory_t mem = llama_get_memory(ctx);
    for (uint32_t seq_id = 0; seq_id < llama_n_seq_max(ctx); seq_id++) {
        if (llama_memory_seq_pos_max(mem, (llama_seq_id) seq_id) >= 0) {
            n_held += llama_memory_checkpoint_save(mem, (llama_seq_id) seq_id, LLAMA_CHECKPOINT_FULL) >= 0;
            n_held += llama_memory_checkpoint_save(mem, (llama_seq_id) seq_id, LLAMA_CHECKPOINT_ROLLBACK) >= 0;
            return;
        }
    }
}

int32_t llama_process(struct llama_context * ctx, enum llama_process_type type, struct llama_batch_ext * batch) {
    int32_t (*process)(struct llama_context *, enum llama_process_type, struct llama_batch_ext *) = next(__func__);
    int32_t result = process(ctx, type, batch);
    if (result != 0 || type != LLAMA_PROCESS_TYPE_DECODE || getenv("HOLD_CHECKPOINTS") == NULL) {
        return result;
    }
    for (int i = 0; i < n_fresh; i++) {
        if (fresh[i] == ctx) {
            fresh[i] = fresh[--n_fresh];
            hold(ctx);
            break;
        }
    }
    return result;
}

void llama_free(struct llama_context * ctx) {
    void (*free_context)(struct llama_context *) = next(__func__);
    for (int i = 0; i < n_fresh; i++) {
        if (fresh[i] == ctx) {
            fresh[i] = fresh[--n_fresh];
            break;
        }
    }
    free_context(ctx);
}

__attribute__((destructor)) static void report(void) {
    fprintf(stderr, "reserve_checkpoints: %d contexts, %d reserved, %d checkpoints held\n", n_contexts, n_reserved, n_held);
}
