"""Attention in bfloat16, for which torch's fused kernel is slow on a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor

MOST_PLAIN_PIXELS = 1024
"""Above it the table of all pairs of pixels costs too much memory."""


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(head_dim)) v.   q, k, v: [B, heads, pixels, head_dim]."""
    if q.device.type != "cpu" or q.dtype != torch.bfloat16 or q.shape[-2] > MOST_PLAIN_PIXELS:
        return F.scaled_dot_product_attention(q, k, v)
    # torch's fused kernel multiplies bfloat16 on a CPU at less than half the speed of two plain
    # products.
    pairs = (q * q.shape[-1] ** -0.5) @ k.mT
    return torch.softmax(pairs, -1).to(v.dtype) @ v
