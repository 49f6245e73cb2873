"""Batches: which position predicts which token, in both layouts."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tunekit.data.batch import Batch, flat_batch, padded_batch
from tunekit.data.rows import Tokens

PAD = 0


@st.composite
def rows(draw: st.DrawFn) -> Tokens:
    """Ids may be the padding's: pad and end token are one in many tokenizers."""
    ids = draw(st.lists(st.integers(0, 9), min_size=1, max_size=12))
    trained = [False, *draw(st.lists(st.booleans(), min_size=len(ids) - 1, max_size=len(ids) - 1))]
    return Tokens(np.array(ids, np.int32), np.array(trained, bool), "row")


SOME_ROWS = st.lists(rows(), min_size=1, max_size=5)


def predictions(batch: Batch) -> list[tuple[int, int]]:
    """(token at the predicting position, token that it predicts)."""
    return list(zip(batch.input_ids.flatten()[batch.predictors].tolist(), batch.targets.tolist(), strict=True))


def expected(some: list[Tokens]) -> list[tuple[int, int]]:
    return [(int(r.ids[t - 1]), int(r.ids[t])) for r in some for t in range(1, len(r.ids)) if r.trained[t]]


@given(SOME_ROWS)
def test_each_trained_token_is_predicted_by_the_token_before_it(some: list[Tokens]) -> None:
    for batch in (flat_batch(some, PAD), padded_batch(some, PAD)):
        assert predictions(batch) == expected(some)
        assert batch.weight == sum(int(row.trained.sum()) for row in some)
        assert batch.num_tokens == sum(len(row.ids) for row in some)


@given(SOME_ROWS)
def test_no_prediction_crosses_a_border(some: list[Tokens]) -> None:
    flat = flat_batch(some, PAD)
    ends = np.cumsum([len(row.ids) for row in some]) - 1
    assert not set(flat.predictors.tolist()) & set(ends.tolist())
    padded = padded_batch(some, PAD)
    assert padded.attention_mask is not None
    mask = padded.attention_mask.flatten()
    assert mask[padded.predictors].all() and mask[padded.predictors + 1].all()
    width = padded.input_ids.shape[1]
    assert (padded.predictors // width == (padded.predictors + 1) // width).all()


@given(SOME_ROWS)
def test_layouts(some: list[Tokens]) -> None:
    flat = flat_batch(some, PAD)
    assert flat.input_ids.tolist() == [[int(i) for row in some for i in row.ids]]
    assert flat.segments == tuple(len(row.ids) for row in some) and flat.attention_mask is None
    padded = padded_batch(some, PAD)
    longest = max(len(row.ids) for row in some)
    assert padded.segments is None and padded.attention_mask is not None
    for i, row in enumerate(some):
        filling = longest - len(row.ids)
        assert padded.input_ids[i].tolist() == [*row.ids.tolist(), *[PAD] * filling]
        assert padded.attention_mask[i].tolist() == [True] * len(row.ids) + [False] * filling
    assert flat.input_ids.dtype == padded.input_ids.dtype == flat.targets.dtype == torch.int64


def test_a_row_without_trained_tokens_has_no_weight() -> None:
    silent = Tokens(np.array([1, 2], np.int32), np.zeros(2, bool), "row")
    for batch in (flat_batch([silent], PAD), padded_batch([silent], PAD)):
        assert batch.weight == 0 and batch.predictors.shape == batch.targets.shape == (0,)


@pytest.mark.parametrize("device", ["meta"])
def test_all_of_a_batch_moves(device: str) -> None:
    row = Tokens(np.array([1, 2, 3], np.int32), np.array([False, True, True]), "row")
    for batch in (flat_batch([row], PAD), padded_batch([row], PAD)):
        moved = batch.to(torch.device(device))
        tensors = [moved.input_ids, moved.predictors, moved.targets, moved.attention_mask]
        assert {tensor.device.type for tensor in tensors if tensor is not None} == {device}
        assert moved.segments == batch.segments
