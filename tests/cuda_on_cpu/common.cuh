// What the CUDA kernel of Gated DeltaNet uses of CUDA and of ggml-cuda, on threads of the CPU: one a lane, a block at a time.

#pragma once

#include "ggml-impl.h"
#include "ggml.h"

#include <algorithm>
#include <array>
#include <barrier>
#include <cmath>
#include <cstdint>
#include <deque>
#include <thread>
#include <vector>

#define __global__
#define __launch_bounds__(...)

struct dim3 {
    uint32_t x, y, z;

    dim3(uint32_t x = 1, uint32_t y = 1, uint32_t z = 1) : x(x), y(y), z(z) {}
};

using uint3        = dim3;
using cudaStream_t = void *;

// the lanes of a warp exchange values, all of them at the same time
struct warp {
    explicit warp(int n_lanes) : barrier(n_lanes) {}

    std::barrier<> barrier;

    float values[32];
};

inline thread_local dim3   threadIdx, blockIdx, blockDim;
inline thread_local warp * this_warp = nullptr;

template <int n_lanes> float warp_reduce_sum(float value) {
    this_warp->values[threadIdx.x] = value;
    this_warp->barrier.arrive_and_wait();

    float sum = 0.0f;
    for (int i = 0; i < n_lanes; ++i) {
        sum += this_warp->values[i];
    }

    this_warp->barrier.arrive_and_wait();

    return sum;
}

constexpr int ggml_cuda_get_physical_warp_size() { return 32; }

inline void ggml_cuda_pdl_sync() {}

inline uint3    init_fastdiv_values(uint64_t d)         { return { 0, 0, (uint32_t) d }; }
inline uint32_t fastdiv            (uint32_t n, uint3 d) { return n / d.z; }
inline uint32_t fastmodulo         (uint32_t n, uint3 d) { return n % d.z; }

struct ggml_cuda_kernel_launch_params {
    ggml_cuda_kernel_launch_params(dim3 grid, dim3 block, size_t, cudaStream_t) : grid(grid), block(block) {}

    dim3 grid, block;
};

template <typename K, typename... Args>
void ggml_cuda_kernel_launch(K kernel, const ggml_cuda_kernel_launch_params & params, Args... args) {
    const dim3 grid = params.grid, block = params.block;

    for (uint32_t i = 0; i < grid.x * grid.y * grid.z; ++i) {
        std::deque<warp>         warps;
        std::vector<std::thread> lanes;

        for (uint32_t y = 0; y < block.y; ++y) {
            warps.emplace_back(block.x);

            for (uint32_t x = 0; x < block.x; ++x) {
                lanes.emplace_back([&, x, y, cur = &warps.back()]() {
                    threadIdx = { x, y, 0 };
                    blockIdx  = { i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y };
                    blockDim  = block;
                    this_warp = cur;

                    kernel(args...);
                });
            }
        }

        for (auto & lane : lanes) {
            lane.join();
        }
    }
}

struct ggml_cuda_device_info {
    struct { int warp_size = ggml_cuda_get_physical_warp_size(); } devices[1];
};

inline ggml_cuda_device_info ggml_cuda_info()       { return {}; }
inline int                   ggml_cuda_get_device() { return 0; }

struct ggml_backend_cuda_context {
    cudaStream_t stream() const { return nullptr; }
};
