"""The llama-server of the package as a child process: started, watched, and never left behind.

Knows its command line, its log and whether it is healthy; what it is asked over HTTP is the client's.
"""

from __future__ import annotations

import itertools
import logging
import os
import re
import subprocess
import threading
import time
import urllib.error
import urllib.request
import weakref
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO

from .._params import check_range, check_timeout
from ..errors import ServerStartError
from .client import Client

__all__ = ["Server", "server_program"]

logger = logging.getLogger("llamackpt.server")

_children: weakref.WeakSet[_Child] = weakref.WeakSet()


def _drop_guards() -> None:
    for child in list(_children):
        child.drop_guard()


os.register_at_fork(after_in_child=_drop_guards)

_LISTENING = re.compile(r"listening on (\S+)")
_LEVEL = re.compile(r"^\S+ ([DIWE]) ")
_LEVELS = {"D": logging.DEBUG, "I": logging.INFO, "W": logging.WARNING, "E": logging.ERROR}
_LINES = 50  # kept for the errors
_GRACE = 10.0  # seconds between terminate and kill

# Killed outright, Python runs no cleanup. Then this reads the end of its standard input, a pipe that nobody else holds.
_GUARD = 'read -r _ || kill -KILL "$1" 2> /dev/null'


def server_program() -> Path:
    """The llama-server that the package carries. Raises FileNotFoundError where it was built without one."""
    path = Path(__file__).parent.parent / "bin" / "llama-server"
    if not path.is_file():
        raise FileNotFoundError(f"{path}: not there; ./build.sh puts it there")
    return path


class Server:
    """A running llama-server. It ends with close(), with the `with` block, when it is collected, and with Python itself,
    even if that is killed.

    model:   a GGUF.
    args:    any flags of llama-server; of a flag given twice the last one counts.
    port:    on 127.0.0.1, up to 65535; 0 lets the system choose a free one, None says nothing about host and port.
    timeout: seconds until it must be healthy, None waits as long as it lives.
    log:     where its log goes: a file to append to, an open binary stream, or None for logging's "llamackpt.server".
    program: another llama-server than the package's.
    env:     variables set for it on top of this process's own.

    The address is read from the log, so flags that silence it end in the timeout. Raises FileNotFoundError without the
    model or the program, TypeError and ValueError for a port, a timeout or a log that is none, ServerStartError if it ends or
    is not healthy in time.
    """

    def __init__(
        self,
        model: str | os.PathLike[str],
        *args: str,
        port: int | None = 0,
        timeout: float | None = 120.0,
        log: str | os.PathLike[str] | BinaryIO | None = None,
        program: str | os.PathLike[str] | None = None,
        env: Mapping[str, str] | None = None,
    ) -> None:
        if port is not None:
            check_range("port", port, 0, 65535)
        timeout = None if timeout is None else check_timeout(timeout)
        _check_log(log)
        if not Path(model).is_file():
            raise FileNotFoundError(f"{model}: no such file")
        command = [str(program or server_program()), "--model", str(model)]
        if port is not None:
            command += ["--host", "127.0.0.1", "--port", str(port)]
        command += args
        self.command = command
        self.url = ""
        self._child = _Child(command, log, env)
        self._stop = weakref.finalize(self, self._child.stop)
        try:
            self._child.start()
            prefix = _option(args, "--api-prefix", self._child.env.get("LLAMA_ARG_API_PREFIX", ""))
            self.url = self._wait_until_healthy(timeout, prefix)
        except BaseException:
            self.close()
            raise

    def _wait_until_healthy(self, timeout: float | None, prefix: str) -> str:
        end = None if timeout is None else time.monotonic() + timeout
        child = self._child
        while child.returncode is None:
            url = child.address + prefix
            if child.address and _answers(f"{url}/health"):
                return url
            if end is not None and time.monotonic() > end:
                said = f"at {child.address}" if child.address else "and did not say where it listens"
                raise ServerStartError(
                    f"llama-server is not healthy after {timeout:g} seconds {said}", None, child.reason(), list(child.lines)
                )
            child.changed.wait(0.05)
            child.changed.clear()
        child.join()
        how = f"exit code {child.returncode}" if child.returncode >= 0 else f"signal {-child.returncode}"
        raise ServerStartError(
            f"llama-server ended before it was healthy ({how})", child.returncode, child.reason(), list(child.lines)
        )

    def client(self, timeout: float = 60.0) -> Client:
        """A client of this server, with a key of its --api-key or --api-key-file, or of what is in the environment for them;
        see Client. Raises ImportError without requests.
        """
        return Client(self.url, timeout=timeout, api_key=self._key())

    def _key(self) -> str | None:
        args, env = tuple(self.command), self._child.env
        keys = _option(args, "--api-key", env.get("LLAMA_API_KEY", "")).split(",")
        file = _option(args, "--api-key-file", env.get("LLAMA_ARG_API_KEY_FILE", ""))
        if file:
            keys += [line for line in Path(file).read_text().splitlines() if not line.startswith("#")]
        return next(filter(None, keys), None)

    @property
    def pid(self) -> int:
        return self._child.process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._child.returncode

    def log_lines(self) -> list[str]:
        """The last lines of its log, at most 50."""
        return list(self._child.lines)

    def rss(self) -> int:
        """Bytes of its memory that are resident now. Raises ProcessLookupError if it has ended."""
        if self.returncode is None:
            statm = Path(f"/proc/{self.pid}/statm")
            if statm.exists():  # Linux
                return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            done = subprocess.run(["ps", "-o", "rss=", "-p", str(self.pid)], capture_output=True, text=True, check=False)
            if done.stdout.strip():
                return int(done.stdout) * 1024
        raise ProcessLookupError("the server has ended")

    def signal(self, number: int) -> None:
        """Send it a signal. No effect if it has ended."""
        self._child.process.send_signal(number)

    def wait(self, timeout: float | None = None) -> int | None:
        """Its exit code, or None if it still runs after `timeout` seconds."""
        self._child.ended.wait(timeout)
        return self.returncode

    def close(self) -> None:
        """Terminate it, and kill it if it is still there after 10 seconds. No effect the second time.

        What an interrupt leaves of it another call does, or the end of Python.
        """
        self._child.stop()
        self._stop.detach()

    def __enter__(self) -> Server:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        state = f"pid {self.pid}" if self.returncode is None else f"ended, {self.returncode}"
        return f"<llamackpt.server.Server {self.url or 'not healthy'} ({state})>"


class _Child:
    """The process, its guard, and two threads: one empties its output, one waits for its end. Holds no Server."""

    process: subprocess.Popen[bytes]  # this and the next after start()
    _guard: subprocess.Popen[bytes]

    def __init__(
        self, command: list[str], log: str | os.PathLike[str] | BinaryIO | None, env: Mapping[str, str] | None
    ) -> None:
        self.lines: deque[str] = deque(maxlen=_LINES)
        self.first_error = ""
        self.address = ""
        self.returncode: int | None = None
        self.changed = threading.Event()
        self.ended = threading.Event()
        self._owner = os.getpid()
        self._command = command
        self.env = {**os.environ, **(env or {})}
        self._own_sink = None if log is None or hasattr(log, "write") else open(log, "ab", buffering=0)  # noqa: SIM115
        self._sink: IO[bytes] | None = self._own_sink or (log if hasattr(log, "write") else None)  # type: ignore[assignment]
        self._starting = threading.Lock()
        self._started = self._stopped = False
        self._error: BaseException | None = None

    def start(self) -> None:
        """Start it, in a thread: a signal handler runs in the main one, and could raise in the middle of Popen, or between the
        process and its guard. However this ends, stop() then finds a process that is whole, or keeps it from being started.
        """
        thread = threading.Thread(target=self._start, name="llama-server start", daemon=True)
        thread.start()
        thread.join()
        if self._error is not None:
            raise self._error

    def _start(self) -> None:
        with self._starting:
            if not self._stopped:
                try:
                    self._spawn()
                    self._started = True
                except BaseException as error:
                    self._error = error

    def _spawn(self) -> None:
        # a session of its own: an interrupt from the terminal goes to Python, which decides
        self.process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=self.env,
            start_new_session=True,
        )
        try:
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "sh", str(self.process.pid)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            _children.add(self)
            self._reader = threading.Thread(target=self._read, name="llama-server log", daemon=True)
            self._reader.start()
            threading.Thread(target=self._wait, name="llama-server end", daemon=True).start()
        except BaseException:
            for process in (self.process, getattr(self, "_guard", None)):
                if process is not None:
                    process.kill()
                    process.wait()
            raise

    def _read(self) -> None:
        output = self.process.stdout
        assert output is not None
        for line in iter(lambda: output.readline(65536), b""):
            text = line.decode("utf-8", "replace").rstrip()
            found = _LEVEL.match(text)
            level = _LEVELS[found[1]] if found else logging.INFO
            self.lines.append(text)
            if level == logging.ERROR and not self.first_error:
                self.first_error = text
            if not self.address and (listening := _LISTENING.search(text)):
                self.address = listening[1].replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
                self.changed.set()
            try:
                if self._sink is None:
                    logger.log(level, "%s", text)
                else:
                    self._sink.write(line)
                    self._sink.flush()
            except Exception:  # a full disk, a closed stream, a filter that raises: unread, the server would wait for ever
                self._sink = None
        output.close()
        if self._own_sink is not None:
            self._own_sink.close()

    def _wait(self) -> None:
        self.returncode = self.process.wait()
        self._guard.kill()
        self._guard.wait()
        if self._guard.stdin is not None:
            self._guard.stdin.close()
        self.changed.set()
        self.ended.set()

    def drop_guard(self) -> None:
        """In a fork, which has the guard's pipe, too: while it is open there the guard does not see that Python is gone."""
        if self._guard.stdin is not None:
            self._guard.stdin.close()

    def join(self) -> None:
        """Until its last line has been read."""
        self.ended.wait(_GRACE)
        self._reader.join(_GRACE)

    def reason(self) -> str:
        """Its first error, else its last line."""
        line = self.first_error or (self.lines[-1] if self.lines else "")
        return _LEVEL.sub("", line)

    def stop(self) -> None:
        if os.getpid() != self._owner:  # a fork of Python is not to stop it
            return
        with self._starting:
            self._stopped = True
        if not self._started:
            if self._own_sink is not None:
                self._own_sink.close()
            return
        self.process.terminate()
        if not self.ended.wait(_GRACE):
            self.process.kill()
        self.join()


def _answers(url: str) -> bool:
    """Whether the server answers, be it that it refuses; while it loads its model it answers 503."""
    if not url.startswith("http://"):  # https, a socket file: it says that it listens when the model is loaded
        return True
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(url, timeout=5):
            return True
    except urllib.error.HTTPError as error:
        return error.code != 503
    except OSError:
        return False


def _check_log(log: object) -> None:
    if isinstance(log, int):
        raise TypeError(f"the log is a path or a binary stream, as open({log}, 'ab', closefd=False), not a descriptor")
    if hasattr(log, "write"):
        try:
            log.write(b"")
            _ = log.flush  # type: ignore[attr-defined]
        except (TypeError, AttributeError) as error:
            raise TypeError("the log is bytes: pass a binary stream, as sys.stderr.buffer") from error


def _option(args: tuple[str, ...], name: str, default: str = "") -> str:
    """The value of a flag, or what it is where the flag is not there."""
    found = [value for flag, value in itertools.pairwise(args) if flag == name]
    return found[-1] if found else default
