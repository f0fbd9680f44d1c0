# shellcheck shell=bash
# From the commits in vendor/llama.cpp to patches/, the same bytes each time. Sourced by build.sh after source.sh.

export_to() { # REPO DIR: a file per commit after the root, and their order in DIR/series; false if git cannot
    local first f name n
    first=$(vgit -C "$1" rev-list --max-parents=0 HEAD)
    mkdir -p "$2/numbered"
    vgit -C "$1" format-patch -q --zero-commit --full-index --binary --no-signature --no-stat --no-numbered --no-renames \
        --no-color --no-ext-diff --no-textconv --no-thread --diff-algorithm=myers --src-prefix=a/ --dst-prefix=b/ --unified=3 \
        -o "$ROOT/$2/numbered" "$first..HEAD" || return 1
    : > "$2/series"
    for f in "$2"/numbered/*.patch; do
        [ -f "$f" ] || continue
        name=${f##*/}; name=${name#*-}; name=${name%.patch}; n=2
        if [ -f "$2/$name.patch" ]; then
            while [ -f "$2/$name-$n.patch" ]; do n=$((n + 1)); done
            name=$name-$n
        fi
        mv "$f" "$2/$name.patch"
        echo "$name.patch" >> "$2/series"
    done
    rmdir "$2/numbered"
}

same_patches() { # DIR: whether patches/ is exactly that
    local p
    [ "$(series)" = "$(cat "$1/series")" ] || return 1
    for p in $(series); do cmp -s "$1/$p" "patches/$p" || return 1; done
    for p in patches/*.patch; do [ ! -f "$p" ] || [ -f "$1/${p##*/}" ] || return 1; done
}

contained() { # DIR: whether patches/ has every file of it
    local p
    while read -r p; do cmp -s "$1/$p" "patches/$p" || return 1; done < "$1/series"
}

# whether patches/ is the tree's first commits (its last one is then $COVERED), and not fewer of them than it was
covers() { # DIR: the tree's export
    local p old n=0
    for p in $(series); do
        n=$((n + 1))
        { [ "$(sed -n "${n}p" "$1/series")" = "$p" ] && cmp -s "$1/$p" "patches/$p"; } || return 1
    done
    COVERED=$(tgit rev-list --reverse HEAD | sed -n "$((n + 1))p")
    old=$(recorded head)
    [ -z "$old" ] || [ "$COVERED" = "$(tgit rev-parse HEAD)" ] || tgit merge-base --is-ancestor "$old" "$COVERED" 2> /dev/null
}

with_headings() { # SERIES: it, with the comments and empty lines of patches/series before the files that they were before
    [ -f patches/series ] || { cat "$1"; return; }
    awk 'FILENAME == ARGV[1] { name[++n] = $0; is_new[$0] = 1; next }
         /^(#|$)/            { text = text $0 "\n"; next }
         is_new[$0]          { heading[$0] = text; text = "" }
         END                 { for (i = 1; i <= n; i++) printf "%s%s\n", heading[name[i]], name[i]; printf "%s", text }' "$1" patches/series
}

export_patches() {
    local p n
    [ -e "$TREE" ] || die "there is no $TREE to export: run ./build.sh"
    check_tree
    [ ! -d "$TREE/.git/rebase-apply" ] && [ ! -d "$TREE/.git/rebase-merge" ] || die "a rebase or am is under way in $TREE: finish it first"
    [ "$(tgit rev-list --max-parents=0 HEAD | wc -l)" -eq 1 ] || die "$TREE has several root commits: only a line of commits can be exported"
    [ -z "$(tgit rev-list --merges HEAD)" ] || die "$TREE has merge commits: rebase them into a line, then export"
    [ -z "$(tgit log --format=%T | uniq -d)" ] || die "$TREE has a commit that changes nothing: drop it, then export"
    new_tmp
    export_to "$TREE" "$TMP/patches" || die "git format-patch fails in $TREE"
    n=$(tgit rev-list --count HEAD)
    [ -z "$(tgit status --porcelain)" ] || note "warning: uncommitted changes in $TREE are not exported"
    if ! same_patches "$TMP/patches"; then
        check_export
        mkdir -p patches
        for p in patches/*.patch; do
            [ -f "$TMP/patches/${p##*/}" ] || rm -f "$p"
        done
        while IFS= read -r p; do
            cmp -s "$TMP/patches/$p" "patches/$p" || cp "$TMP/patches/$p" "patches/$p"
        done < "$TMP/patches/series"
        with_headings "$TMP/patches/series" > "$TMP/series"
        cp "$TMP/series" patches/series
    fi
    record "$TREE" "$(tgit rev-parse HEAD)"
    rm -rf "$TMP"
    note "patches/ holds the $((n - 1)) commits of $TREE"
}

# that the exported files give the same tree again, and the same files again; changes nothing outside $TMP
check_export() {
    local p first
    first=$(tgit rev-list --max-parents=0 HEAD)
    vgit clone -q --template= --shared --no-checkout "$TREE" "$TMP/check"
    vgit -C "$TMP/check" checkout -q --detach "$first"
    while IFS= read -r p; do
        apply_patch "$TMP/check" "$TMP/patches/$p" ||
            die "the commit of $p cannot be applied again from a patch file ($(sed -n 1p "$TMP/log")): amend it"
    done < "$TMP/patches/series"
    export_to "$TMP/check" "$TMP/check.patches"
    while IFS= read -r p; do
        cmp -s "$TMP/patches/$p" "$TMP/check.patches/$p" ||
            die "the message of the commit of $p does not survive git am (a line '---' or 'diff', say): amend it"
    done < "$TMP/patches/series"
    [ "$(tgit rev-parse 'HEAD^{tree}')" = "$(vgit -C "$TMP/check" rev-parse 'HEAD^{tree}')" ] ||
        die "the exported patches do not give the tree of $TREE"
}
