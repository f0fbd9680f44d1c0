"""Where and when something was measured."""

from __future__ import annotations

import platform
from datetime import datetime, timezone
from pathlib import Path

__all__ = ["where"]


def where() -> dict[str, object]:
    """Date, processor and the build of the libraries, as JSON has them."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    build = Path(__file__).parent.parent / "lib" / "BUILD.json"
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{cpu}, {platform.system()}",
        "build": build.read_text() if build.exists() else None,
    }
