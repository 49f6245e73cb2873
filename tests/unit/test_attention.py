"""Attention over segments against the definition: softmax of scaled scores, causal, in a window, inside a segment."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tunekit.models.attention import segment_attention, segment_inputs

HEADS, KV_HEADS, WIDTH = 4, 2, 8
LENGTHS = (5, 1, 12, 3)


def projections(dtype: torch.dtype = torch.float32, kv_heads: int = KV_HEADS) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    heads = (HEADS, kv_heads, kv_heads)
    query, key, value = (torch.randn(1, n, sum(LENGTHS), WIDTH, generator=generator).to(dtype) for n in heads)
    return query.requires_grad_(), key.requires_grad_(), value.requires_grad_()


def defined(query: Tensor, key: Tensor, value: Tensor, *, scaling: float, window: int | None) -> Tensor:
    """`(1, T, H, D)`, one query at a time in fp64."""
    rows = []
    groups = query.shape[1] // key.shape[1]
    for head in range(query.shape[1]):
        start, row = 0, []
        for length in LENGTHS:
            for t in range(start, start + length):
                first = start if window is None else max(start, t - window + 1)
                keys, values = (x[0, head // groups, first : t + 1].double() for x in (key, value))
                weights = torch.softmax(keys @ query[0, head, t].double() * scaling, 0)
                row.append(weights @ values)
            start += length
        rows.append(torch.stack(row))
    return torch.stack(rows, 1)[None]


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
@pytest.mark.parametrize("window", [None, 1, 3, 5, 12, 100])
@pytest.mark.parametrize("scaling", [None, 0.7])
def test_outputs_and_gradients_are_those_of_the_definition(
    kv_heads: int, window: int | None, scaling: float | None
) -> None:
    inputs = projections(kv_heads=kv_heads)
    output, weights = segment_attention(
        nn.Identity(), *inputs, None, scaling=scaling, segments=LENGTHS, sliding_window=window
    )
    expected = defined(*inputs, scaling=scaling or WIDTH**-0.5, window=window)
    assert weights is None and output.shape == expected.shape == (1, sum(LENGTHS), HEADS, WIDTH)
    torch.testing.assert_close(output, expected.float(), rtol=1e-5, atol=1e-6)
    upstream = torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad(output, inputs, upstream)
    for ours, theirs in zip(found, torch.autograd.grad(expected, inputs, upstream.double()), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_bfloat16_in_bfloat16_out_and_rounded_once() -> None:
    inputs = projections(torch.bfloat16)
    output, _ = segment_attention(nn.Identity(), *inputs, None, segments=LENGTHS)
    expected = defined(*inputs, scaling=WIDTH**-0.5, window=None)
    assert output.dtype == torch.bfloat16
    torch.testing.assert_close(output, expected.bfloat16(), rtol=8e-3, atol=1e-3)


def test_dropout_reaches_the_weights_of_attention() -> None:
    inputs = projections()
    torch.manual_seed(0)
    dropped, _ = segment_attention(nn.Identity(), *inputs, None, dropout=0.5, segments=LENGTHS)
    whole, _ = segment_attention(nn.Identity(), *inputs, None, segments=LENGTHS)
    assert not torch.equal(dropped, whole)
    # The first token of a segment has one weight, 1: dropped it gives 0, kept it is doubled.
    first = dropped[0, 0] / whole[0, 0]
    assert all(
        torch.allclose(head, torch.zeros(WIDTH)) or torch.allclose(head, torch.full((WIDTH,), 2.0)) for head in first
    )


@pytest.mark.parametrize("segments", [LENGTHS, None])
@pytest.mark.parametrize("options", [{"softcap": 30.0}, {"s_aux": torch.zeros(HEADS)}], ids=["softcap", "sinks"])
def test_what_it_cannot_compute_it_refuses(segments: Any, options: dict[str, Any]) -> None:
    with pytest.raises(NotImplementedError, match="soft-capped scores or sinks"):
        segment_attention(nn.Identity(), *projections(), None, segments=segments, **options)


def test_segments_that_do_not_cover_the_row_are_no_quiet_error() -> None:
    with pytest.raises(RuntimeError):
        segment_attention(nn.Identity(), *projections(), None, segments=(5, 1))


def test_without_segments_a_mask_is_obeyed() -> None:
    query, key, value = projections(kv_heads=HEADS)
    mask = torch.ones(sum(LENGTHS), sum(LENGTHS), dtype=torch.bool).tril()[None, None]
    module = nn.Identity()
    module.is_causal = True
    output, _ = segment_attention(module, query, key, value, mask)
    expected = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True).transpose(1, 2)
    torch.testing.assert_close(output, expected)


def test_positions_begin_anew_in_every_segment() -> None:
    inputs = segment_inputs((2, 3), torch.device("cpu"))
    assert inputs["position_ids"].tolist() == [[0, 1, 0, 1, 2]]
    assert inputs["segments"] == (2, 3) and inputs["use_cache"] is False
    assert inputs["attention_mask"].ndim == 4 and inputs["attention_mask"].numel() == 0
