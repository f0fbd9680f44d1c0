"""On a GPU, in a build for it: `pytest -m gpu`. Without one these tests are not selected, and fail when they are."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_archs import check, check_fork

import llamackpt
from llamackpt._ffi import lib

pytestmark = pytest.mark.gpu

ARCHS = ["qwen35-dense", "mamba2-dense", "falcon-h1-dense", "lfm2-dense", "llama-dense", "gemma3-dense"]


@pytest.fixture(autouse=True)
def _on_a_gpu() -> None:
    assert lib.llama_supports_gpu_offload(), "no GPU, or a build without support for it: ./build.sh --cuda or --metal"


@pytest.mark.parametrize("checkpoints", [4, 0])
@pytest.mark.parametrize("name", ARCHS)
def test_a_restore_is_exact(archs: Path, name: str, checkpoints: int) -> None:
    with llamackpt.Model(archs / f"{name}.gguf") as model:
        tiers = check(model, checkpoints, True)
        check_fork(model, checkpoints, True)
    if checkpoints:
        assert tiers == {"shared"}


@pytest.mark.parametrize("tier", ["auto", "device", "host"])
def test_the_shipped_model_goes_back_in_every_tier(tier: str) -> None:
    with llamackpt.Model(llamackpt.default_model()) as model, model.context(n_ctx=512, checkpoints=2) as ctx:
        prompt, draft, more = (np.random.default_rng(i).integers(0, model.n_vocab, n) for i, n in enumerate((40, 9, 4)))
        ctx.decode(prompt)
        with ctx.checkpoint(tier=tier) as ck:
            assert ck.tier == ("shared" if tier == "auto" else tier)
            first = ctx.decode(more, logits="all")
            ck.restore()
            ctx.decode(draft)
            ck.restore()
            assert np.array_equal(ctx.decode(more, logits="all"), first)
