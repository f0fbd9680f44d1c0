"""The gated delta rule, as a recurrence and in chunks; both give the same numbers, the chunks give them faster.

    S_t = exp(g_t) S_{t-1};  S_t += k_t (beta_t (v_t - S_t^T k_t))^T;  o_t = S_t^T q_t / sqrt(d)

Shapes: q, k, v [batch, time, head, dim]; log_decay (g) and beta [batch, time, head]; the state starts at zero.
Chunked form: Yang et al., "Gated Delta Networks: Improving Mamba2 with Delta Rule", arXiv:2412.06464.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def gated_delta_rule(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, chunk: int) -> Tensor:
    """Returns o [batch, time, head, dim]."""
    rule = _recurrent if chunk == 1 else _chunked
    heads_first = [x.transpose(1, 2) for x in (q * q.shape[-1] ** -0.5, k, v, log_decay, beta)]
    return rule(*heads_first, chunk).transpose(1, 2)


def _recurrent(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, _chunk: int) -> Tensor:
    state = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    outputs = []
    for t in range(q.shape[2]):
        state = state * log_decay[:, :, t, None, None].exp()
        error = v[:, :, t] - torch.einsum("bhkv,bhk->bhv", state, k[:, :, t])
        state = state + torch.einsum("bhk,bhv->bhkv", k[:, :, t], error * beta[:, :, t, None])
        outputs.append(torch.einsum("bhkv,bhk->bhv", state, q[:, :, t]))
    return torch.stack(outputs, dim=2)


def _chunked(q: Tensor, k: Tensor, v: Tensor, log_decay: Tensor, beta: Tensor, chunk: int) -> Tensor:
    time = q.shape[2]
    padding = -time % chunk
    if padding:  # padded tokens write nothing (beta 0) and decay nothing (g 0)
        q, k, v = (F.pad(x, (0, 0, 0, padding)) for x in (q, k, v))
        log_decay, beta = (F.pad(x, (0, padding)) for x in (log_decay, beta))
    q, k, v = (x.unflatten(2, (-1, chunk)) for x in (q, k, v))  # [batch, head, n, chunk, dim]
    g = log_decay.unflatten(2, (-1, chunk)).cumsum(-1)
    beta = beta.unflatten(2, (-1, chunk))[..., None]

    lower = torch.ones(chunk, chunk, dtype=torch.bool).tril()
    decay = (g[..., :, None] - g[..., None, :]).masked_fill(~lower, -torch.inf).exp()
    k_beta = k * beta
    mixing = (k_beta @ k.mT * decay).tril(-1)
    # (1 + mixing)^-1 undoes how tokens of one chunk see each other's writes
    writes = torch.cat([v * beta, k_beta * g[..., None].exp()], dim=-1)
    writes = torch.linalg.solve_triangular(mixing + torch.eye(chunk), writes, upper=False, unitriangular=True)
    new_v, old_k = writes.split([v.shape[-1], k.shape[-1]], dim=-1)
    within = q @ k.mT * decay
    q_decayed = q * g[..., None].exp()
    k_remaining = k * (g[..., -1:] - g).exp()[..., None]
    total_decay = g[..., -1].exp()[..., None, None]

    state = q.new_zeros(*q.shape[:2], k.shape[-1], v.shape[-1])
    outputs = []
    for n in range(q.shape[2]):
        written = new_v[:, :, n] - old_k[:, :, n] @ state
        outputs.append(q_decayed[:, :, n] @ state + within[:, :, n] @ written)
        state = state * total_decay[:, :, n] + k_remaining[:, :, n].mT @ written
    return torch.cat(outputs, dim=2)[:, :, :time]
