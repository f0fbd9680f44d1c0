// Loaded before libllama: no memory has checkpoints, so that the states are serialized.

#include <stdbool.h>

struct llama_memory_i;

bool llama_memory_checkpoint_supported(struct llama_memory_i * mem);

bool llama_memory_checkpoint_supported(struct llama_memory_i * mem) {
    (void) mem;

    return false;
}
