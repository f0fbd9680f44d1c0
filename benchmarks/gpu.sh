#!/usr/bin/env bash
# On a machine with a CUDA GPU: builds for it, runs the GPU tests and the benchmarks, and leaves JSON in the folder named.
#
#     benchmarks/gpu.sh OUT_DIR
set -euo pipefail
unset CDPATH
out=$(realpath -m "${1:?usage: benchmarks/gpu.sh OUT_DIR}")
cd "$(dirname "${BASH_SOURCE[0]}")/.."
mkdir -p "$out"

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv | tee "$out/gpu.csv"
if [ -e .git ]; then git rev-parse HEAD; else echo "a source distribution"; fi > "$out/commit.txt"
./build.sh --cuda --cuda-arch "$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .)"
.venv/bin/ninja -C build/cuda test-backend-ops
build/cuda/bin/test-backend-ops test -o GATED_DELTA_NET,GATED_DELTA_NET_CACHE_FUSION,SET_ROWS | tee "$out/operations.txt"
.venv/bin/python -m pytest -m gpu -q --junitxml "$out/gpu-tests.xml"
.venv/bin/llamackpt bench latency --json > "$out/latency-gpu-state-heavy.json"
.venv/bin/llamackpt bench long-context --json > "$out/long-context-gpu.json"
