"""Where and when something was measured."""

from __future__ import annotations

import os
import platform
from datetime import datetime, timezone
from pathlib import Path

__all__ = ["where"]


def where() -> dict[str, object]:
    """Date, processor, load and the build of the libraries, as JSON has them. What else ran is in the load, if anywhere."""
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        cpu = next((line.split(":")[1].strip() for line in info.read_text().splitlines() if "model name" in line), cpu)
    build = Path(__file__).parent.parent / "lib" / "BUILD.json"
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": f"{cpu}, {os.cpu_count()} processors, {platform.system()}",
        "load": os.getloadavg()[1],  # mean of the last 5 minutes
        "build": build.read_text() if build.exists() else None,
    }
