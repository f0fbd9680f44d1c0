"""The kinds of memory that the random test runs on, their rules, and what it leaves out. Tables, no more."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A kind of memory, a model that has it, and the rules of it. What is left out here is not tested.

    tokens:    it holds tokens, so that a rollback checkpoint goes stale when they are removed or moved.
    recurrent: it holds a running state, which cannot be cut back.
    window:    it forgets the tokens before its window.
    index:     it has an index of its tokens, which a full checkpoint cannot share yet.
    streams:   each sequence has cells of its own, whatever kv_unified is.
    exact:     other sequences that are moved make a checkpoint stale only if they share its tokens; else, if in doubt.
    shift:     positions can be shifted.
    middle:    tokens in the middle can be removed.
    shared:    a token can belong to several sequences.
    devices:   its tensors are split over so many, each a ggml-rpc-server of its own.
    share:     of the operations, the weight of this model.
    bound:     NMSE of logits that were computed in other batches.
    """

    name: str
    model: str
    tokens: bool = True
    recurrent: bool = False
    window: bool = False
    index: bool = False
    streams: bool = False
    exact: bool = False
    shift: bool = True
    middle: bool = True
    shared: bool = True
    devices: int = 0
    share: int = 4
    bound: float = 1e-9

    @property
    def copies(self) -> str:
        """The tier of what cannot be shared: nothing copies within the memory of split tensors."""
        return "host" if self.devices else "device"

    @property
    def flash_attn(self) -> bool:
        """llama.cpp wants it where tensors are split. Without it, results depend less on how a batch is made up."""
        return self.devices > 0


# what is left out, and why; random_ops.py --include NAME shows each
EXCLUDED = {
    "snapshots-window": "llama.cpp rolls back though tokens that are in the window again may be gone",
    "middle-kpool": "llama.cpp computes NaN with GLM 5 after tokens in the middle of a sequence were removed",
}
KINDS = {
    kind.name: kind
    for kind in (
        Kind("kv", "llama-dense", exact=True, share=12),
        Kind("iswa", "gemma3-dense", window=True, share=12, bound=1e-6),
        Kind("recurrent", "rwkv7", tokens=False, recurrent=True, shared=False, share=12),
        Kind("recurrent-mamba", "mamba2-dense", tokens=False, recurrent=True, shared=False, share=8),
        Kind("hybrid", "qwen35-dense", recurrent=True, exact=True, shift=False, share=14),
        Kind("hybrid-split", "qwen35-dense", recurrent=True, exact=True, shift=False, devices=2, share=2, bound=4e-6),
        Kind("hybrid-iswa-split", "lfm2-dense", recurrent=True, window=True, shift=False, devices=2, share=2, bound=1e-4),
        Kind("hybrid-falcon", "falcon-h1-dense", recurrent=True, exact=True, share=8),
        Kind("hybrid-jamba", "jamba-dense", recurrent=True, exact=True, share=4),
        Kind("hybrid-iswa", "lfm2-dense", recurrent=True, window=True, shift=False, share=12),
        Kind(
            "hybrid-idx", "qwen4exp-moe", recurrent=True, exact=True, index=True, shift=False, shared=False, bound=1e-8,
        ),
        Kind("hybrid-kpool", "glm5-next-moe", recurrent=True, exact=True, index=True, share=4),
        Kind("dsa", "deepseek32-moe", exact=True, share=2),
        Kind("dsa-iswa", "dots3note-moe", window=True, share=2),
        Kind("msa", "minimax-m3-moe", exact=True, share=8),
        Kind("dsv4", "deepseek4-moe", window=True, streams=True, exact=True, shift=False, middle=False, share=2),
    )
}
