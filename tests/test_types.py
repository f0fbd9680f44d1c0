"""The annotations, as a user of them has them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import get_type_hints

import pytest

import llamackpt


@pytest.mark.skipif(sys.version_info < (3, 11), reason="typing.Unpack is newer")
def test_the_types_of_the_options_of_a_context_can_be_read() -> None:
    assert get_type_hints(llamackpt.Model.context)["return"] is llamackpt.Context


def test_what_users_write_passes_the_strict_type_checker() -> None:
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "--strict", str(Path(__file__).with_name("typed_user.py"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
