#pragma once

#include "llama.h"

// the next n_tokens of a text that salt chooses, at the end of the sequence
static inline bool decode_text(llama_context * ctx, llama_seq_id seq_id, int n_tokens, int salt) {
    const int32_t n_vocab = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(ctx)));

    llama_batch batch = llama_batch_init(n_tokens, 0, 1);

    const llama_pos pos = llama_memory_seq_pos_max(llama_get_memory(ctx), seq_id) + 1;
    for (int i = 0; i < n_tokens; i++) {
        batch.token   [i]    = (7*(pos + i) + 13*salt) % n_vocab;
        batch.pos     [i]    = pos + i;
        batch.n_seq_id[i]    = 1;
        batch.seq_id  [i][0] = seq_id;
        batch.logits  [i]    = i + 1 == n_tokens;
    }
    batch.n_tokens = n_tokens;

    const int ret = llama_decode(ctx, batch);
    llama_batch_free(batch);

    return ret == 0;
}
