// The CUDA kernel of Gated DeltaNet, when it stores the states in the cache by itself, beside the operations of the CPU.
// fusion.h is the part of ggml-cuda.cu that finds the store in the graph.

#include "gated_delta_net.cuh"
#include "fusion.h"

#include "ggml-cpu.h"

#include <cstdio>
#include <cstring>
#include <random>

struct gdn_case {
    int64_t n_head, head_size, n_tokens, n_seqs, n_slots;
    int64_t n_rows;   // of a state in the cache, in any order; 0: the states are copied to a view
    bool    kda;      // a gate for each dimension
    bool    is_fused;
};

static const gdn_case cases[] = {
    { 2, 16,  1, 1, 1,  0, false, true  },
    { 2, 16,  3, 2, 2,  0, false, true  },
    { 2, 16,  1, 1, 1,  1, false, true  },
    { 2, 16,  1, 3, 1,  1, true,  true  },
    { 2, 16,  4, 2, 1, 32, false, true  },
    { 2, 16,  4, 2, 2,  1, false, true  }, // more tokens than snapshots
    { 2, 16,  2, 2, 4,  8, true,  true  }, // and fewer
    { 3, 32,  2, 1, 2, 96, false, true  },
    { 1, 128, 1, 1, 1, 64, false, true  },
    { 2, 16,  1, 1, 1, 64, false, false }, // a row is a part of a column
};

static bool run(const gdn_case & c) {
    const int64_t H = c.n_head, S = c.head_size, T = c.n_tokens, B = c.n_seqs, K = c.n_slots;

    const int64_t D         = S*S*H;
    const int64_t n_written = std::min(T, K);

    ggml_context * ctx = ggml_init({ 64u*1024*1024, nullptr, false });

    std::mt19937 rng(42);

    const auto tensor = [&](int64_t ne0, int64_t ne1, int64_t ne2, int64_t ne3, float min, float max) {
        ggml_tensor * res = ggml_new_tensor_4d(ctx, GGML_TYPE_F32, ne0, ne1, ne2, ne3);

        std::uniform_real_distribution<float> dist(min, max);
        for (int64_t i = 0; i < ggml_nelements(res); ++i) {
            ((float *) res->data)[i] = dist(rng);
        }

        return res;
    };

    ggml_tensor * q     = tensor(S, H, T, B, -0.2f, 0.2f);
    ggml_tensor * k     = tensor(S, H, T, B, -0.2f, 0.2f);
    ggml_tensor * v     = tensor(S, H, T, B, -0.3f, 5.0f);
    ggml_tensor * g     = tensor(c.kda ? S : 1, H, T, B, -2.0f, -1e-4f);
    ggml_tensor * beta  = tensor(1, H, T, B, 0.0f, 1.0f);
    ggml_tensor * state = tensor(S, S, H, B, -1.0f, 1.0f);
    ggml_tensor * cache = tensor(D, 3*B*n_written, 1, 1, 7.0f, 8.0f);

    ggml_tensor * gdn = ggml_gated_delta_net(ctx, q, k, v, g, beta, state, K);

    const int64_t n_attn = S*H*T*B;

    ggml_tensor * src = ggml_view_3d(ctx, gdn, D, B, n_written, D*sizeof(float), D*B*sizeof(float), n_attn*sizeof(float));

    ggml_tensor * store = nullptr;

    if (c.n_rows == 0) {
        store = ggml_cpy(ctx, src, ggml_view_3d(ctx, cache, D, B, n_written, D*sizeof(float), D*B*sizeof(float), D*sizeof(float)));
    } else {
        const int64_t n_rows = c.n_rows*B*n_written;

        ggml_tensor * rows = ggml_new_tensor_1d(ctx, GGML_TYPE_I64, n_rows);

        std::vector<int64_t> ids(3*n_rows);
        for (size_t i = 0; i < ids.size(); ++i) {
            ids[i] = i;
        }
        std::shuffle(ids.begin(), ids.end(), rng);
        memcpy(rows->data, ids.data(), ggml_nbytes(rows));

        store = ggml_set_rows(ctx, ggml_reshape_2d(ctx, cache, D/c.n_rows, 3*n_rows), ggml_reshape_2d(ctx, src, D/c.n_rows, n_rows), rows);
    }

    ggml_cgraph * gf = ggml_new_graph(ctx);
    ggml_build_forward_expand(gf, store);
    ggml_build_forward_expand(gf, ggml_sum(ctx, ggml_view_1d(ctx, gdn, n_attn, 0)));

    const auto get = [](const ggml_tensor * t, int64_t n) {
        return std::vector<float>((const float *) t->data, (const float *) t->data + n);
    };

    const auto cache_old = get(cache, ggml_nelements(cache));

    ggml_graph_compute_with_ctx(ctx, gf, 1);

    const auto cache_ref = get(cache, ggml_nelements(cache));
    const auto attn_ref  = get(gdn, n_attn);

    memcpy(cache->data, cache_old.data(), ggml_nbytes(cache));
    memset(gdn->data, 0, ggml_nbytes(gdn));

    int i_gdn = 0;
    while (ggml_graph_node(gf, i_gdn) != gdn) {
        i_gdn++;
    }

    ggml_cuda_gated_delta_net_fused_cache fused;
    memset(&fused, 0xff, sizeof(fused));

    const int n_skip = ggml_cuda_try_gdn_cache_fusion(gf, i_gdn, fused);

    bool ok = (n_skip > 0) == c.is_fused;

    if (ok && c.is_fused) {
        ok = ggml_graph_node(gf, i_gdn + n_skip) == store;

        ggml_backend_cuda_context backend;
        ggml_cuda_op_gated_delta_net_fused_cache(backend, gdn, fused);

        const auto is_close = [&](const ggml_tensor * t, const std::vector<float> & ref) {
            for (size_t i = 0; i < ref.size(); ++i) {
                if (!(std::fabs(((const float *) t->data)[i] - ref[i]) <= 1e-5f)) {
                    return false;
                }
            }
            return true;
        };

        // where nothing is stored the cache is as it was
        ok = ok && is_close(cache, cache_ref) && is_close(gdn, attn_ref) && cache_ref != cache_old;
    }

    ggml_free(ctx);

    return ok;
}

int main() {
    int n_fail = 0;

    for (const auto & c : cases) {
        const bool ok = run(c);

        printf("heads %d x %d, tokens %d, sequences %d, slots %d, rows %d, kda %d: %s\n", (int) c.n_head, (int) c.head_size,
                (int) c.n_tokens, (int) c.n_seqs, (int) c.n_slots, (int) c.n_rows, c.kda, ok ? "ok" : "FAIL");

        n_fail += !ok;
    }

    return n_fail;
}
