"""The chunked delta rule gives what the recurrence gives, for lengths that fill their last chunk and that do not."""

import pytest

torch = pytest.importorskip("torch")
from delta_rule import gated_delta_rule  # noqa: E402  (needs torch)


@pytest.mark.parametrize("time", [1, 31, 32, 100])
def test_chunks_equal_the_recurrence(time: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, time, 4, 16)
    k = torch.nn.functional.normalize(k, dim=-1)
    log_decay, beta = -torch.rand(2, time, 4), torch.rand(2, time, 4)
    recurrent = gated_delta_rule(q, k, v, log_decay, beta, chunk=1)
    chunked = gated_delta_rule(q, k, v, log_decay, beta, chunk=32)
    torch.testing.assert_close(chunked, recurrent, rtol=1e-4, atol=1e-5)
