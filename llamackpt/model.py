"""A loaded GGUF file: its metadata, its vocabulary, and the contexts made of it. What a context holds it does not know."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from . import _caught, log
from ._ffi import ffi, lib
from ._owned import Handle, slot_for, taken
from ._params import SPLIT_MODES, ContextOptions, check_flag, check_range, choice
from ._remote import remote_devices
from .context import Context
from .errors import ClosedError, LlamaError, ModelLoadError
from .vocab import Vocab

if sys.version_info >= (3, 11):
    from typing import Unpack
elif TYPE_CHECKING:
    from typing_extensions import Unpack

__all__ = ["Model"]

lib.llama_backend_init()


class _Progress:
    """What a running load reports to, and whether the user's function has cancelled it."""

    def __init__(self, report: Callable[[float], bool | None]) -> None:
        self.report = report
        self.cancelled = False


@ffi.def_extern(error=False, onerror=_caught.keep)  # type: ignore[untyped-decorator]
def llamackpt_on_progress(progress: float, user_data: object) -> bool:
    state: _Progress = ffi.from_handle(user_data)
    if not state.cancelled:
        go_on = state.report(progress)
        state.cancelled = isinstance(go_on, bool | np.bool_) and not go_on
    return not state.cancelled


class Model(Handle):
    """A GGUF file.

    path:         of the file; of a split model, of its first part.
    n_gpu_layers: how many layers go to the GPU, negative for all of them. Without a GPU it has no effect.
    split_mode:   how several GPUs share it: "none" (one has it all), "layer", "row" or "tensor" (llama-server's --split-mode).
    use_mmap:     map the file rather than read it.
    vocab_only:   load no weights: tokenize() and metadata work, context() does not; desc is empty, and n_layer, n_embd
                  and n_ctx_train are 0.
    rpc:          "host:port" of each ggml-rpc-server whose devices hold the layers, rather than those of this machine.
    progress:     called with 0.0 ... 1.0 during the load. False cancels it, as an exception does, which is then raised.

    Raises ModelLoadError, with llama.cpp's reason in its `log`. Closing a model closes its contexts.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        n_gpu_layers: int = -1,
        split_mode: Literal["none", "layer", "row", "tensor"] = "layer",
        use_mmap: bool = True,
        vocab_only: bool = False,
        rpc: Sequence[str] = (),
        progress: Callable[[float], bool | None] | None = None,
    ) -> None:
        self._model: Any = None
        self._vocab: Vocab | None = None
        self._contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        self.path = Path(path)
        self.vocab_only = vocab_only
        _check_file(self.path)
        check_range("n_gpu_layers", n_gpu_layers, -(2**31), 2**31 - 1)
        check_flag("use_mmap", use_mmap)
        check_flag("vocab_only", vocab_only)

        params = lib.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers
        params.split_mode = choice("split_mode", split_mode, SPLIT_MODES)
        params.load_mode = lib.LLAMA_LOAD_MODE_AUTO if use_mmap else lib.LLAMA_LOAD_MODE_NONE
        params.vocab_only = vocab_only
        devices = remote_devices(rpc)
        if devices:
            params.devices = devices = ffi.new("ggml_backend_dev_t[]", [*devices, ffi.NULL])
        state = _Progress(progress or (lambda _: None))
        handle = ffi.new_handle(state)
        params.progress_callback = lib.llamackpt_on_progress
        params.progress_callback_user_data = handle

        log.reset_reason()
        slot = slot_for("struct llama_model **", lib.llama_model_free)
        lib.llamackpt_load(os.fsencode(self.path), params, slot)
        _caught.reraise()
        if state.cancelled:
            raise ModelLoadError(f"{self.path}: loading was cancelled")
        if slot[0] == ffi.NULL:
            raise ModelLoadError(f"{self.path}: llama.cpp cannot load this model", log=log.reason())
        self._model = taken(slot)  # by its contexts as well
        self._vocab = Vocab(lib.llama_model_get_vocab(self._model), self._model)
        self.n_vocab = self._vocab.n_tokens
        self.has_encoder = bool(lib.llama_model_has_encoder(self._model))

    def _handle(self) -> Any:
        if self._model is None:
            raise ClosedError("the model is closed")
        return self._model

    def _words(self) -> Vocab:
        vocab = self._vocab
        if vocab is None:
            raise ClosedError("the model is closed")
        return vocab

    # what the file says

    @property
    def desc(self) -> str:
        """Architecture, size and quantisation in words."""
        buffer = ffi.new("char[]", 256)
        lib.llama_model_desc(self._handle(), buffer, 256)
        return str(ffi.string(buffer).decode("utf-8", "replace"))

    @property
    def metadata(self) -> Mapping[str, str]:
        """The key-value pairs of the file, as text."""
        model = self._handle()
        key, value = lib.llama_model_meta_key_by_index, lib.llama_model_meta_val_str_by_index
        count = lib.llama_model_meta_count(model)
        return MappingProxyType({_text(key, model, i): _text(value, model, i) for i in range(count)})

    @property
    def n_params(self) -> int:
        """Number of parameters."""
        return int(lib.llama_model_n_params(self._handle()))

    @property
    def size(self) -> int:
        """Bytes of all tensors."""
        return int(lib.llama_model_size(self._handle()))

    @property
    def n_ctx_train(self) -> int:
        """The context that the model was trained with, in tokens."""
        return int(lib.llama_model_n_ctx_train(self._handle()))

    @property
    def n_embd(self) -> int:
        """Width of the model."""
        return int(lib.llama_model_n_embd(self._handle()))

    @property
    def n_layer(self) -> int:
        """Number of layers."""
        return int(lib.llama_model_n_layer(self._handle()))

    @property
    def is_recurrent(self) -> bool:
        """All layers keep a running state (Mamba, RWKV)."""
        return bool(lib.llama_model_is_recurrent(self._handle()))

    @property
    def is_hybrid(self) -> bool:
        """Some layers keep a running state, others attend (Jamba, Qwen3.5, Falcon-H1)."""
        return bool(lib.llama_model_is_hybrid(self._handle()))

    @property
    def _has_multi_dim_pos(self) -> bool:
        kinds = (lib.LLAMA_ROPE_TYPE_MROPE, lib.LLAMA_ROPE_TYPE_IMROPE, lib.LLAMA_ROPE_TYPE_VISION)
        return lib.llama_model_rope_type(self._handle()) in kinds

    @property
    def _is_windowed_hybrid(self) -> bool:
        return self.is_hybrid and lib.llama_model_n_swa(self._handle()) > 0

    # vocabulary

    @property
    def bos(self) -> int | None:
        """The token that begins a text, None if the vocabulary has none."""
        return self._words().bos

    @property
    def eos(self) -> int | None:
        """The token that ends a text, None if the vocabulary has none."""
        return self._words().eos

    def is_eog(self, token: int) -> bool:
        """Whether the token ends the generation."""
        return self._words().is_eog(token)

    def tokenize(
        self, text: str | bytes, add_special: bool = True, parse_special: bool = True
    ) -> npt.NDArray[np.int32]:
        """Tokens of the text, int32 [n].

        add_special:   add the tokens that the model expects at the ends (bos, eos).
        parse_special: read special tokens in the text, rather than their letters.
        """
        return self._words().tokenize(text, add_special, parse_special)

    def detokenize(self, tokens: Iterable[int], remove_special: bool = False, unparse_special: bool = True) -> str:
        """The text of the tokens. Bytes that are not UTF-8 become U+FFFD."""
        return self._words().detokenize(tokens, remove_special, unparse_special)

    def token_to_piece(self, token: int) -> bytes:
        """The bytes of one token; they can be a part of a character."""
        return self._words().token_to_piece(token)

    def _check_tokens(self, tokens: Iterable[int]) -> npt.NDArray[np.int32]:
        return self._words().check_tokens(tokens)

    # contexts

    def context(self, **options: Unpack[ContextOptions]) -> Context:
        """A Context of this model; see there for the options."""
        return Context(self, **options)

    def close(self) -> None:
        """Free the model and all of its contexts. Closing twice is fine. LlamaError if one is in use by another thread."""
        if self._model is None:
            return
        for context in list(self._contexts):
            context.close()
        self._model = self._vocab = None

    def __enter__(self) -> Model:
        self._handle()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_model", None) is not None:
            with contextlib.suppress(LlamaError):
                self.close()

    def __repr__(self) -> str:
        return f"<llamackpt.Model {self.path.name!r}{' (closed)' if self._model is None else ''}>"


def _check_file(path: Path) -> None:
    """What llama.cpp does not say clearly."""
    if "\0" in str(path):
        raise ModelLoadError("the path of a model cannot contain a NUL")
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise ModelLoadError(f"{path}: is a directory, not a GGUF file")
        if not stat.S_ISREG(mode):  # reading from a pipe would wait
            raise ModelLoadError(f"{path}: is a pipe or a device, not a GGUF file")
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as err:
        raise ModelLoadError(f"{path}: {err.strerror}") from err
    if magic != b"GGUF":
        raise ModelLoadError(f"{path}: not a GGUF file (it begins with {magic!r})")


def _text(call: Callable[[Any, int, Any, int], int], model: object, i: int) -> str:
    size = 256
    while True:
        buffer = ffi.new("char[]", size)
        n = call(model, i, buffer, size)
        if n < size:
            return str(ffi.string(buffer).decode("utf-8", "replace"))
        size = n + 1
