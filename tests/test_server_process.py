"""The process harness, `llamackpt serve` and the client's errors: how a server starts, fails and ends."""

from __future__ import annotations

import codecs
import contextlib
import http.server
import io
import logging
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import requests
from conftest import ctrl_c_after, preloadable

import llamackpt
from llamackpt.errors import (
    PromptTooLongError,
    RequestError,
    ServerConnectionError,
    ServerError,
    ServerStartError,
    ServerTimeoutError,
)
from llamackpt.server import Client, Server
from llamackpt.server.process import server_program
from llamackpt.server.replies import parse_metrics

MODEL = str(llamackpt.default_model())
SMALL = ("--ctx-size", "512", "--parallel", "1", "--threads", "1")


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def soon(condition: Callable[[], bool], seconds: float = 20.0) -> bool:
    """Whether it comes true; how long it takes is not what is tested."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return condition()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with Server(MODEL, *SMALL) as running:
        yield running


# -- the process ----------------------------------------------------------------------------------------------------------


def test_two_servers_at_once_have_ports_of_their_own_and_end_with_the_block(server: Server) -> None:
    with Server(MODEL, *SMALL) as other:
        assert other.url != server.url
        assert other.client().health() and server.client().health()
    assert is_gone(other.pid)
    assert other.returncode == 0
    assert "ended, 0" in repr(other)
    other.close()


def test_a_server_nobody_holds_is_stopped() -> None:
    server = Server(MODEL, *SMALL)
    pid = server.pid
    del server
    assert soon(lambda: is_gone(pid))


def test_an_error_in_the_block_stops_it() -> None:
    with pytest.raises(KeyboardInterrupt):
        with Server(MODEL, *SMALL) as server:
            raise KeyboardInterrupt
    assert is_gone(server.pid)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_it_ends_with_python_however_that_ends(number: signal.Signals) -> None:
    code = f"import llamackpt.server as s, time; r = s.Server({MODEL!r}, *{SMALL}); print(r.pid, flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as python:
        assert python.stdout is not None
        pid = int(python.stdout.readline())
        assert not is_gone(pid)
        python.send_signal(number)
    assert soon(lambda: is_gone(pid))


FORKED = """
import os, sys, time
from llamackpt.server import Server
server = Server(sys.argv[1], *sys.argv[2:], log=os.devnull)
child = os.fork()
if child == 0:
    time.sleep(60)
    os._exit(0)
print(server.pid, child, flush=True)
time.sleep(60)
"""


def test_it_ends_with_python_though_a_fork_of_that_lives_on() -> None:
    with subprocess.Popen([sys.executable, "-c", FORKED, MODEL, *SMALL], stdout=subprocess.PIPE) as python:
        assert python.stdout is not None
        pid, fork = map(int, python.stdout.readline().split())
        try:
            python.kill()
            assert soon(lambda: is_gone(pid))
            assert not is_gone(fork)
        finally:
            os.kill(fork, signal.SIGKILL)


@pytest.mark.parametrize("where", ["fork_exec", "acquire"])
def test_ctrl_c_while_it_is_started_leaves_nothing_behind(tmp_path: Path, where: str) -> None:
    program, pids = tmp_path / "server", tmp_path / "pids"
    program.write_text(f"#!/bin/sh\necho $$ >> {pids}\nexec sleep 60\n")
    program.chmod(0o755)
    pids.touch()
    before = set(threading.enumerate())
    with pytest.raises((KeyboardInterrupt, ServerStartError)), ctrl_c_after(where):
        Server(MODEL, program=program, timeout=1)
    if where == "fork_exec":
        assert soon(lambda: len(pids.read_text()) > 0)
    assert soon(lambda: before.issuperset(threading.enumerate()))  # nothing is still starting one
    assert soon(lambda: all(is_gone(int(pid)) for pid in pids.read_text().split()))


def test_one_that_cannot_terminate_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llamackpt.server.process._GRACE", 0.2)
    server = Server(MODEL, *SMALL)
    server.signal(signal.SIGSTOP)  # a stopped process does not act on SIGTERM
    server.close()
    assert server.returncode == -signal.SIGKILL


def test_closing_goes_on_where_an_interrupt_has_stopped_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("llamackpt.server.process._GRACE", 0.2)
    server = Server(MODEL, *SMALL)
    server.signal(signal.SIGSTOP)
    with monkeypatch.context() as patch:
        patch.setattr(server._child.process, "kill", interrupt)
        with pytest.raises(KeyboardInterrupt):
            server.close()
    server.close()
    assert server.wait(20) == -signal.SIGKILL
    server.close()


def test_a_signal_before_the_main_loop_is_not_lost(tmp_path: Path) -> None:
    """It comes the moment that it is handled."""
    library = preloadable("early_signal.c", tmp_path)
    command, env = [server_program(), "--model", MODEL, *SMALL, "--port", "0"], {**os.environ, "LD_PRELOAD": str(library)}
    done = subprocess.run(command, env=env, stderr=subprocess.PIPE, text=True, timeout=60, check=True)
    assert "cleaning up before exit" in done.stderr


@pytest.mark.parametrize("at", range(1, 9))
def test_a_signal_ends_it_whatever_lock_is_held(tmp_path: Path, at: int) -> None:
    """By the thread that the signal interrupts. The handler takes none of them."""
    library = preloadable("signal_in_lock.c", tmp_path)
    command, env = [server_program(), "--model", MODEL, *SMALL, "--port", "0"], {**os.environ, "LD_PRELOAD": str(library)}
    env["SIGNAL_AT"] = str(at)
    done = subprocess.run(command, env=env, stderr=subprocess.PIPE, text=True, timeout=60, check=True)
    assert "cleaning up before exit" in done.stderr


LONG = {"prompt": "def read(", "n_predict": 100000, "ignore_eos": True}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_with_a_request_under_way(number: signal.Signals) -> None:
    """Which is told so."""
    with ThreadPoolExecutor(1) as threads, Server(MODEL, "--parallel", "1", "--threads", "1") as server:
        client = server.client()
        answer = threads.submit(requests.post, f"{server.url}/completion", json=LONG, timeout=600)
        assert soon(lambda: client.slots()[0].is_processing)
        server.signal(number)
        assert server.wait(60) == 0
        assert answer.result().status_code == 503
        assert answer.result().json()["error"]["message"] == "The server is being stopped"


@pytest.mark.parametrize("headers", [{}, {"X-Conversation-Id": "one"}], ids=["plain", "resumable"])
def test_a_signal_ends_it_with_a_stream_under_way(headers: dict[str, str]) -> None:
    with Server(MODEL, "--parallel", "1", "--threads", "1") as server:
        body = {**LONG, "stream": True}
        with requests.post(f"{server.url}/completion", json=body, headers=headers, stream=True, timeout=600) as answer:
            lines = answer.iter_lines()
            assert next(lines).startswith(b"data: ")
            server.signal(signal.SIGTERM)
            assert server.wait(60) == 0
            with contextlib.suppress(requests.exceptions.ChunkedEncodingError):
                assert b'"stop":true' not in b"".join(lines)


def test_a_server_that_dies_is_seen_to_be_dead() -> None:
    with Server(MODEL, *SMALL) as server:
        client = server.client()
        server.signal(signal.SIGKILL)
        assert server.wait(20) == -signal.SIGKILL
        with pytest.raises(ServerConnectionError):
            client.health()
        with pytest.raises(ProcessLookupError):
            server.rss()


def test_a_wrong_model_or_program_is_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.gguf"):
        Server(tmp_path / "none.gguf")
    with pytest.raises(FileNotFoundError, match="no-server"):
        Server(MODEL, program=tmp_path / "no-server")


def test_one_that_ends_at_once_says_why(tmp_path: Path) -> None:
    with pytest.raises(ServerStartError, match="invalid argument: --nonsense") as caught:
        Server(MODEL, "--nonsense")
    assert caught.value.code == 1
    path = tmp_path / "bad.gguf"
    path.write_bytes(b"not a model")
    with pytest.raises(ServerStartError) as caught:
        Server(path)
    assert "magic" in caught.value.log
    assert any("bad.gguf" in line for line in caught.value.lines)


@pytest.mark.parametrize("flag", ["--ckpt-device-mem", "--ckpt-host-mem"])
def test_memory_for_checkpoints_that_is_less_than_no_limit_is_refused(flag: str) -> None:
    done = subprocess.run([server_program(), "--model", MODEL, flag, "-2"], stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1
    assert f'"{flag}": invalid value' in done.stderr


def test_one_that_is_not_healthy_in_time_is_stopped() -> None:
    with pytest.raises(ServerStartError, match=r"not healthy after 0\.5 seconds") as caught:
        Server(MODEL, *SMALL, "--log-disable", timeout=0.5)
    assert caught.value.code is None


@pytest.fixture
def noisy(tmp_path: Path) -> Path:
    """A program that writes more than a pipe holds, and ends with 3."""
    script = tmp_path / "noisy"
    script.write_text("#!/bin/sh\nfor i in 1 2 3 4 5 6 7 8; do head -c 300000 /dev/zero | tr '\\0' 'x'; echo; done; exit 3\n")
    script.chmod(0o755)
    return script


def test_much_output_does_not_block_it(noisy: Path) -> None:
    with pytest.raises(ServerStartError) as caught:
        Server(MODEL, program=noisy)
    assert caught.value.code == 3


@pytest.mark.parametrize("where", ["stream", "logging"])
def test_a_log_that_raises_does_not_block_it(
    noisy: Path, where: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.RawIOBase):
        def write(self, data: object) -> int:
            if data:
                raise RuntimeError("over quota")
            return 0

    def refuse(*_: object) -> None:
        raise RuntimeError("a filter that is wrong")

    if where == "logging":
        monkeypatch.setattr(logging.getLogger("llamackpt.server"), "filters", [refuse])
    with pytest.raises(ServerStartError) as caught, caplog.at_level(logging.INFO, logger="llamackpt.server"):
        Server(MODEL, program=noisy, timeout=10, log=Full() if where == "stream" else None)  # type: ignore[arg-type]
    assert caught.value.code == 3


def test_the_log_goes_to_a_file_or_to_logging(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Server(MODEL, *SMALL, log=tmp_path / "server.log") as server:
        lines = server.log_lines()
    assert any("listening on" in line for line in lines)
    assert (tmp_path / "server.log").read_text().splitlines()[: len(lines)] == lines
    with caplog.at_level(logging.INFO, logger="llamackpt.server"):
        Server(MODEL, *SMALL).close()
    records = [record for record in caplog.records if record.name == "llamackpt.server"]
    assert any("listening on" in record.getMessage() for record in records)
    assert {record.levelno for record in records} >= {logging.INFO, logging.WARNING}


def test_its_client_has_the_key_of_the_server() -> None:
    with Server(llamackpt.default_model(), "--api-key", "one,two") as server:
        assert server.client().completion("x", max_tokens=1).tokens
        assert Client(server.url, api_key="two").completion("x", max_tokens=1).tokens
        with pytest.raises(RequestError) as caught:
            Client(server.url).completion("x", max_tokens=1)
        assert caught.value.code == 401


@pytest.mark.parametrize("where", ["LLAMA_API_KEY", "--api-key-file", "LLAMA_ARG_API_KEY_FILE"])
def test_its_client_has_a_key_from_elsewhere(tmp_path: Path, where: str) -> None:
    path = tmp_path / "keys"
    path.write_text("# mine\n\none\ntwo\n")
    flags = (where, str(path)) if where.startswith("--") else ()
    env = {"LLAMA_API_KEY": "one,two", "LLAMA_ARG_API_KEY_FILE": str(path)}
    with Server(MODEL, *SMALL, *flags, env={where: env[where]} if where in env else None) as server:
        assert server.client().completion("x", max_tokens=1).tokens


def test_a_prefix_of_the_paths_is_part_of_the_url() -> None:
    with Server(MODEL, *SMALL, "--api-prefix", "/llm") as server:
        assert server.url.endswith("/llm")
        assert server.client().health()


def test_a_prefix_from_the_environment_is_part_of_the_url(monkeypatch: pytest.MonkeyPatch) -> None:
    with Server(MODEL, *SMALL, env={"LLAMA_ARG_API_PREFIX": "/one"}) as server:
        assert server.url.endswith("/one")
        assert server.client().health()
    monkeypatch.setenv("LLAMA_ARG_API_PREFIX", "/two")
    with Server(MODEL, *SMALL) as server:
        assert server.url.endswith("/two")
    with Server(MODEL, *SMALL, "--api-prefix", "/three") as server:
        assert server.url.endswith("/three")


def test_a_port_or_a_log_that_is_none_is_named() -> None:
    for port in (-1, 65536):
        with pytest.raises(ValueError, match="port is 0 to 65535, not"):
            Server(MODEL, port=port)
    with pytest.raises(TypeError, match="port is an integer, not '0'"):
        Server(MODEL, port="0")  # type: ignore[arg-type]
    with tempfile.NamedTemporaryFile("w") as wrapped, codecs.open(os.devnull, "w", "utf-8") as encoded:
        for log in (sys.stderr, io.StringIO(), wrapped, encoded, 2, types.SimpleNamespace(write=len)):
            with pytest.raises(TypeError, match="binary stream"):
                Server(MODEL, log=log)  # type: ignore[arg-type]


# -- llamackpt serve ------------------------------------------------------------------------------------------------------


def serve(*args: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "llamackpt", "serve", *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_serve_prints_the_url_and_passes_signals_on(number: signal.Signals) -> None:
    with serve(MODEL, *SMALL, "--port", "0") as process:
        assert process.stdout is not None and process.stderr is not None
        url = process.stdout.readline().strip()
        assert Client(url).props()["model_path"] == MODEL
        process.send_signal(number)
        log = process.stderr.read()
        assert process.wait(timeout=60) == 0
    assert "cleaning up before exit" in log
    assert "Traceback" not in log


def test_serve_without_a_model_asks_for_nothing_else() -> None:
    with serve() as process:
        out, log = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert log.endswith("the following arguments are required: MODEL\n")


def test_serve_without_a_standard_error_serves() -> None:
    command = [sys.executable, "-m", "llamackpt", "serve", MODEL, *SMALL, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.close(2)) as process:
        assert process.stdout is not None
        assert Client(process.stdout.readline().strip()).health()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 0


def test_serve_with_the_flags_first_says_what_comes_first() -> None:
    with serve("--port", "8080", MODEL) as process:
        out, log = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert "unrecognized arguments: --port; MODEL comes first" in log


def test_the_help_of_the_server_is_on_standard_output() -> None:
    with serve(MODEL, "--help") as process:
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "--ctx-size" in out


def test_serve_without_a_model_file_is_one_line() -> None:
    with serve("/nowhere/none.gguf") as process:
        out, log = process.communicate(timeout=60)
    assert (process.returncode, out) == (2, "")
    assert log == "llamackpt: /nowhere/none.gguf: no such file\n"


def test_serve_ends_with_the_exit_code_of_the_server() -> None:
    with serve(MODEL, "--nonsense") as process:
        out, log = process.communicate(timeout=60)
    assert (process.returncode, out) == (1, "")
    assert "--nonsense" in log


# -- the client -----------------------------------------------------------------------------------------------------------


def test_a_stream_is_the_completion_in_parts(server: Server) -> None:
    client = server.client()
    whole = client.completion("def read(self", max_tokens=24, temperature=0)
    parts = list(client.stream("def read(self", max_tokens=24, temperature=0))
    assert [part.completion for part in parts[:-1]] == [None] * (len(parts) - 1)
    last = parts[-1].completion
    assert last is not None
    assert (last.text, last.tokens) == (whole.text, whole.tokens)
    assert "".join(part.text for part in parts) == whole.text
    assert whole.timings.predicted_n == len(whole.tokens) == 24
    assert (whole.stop, last.stop, whole.truncated) == ("limit", "limit", False)


def test_text_and_its_tokens_are_the_same_prompt(server: Server) -> None:
    client = server.client()
    tokens = client.tokenize("def read(self")
    assert client.detokenize(tokens) == "def read(self"
    by_tokens = client.completion(tokens, max_tokens=8, temperature=0)
    assert by_tokens.tokens == client.completion("def read(self", max_tokens=8, temperature=0).tokens
    assert by_tokens.n_prompt == len(tokens)


def test_a_stop_string_ends_the_text(server: Server) -> None:
    done = server.client().completion("def read(self", max_tokens=60, temperature=0, stop=[":"])
    assert done.stop == "word"
    assert ":" not in done.text
    with pytest.raises(ValueError, match="sequence of strings"):
        server.client().completion("x", stop=":")


def test_what_is_no_prompt_or_no_json_is_not_sent(server: Server) -> None:
    client = server.client()
    assert client.completion("", max_tokens=1).stop == "none"
    for wrong in (b"def", bytearray(b"def"), memoryview(b"def"), [1.0, 2.0], [1.5], ["a"]):
        with pytest.raises(TypeError):
            client.completion(wrong)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            client.detokenize(wrong)  # type: ignore[arg-type]
    assert client.completion(np.array([5, 6]), max_tokens=1).n_prompt == 2
    for number in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="JSON"):
            client.completion("x", temperature=number)
        with pytest.raises(ValueError, match="JSON"):
            next(client.stream("x", top_p=number))


def test_several_completions_are_not_one() -> None:
    with Server(MODEL, "--ctx-size", "512", "--parallel", "2", "--threads", "1") as server:
        client = server.client()
        for ask in (lambda: client.completion("x", n=2), lambda: list(client.stream("x", n_cmpl=2))):
            with pytest.raises(ServerError, match="not one completion"):
                ask()


@pytest.mark.parametrize("timeout", [0, -1.0, float("nan"), float("inf"), 1e300, "5"])
def test_a_client_and_a_server_have_to_be_waited_for_as_long_as_one_can(timeout: float) -> None:
    for call in (lambda: Client("http://127.0.0.1:9", timeout=timeout), lambda: Server(MODEL, *SMALL, timeout=timeout)):
        with pytest.raises(ValueError, match="timeout is a number of seconds above 0"):
            call()
    assert Client("http://127.0.0.1:9", timeout=np.float32(1)).timeout == 1


def test_slots_and_props_are_those_of_the_command_line(server: Server) -> None:
    client = server.client()
    client.completion("def read(self", max_tokens=4)
    (slot,) = client.slots()
    assert (slot.id, slot.n_ctx, slot.is_processing, slot.speculative) == (0, 512, False, False)
    assert slot.n_tokens > 4
    assert client.props()["total_slots"] == 1


def test_what_the_server_refuses_is_its_own_message(server: Server) -> None:
    client = server.client()
    with pytest.raises(PromptTooLongError, match="exceeds the available context size") as caught:
        client.completion("x = 1\n" * 600)
    assert (caught.value.code, caught.value.n_ctx) == (400, 512)
    assert caught.value.n_prompt > 512
    with pytest.raises(RequestError, match="grammar") as refused:
        client.completion("x", grammar="root ::= (")
    assert (refused.value.code, refused.value.type) == (400, "invalid_request_error")
    with pytest.raises(RequestError, match="--metrics"):
        client.metrics()
    with pytest.raises(RequestError, match="--slot-save-path"):
        client.save_slot(0, "x")
    with pytest.raises(PromptTooLongError):
        list(client.stream("x = 1\n" * 600))


def test_no_server_is_a_connection_error() -> None:
    with pytest.raises(ServerConnectionError, match="refused"):
        Client("http://127.0.0.1:9").health()
    with pytest.raises(ServerConnectionError):
        Client("nonsense").health()
    with pytest.raises(ServerConnectionError, match=r"http://\[::1: Invalid IPv6 URL"):
        Client("http://[::1")


class Odd(http.server.BaseHTTPRequestHandler):
    """Answers that a llama-server does not give."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/props":  # no JSON
            self.answer(200, b"hello")
        elif self.path == "/slots":  # an error that is no JSON
            self.answer(502, b"bad gateway")
        elif self.path == "/health":  # still loading
            self.answer(503, b'{"error": {"code": 503, "message": "Loading model", "type": "unavailable_error"}}')
        else:  # nothing
            time.sleep(5)

    def do_POST(self) -> None:
        first = b'data: {"content": "a", "tokens": [1], "stop": false}\n\n'
        slow = self.rfile.read(int(self.headers["Content-Length"])).find(b"slow") >= 0
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(first), first))
        if slow:
            time.sleep(5)
        self.close_connection = True

    def answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def odd() -> Iterator[Client]:
    listener = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Odd)
    listener.daemon_threads = True
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    yield Client(f"http://127.0.0.1:{listener.server_address[1]}", timeout=0.3)
    listener.shutdown()
    listener.server_close()


def test_an_answer_that_is_none_is_a_typed_error(odd: Client) -> None:
    assert odd.health() is False
    with pytest.raises(ServerError, match="not JSON"):
        odd.props()
    with pytest.raises(RequestError, match="bad gateway") as caught:
        odd.slots()
    assert caught.value.code == 502
    with pytest.raises(ServerTimeoutError, match=r"0\.3 seconds"):
        odd.metrics()


def test_a_stream_that_breaks_off_or_stalls_is_a_typed_error(odd: Client) -> None:
    stream = odd.stream("x")
    assert next(stream).text == "a"
    with pytest.raises(ServerConnectionError, match="ended before it was complete"):
        next(stream)
    stream = odd.stream("slow")
    assert next(stream).text == "a"
    with pytest.raises(ServerTimeoutError):
        next(stream)


def test_without_requests_the_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "requests", None)
    with pytest.raises(ImportError, match=r"pip install llamackpt\[server\]"):
        Client("http://127.0.0.1:1")


def test_metrics_keep_their_labels() -> None:
    text = '# HELP a b\n# TYPE a counter\na 1\nb_total{position="0"} 2.5\n\nc{x="a b"} +Inf\n'
    assert parse_metrics(text) == {"a": 1.0, 'b_total{position="0"}': 2.5, 'c{x="a b"}': float("inf")}
