// for the thread sanitizer: two contexts of one model, each with its own thread, take and restore checkpoints at once
// usage: two_contexts MODEL.gguf

#include "decode_text.h"
#include "llama.h"

#include <cstdio>
#include <cstring>
#include <thread>
#include <vector>

static const int n_seq   = 2;
static const int n_round = 12;

// the logits of all rounds, or nothing
static std::vector<float> run(llama_model * model, int salt) {
    std::vector<float> res;

    llama_context_params params = llama_context_default_params();
    params.n_ctx           = 256;
    params.n_seq_max       = n_seq;
    params.n_threads       = 1; // more spin against each other on a busy machine
    params.n_threads_batch = 1;

    llama_context * ctx = llama_init_from_model(model, params);
    if (!ctx) {
        return res;
    }

    llama_memory_t mem = llama_get_memory(ctx);

    const uint32_t flags[] = { 0, LLAMA_CHECKPOINT_DEVICE, LLAMA_CHECKPOINT_HOST, LLAMA_CHECKPOINT_FULL };

    bool ok = llama_memory_checkpoint_reserve(mem, 2) == LLAMA_CHECKPOINT_OK;

    for (int i = 0; i < n_round && ok; i++) {
        const llama_seq_id seq_id = i % n_seq;

        ok = ok && decode_text(ctx, seq_id, 3, salt);

        const llama_checkpoint_id id = llama_memory_checkpoint_save(mem, seq_id, flags[i % 4]);
        if (id == LLAMA_CHECKPOINT_UNSUPPORTED) {
            continue; // no copies on the device
        }

        ok = ok && id >= 0 && decode_text(ctx, seq_id, 5, salt + 1);
        ok = ok && llama_memory_checkpoint_restore(mem, seq_id, id) == LLAMA_CHECKPOINT_OK;
        ok = ok && llama_memory_checkpoint_reserve(mem, 1 + i % 3) == LLAMA_CHECKPOINT_OK;
        ok = ok && decode_text(ctx, seq_id, 1, salt);
        ok = ok && llama_memory_checkpoint_delete(mem, id) == LLAMA_CHECKPOINT_OK;

        if (ok) {
            const float * logits = llama_get_logits_ith(ctx, -1);
            res.insert(res.end(), logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(model)));
        }
    }

    llama_free(ctx);

    if (!ok) {
        res.clear();
    }

    return res;
}

int main(int argc, char ** argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: %s MODEL.gguf\n", argv[0]);
        return 2;
    }

    llama_log_set([](ggml_log_level level, const char * text, void *) {
        if (level == GGML_LOG_LEVEL_ERROR) {
            fputs(text, stderr);
        }
    }, nullptr);
    llama_backend_init();

    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        return 1;
    }

    // the same alone, and with another thread beside it
    const auto alone0 = run(model, 0);
    const auto alone1 = run(model, 1);

    std::vector<float> both0;
    std::vector<float> both1;

    std::thread t0([&] { both0 = run(model, 0); });
    std::thread t1([&] { both1 = run(model, 1); });
    t0.join();
    t1.join();

    llama_model_free(model);
    llama_backend_free();

    const bool ok = !alone0.empty() && !alone1.empty() && alone0 == both0 && alone1 == both1;
    printf("%s: %s\n", argv[1], ok ? "PASS" : "FAIL");

    return ok ? 0 : 1;
}
