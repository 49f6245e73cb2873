"""Examples that lie in one row of tokens do not see each other, by one bit; where they would, batches are padded."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import run, write_recipe
from tiny import ARCHS, PAD_ID, PADDED, chat_rows, tiny_model, tiny_policy
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from tunekit.data.batch import padded_batch
from tunekit.data.rows import Tokens
from tunekit.errors import RecipeError
from tunekit.models.attention import SEGMENTS, segment_attention
from tunekit.models.policy import Policy

FLAT = [arch for arch in ARCHS if arch not in PADDED]


def scored(row: Tokens) -> Tokens:
    return Tokens(row.ids, np.arange(len(row.ids)) > 0, row.source)


def other(row: Tokens) -> Tokens:
    """Other tokens, as many of them."""
    ids = np.random.default_rng(1).integers(0, 256, len(row.ids)).astype(np.int32)
    return Tokens(ids, row.trained, "other")


@torch.no_grad()
def logprobs(policy: Policy, rows: list[Tokens]) -> list[Tensor]:
    """Of each row's trained tokens, all rows in one batch."""
    return list(policy(policy.batch(rows)).split([int(row.trained.sum()) for row in rows]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("arch", ARCHS)
def test_the_tokens_of_one_example_do_not_move_another_by_one_bit(arch: str, dtype: torch.dtype) -> None:
    policy = tiny_policy(tiny_model(arch, **ARCHS[arch]), dtype)
    assert policy.flat == (arch not in PADDED)
    first, second, third = (scored(row) for row in chat_rows(3))
    a, b, c = logprobs(policy, [first, second, third])
    changed_a, b_beside_changed_a, c_after_changed_a = logprobs(policy, [other(first), second, third])
    a_before_changed_c, b_before_changed_c, changed_c = logprobs(policy, [first, second, other(third)])
    assert torch.equal(b, b_beside_changed_a) and torch.equal(c, c_after_changed_a)
    assert torch.equal(a, a_before_changed_c) and torch.equal(b, b_before_changed_c)
    assert not torch.allclose(a, changed_a) and not torch.allclose(c, changed_c)


@pytest.mark.parametrize("arch", FLAT)
def test_an_example_is_the_same_in_company_and_alone(arch: str) -> None:
    policy = tiny_policy(tiny_model(arch, **ARCHS[arch]))
    assert policy.flat
    rows = [scored(row) for row in chat_rows(4)]
    together = logprobs(policy, rows)
    with torch.no_grad():
        for row, found in zip(rows, together, strict=True):
            batch = padded_batch([row], PAD_ID)
            logits = policy.causal(batch.input_ids, use_cache=False).logits[0, batch.predictors]
            expected = torch.log_softmax(logits, -1).gather(1, batch.targets[:, None]).squeeze(1)
            torch.testing.assert_close(found, expected, rtol=0, atol=5e-5)


def test_gradients_do_not_cross_the_border_of_examples() -> None:
    """Not even a zero would do: the embedding of a token that only the first example has gets none from the second."""
    policy = tiny_policy(tiny_model("llama"))
    alone = Tokens(np.full(20, 255, np.int32), np.zeros(20, bool), "alone")
    beside = scored(chat_rows(1)[0])
    assert 255 not in beside.ids
    policy(policy.batch([alone, beside])).sum().backward()
    embedding = policy.causal.get_input_embeddings().weight.grad
    assert embedding[255].eq(0).all() and embedding[beside.ids[0]].ne(0).any()


def ignoring_segments(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    """What an attention does that knows nothing of segments: one causal sequence from the first example to the last."""
    options.pop("segments", None)
    options.pop("prompts", None)
    return sdpa_attention_forward(module, query, key, value, None, is_causal=True, **options)


def half_a_border(module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any) -> Any:
    """Merges the first two segments: contamination of one example by one other."""
    segments = options.pop("segments", None)
    options.pop("prompts", None)
    if segments is not None:
        segments = (sum(segments[:2]), *segments[2:])
    return segment_attention(module, query, key, value, mask, segments=segments, **options)


@pytest.mark.parametrize("broken", [ignoring_segments, half_a_border])
def test_an_attention_that_mixes_examples_is_found_out(broken: Any, caplog: pytest.LogCaptureFixture) -> None:
    AttentionInterface.register(SEGMENTS, broken)
    try:
        with caplog.at_level(logging.INFO, logger="tunekit"):
            policy = tiny_policy(tiny_model("llama"))
    finally:
        AttentionInterface.register(SEGMENTS, segment_attention)
        AttentionMaskInterface.register(SEGMENTS, sdpa_mask)
    assert not policy.flat
    assert "batches are padded" in caplog.text and "one example sees the other" in caplog.text
    rows = chat_rows(2)
    expected = logprobs(tiny_policy(tiny_model("llama")), rows)
    for found, value in zip(logprobs(policy, rows), expected, strict=True):
        torch.testing.assert_close(found, value, rtol=0, atol=5e-5)


@pytest.mark.parametrize("arch", PADDED)
def test_a_model_without_segments_is_padded_and_said_to_be(arch: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tunekit"):
        policy = tiny_policy(tiny_model(arch))
    assert not policy.flat and "batches are padded" in caplog.text
    batch = policy.batch(chat_rows(2))
    assert batch.segments is None and batch.attention_mask is not None


@pytest.mark.parametrize(
    "overrides",
    [
        ("model.name_or_path=tiny-random/mamba", "adapter.target_modules=[in_proj, x_proj]"),
        ("model.name_or_path=tiny-random/gemma2",),
    ],
    ids=["mamba", "gemma2"],
)
def test_packing_is_refused_where_examples_would_see_each_other(tmp_path: Path, overrides: tuple[str, ...]) -> None:
    with pytest.raises(RecipeError, match=r"data\.packing: true: packed examples would see each other") as caught:
        run(write_recipe(tmp_path), "data.packing=true", *overrides)
    assert caught.value.exit_code == 2
    assert "data.packing: false" in caught.value.fix
    assert not (tmp_path / "run" / "checkpoints").exists()
