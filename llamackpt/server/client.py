"""A client of llama-server: typed answers, and one error for each way to fail.

Knows nothing of processes: the server may be anywhere. Every request has a connection of its own, so that a client can be
used from several threads, and so that giving up on an answer tells the server to stop.
"""

from __future__ import annotations

import contextlib
import json
import operator
from collections.abc import Iterable, Iterator, Sequence
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit

from .._params import check_timeout, is_bytes
from ..errors import PromptTooLongError, RequestError, ServerConnectionError, ServerError, ServerTimeoutError
from .replies import Chunk, Completion, Slot, SlotFile, parse_metrics

__all__ = ["Client"]

_LOCAL = ("localhost", "127.0.0.1", "::1")


def _import_requests() -> ModuleType:
    try:
        import requests
    except ImportError as error:
        raise ImportError("the client of llama-server needs requests: pip install llamackpt[server]") from error
    return requests


class Client:
    """Requests to the server at `url`, as "http://127.0.0.1:8080".

    timeout: seconds without a byte from the server, above 0. An answer that is not streamed is silent until it is complete.
    api_key: what the server was given with --api-key.

    Raises ImportError without requests, ValueError for the timeout, ServerConnectionError for a URL that is none. Every call
    raises RequestError where the server refuses (PromptTooLongError for a prompt that does not fit), ServerConnectionError
    where there is none or it goes away, ServerTimeoutError.
    """

    def __init__(self, url: str, *, timeout: float = 60.0, api_key: str | None = None) -> None:
        self.timeout = check_timeout(timeout)
        self._requests = _import_requests()
        self.url = url.rstrip("/")
        self._headers = {} if api_key is None else {"Authorization": f"Bearer {api_key}"}
        try:
            self._local = urlsplit(self.url).hostname in _LOCAL
        except ValueError as error:
            raise ServerConnectionError(f"{url}: {error}") from error

    # -- completions -----------------------------------------------------------------------------------------------------

    def completion(
        self,
        prompt: str | Iterable[int],
        *,
        max_tokens: int = 128,
        temperature: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        id_slot: int | None = None,
        cache_prompt: bool | None = None,
        **more: Any,
    ) -> Completion:
        """Continue a prompt, text or tokens. None leaves a choice to the server; `more` goes to it as it is.

        Raises TypeError and ValueError for what is no prompt or no JSON (as not a number), ServerError if several completions
        were asked for.
        """
        body = _body(prompt, max_tokens, temperature, seed, stop, id_slot, cache_prompt, more)
        answer = self._json("POST", "/completion", body)
        if not isinstance(answer, dict):
            raise self._several()
        return Completion.parse(answer)

    def _several(self) -> ServerError:
        return ServerError(f"{self.url}/completion: the answer is not one completion; ask for one (n, n_cmpl)")

    def stream(
        self,
        prompt: str | Iterable[int],
        *,
        max_tokens: int = 128,
        temperature: float | None = None,
        seed: int | None = None,
        stop: Sequence[str] = (),
        id_slot: int | None = None,
        cache_prompt: bool | None = None,
        **more: Any,
    ) -> Iterator[Chunk]:
        """`completion`, as it is generated. Closing the iterator closes the connection, and so ends the generation.

        The request is made by the first step. Raises ServerConnectionError if the stream ends before its last item.
        """
        body = _body(prompt, max_tokens, temperature, seed, stop, id_slot, cache_prompt, more)
        return self._stream({**body, "stream": True})

    def _stream(self, body: dict[str, Any]) -> Iterator[Chunk]:
        text: list[str] = []
        tokens: list[int] = []
        with self._open("POST", "/completion", body, stream=True) as response:
            for line in response.iter_lines():
                kind, _, data = line.decode("utf-8").partition(": ")
                if kind not in ("data", "error") or data == "[DONE]":
                    continue
                event = json.loads(data)
                if kind == "error" or "error" in event:
                    raise _request_error(event.get("error", event), response.status_code)
                if event.get("index", 0) != 0:
                    raise self._several()
                text.append(event["content"])
                tokens += [] if event["stop"] or "prompt_progress" in event else event["tokens"]
                done = Completion.parse(event, "".join(text), tokens) if event["stop"] else None
                yield Chunk(event["content"], event["tokens"], done)
                if done:
                    return
        raise ServerConnectionError(f"{self.url}: the stream ended before it was complete")

    # -- the vocabulary --------------------------------------------------------------------------------------------------

    def tokenize(self, text: str, *, add_special: bool = False, parse_special: bool = True) -> list[int]:
        """The tokens of a text; add_special puts the model's begin token in front."""
        body = {"content": text, "add_special": add_special, "parse_special": parse_special}
        return [int(token) for token in self._json("POST", "/tokenize", body)["tokens"]]

    def detokenize(self, tokens: Iterable[int]) -> str:
        """The text of tokens."""
        return str(self._json("POST", "/detokenize", {"tokens": _ids(tokens)})["content"])

    # -- slots -----------------------------------------------------------------------------------------------------------

    def slots(self) -> list[Slot]:
        """All slots. Refused by a server with --no-slots."""
        return [Slot.parse(raw) for raw in self._json("GET", "/slots")]

    def save_slot(self, id_slot: int, filename: str) -> SlotFile:
        """Write a slot's cache to a file in the server's --slot-save-path."""
        return SlotFile.parse(self._json("POST", f"/slots/{id_slot}?action=save", {"filename": filename}))

    def restore_slot(self, id_slot: int, filename: str) -> SlotFile:
        """Read it back, into any slot."""
        return SlotFile.parse(self._json("POST", f"/slots/{id_slot}?action=restore", {"filename": filename}))

    def erase_slot(self, id_slot: int) -> int:
        """Empty a slot's cache; returns how many tokens it held."""
        return int(self._json("POST", f"/slots/{id_slot}?action=erase", {})["n_erased"])

    # -- the server ------------------------------------------------------------------------------------------------------

    def health(self) -> bool:
        """Whether it is ready for requests; False while it loads the model."""
        try:
            return bool(self._json("GET", "/health")["status"] == "ok")
        except RequestError as error:
            if error.code == 503:
                return False
            raise

    def props(self) -> dict[str, Any]:
        """What the server says of itself: model, number of slots, default parameters."""
        return dict(self._json("GET", "/props"))

    def metrics(self) -> dict[str, float]:
        """Prometheus samples by name, as "llamacpp:n_decode_total". Refused by a server without --metrics."""
        with self._open("GET", "/metrics") as response:
            return parse_metrics(response.text)

    # -- requests --------------------------------------------------------------------------------------------------------

    def _json(self, method: str, path: str, body: object = None) -> Any:
        with self._open(method, path, body) as response:
            try:
                return response.json()
            except ValueError as error:
                raise ServerError(f"{self.url}{path}: the answer is not JSON: {response.text[:200]!r}") from error

    @contextlib.contextmanager
    def _open(self, method: str, path: str, body: object = None, stream: bool = False) -> Iterator[Any]:
        """The response to a request that was not refused; errors of `requests` inside the block become ours."""
        requests = self._requests
        with requests.Session() as session:
            session.trust_env = not self._local  # no proxy for this machine
            try:
                with session.request(
                    method, self.url + path, json=body, headers=self._headers, timeout=self.timeout, stream=stream
                ) as response:
                    if response.status_code >= 400:
                        raise _refused(response)
                    yield response
            except requests.Timeout as error:
                raise ServerTimeoutError(f"{self.url}{path}: nothing for {self.timeout:g} seconds") from error
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
                if "timed out" in str(error):  # in the middle of a stream it has this name
                    raise ServerTimeoutError(f"{self.url}{path}: nothing for {self.timeout:g} seconds") from error
                if isinstance(error, requests.exceptions.ChunkedEncodingError):
                    raise ServerConnectionError(f"{self.url}{path}: the answer ended before it was complete") from error
                raise ServerConnectionError(f"{self.url}{path}: {_innermost(error)}") from error
            except requests.exceptions.InvalidJSONError as error:  # before anything is sent
                raise ValueError(f"the request cannot be written as JSON: {error}") from error
            except requests.RequestException as error:  # a URL that is none
                raise ServerConnectionError(f"{self.url}{path}: {error}") from error

    def __repr__(self) -> str:
        return f"<llamackpt.server.Client {self.url}>"


def _body(
    prompt: str | Iterable[int],
    max_tokens: int,
    temperature: float | None,
    seed: int | None,
    stop: Sequence[str],
    id_slot: int | None,
    cache_prompt: bool | None,
    more: dict[str, Any],
) -> dict[str, Any]:
    if isinstance(stop, str):
        raise ValueError("stop must be a sequence of strings, not one string")
    body: dict[str, Any] = {
        "prompt": prompt if isinstance(prompt, str) else _ids(prompt),
        "n_predict": operator.index(max_tokens),
        "stop": list(stop),
        "return_tokens": True,
    }
    if temperature is not None:
        body["temperature"] = float(temperature)  # JSON knows none of numpy's numbers
    body.update({key: operator.index(value) for key, value in {"seed": seed, "id_slot": id_slot}.items() if value is not None})
    if cache_prompt is not None:
        body["cache_prompt"] = bool(cache_prompt)
    return body | more


def _ids(tokens: Iterable[int]) -> list[int]:
    if is_bytes(tokens):
        raise TypeError(f"tokens have to be integers, and text a str, not {type(tokens).__name__}")
    return [operator.index(token) for token in tokens]


def _refused(response: Any) -> RequestError:
    try:
        error = response.json()["error"]
    except (ValueError, KeyError, TypeError):
        error = {"message": response.text.strip() or response.reason}
    return _request_error(error, response.status_code)


def _request_error(error: Any, status: int) -> RequestError:
    if not isinstance(error, dict):
        error = {"message": str(error)}
    message, code, kind = str(error.get("message", "")), int(error.get("code", status)), str(error.get("type", ""))
    if kind == "exceed_context_size_error":
        return PromptTooLongError(
            message, code, type=kind, n_prompt=int(error.get("n_prompt_tokens", 0)), n_ctx=int(error.get("n_ctx", 0))
        )
    return RequestError(message, code, type=kind)


def _innermost(error: BaseException) -> str:
    """What the operating system said, without the layers around it."""
    while error.__cause__ or error.__context__:
        error = error.__cause__ or error.__context__  # type: ignore[assignment]
    return str(error)
