"""The qwen35 architecture in PyTorch: Gated DeltaNet layers, and gated attention in every fourth layer.

Conventions are llama.cpp's (src/models/qwen35.cpp), so that export is a copy: a norm multiplies by its weight as it is
(no +1), and value head i reads key head i mod n_k_heads. Parameter names are GGUF tensor names with `.` as `_`.
Knows nothing about text, training or files.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from delta_rule import gated_delta_rule
from torch import Tensor, nn


@dataclass(frozen=True)
class Config:
    n_vocab: int = 1536
    n_ctx: int = 4096
    n_embd: int = 192
    n_layer: int = 8
    n_ff: int = 512
    full_attention_interval: int = 4
    # attention
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 64
    n_rot: int = 32
    rope_base: float = 10000.0
    # Gated DeltaNet
    n_k_heads: int = 2
    n_v_heads: int = 4
    state_dim: int = 32
    conv_kernel: int = 4
    eps: float = 1e-6

    @property
    def key_dim(self) -> int:
        return self.n_k_heads * self.state_dim

    @property
    def value_dim(self) -> int:
        return self.n_v_heads * self.state_dim

    def is_recurrent(self, layer: int) -> bool:
        return (layer + 1) % self.full_attention_interval != 0


class RMSNorm(nn.Module):
    def __init__(self, dim: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), self.weight.shape, self.weight, self.eps)


def apply_rope(x: Tensor, n_rot: int, base: float) -> Tensor:
    """x [batch, head, time, dim]: rotates pairs (i, i + n_rot/2) of the first n_rot components; the rest is kept.

    M-RoPE with equal position components, as for text, is this.
    """
    half = n_rot // 2
    freq = base ** (-torch.arange(half, dtype=torch.float32) * 2 / n_rot)
    angle = torch.arange(x.shape[2], dtype=torch.float32)[:, None] * freq
    cos, sin = angle.cos(), angle.sin()
    a, b, rest = x[..., :half], x[..., half:n_rot], x[..., n_rot:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos, rest], dim=-1)


class GatedAttention(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.attn_q = nn.Linear(c.n_embd, c.n_head * c.head_dim * 2, bias=False)  # per head: query, then gate
        self.attn_k = nn.Linear(c.n_embd, c.n_head_kv * c.head_dim, bias=False)
        self.attn_v = nn.Linear(c.n_embd, c.n_head_kv * c.head_dim, bias=False)
        self.attn_q_norm = RMSNorm(c.head_dim, c.eps)
        self.attn_k_norm = RMSNorm(c.head_dim, c.eps)
        self.attn_output = nn.Linear(c.n_head * c.head_dim, c.n_embd, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        c, (batch, time, _) = self.c, x.shape
        q, gate = self.attn_q(x).float().view(batch, time, c.n_head, 2, c.head_dim).unbind(3)
        k = self.attn_k(x).float().view(batch, time, c.n_head_kv, c.head_dim)
        v = self.attn_v(x).float().view(batch, time, c.n_head_kv, c.head_dim)
        q = apply_rope(self.attn_q_norm(q).transpose(1, 2), c.n_rot, c.rope_base)
        k = apply_rope(self.attn_k_norm(k).transpose(1, 2), c.n_rot, c.rope_base)
        out = F.scaled_dot_product_attention(q, k, v.transpose(1, 2), is_causal=True, enable_gqa=True)
        out = out.transpose(1, 2) * gate.sigmoid()
        return self.attn_output(out.reshape(batch, time, -1))


class GatedDeltaNet(nn.Module):
    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        conv_dim = 2 * c.key_dim + c.value_dim
        self.attn_qkv = nn.Linear(c.n_embd, conv_dim, bias=False)
        self.attn_gate = nn.Linear(c.n_embd, c.value_dim, bias=False)
        self.ssm_beta = nn.Linear(c.n_embd, c.n_v_heads, bias=False)
        self.ssm_alpha = nn.Linear(c.n_embd, c.n_v_heads, bias=False)
        self.ssm_conv1d = nn.Parameter(torch.empty(conv_dim, c.conv_kernel).uniform_(-0.5, 0.5))
        self.a_log = nn.Parameter(torch.empty(c.n_v_heads).uniform_(1, 16).log())
        step = torch.exp(torch.empty(c.n_v_heads).uniform_(-6.9, -2.3))  # 0.001 .. 0.1
        self.ssm_dt = nn.Parameter(step + torch.log(-torch.expm1(-step)))  # inverse of softplus
        self.ssm_norm = RMSNorm(c.state_dim, c.eps)
        self.ssm_out = nn.Linear(c.value_dim, c.n_embd, bias=False)

    def forward(self, x: Tensor, chunk: int) -> Tensor:
        c, (batch, time, _) = self.c, x.shape
        beta = self.ssm_beta(x).float().sigmoid()
        log_decay = -self.a_log.exp() * F.softplus(self.ssm_alpha(x).float() + self.ssm_dt)
        qkv = self._causal_conv(self.attn_qkv(x).float())
        q, k, v = qkv.split([c.key_dim, c.key_dim, c.value_dim], dim=-1)
        groups = c.n_v_heads // c.n_k_heads
        q = self._unit(q.view(batch, time, c.n_k_heads, c.state_dim)).repeat(1, 1, groups, 1)
        k = self._unit(k.view(batch, time, c.n_k_heads, c.state_dim)).repeat(1, 1, groups, 1)
        v = v.view(batch, time, c.n_v_heads, c.state_dim)
        out = gated_delta_rule(q, k, v, log_decay, beta, chunk)
        gate = self.attn_gate(x).float().view(batch, time, c.n_v_heads, c.state_dim)
        out = self.ssm_norm(out) * F.silu(gate)
        return self.ssm_out(out.reshape(batch, time, -1))

    def _causal_conv(self, x: Tensor) -> Tensor:
        width, time = self.c.conv_kernel, x.shape[1]
        padded = F.pad(x, (0, 0, width - 1, 0))
        return F.silu(sum(padded[:, i : i + time] * self.ssm_conv1d[:, i] for i in range(width)))

    def _unit(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + self.c.eps)


class Block(nn.Module):
    def __init__(self, c: Config, layer: int):
        super().__init__()
        self.attn_norm = RMSNorm(c.n_embd, c.eps)
        self.mixer = GatedDeltaNet(c) if c.is_recurrent(layer) else GatedAttention(c)
        self.post_attention_norm = RMSNorm(c.n_embd, c.eps)
        self.ffn_gate = nn.Linear(c.n_embd, c.n_ff, bias=False)
        self.ffn_up = nn.Linear(c.n_embd, c.n_ff, bias=False)
        self.ffn_down = nn.Linear(c.n_ff, c.n_embd, bias=False)

    def forward(self, x: Tensor, chunk: int) -> Tensor:
        h = self.attn_norm(x)
        x = x + (self.mixer(h, chunk) if isinstance(self.mixer, GatedDeltaNet) else self.mixer(h))
        h = self.post_attention_norm(x)
        return x + self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h))


class Model(nn.Module):
    """Tokens [batch, time] -> logits [batch, time, n_vocab]; input and output embedding are the same tensor."""

    def __init__(self, c: Config):
        super().__init__()
        self.c = c
        self.token_embd = nn.Embedding(c.n_vocab, c.n_embd)
        self.blk = nn.ModuleList(Block(c, layer) for layer in range(c.n_layer))
        self.output_norm = RMSNorm(c.n_embd, c.eps)
        self.apply(self._init_weights)

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features**-0.5 * 0.5)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, std=0.05)
        for name in ("ssm_out", "attn_output", "ffn_down"):
            projection = getattr(module, name, None)
            if projection is not None:
                nn.init.normal_(projection.weight, std=0.25 * (projection.in_features * self.c.n_layer) ** -0.5)

    def forward(self, tokens: Tensor, chunk: int = 32) -> Tensor:
        """chunk: tokens that a Gated DeltaNet layer handles at once; 1 is the plain recurrence."""
        x = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, chunk)
        return F.linear(self.output_norm(x), self.token_embd.weight).float()
