"""Which files the model is trained on: the standard library's own Python source, and nothing else.

The list depends on the interpreter's version only: paths are sorted, and the held-out part is picked by a
checksum of the path, so two machines with the same Python get the same split. Knows nothing about tokens.
"""

import re
import sysconfig
import zlib
from pathlib import Path

# tests and generated tables would teach assertion lists and numbers, not Python
SKIPPED_DIRS = {"site-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}
# some modules carry another author's notice (Secret Labs, Lundh, O'Malley ...): only the PSF licence is wanted here
FOREIGN_NOTICE = re.compile(r"copyright\s*(\(c\)|©|19|20|by)|\(c\)\s*copyright|permission to use, copy", re.IGNORECASE)
HELD_OUT_ONE_IN = 25


def _under_psf_licence(text: str) -> bool:
    return all("Python Software Foundation" in text[m.start() : m.start() + 120] for m in FOREIGN_NOTICE.finditer(text))


def _is_held_out(name: str) -> bool:
    return zlib.crc32(name.encode()) % HELD_OUT_ONE_IN == 0


def read_corpus(root: Path | None = None) -> tuple[dict[str, str], dict[str, str]]:
    """Returns (training, held_out): path relative to the standard library -> text, in sorted order."""
    root = Path(sysconfig.get_paths()["stdlib"]) if root is None else root
    training: dict[str, str] = {}
    held_out: dict[str, str] = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root).as_posix()
        if SKIPPED_DIRS.intersection(name.split("/")) or name.startswith("_sysconfigdata"):
            continue
        text = _read_utf8(path)
        if len(text) < 200 or not _under_psf_licence(text):
            continue
        (held_out if _is_held_out(name) else training)[name] = text
    return training, held_out


def _read_utf8(path: Path) -> str:
    """The text, or nothing where a file is in an encoding of its own."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""
