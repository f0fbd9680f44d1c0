# shellcheck shell=bash
# The vendored llama.cpp: materialised from vendor/llama.cpp.lock and patches/, kept in step with them.
# Sourced by build.sh, which sets ROOT and PY (a python of .venv) and defines die, note and TMP (removed at exit).
#
# vendor/llama.cpp is a git repository: a root commit "upstream" (the pruned tree; the same object on every machine), then
# a commit per file of patches/series. Its .git/llamackpt records what it was last in step with:
#   stamp  the hash of lock, series and patches        head  the commit that they gave

LOCK=vendor/llama.cpp.lock
TREE=vendor/llama.cpp
RECORD=$TREE/.git/llamackpt

lock_value() { sed -n "s/^# $1: *\([^ ]*\).*/\1/p" "$LOCK"; }
series()     { if [ -f patches/series ]; then sed -e 's/#.*//' -e 's/[[:space:]]*$//' -e '/^$/d' patches/series; fi; }
short_commit() { lock_value commit | cut -c1-9; }
recorded()   { if [ -f "$RECORD" ]; then sed -n "s/^$1 //p" "$RECORD"; fi; }

# git as on any machine: no settings, hooks, templates or environment of the user's
vgit() {
    HOME=/nonexistent XDG_CONFIG_HOME=/nonexistent GIT_CONFIG_NOSYSTEM=1 GIT_ATTR_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null GIT_OPTIONAL_LOCKS=0 LC_ALL=C \
    GIT_COMMITTER_NAME=llama.cpp GIT_COMMITTER_EMAIL=upstream@localhost \
        git -c core.autocrlf=false -c core.safecrlf=false -c core.hooksPath=/dev/null -c core.fileMode=true -c gc.auto=0 \
            -c commit.gpgSign=false -c "safe.directory=*" -c advice.detachedHead=false "$@"
}
tgit() { vgit -C "$TREE" "$@"; }

stamp() {
    local p
    {
        lock_value tree
        for p in $(series); do echo "$p"; cat "patches/$p"; done
    } | vgit hash-object --stdin
}

check_series() {
    local p
    for p in $(series); do
        [ -f "patches/$p" ] || die "patches/series names $p, but there is no patches/$p: restore the file, or take out the line"
    done
}

record() { printf 'stamp %s\nhead %s\n' "$(stamp)" "$2" > "$1/.git/llamackpt"; }

new_tmp() { TMP=$(mktemp -d vendor/.llama.cpp.tmp-XXXXXX) || die "cannot write to $ROOT/vendor"; }

# -- from the sources to a tree ------------------------------------------------------------------------------------------

unpack_sdist() { # to $TMP/tree
    local requirement name
    requirement=$(grep -v '^#' "$LOCK")
    name=${requirement%% *}
    note "fetching llama.cpp $(short_commit), carried by $name (77 MB, hash-checked)"
    if ! "$PY" -m pip download -q --no-deps --no-binary "${name%%=*}" --require-hashes -d "$TMP/sdist" -r "$LOCK" > "$TMP/log" 2>&1; then
        if grep -q 'DO NOT MATCH THE HASHES' "$TMP/log"; then
            die "the $name that pip got does not have the sha256 of $LOCK ($(sed -n 's/^ *Got *//p' "$TMP/log" | sed -n 1,1p)): not used; check the mirror, or the lock"
        fi
        die "pip cannot fetch $name ($(grep -E 'ERROR|error' "$TMP/log" | sed -e 's/ (from versions.*//' -e 1q)): check the network, or set LLAMA_CPP_SRC to a llama.cpp checkout"
    fi
    "$PY" vendor/unpack.py "$(echo "$TMP"/sdist/*)" "$TMP/tree" --under "$(lock_value path)" ||
        die "cannot unpack $name: is the disk full?"
}

unpack_checkout() { # DIR: to $TMP/tree. Only reads DIR.
    local commit ok=1 repo=
    commit=$(lock_value commit)
    [ -f "$1/include/llama.h" ] || die "LLAMA_CPP_SRC=$1 is no llama.cpp tree (it has no include/llama.h)"
    if [ -e "$1/.git" ] && vgit -C "$1" rev-parse --git-dir > /dev/null 2>&1; then repo=1; fi
    if [ "$repo" ] && vgit -C "$1" cat-file -e "$commit^{commit}" 2> /dev/null; then
        note "copying commit $(short_commit) out of $1"
        vgit -C "$1" archive --format=tar "$commit" | "$PY" vendor/unpack.py - "$TMP/tree" || ok=
    elif [ "$repo" ]; then
        note "copying the files of $1 (it does not have commit $(short_commit))"
        vgit -C "$1" ls-files -z | "$PY" vendor/unpack.py "$1" "$TMP/tree" --listed || ok=
    else
        note "copying $1"
        "$PY" vendor/unpack.py "$1" "$TMP/tree" || ok=
    fi
    [ "$ok" ] || die "cannot copy LLAMA_CPP_SRC=$1"
}

commit_upstream() {
    vgit init -q --template= "$TMP/tree"
    vgit -C "$TMP/tree" symbolic-ref HEAD refs/heads/main
    vgit -C "$TMP/tree" config core.autocrlf false
    vgit -C "$TMP/tree" config gc.auto 0
    vgit -C "$TMP/tree" add -A -f .
    GIT_AUTHOR_NAME=llama.cpp GIT_AUTHOR_EMAIL=upstream@localhost GIT_AUTHOR_DATE=2026-01-01T00:00:00Z \
    GIT_COMMITTER_DATE=2026-01-01T00:00:00Z vgit -C "$TMP/tree" commit -q -m upstream
    if [ "$(vgit -C "$TMP/tree" rev-parse 'HEAD^{tree}')" != "$(lock_value tree)" ]; then
        [ "${LLAMA_CPP_SRC:-}" ] || die "the tree in the source package is not the one that $LOCK names"
        note "warning: LLAMA_CPP_SRC is not the pinned tree ($(short_commit)); the patches may not apply"
    fi
}

apply_patch() { # REPO FILE
    vgit -C "$1" am -q --keep-non-patch --keep-cr --no-scissors --committer-date-is-author-date --whitespace=nowarn \
        < "$2" > "$TMP/log" 2>&1
}

apply_series() { # DIR: every patch, on its HEAD; false after the first that does not apply, named in $FAILED
    local p
    FAILED=
    for p in $(series); do
        if ! apply_patch "$1" "patches/$p"; then
            vgit -C "$1" am --abort > /dev/null 2>&1 || true
            FAILED=$p
            return 1
        fi
    done
}

die_unapplied() {
    die "patches/$FAILED does not apply ($(grep -m1 -E 'error|fatal|empty' "$TMP/log" || sed -n 1,1p "$TMP/log")): mend it, or take it out of patches/series"
}

materialise() {
    new_tmp
    if [ "${LLAMA_CPP_SRC:-}" ]; then unpack_checkout "$LLAMA_CPP_SRC"; else unpack_sdist; fi
    commit_upstream
    note "applying $(series | wc -l | tr -d ' ') patches"
    apply_series "$TMP/tree" || die_unapplied
    if [ -e "$TREE" ]; then
        take_over
    else
        record "$TMP/tree" "$(vgit -C "$TMP/tree" rev-parse HEAD)"
        mv "$TMP/tree" "$TREE"
    fi
    rm -rf "$TMP"
}

# $TREE becomes what $TMP/tree is, in its own git: branches and stashes stay, and files that stay the same keep their
# times, so that little is rebuilt
take_over() {
    tgit fetch -q "$ROOT/$TMP/tree" HEAD
    tgit checkout -q -B main FETCH_HEAD
    record "$TREE" "$(tgit rev-parse HEAD)"
}

# -- keeping tree and patches/ in step -----------------------------------------------------------------------------------

# what is in the tree and not in patches/: in lines
unexported() { # COMMIT: what patches/ covers
    tgit log --format='    commit %h %s' "$1..HEAD" 2> /dev/null || true
    tgit merge-base --is-ancestor "$1" HEAD 2> /dev/null ||
        tgit log -1 --format='    HEAD is %h (%s), which does not contain what patches/ gave'
    tgit status --porcelain | sed 's/^/    /'
}

sync_source() {
    local base files commits
    check_series
    if [ ! -e "$TREE" ]; then materialise; return; fi
    check_tree
    if [ "$(recorded stamp)" != "$(stamp)" ]; then follow_patches; fi
    base=$(recorded head)
    files=$(tgit status --porcelain | wc -l)
    if [ "$(tgit rev-parse HEAD)" != "$base" ] || [ "$files" -gt 0 ]; then
        commits=$(tgit rev-list --count "$base..HEAD" 2> /dev/null) || commits=other
        note "building $TREE as it is, with what is not in patches/: commits $commits, changed files $((files)) (./build.sh export writes commits there)"
    fi
}

check_tree() {
    { [ -d "$TREE/.git" ] && tgit rev-parse -q --verify HEAD > /dev/null 2>&1; } ||
        die "$ROOT/$TREE is not build.sh's git repository: move it away, and run again"
}

follow_patches() { # patches/ or the lock changed since the record, or the tree was made by hand
    local head base clean=
    head=$(tgit rev-parse HEAD)
    base=$(recorded head)
    [ "$(tgit status --porcelain)" ] || clean=1
    new_tmp
    if [ "$clean" ] && [ "$head" = "${base:-$(tgit rev-list --max-parents=0 HEAD)}" ]; then
        update_tree
    elif root_is_pinned && export_to "$TREE" "$TMP/patches" 2> /dev/null && covers "$TMP/patches"; then
        record "$TREE" "$COVERED"
    elif [ "$clean" ] && [ -f "$TMP/patches/series" ] && contained "$TMP/patches"; then
        update_tree
    else
        {
            echo "build.sh: patches/ changed, and $TREE has work that is not there:"
            unexported "${base:-$(tgit rev-list --max-parents=0 HEAD)}" | sed -n 1,12p
        } >&2
        die "keep that work (commit it, then ./build.sh export: it rewrites patches/), or drop it with ./build.sh reset; nothing was changed"
    fi
    rm -rf "$TMP"
}

root_is_pinned() { [ "$(tgit rev-parse "$(tgit rev-list --max-parents=0 HEAD)^{tree}")" = "$(lock_value tree)" ]; }

update_tree() { # a tree without work of its own
    if ! root_is_pinned && [ -z "${LLAMA_CPP_SRC:-}" ]; then # another upstream than the lock's
        rm -rf "$TMP"
        materialise
        return
    fi
    note "patches/ changed: updating $TREE"
    vgit clone -q --template= --shared --no-checkout "$TREE" "$TMP/tree"
    vgit -C "$TMP/tree" checkout -q --detach "$(tgit rev-list --max-parents=0 HEAD)"
    apply_series "$TMP/tree" || die_unapplied
    take_over
}

# makes the tree what patches/ says. What is lost stays in its git: a branch, a stash.
reset_tree() {
    local branch
    check_series
    if [ ! -e "$TREE" ]; then materialise; return; fi
    check_tree
    tgit am --quit > /dev/null 2>&1 || true
    tgit rebase --quit > /dev/null 2>&1 || true
    if [ -n "$(tgit status --porcelain)" ]; then
        tgit add -A
        GIT_AUTHOR_NAME=llama.cpp GIT_AUTHOR_EMAIL=upstream@localhost tgit stash push -q -m "./build.sh reset" ||
            die "cannot put aside the uncommitted changes in $TREE"
        note "the uncommitted changes of $TREE are in its git stash"
    fi
    new_tmp
    if export_to "$TREE" "$TMP/patches" 2> /dev/null && same_patches "$TMP/patches"; then
        record "$TREE" "$(tgit rev-parse HEAD)"
    else
        branch=before-reset-$(tgit rev-parse --short HEAD)
        tgit branch -q -f "$branch" HEAD
        note "the commits of $TREE stay on its branch $branch"
        update_tree
    fi
    rm -rf "$TMP"
    note "$TREE is what patches/ says"
}
