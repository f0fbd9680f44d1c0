# shellcheck shell=bash
# The tests under the sanitizers of GCC or Clang, in builds of their own (minutes the first time). Sourced by build.sh.

SANITIZE_OPS=6000
# a model of each kind of memory but DeepSeek V4, which takes minutes here and is in the random test
SANITIZE_MODELS="llama-dense gemma3-dense mamba2-dense rwkv7 qwen35-dense falcon-h1-dense lfm2-dense qwen4exp-moe glm5-next-moe
deepseek32-moe dots3note-moe minimax-m3-moe"

sanitizer_flags() { # asan | tsan: CMake's, one a line; ggml's own threads, as OpenMP's runtime is not instrumented
    local flags
    case $1 in
        asan) flags="-fsanitize=address,undefined -fno-sanitize-recover=all -fno-omit-frame-pointer -g1" ;;
        tsan) flags="-fsanitize=thread -fno-omit-frame-pointer -g1" ;;
    esac
    printf '%s\n' -DGGML_NATIVE=ON -DGGML_METAL=OFF -DGGML_OPENMP=OFF -DCMAKE_C_FLAGS_RELEASE=-O1 -DCMAKE_CXX_FLAGS_RELEASE=-O1 \
        "-DCMAKE_C_FLAGS=$flags" "-DCMAKE_CXX_FLAGS=$flags"
}

sanitizer_goals() {
    case $1 in
        asan) echo "llama ggml test-memory-checkpoint test-batch-alloc test-kv-cells" ;;
        tsan) echo "llama ggml test-backend-ops" ;;
    esac
}

sanitize() {
    local models lib preload='' model op
    [ "$(uname)" = Linux ] || die "sanitize preloads the sanitizer into Python, which only Linux can"
    for lib in libasan.so libubsan.so; do
        lib=$(${CC:-cc} -print-file-name=$lib)
        [ -f "$lib" ] || die "${CC:-cc} has no $lib: install GCC's sanitizers, or set CC and CXX to a GCC"
        preload="$preload $lib"
    done
    build
    lock
    build_native asan
    build_native tsan

    new_tmp
    models=$ROOT/$TMP/models
    mkdir -p "$models"
    "build/$BACKEND/bin/test-llama-archs" -s 1234 -o "$models" > /dev/null 2>&1 || die "test-llama-archs fails"
    (cd tests && "$PY" -c 'import pathlib, sys; from rwkv_gguf import *; write_rwkv7(pathlib.Path(sys.argv[1]))' "$models/rwkv7.gguf")

    export UBSAN_OPTIONS=print_stacktrace=1
    note "address and undefined behaviour: the C++ tests"
    build/asan/bin/test-batch-alloc > build/asan/test.log 2>&1 || { tail -40 build/asan/test.log; die "test-batch-alloc"; }
    build/asan/bin/test-kv-cells > build/asan/test.log 2>&1 || { tail -40 build/asan/test.log; die "test-kv-cells"; }
    for model in $SANITIZE_MODELS; do
        build/asan/bin/test-memory-checkpoint -m "$models/$model.gguf" -t 1 2>&1 | tail -40 || die "test-memory-checkpoint with $model"
    done
    note "address and undefined behaviour: $SANITIZE_OPS random operations"
    # what Python holds until it exits are not leaks of ours; the C++ tests look for these
    LD_PRELOAD=${preload# } LD_LIBRARY_PATH=$ROOT/build/asan/bin ASAN_OPTIONS=detect_leaks=0 \
        "$PY" tests/random_ops.py --ops "$SANITIZE_OPS" --models "$models" || die "the random test"
    note "threads: states in the cache, two contexts"
    for op in GATED_DELTA_NET GATED_DELTA_NET_CACHE_FUSION; do
        TSAN_OPTIONS=halt_on_error=1 build/tsan/bin/test-backend-ops test -b CPU -o $op > build/tsan/test.log 2>&1 ||
            { tail -40 build/tsan/test.log; die "test-backend-ops -o $op"; }
    done
    ${CXX:-c++} -std=c++17 -O1 -g -fsanitize=thread -I"$TREE/include" -I"$TREE/ggml/include" tests/two_contexts.cpp \
        -o build/tsan/bin/two_contexts -Lbuild/tsan/bin -lllama -lggml -lggml-base "-Wl,-rpath,$ROOT/build/tsan/bin" -pthread
    for model in $SANITIZE_MODELS; do
        TSAN_OPTIONS=halt_on_error=1 build/tsan/bin/two_contexts "$models/$model.gguf" || die "two_contexts with $model"
    done
    rm -rf "$TMP"
    release
    note "the sanitizers found nothing"
}
