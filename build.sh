#!/usr/bin/env bash
# The one entry point: see usage() below. Portable to bash 3.2.
set -euo pipefail
# what would lead cd, Python or pip elsewhere
unset CDPATH PYTHONHOME PYTHONPATH PIP_TARGET PIP_PREFIX
export PIP_USER=0

usage() {
    cat <<'EOF'
usage: ./build.sh [--cpu | --cuda [--cuda-arch ARCH] | --metal] [COMMAND] [ARGUMENT ...]

Builds llamackpt: patched llama.cpp in vendor/llama.cpp, native code in build/BACKEND, everything Python in .venv.
What is up to date is left alone.

commands
  build       (default) set up and build all of it; the package is installed editable in .venv
  demo ...    build, then `llamackpt demo` with these arguments
  test ...    build, then pytest with these arguments
  stock       build llama-server from upstream without the patches (but for the fixes of ggml-cpu, without which it crashes
              on CPUs with AMX), in build/stock, to compare with
  sanitize    build, then the tests of the checkpoints under the address, undefined behaviour and thread sanitizers
  wheel       a self-contained wheel for any x86-64 CPU with AVX2 (any ARMv8 one), in dist/
  export      write patches/ from the commits in vendor/llama.cpp
  reset       make vendor/llama.cpp what patches/ says (what was not exported stays in its git: a branch, a stash)

flags
  --cpu, --cuda, --metal   the backend; by default CUDA where nvcc and a GPU are, Metal on macOS, else CPU
  --cuda-arch ARCH         CMake's CMAKE_CUDA_ARCHITECTURES (default: native, the GPUs of this machine)
  -h, --help

environment
  PYTHON           the python >= 3.10 that .venv is made with (default: the first found)
  LLAMA_CPP_SRC    a llama.cpp checkout of yours to take the upstream tree from, in place of the download;
                   only read when vendor/llama.cpp is made, never modified
  JOBS             how many compilers run at once (default: ninja's choice)
  CC, CXX          the compilers; ccache is used where it is installed
EOF
}

# native programs and tests; those whose source the tree does not have (yet) are skipped
PROGRAMS="llama-server ggml-rpc-server" # the package carries them
TARGETS="llama ggml $PROGRAMS"
UPSTREAM_TESTS="test-llama-archs test-memory-checkpoint test-recurrent-state-rollback test-save-load-state test-batch-alloc
test-kv-cells test-state-restore-fragmented test-rpc-multi-server test-backend-ops"
TOOLS="cmake>=3.28 ninja>=1.11 setuptools>=77 wheel build>=1.2 cffi>=1.17"

note() { echo "build.sh: $*"; }
die()  { echo "build.sh: error: $*" >&2; exit 1; }

# -- arguments -----------------------------------------------------------------------------------------------------------

BACKEND='' CUDA_ARCH='' COMMAND=''
while [ $# -gt 0 ]; do
    case $1 in
        --cpu | --cuda | --metal) BACKEND=${1#--} ;;
        --cuda-arch)   [ $# -ge 2 ] || die "--cuda-arch needs a value, as in --cuda-arch 90"; CUDA_ARCH=$2; shift ;;
        --cuda-arch=*) CUDA_ARCH=${1#*=} ;;
        -h | --help)   case $COMMAND in demo | test) break ;; esac; usage; exit ;;
        build | demo | test | stock | sanitize | wheel | export | reset) [ "$COMMAND" ] && break; COMMAND=$1 ;;
        *) break ;;
    esac
    shift
done
case ${COMMAND:=build} in
    demo | test) ;;
    *) [ $# -eq 0 ] || die "unknown argument '$1': see ./build.sh --help" ;;
esac
case $COMMAND:$BACKEND in
    wheel:cuda | wheel:metal | sanitize:cuda | sanitize:metal) die "$COMMAND builds for the CPU alone: leave out --$BACKEND" ;;
    export:?* | reset:?*) die "$COMMAND builds nothing: leave out --$BACKEND" ;;
esac
[ -z "$CUDA_ARCH" ] || [ "$BACKEND" = cuda ] || die "--cuda-arch goes with --cuda: add it, or leave out --cuda-arch"

CALLER=$PWD
case ${LLAMA_CPP_SRC:-/} in /*) ;; *) LLAMA_CPP_SRC=$CALLER/$LLAMA_CPP_SRC ;; esac
case ${PYTHON:-} in /*) ;; */*) PYTHON=$CALLER/$PYTHON ;; esac
SELF=${BASH_SOURCE[0]}
while [ -L "$SELF" ]; do # macOS has had no readlink -f for long
    link=$(readlink "$SELF")
    case $link in /*) SELF=$link ;; *) SELF=$(dirname "$SELF")/$link ;; esac
done
cd "$(dirname "$SELF")"
ROOT=$PWD
VENV=$ROOT/.venv
PY=$VENV/bin/python
for var in $(git rev-parse --local-env-vars 2> /dev/null || true) GIT_AUTHOR_NAME GIT_AUTHOR_EMAIL GIT_AUTHOR_DATE \
           GIT_COMMITTER_NAME GIT_COMMITTER_EMAIL GIT_COMMITTER_DATE GIT_DEFAULT_HASH \
           GIT_DIFF_OPTS GIT_EXTERNAL_DIFF; do
    unset "$var"
done

# whatever is half-made is removed, however this script ends
TMP='' HALF_MADE=''
cleanup() { rm -rf ${TMP:+"$TMP"} ${HALF_MADE:+"$HALF_MADE"}; }
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# shellcheck source=vendor/source.sh
. vendor/source.sh
# shellcheck source=vendor/export.sh
. vendor/export.sh
# shellcheck source=vendor/native.sh
. vendor/native.sh
# shellcheck source=vendor/sanitize.sh
. vendor/sanitize.sh

# -- what this machine has -----------------------------------------------------------------------------------------------

find_python() {
    local p
    local candidates=(python3 python3.14 python3.13 python3.12 python3.11 python3.10)
    if [ "${PYTHON:-}" ]; then candidates=("$PYTHON"); fi
    for p in "${candidates[@]}"; do
        if "$p" -c 'import sys; sys.exit(sys.version_info < (3, 10))' > /dev/null 2>&1; then
            BASE_PYTHON=$(command -v "$p")
            return
        fi
    done
    [ "${PYTHON:-}" ] || die "Python >= 3.10 is needed and not found: install it, or name one in PYTHON"
    command -v "$PYTHON" > /dev/null || die "PYTHON=$PYTHON does not exist: name another, or leave PYTHON unset"
    die "PYTHON=$PYTHON is not a Python >= 3.10 ($("$PYTHON" --version 2>&1 | tail -1)): name another, or leave PYTHON unset"
}

check_git() {
    git --version > /dev/null 2>&1 || die "git is needed: install it (apt install git; xcode-select --install)"
}

check_tools() {
    local tool
    for tool in "${CC:-cc}" "${CXX:-c++}"; do
        ${tool} --version > /dev/null 2>&1 || # unquoted: CC may hold arguments
            die "a C and C++ compiler is needed, and '$tool' does not run: install one (apt install g++; xcode-select --install), or set CC and CXX"
    done
    "$BASE_PYTHON" -c 'import venv, ensurepip' 2> /dev/null || die "$BASE_PYTHON has no venv module: install it (apt install python3-venv)"
    "$BASE_PYTHON" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' ||
        die "$BASE_PYTHON has no headers (Python.h): install them (apt install python3-dev)"
}

# held until this script ends or says release; python locks the file for us, macOS has no flock(1)
lock() {
    if ! { mkdir -p build && touch build/.lock; } 2> /dev/null; then die "cannot write to $ROOT"; fi
    exec 9>> build/.lock
    if ! lock_fd LOCK_NB 2> /dev/null; then
        note "waiting for another build.sh in this tree"
        lock_fd 0
    fi
    rm -rf vendor/.llama.cpp.tmp-* # of one that was killed
}
lock_fd() { "$BASE_PYTHON" -c "import fcntl; from fcntl import *; flock(9, LOCK_EX | $1)"; }
release() { exec 9>&-; }

make_venv() { # anew only where there is none, it was moved, is broken, or PYTHON asks for another Python
    local have=
    if [ "$(cat "$VENV/.root" 2> /dev/null)" = "$ROOT" ]; then
        have=$("$PY" -c 'import pip, sys; print(sys.version)' 2> /dev/null) || have=
    fi
    if [ -z "$have" ] || { [ "${PYTHON:-}" ] && [ "$have" != "$("$PYTHON" -c 'import sys; print(sys.version)')" ]; }; then
        note "making .venv with $("$BASE_PYTHON" --version)"
        rm -rf "$VENV"
        HALF_MADE=$VENV
        "$BASE_PYTHON" -m venv "$VENV" || die "$BASE_PYTHON -m venv fails: see above"
        echo "$ROOT" > "$VENV/.root"
    fi
    if [ "$(cat "$VENV/.tools" 2> /dev/null)" != "$TOOLS" ]; then
        note "installing cmake, ninja and the packaging tools in .venv"
        # shellcheck disable=SC2086
        "$PY" -m pip install -q $TOOLS || die "pip cannot install $TOOLS: see above"
        echo "$TOOLS" > "$VENV/.tools"
    fi
    HALF_MADE=
}

# -- commands ------------------------------------------------------------------------------------------------------------

set_up() { # all but the native code
    check_git
    find_python
    check_tools
    lock
    make_venv
    export PATH="$VENV/bin:$PATH"
    sync_source
}

build() {
    choose_backend
    set_up
    build_native "$BACKEND"
    stage_libraries "$BACKEND" llamackpt
    install_package
    release
}

case $COMMAND in
    build)  build; note "ready ($BACKEND): ./build.sh demo, ./build.sh test, or .venv/bin/llamackpt --help" ;;
    demo)   build; (cd "$CALLER" && "$VENV/bin/llamackpt" demo "$@") ;;
    test)   build; "$PY" -m pytest "$@" ;;
    stock)  choose_backend; set_up; build_stock "$BACKEND"; note "stock llama-server: build/stock/build/$BACKEND/bin/llama-server" ;;
    sanitize) sanitize ;;
    wheel)  set_up; build_native wheel; build_wheel ;;
    export) check_git; find_python; lock; export_patches ;;
    reset)  check_git; find_python; check_tools; lock; make_venv; reset_tree ;;
esac
