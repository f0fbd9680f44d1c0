"""Copies a llama.cpp tree out of a tar archive or a folder, without what nothing here builds.

    unpack.py SOURCE DEST [--under PATH]

SOURCE is a tar archive, `-` (a tar stream on stdin), a folder, or a folder followed by `--listed` (only the files that stdin
names, separated by NUL). DEST must not exist. --under: the tree's folder inside the archive's single root folder.
Files get mode 644 or 755 and the present time: ninja must see every file of a new tree as new.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

PRUNED = ("docs", "media", "benches")  # folders at the top
UI_KEPT = ("CMakeLists.txt", "sources.cmake", "ui.cpp.in", "ui.h.in")  # the generator of the empty UI
VOCABS_KEPT = ("ggml-vocab-gpt-2.gguf", "ggml-vocab-llama-spm.gguf")
NOT_SOURCE = (".git", ".venv", ".cache", "__pycache__", "node_modules")  # in a folder that is no git checkout


def kept(path: PurePosixPath) -> bool:
    """Whether the pruned tree has this file (a path relative to the tree)."""
    parts = path.parts
    if parts[0] == ".git" or (parts[0] in PRUNED and len(parts) > 1):
        return False
    if parts[:2] == ("tools", "ui") and len(parts) > 2:
        return len(parts) == 3 and parts[2] in UI_KEPT
    if parts[0] == "models" and len(parts) == 2 and parts[1].startswith("ggml-vocab-"):
        return parts[1].startswith(VOCABS_KEPT)
    return True


def write(dest: Path, path: PurePosixPath, data: IO[bytes], executable: bool) -> None:
    target = dest / path
    target.parent.mkdir(parents=True, exist_ok=True)
    with open(target, "wb") as out:
        shutil.copyfileobj(data, out)
    target.chmod(0o755 if executable else 0o644)


def from_tar(archive: tarfile.TarFile, under: PurePosixPath | None, dest: Path) -> int:
    count = 0
    for member in archive:
        path = PurePosixPath(member.name)
        if under is not None:
            inside = PurePosixPath(*path.parts[1:])
            if not inside.is_relative_to(under):
                continue
            path = inside.relative_to(under)
        if path.is_absolute() or ".." in path.parts:
            raise SystemExit(f"unpack.py: refusing the path {member.name!r} in the archive")
        data = archive.extractfile(member) if member.isfile() else None
        if data is not None and kept(path):
            write(dest, path, data, bool(member.mode & 0o100))
            count += 1
    return count


def walk(source: Path) -> Iterator[str]:
    """The files of a folder that is no git checkout; build folders at the top are left out."""
    for folder, dirs, files in os.walk(source):
        top = Path(folder) == source
        dirs[:] = [d for d in dirs if d not in NOT_SOURCE and not (top and d.startswith("build"))]
        for name in files:
            yield (Path(folder) / name).relative_to(source).as_posix()


def from_folder(source: Path, names: Iterator[str], dest: Path) -> int:
    count = 0
    for name in names:
        path = source / name
        if kept(PurePosixPath(name)) and path.is_file():
            with open(path, "rb") as data:
                write(dest, PurePosixPath(name), data, bool(path.stat().st_mode & 0o100))
            count += 1
    return count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source")
    parser.add_argument("dest", type=Path)
    parser.add_argument("--under", type=PurePosixPath)
    parser.add_argument("--listed", action="store_true")
    args = parser.parse_args()

    args.dest.mkdir()
    if args.source == "-":
        with tarfile.open(fileobj=sys.stdin.buffer, mode="r|*") as archive:
            count = from_tar(archive, args.under, args.dest)
    elif Path(args.source).is_dir():
        source = Path(args.source)
        names = filter(None, os.fsdecode(sys.stdin.buffer.read()).split("\0")) if args.listed else walk(source)
        count = from_folder(source, iter(names), args.dest)
    else:
        with tarfile.open(args.source) as archive:
            count = from_tar(archive, args.under, args.dest)
    if not (args.dest / "include" / "llama.h").is_file():
        raise SystemExit(f"unpack.py: {args.source} holds no llama.cpp ({count} files, no include/llama.h)")


main()
