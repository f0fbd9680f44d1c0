"""One root, and a subclass for each outcome that a caller acts on. Nothing here calls into llama.cpp."""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "CheckpointMemoryError",
    "ClosedError",
    "ContextFullError",
    "DecodeError",
    "LlamaError",
    "ModelLoadError",
    "PromptTooLongError",
    "RequestError",
    "ServerConnectionError",
    "ServerError",
    "ServerStartError",
    "ServerTimeoutError",
    "StaleCheckpointError",
    "UnsupportedError",
]


class LlamaError(Exception):
    """Root of all errors of llamackpt.

    code: the status that llama.cpp returned, None if there was none.
    log:  what llama.cpp's own log gives as the reason, "" if it said nothing.
    """

    def __init__(self, message: str, code: int | None = None, log: str = "") -> None:
        super().__init__(f"{message}: {log}" if log else message)
        self.code = code
        self.log = log


class ClosedError(LlamaError):
    """The model, context or checkpoint was closed or deleted before."""


class ModelLoadError(LlamaError):
    """The file cannot be loaded as a model, or its loading was cancelled."""


class DecodeError(LlamaError):
    """llama.cpp could not decode the batch."""


class ContextFullError(DecodeError):
    """There is no room for the batch. Nothing was decoded; remove tokens or use a larger n_ctx."""


class CheckpointError(LlamaError):
    """A checkpoint cannot be saved, restored or deleted as asked. Nothing was changed."""


class StaleCheckpointError(CheckpointError):
    """The tokens that the rollback checkpoint relies on were removed or moved. A full one is safe from removals."""


class CheckpointMemoryError(CheckpointError):
    """There is not enough memory, or there are not enough free cells."""


class UnsupportedError(CheckpointError):
    """The memory of this model cannot do what was asked for."""


class ServerError(LlamaError):
    """Root of what goes wrong with a llama-server."""


class ServerStartError(ServerError):
    """llama-server ended, or was not healthy in time, before it could be used.

    code:  its exit code (negative: the signal that ended it), None if it was still running.
    log:   its first error.
    lines: the last lines of its log.
    """

    def __init__(self, message: str, code: int | None = None, log: str = "", lines: list[str] | None = None) -> None:
        super().__init__(message, code, log)
        self.lines = lines or []


class ServerConnectionError(ServerError):
    """There is no server at the URL, or it went away before the answer was complete."""


class ServerTimeoutError(ServerError):
    """The server said nothing for as long as the caller was ready to wait. It may still be at work."""


class RequestError(ServerError):
    """The server refused the request, or failed at it; the message is its own.

    code: the HTTP status.
    type: the server's name for the kind of error, as "invalid_request_error", "" if it gave none.
    """

    def __init__(self, message: str, code: int | None = None, log: str = "", type: str = "") -> None:
        super().__init__(message, code, log)
        self.type = type


class PromptTooLongError(RequestError):
    """The prompt does not fit into a slot.

    n_prompt: its tokens; n_ctx: those of a slot.
    """

    def __init__(
        self, message: str, code: int | None = None, log: str = "", type: str = "", n_prompt: int = 0, n_ctx: int = 0
    ) -> None:
        super().__init__(message, code, log, type)
        self.n_prompt = n_prompt
        self.n_ctx = n_ctx
