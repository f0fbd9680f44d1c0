"""llama.cpp's log goes to logging, and nowhere else."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import llamackpt


def test_nothing_is_printed_unless_asked_for() -> None:
    code = "import llamackpt; m = llamackpt.Model(llamackpt.default_model()); m.context(n_ctx=256).decode([1])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_lines_arrive_whole_and_with_their_level(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="llamackpt.llama"):
        llamackpt.Model(llamackpt.default_model()).close()
    text = [record.getMessage() for record in caplog.records if record.name == "llamackpt.llama"]
    assert any("general.architecture" in line for line in text)
    assert not any("\n" in line for line in text)


def test_the_reason_is_in_the_exception(tmp_path: Path) -> None:
    path = tmp_path / "cut.gguf"
    path.write_bytes(llamackpt.default_model().read_bytes()[:100000])
    with pytest.raises(llamackpt.ModelLoadError) as caught:
        llamackpt.Model(path)
    assert caught.value.log
    assert caught.value.log in str(caught.value)


def test_an_exception_of_a_handler_of_signals_or_of_logging_is_not_lost(
    model: llamackpt.Model, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(_: logging.LogRecord) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(caplog.handler, "emit", interrupt)
    with model.context(n_ctx=256) as ctx, caplog.at_level(logging.INFO, logger="llamackpt.llama"):
        for call in (lambda: llamackpt.Model(model.path), lambda: model.context(n_ctx=256), lambda: ctx.reserve(1)):
            with pytest.raises(KeyboardInterrupt):
                call()
    assert ctx.closed
