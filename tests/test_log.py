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
from llamackpt._ffi import lib


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


def test_an_exception_of_a_handler_of_logging_is_raised_by_the_call_it_came_in_or_else_before_the_next_one(
    ctx: llamackpt.Context, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: logging.LogRecord) -> None:
        raise RuntimeError("mine")

    ctx.decode([1, 2, 3])
    with monkeypatch.context() as patch:
        patch.setattr(caplog.handler, "emit", fail)
        with pytest.raises(RuntimeError, match="mine"):
            ctx.state_set(1, b"x" * 500)
    ctx.decode([4])
    with monkeypatch.context() as patch:
        patch.setattr(caplog.handler, "emit", fail)
        lib.llama_state_seq_set_data_ext(ctx._gate.ctx, b"x" * 500, 500, 1, 0)
    with pytest.raises(RuntimeError, match="mine"):
        ctx.decode([5])
    assert ctx.pos_max() == 3
    with monkeypatch.context() as patch:
        patch.setattr(caplog.handler, "emit", fail)
        lib.llama_state_seq_set_data_ext(ctx._gate.ctx, b"x" * 500, 500, 1, 0)
    ctx.close()
    assert ctx.closed
    with pytest.raises(RuntimeError, match="mine"):
        ctx.model.context(n_ctx=256)


class Refuses:
    """llama.cpp that refuses, and says nothing."""

    def __getattr__(self, name: str) -> object:
        return getattr(lib, name)

    def llamackpt_checkpoint_save(self, memory: object, seq_id: int, flags: int, slot: list[int]) -> None:
        slot[0] = lib.LLAMA_CHECKPOINT_NO_MEMORY

    def llama_state_seq_get_size_ext(self, *_: object) -> int:
        return 0

    llama_state_seq_get_data_ext = llama_state_seq_get_size_ext


@pytest.mark.parametrize("module", ["context", "_sequences"])
def test_an_error_does_not_have_the_reason_of_an_earlier_one(
    ctx: llamackpt.Context, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ctx.decode([1, 2, 3])
    with pytest.raises(llamackpt.LlamaError) as caught:
        ctx.state_set(1, b"x" * 500)
    assert caught.value.log
    monkeypatch.setattr(f"llamackpt.{module}.lib", Refuses())
    with pytest.raises(llamackpt.LlamaError) as caught:
        ctx.checkpoint() if module == "context" else ctx.state_get()
    assert caught.value.log == ""
