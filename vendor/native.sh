# shellcheck shell=bash
# shellcheck disable=SC2034 # HALF_MADE is build.sh's
# The native build, its libraries in the package, the package in .venv, the wheel. Sourced by build.sh.

has_gpu() { nvidia-smi -L 2> /dev/null | grep GPU > /dev/null; }

choose_backend() {
    if [ "$BACKEND" ]; then
        case $BACKEND in
            cuda)
                command -v nvcc > /dev/null || [ "${CUDACXX:-}" ] || die "--cuda needs nvcc: install the CUDA toolkit, and have nvcc on PATH"
                [ "$CUDA_ARCH" ] || has_gpu || die "--cuda finds no GPU here: say which one to build for, as in --cuda-arch 90"
                ;;
            metal) [ "$(uname)" = Darwin ] || die "--metal needs macOS" ;;
        esac
    elif [ "$(uname)" = Darwin ]; then BACKEND=metal
    elif command -v nvcc > /dev/null && has_gpu; then BACKEND=cuda
    else BACKEND=cpu
    fi
}

cmake_flags() { # BACKEND: one flag a line
    local origin
    # shellcheck disable=SC2016
    case $(uname) in Darwin) origin=@loader_path ;; *) origin='$ORIGIN' ;; esac
    printf '%s\n' -DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON \
        -DLLAMA_BUILD_TESTS=ON -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_APP=OFF \
        -DLLAMA_BUILD_UI=OFF -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF -DGGML_RPC=ON \
        "-DLLAMA_BUILD_COMMIT=$(short_commit)" -DLLAMA_BUILD_NUMBER=0 \
        "-DCMAKE_INSTALL_RPATH=$origin;$origin/../lib" -DCMAKE_BUILD_WITH_INSTALL_RPATH=ON
    # a library's calls of its own functions need no look-up: fewer cold cache lines, which is what a save or a restore costs
    case $(uname)-$1 in
        Linux-asan | Linux-tsan) ;;
        Linux-*) echo "-DCMAKE_SHARED_LINKER_FLAGS_INIT=-Wl,-Bsymbolic-functions" ;;
    esac
    case $1 in
        cpu)   printf '%s\n' -DGGML_NATIVE=ON -DGGML_METAL=OFF ;;
        cuda)  printf '%s\n' -DGGML_NATIVE=ON -DGGML_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=${CUDA_ARCH:-native}" \
                   -DCMAKE_INSTALL_RPATH_USE_LINK_PATH=ON ;; # the toolkit's libraries are not ours to copy
        metal) printf '%s\n' -DGGML_NATIVE=ON -DGGML_METAL=ON -DGGML_METAL_EMBED_LIBRARY=ON ;;
        asan | tsan) sanitizer_flags "$1" ;;
        wheel) # runs where it was not built: an instruction set of 2013
            printf '%s\n' -DGGML_NATIVE=OFF -DGGML_METAL=OFF -DGGML_AVX512=OFF
            case $(uname -m) in
                x86_64 | amd64) printf '%s\n' -DGGML_SSE42=ON -DGGML_AVX=ON -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_BMI2=ON ;;
            esac ;;
    esac
}

build_native() { # BACKEND: build/BACKEND/bin
    local dir=build/$1 flags flag test goals=$TARGETS tests=$UPSTREAM_TESTS log built
    flags=$(cmake_flags "$1"; echo "$ROOT ${CC:-} ${CXX:-}")
    if [ "$(cat "$dir/.configured" 2> /dev/null)" != "$flags" ]; then
        note "configuring $dir"
        log=$dir.configure.log
        # a cache of other flags, or of a tree that was moved; the objects stay
        rm -rf "$dir/CMakeCache.txt" "$dir/CMakeFiles/cmake.check_cache" "$dir/.configured" "$dir/.built"
        local args=()
        while IFS= read -r flag; do args+=("$flag"); done < <(cmake_flags "$1")
        if ! cmake -G Ninja -S "$TREE" -B "$dir" "${args[@]}" > "$log" 2>&1; then
            grep -A6 'CMake Error' "$log" | sed -n 1,20p >&2 || true
            rm -rf "$dir"
            die "CMake cannot configure the $1 build: see above, and $log"
        fi
        mv "$log" "$dir/configure.log"
        echo "$flags" > "$dir/.configured"
    fi
    case $1 in asan | tsan) goals=$(sanitizer_goals "$1"); tests='' ;; esac
    for test in $tests; do
        [ "$1" = wheel ] || [ ! -f "$TREE/tests/$test.cpp" ] || goals="$goals $test"
    done
    # a tree that is as it was when this was built needs no ninja, which would provision the (empty) UI again each time
    built="$(tgit rev-parse 'HEAD^{tree}') $goals"
    if [ -z "$(tgit status --porcelain)" ] && [ "$(cat "$dir/.built" 2> /dev/null)" = "$built" ] &&
        ls "$dir"/bin/libllama.* > /dev/null 2>&1; then
        return
    fi
    rm -f "$dir/.built"
    # ccache then finds what another clone compiled
    export CCACHE_BASEDIR=${CCACHE_BASEDIR:-$ROOT} CCACHE_NOHASHDIR=${CCACHE_NOHASHDIR:-1}
    # shellcheck disable=SC2086
    if ! ninja -C "$dir" ${JOBS:+-j "$JOBS"} $goals 2>&1 | tee "$dir/ninja.log" | progress; then
        sed -n '/^FAILED/,/^\[/p' "$dir/ninja.log" | grep -v '^\[' | sed -n 1,40p >&2 || true
        die "the native build fails: see above, and $dir/ninja.log (what compiled is kept)"
    fi
    [ "$(tgit status --porcelain)" ] || echo "$built" > "$dir/.built"
}

# upstream, laid out as this tree is, so that ccache finds all that the patches leave alone. It has the fixes of ggml-cpu, which
# come first in the series: without them it crashes on CPUs with AMX
build_stock() { # BACKEND: build/stock/build/BACKEND/bin
    local commit
    commit=$(tgit log --reverse --format='%H %s' HEAD |
        awk 'NR > 1 && $2 != "ggml-cpu" { end = 1 } !end { commit = $1 } END { print commit }')
    mkdir -p build/stock/vendor build/stock/build
    if [ "$(vgit -C build/stock/$TREE rev-parse HEAD 2> /dev/null)" != "$commit" ]; then
        rm -rf "build/stock/${TREE:?}"
        vgit clone -q --template= --shared --no-checkout "$TREE" "build/stock/$TREE"
        vgit -C "build/stock/$TREE" checkout -q --detach "$commit"
    fi
    (
        LOCK=$ROOT/$LOCK
        cd build/stock
        ROOT=$PWD TARGETS='llama ggml llama-server' UPSTREAM_TESTS=
        build_native "$1"
    )
}

progress() { # ninja's own lines; the thousands of compiler warnings about upstream's code stay in the log
    local line
    while IFS= read -r line; do
        case $line in
            '['[0-9]*) if [ -t 1 ]; then printf '\r\033[K%.100s' "$line"; else echo "$line"; fi ;;
        esac
    done
    if [ -t 1 ]; then printf '\r\033[K'; fi
}

# each library once, under the name that the others ask for; the plain name links to it (for the linker only: the wheel
# leaves links out)
stage_libraries() { # BACKEND PACKAGE
    local bin=build/$1/bin json stage lib file program
    json=$(build_json "$1")
    if [ "$(cat "$2/lib/BUILD.json" 2> /dev/null)" = "$json" ] && all_staged "$bin" "$2" &&
        [ -z "$(find "$bin" -newer "$2/lib/BUILD.json" \( -name 'lib*' -o -name '*-server' \))" ]; then
        return
    fi
    stage=$2/.stage
    rm -rf "$stage"
    HALF_MADE=$ROOT/$stage
    mkdir -p "$stage/lib" "$stage/bin"
    for lib in "$bin"/lib*.so "$bin"/lib*.dylib; do
        [ -f "$lib" ] || continue
        file=$lib
        if [ -L "$lib" ]; then file=$bin/$(readlink "$lib"); fi
        cp -L "$file" "$stage/lib/${file##*/}"
        [ "$file" = "$lib" ] || ln -s "${file##*/}" "$stage/lib/${lib##*/}"
    done
    for program in $PROGRAMS; do cp "$bin/$program" "$stage/bin/"; done
    cat "$TREE/LICENSE" > "$stage/lib/LICENSE.llama.cpp"
    cat "$TREE"/licenses/LICENSE-* "$TREE/vendor/cpp-httplib/LICENSE" > "$stage/lib/LICENSE.third-party"
    echo "$json" > "$stage/lib/BUILD.json"
    rm -rf "${2:?}/lib" "${2:?}/bin"
    mv "$stage/lib" "$stage/bin" "$2/"
    rm -rf "$stage"
    HALF_MADE=
}

all_staged() { # BIN PACKAGE: whether each library, each name that links to one, and each program is there
    local lib program
    for lib in "$1"/lib*.so "$1"/lib*.dylib; do
        [ -f "$lib" ] || continue
        [ -f "$2/lib/${lib##*/}" ] || return 1
    done
    for program in $PROGRAMS; do [ -f "$2/bin/$program" ] || return 1; done
    [ -f "$2/lib/LICENSE.llama.cpp" ] && [ -f "$2/lib/LICENSE.third-party" ]
}

build_json() { # BACKEND: what these libraries are
    cmake_flags "$1" | grep -v RPATH | "$PY" -c '
import json, sys
backend, upstream, tree, patches, head, changes = sys.argv[1:]
print(json.dumps({
    "backend": backend, "upstream": upstream, "upstream_tree": tree, "patches": patches, "commit": head,
    "modified": bool(changes), "flags": sys.stdin.read().split(),
}, indent=2))' "$1" "$(lock_value commit)" "$(lock_value tree)" "$(stamp)" "$(tgit rev-parse HEAD)" "$(tgit status --porcelain)"
}

# the extension is compiled here: again when a declaration, a header or the metadata changes
install_package() {
    local want ext
    want=$(cat pyproject.toml setup.py llamackpt/_build.py llamackpt/*.h "$TREE/include/llama.h" "$TREE"/ggml/include/*.h |
        vgit hash-object --stdin)
    for ext in llamackpt/_llama*.so; do
        if [ -f "$ext" ] && [ "$(cat "$VENV/.package" 2> /dev/null)" = "$want $(vgit hash-object "$ext")" ]; then return; fi
    done
    note "compiling the extension, installing the package and its tools in .venv"
    rm -f llamackpt/_llama*.so llamackpt/_llama.c
    rm -rf "$ROOT/build/python"
    if ! "$PY" -m pip install -q --no-build-isolation --config-settings editable_mode=compat -e '.[dev,server,bench]' > build/package.log 2>&1; then
        grep -E 'error:|Error|ERROR' build/package.log | sed -n 1,10p >&2 || true
        die "the package cannot be installed: see above, and build/package.log"
    fi
    echo "$want $(vgit hash-object llamackpt/_llama*.so)" > "$VENV/.package"
}

# slim systems have no OpenMP runtime, and ggml's own threads spin: on a busy machine a decode takes 500 times as long
bundle_openmp() { # DIR
    local lib
    [ "$(uname)" = Linux ] || return 0
    lib=$(ldd "$1"/libggml-cpu.so.* | sed -n 's/.* => \(.*\/lib[gi]*omp[0-9]*\.so[^ ]*\) .*/\1/p')
    [ "$lib" ] || return 0
    cp -L "$lib" "$1/"
    printf '\n%s\n' "${lib##*/} is the compiler's OpenMP runtime, unchanged. GCC's is under the GNU GPL 3 with the GCC Runtime Library
Exception 3.1 (https://gcc.gnu.org/onlinedocs/libstdc++/manual/license.html), LLVM's under Apache 2.0 with the LLVM exception." >> "$1/LICENSE.third-party"
}

build_wheel() { # from a copy, so that the libraries of the editable install stay
    local stage=build/wheel/package
    rm -rf "$stage"
    HALF_MADE=$ROOT/$stage
    mkdir -p "$stage"
    cp -R pyproject.toml setup.py MANIFEST.in README.md LICENSE llamackpt "$stage/"
    rm -rf "$stage/llamackpt/lib" "$stage/llamackpt/bin" "$stage"/llamackpt/_llama*.so "$stage"/llamackpt/_llama.[co]
    find "$stage" -name __pycache__ -prune -exec rm -rf {} +
    stage_libraries wheel "$stage/llamackpt"
    bundle_openmp "$stage/llamackpt/lib"
    HALF_MADE=$ROOT/$stage
    note "packing the wheel"
    if ! LLAMACKPT_INCLUDE="$ROOT/$TREE/include:$ROOT/$TREE/ggml/include" \
            "$PY" -m build --wheel --no-isolation -o "$ROOT/dist" "$stage" > build/wheel.log 2>&1; then
        tail -5 build/wheel.log >&2
        die "the wheel cannot be built: see above, and build/wheel.log"
    fi
    rm -rf "$stage"
    HALF_MADE=
    note "$(sed -n 's/^Successfully built /dist\//p' build/wheel.log)"
}
