"""Comparing logits: what is not a number is never equal."""

import math

import pytest
import torch

from tunekit.models.export import largest_difference


def test_the_largest_difference_is_over_all_prompts() -> None:
    first = {"0": torch.tensor([1.0, 2.0]), "1": torch.tensor([3.0])}
    assert largest_difference(first, {"0": torch.tensor([1.0, 2.5]), "1": torch.tensor([1.0])}) == 2.0
    assert largest_difference(first, first) == 0.0


@pytest.mark.parametrize("key", ["0", "1", "2"])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_logit_that_is_not_finite_makes_the_difference_fail_every_bound(key: str, bad: float) -> None:
    first = {name: torch.zeros(2, 3) for name in "012"}
    second = {name: logits.clone() for name, logits in first.items()}
    second[key][1, 2] = bad
    assert not largest_difference(first, second) <= 1e9
    assert not largest_difference(second, second) <= 1e9
