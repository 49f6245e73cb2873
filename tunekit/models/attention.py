"""Causal attention over segments: examples that lie in one flat row and cannot see each other.

A batch is one row of tokens, `(1, T)`, and the lengths of the segments it is made of. The attention function registered
here with transformers splits queries, keys and values at the segment borders and attends inside each segment: the cost
is the sum of the squared lengths, and no `(T, T)` mask exists. A segment may begin with the prompt of an earlier one,
whose keys and values it then attends to besides its own: two answers to one prompt are `prompt + answer` and `answer`.
Without segments (generation, padded batches) it is transformers' own scaled-dot-product attention.

Axes: B batch (1 here), H query heads, K key/value heads, T tokens of the row, L tokens of one segment, D head width.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tunekit.models.key_values import KeyValues

SEGMENTS = "tunekit_segments"


def segment_inputs(
    lengths: Sequence[int], device: torch.device, prompts: Sequence[int] | None = None
) -> dict[str, Any]:
    """The keyword arguments that make a forward pass over one flat row see `lengths` separate examples.

    `prompts`: of each segment, how many tokens of the last segment with 0 here come before its own (None: all 0).

    """
    prompts = tuple(prompts or [0] * len(lengths))
    positions = torch.cat([torch.arange(start, start + n) for start, n in zip(prompts, lengths, strict=True)])
    return {
        "position_ids": positions[None].to(device),
        "attention_mask": prepared_mask(device),
        "segments": tuple(lengths),
        "prompts": prompts,
        "use_cache": False,
    }


def prepared_mask(device: torch.device) -> Tensor:
    """Says "already prepared": transformers hands an empty four-dimensional mask on untouched instead of building a

    `(T, T)` one, and the attention below never reads it.
    """
    return torch.empty(1, 1, 0, 0, dtype=torch.bool, device=device)


def segment_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    segments: tuple[int, ...] | None = None,
    prompts: tuple[int, ...] | None = None,
    cache: KeyValues | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attention of `query (1, H, T, D)` to `key`, `value (1, K, T, D)` inside each segment; returns `(1, T, H, D)`.

    A `cache` takes the keys and values of the segments; without segments each token of the row continues one of them.
    `sliding_window` (tokens, the current one included) is honoured; a model with soft-capped scores or attention sinks
    raises `NotImplementedError`, on which the caller falls back to padded batches and the model's own attention.
    """
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("attention with soft-capped scores or sinks")
    if cache is not None and segments is None:
        return cache.attend(module.layer_idx, query, key, value, scaling, sliding_window), None  # type: ignore[arg-type]
    if cache is not None:
        cache.fill(module.layer_idx, key, value)  # type: ignore[arg-type]
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, dropout, scaling, **kwargs)
    grouped, dtype = query.shape[1] != key.shape[1], query.dtype
    if query.device.type == "cpu":  # torch's bf16 backward pass on a processor takes 1.2 to 3 times as long as fp32
        query, key, value = query.float(), key.float(), value.float()
    outputs, first = [], (key, value)
    split = zip(query.split(segments, 2), key.split(segments, 2), value.split(segments, 2), strict=True)
    for prompt, (q, k, v) in zip(prompts or [0] * len(segments), split, strict=True):
        if prompt:
            k, v = torch.cat([first[0][:, :, :prompt], k], 2), torch.cat([first[1][:, :, :prompt], v], 2)
        else:
            first = k, v
        allowed = _allowed(q.shape[2], prompt, sliding_window, q.device)
        outputs.append(
            F.scaled_dot_product_attention(
                q, k, v, allowed, dropout, is_causal=allowed is None, scale=scaling, enable_gqa=grouped
            )
        )
    return torch.cat(outputs, 2).transpose(1, 2).to(dtype).contiguous(), None


def _allowed(length: int, prompt: int, sliding_window: int | None, device: torch.device) -> Tensor | None:
    """The `(L, prompt + L)` mask of causal attention behind a prompt and in a window; None where plain causal is it."""
    windowed = sliding_window is not None and prompt + length > sliding_window
    if not prompt and not windowed:
        return None
    allowed = torch.ones(length, prompt + length, dtype=torch.bool, device=device).tril(prompt)
    return allowed.triu(prompt + 1 - sliding_window) if windowed and sliding_window else allowed


AttentionInterface.register(SEGMENTS, segment_attention)
AttentionMaskInterface.register(SEGMENTS, sdpa_mask)
