"""The sole import of the extension. No logic: all others import ffi and lib from here."""

from __future__ import annotations

try:
    from ._llama import ffi, lib
except ImportError as err:  # the reason alone ("libllama.so.0: cannot open ...") does not say what to do
    raise ImportError(f"the native part of llamackpt is not built or not complete ({err}); run ./build.sh") from err

__all__ = ["ffi", "lib"]
