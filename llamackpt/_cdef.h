// The part of llama.h that llamackpt uses. Constants and layouts are filled in by the compiler from the real header.

typedef int32_t llama_pos;
typedef int32_t llama_token;
typedef int32_t llama_seq_id;
typedef int64_t llama_checkpoint_id;

typedef struct llama_memory_i * llama_memory_t;

typedef struct ggml_backend_reg    * ggml_backend_reg_t;
typedef struct ggml_backend_device * ggml_backend_dev_t;

struct llama_vocab;
struct llama_model;
struct llama_context;

typedef bool (*llama_progress_callback)(float progress, void * user_data);
typedef bool (*ggml_abort_callback)(void * data);

struct llama_model_params {
    ggml_backend_dev_t * devices;
    int32_t n_gpu_layers;
    int split_mode;
    int load_mode;
    llama_progress_callback progress_callback;
    void * progress_callback_user_data;
    bool vocab_only;
    ...;
};

struct llama_context_params {
    uint32_t n_ctx;
    uint32_t n_batch;
    uint32_t n_ubatch;
    uint32_t n_seq_max;
    uint32_t n_rs_seq;
    int32_t  n_threads;
    int32_t  n_threads_batch;
    int flash_attn_type;
    int type_k;
    int type_v;
    ggml_abort_callback abort_callback;
    void * abort_callback_data;
    bool offload_kqv;
    bool no_perf;
    bool swa_full;
    bool kv_unified;
    ...;
};

typedef struct llama_batch {
    int32_t n_tokens;
    llama_token   * token;
    float         * embd;
    llama_pos     * pos;
    int32_t       * n_seq_id;
    llama_seq_id ** seq_id;
    int8_t        * logits;
} llama_batch;

struct llama_checkpoint_info {
    llama_seq_id seq_id;
    llama_pos    pos;
    uint32_t     flags;
    int          tier;
    uint64_t     size_device;
    uint64_t     size_host;
    bool         restorable;
};

struct llama_checkpoint_perf {
    uint64_t n_save;
    uint64_t n_restore;
    uint64_t n_delete;
    uint64_t n_seq_rm;
    double   t_save_us;
    double   t_restore_us;
    double   t_delete_us;
    double   t_seq_rm_us;
    double   t_save_max_us;
    double   t_restore_max_us;
    double   t_delete_max_us;
    double   t_seq_rm_max_us;
    uint64_t size_copied_device;
    uint64_t size_copied_host;
};

#define LLAMA_CHECKPOINT_FULL        ...
#define LLAMA_CHECKPOINT_DEVICE      ...
#define LLAMA_CHECKPOINT_HOST        ...
#define LLAMA_CHECKPOINT_OK          ...
#define LLAMA_CHECKPOINT_INVALID     ...
#define LLAMA_CHECKPOINT_UNSUPPORTED ...
#define LLAMA_CHECKPOINT_STALE       ...
#define LLAMA_CHECKPOINT_NO_MEMORY   ...
#define LLAMA_CHECKPOINT_TIER_SHARED ...
#define LLAMA_CHECKPOINT_TIER_DEVICE ...
#define LLAMA_CHECKPOINT_TIER_HOST   ...

#define LLAMA_STATE_SEQ_FLAGS_PARTIAL_ONLY ...

#define LLAMA_SPLIT_MODE_NONE ...
#define LLAMA_SPLIT_MODE_LAYER ...
#define LLAMA_SPLIT_MODE_ROW ...
#define LLAMA_SPLIT_MODE_TENSOR ...
#define LLAMA_LOAD_MODE_AUTO ...
#define LLAMA_LOAD_MODE_NONE ...

#define LLAMA_FLASH_ATTN_TYPE_AUTO     ...
#define LLAMA_FLASH_ATTN_TYPE_DISABLED ...
#define LLAMA_FLASH_ATTN_TYPE_ENABLED  ...

#define LLAMA_ROPE_TYPE_MROPE  ...
#define LLAMA_ROPE_TYPE_IMROPE ...
#define LLAMA_ROPE_TYPE_VISION ...

#define LLAMA_VOCAB_TYPE_NONE ...

#define LLAMA_TOKEN_NULL ...

#define RPC_PROTO_MAJOR_VERSION ...
#define RPC_PROTO_MINOR_VERSION ...

#define GGML_TYPE_F32  ...
#define GGML_TYPE_F16  ...
#define GGML_TYPE_BF16 ...
#define GGML_TYPE_Q8_0 ...
#define GGML_TYPE_Q4_0 ...

void llama_backend_init(void);
bool llama_supports_gpu_offload(void);

ggml_backend_reg_t ggml_backend_reg_by_name         (const char * name);
void *             ggml_backend_reg_get_proc_address(ggml_backend_reg_t reg, const char * name);
size_t             ggml_backend_reg_dev_count       (ggml_backend_reg_t reg);
ggml_backend_dev_t ggml_backend_reg_dev_get         (ggml_backend_reg_t reg, size_t index);

struct llama_model_params   llama_model_default_params(void);
struct llama_context_params llama_context_default_params(void);

void llama_model_free(struct llama_model * model);

void llama_free(struct llama_context * ctx);
void llama_synchronize(struct llama_context * ctx);

uint32_t llama_n_ctx    (const struct llama_context * ctx);
uint32_t llama_n_batch  (const struct llama_context * ctx);
uint32_t llama_n_ubatch (const struct llama_context * ctx);
uint32_t llama_n_seq_max(const struct llama_context * ctx);
uint32_t llama_n_rs_seq (const struct llama_context * ctx);

llama_memory_t llama_get_memory(const struct llama_context * ctx);

const struct llama_vocab * llama_model_get_vocab(const struct llama_model * model);
int      llama_model_rope_type  (const struct llama_model * model);
int32_t  llama_model_n_ctx_train(const struct llama_model * model);
int32_t  llama_model_n_embd     (const struct llama_model * model);
int32_t  llama_model_n_layer    (const struct llama_model * model);
int32_t  llama_model_n_swa      (const struct llama_model * model);
int32_t  llama_model_meta_count (const struct llama_model * model);
int32_t  llama_model_meta_key_by_index    (const struct llama_model * model, int32_t i, char * buf, size_t buf_size);
int32_t  llama_model_meta_val_str_by_index(const struct llama_model * model, int32_t i, char * buf, size_t buf_size);
int32_t  llama_model_desc       (const struct llama_model * model, char * buf, size_t buf_size);
uint64_t llama_model_size       (const struct llama_model * model);
uint64_t llama_model_n_params   (const struct llama_model * model);
bool     llama_model_has_encoder (const struct llama_model * model);
bool     llama_model_is_recurrent(const struct llama_model * model);
bool     llama_model_is_hybrid   (const struct llama_model * model);

int         llama_vocab_type    (const struct llama_vocab * vocab);
int32_t     llama_vocab_n_tokens(const struct llama_vocab * vocab);
bool        llama_vocab_is_eog  (const struct llama_vocab * vocab, llama_token token);
llama_token llama_vocab_bos     (const struct llama_vocab * vocab);
llama_token llama_vocab_eos     (const struct llama_vocab * vocab);

int32_t llama_tokenize(const struct llama_vocab * vocab, const char * text, int32_t text_len,
                       llama_token * tokens, int32_t n_tokens_max, bool add_special, bool parse_special);
int32_t llama_token_to_piece(const struct llama_vocab * vocab, llama_token token,
                             char * buf, int32_t length, int32_t lstrip, bool special);
int32_t llama_detokenize(const struct llama_vocab * vocab, const llama_token * tokens, int32_t n_tokens,
                         char * text, int32_t text_len_max, bool remove_special, bool unparse_special);

void      llama_memory_clear      (llama_memory_t mem, bool data);
bool      llama_memory_seq_rm     (llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1);
void      llama_memory_seq_cp     (llama_memory_t mem, llama_seq_id src, llama_seq_id dst, llama_pos p0, llama_pos p1);
void      llama_memory_seq_keep   (llama_memory_t mem, llama_seq_id seq_id);
void      llama_memory_seq_add    (llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos delta);
void      llama_memory_seq_div    (llama_memory_t mem, llama_seq_id seq_id, llama_pos p0, llama_pos p1, int d);
llama_pos llama_memory_seq_pos_min(llama_memory_t mem, llama_seq_id seq_id);
llama_pos llama_memory_seq_pos_max(llama_memory_t mem, llama_seq_id seq_id);
bool      llama_memory_can_shift  (llama_memory_t mem);

bool                llama_memory_checkpoint_supported(llama_memory_t mem);
int32_t             llama_memory_checkpoint_reserve  (llama_memory_t mem, uint32_t n);
llama_checkpoint_id llama_memory_checkpoint_save     (llama_memory_t mem, llama_seq_id seq_id, uint32_t flags);
int32_t             llama_memory_checkpoint_restore  (llama_memory_t mem, llama_seq_id seq_id, llama_checkpoint_id id);
int32_t             llama_memory_checkpoint_delete   (llama_memory_t mem, llama_checkpoint_id id);
int32_t             llama_memory_checkpoint_get_info (llama_memory_t mem, llama_checkpoint_id id,
                                                      struct llama_checkpoint_info * info);
size_t              llama_memory_checkpoint_get_data (llama_memory_t mem, llama_checkpoint_id id,
                                                      uint8_t * dst, size_t size, uint32_t flags);
void                llama_memory_checkpoint_get_perf (llama_memory_t mem, struct llama_checkpoint_perf * perf);

size_t llama_state_seq_get_size_ext(struct llama_context * ctx, llama_seq_id seq_id, uint32_t flags);
size_t llama_state_seq_get_data_ext(struct llama_context * ctx, uint8_t * dst, size_t size, llama_seq_id seq_id,
                                    uint32_t flags);
size_t llama_state_seq_set_data_ext(struct llama_context * ctx, const uint8_t * src, size_t size, llama_seq_id seq_id,
                                    uint32_t flags);

llama_batch llama_batch_init(int32_t n_tokens, int32_t embd, int32_t n_seq_max);
void        llama_batch_free(llama_batch batch);
float *     llama_get_logits(struct llama_context * ctx);

// ours, see _build.py
void llamackpt_load(const char * path, struct llama_model_params params, struct llama_model ** model);
void llamackpt_init(struct llama_model * model, struct llama_context_params params, struct llama_context ** ctx);
void llamackpt_decode(struct llama_context * ctx, struct llama_batch batch, int32_t * status);
void llamackpt_checkpoint_save(llama_memory_t mem, llama_seq_id seq_id, uint32_t flags, llama_checkpoint_id * id);
void llamackpt_before_fork(void);
void llamackpt_log_enable(void);
void llamackpt_log_disable(void);
bool llamackpt_abort_poll(void * data);
double llamackpt_decode_loop(struct llama_context * ctx, llama_token token, int32_t n);
extern "Python" void llamackpt_on_log(int level, const char * text);
extern "Python" bool llamackpt_on_progress(float progress, void * user_data);
extern "Python" bool llamackpt_on_poll(void);
