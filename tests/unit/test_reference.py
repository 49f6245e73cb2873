"""Log-probabilities of the reference: what they are, when they are read again, and when they are another's."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from tiny import PAD_ID, chat_rows, tiny_model, tiny_policy

from tunekit.data.rows import Example, Labelled, Pair, Tokens
from tunekit.errors import StorageError
from tunekit.models import reference
from tunekit.models.policy import Policy
from tunekit.models.reference import reference_logprobs, with_reference


@pytest.fixture(scope="module")
def policy() -> Policy:
    return tiny_policy(tiny_model("llama"))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Path:
    monkeypatch.setenv("TUNEKIT_CACHE", str(tmp_path))
    caplog.set_level(logging.INFO, "tunekit")
    return tmp_path / "reference"


def answered(prompt: Tokens, answer: Tokens) -> Tokens:
    asked = prompt.ids[: int(prompt.trained.argmax())]
    ids = np.concatenate([asked, answer.ids[answer.trained]])
    return Tokens(ids, np.arange(len(ids)) >= len(asked), prompt.source)


def pairs(count: int = 5) -> list[Pair]:
    rows = chat_rows(count + 1)
    made = [(row, answered(row, rows[i + 1])) for i, row in enumerate(rows[:count])]
    return [Pair(answered(row, row), other, int(row.trained.argmax())) for row, other in made]


def labelled(count: int = 5) -> list[Labelled]:
    return [
        Labelled(pair.chosen, i % 2 == 0, None, Labelled(pair.rejected, True)) for i, pair in enumerate(pairs(count))
    ]


def logprob(policy: Policy, row: Tokens) -> float:
    """By transformers' own forward pass, alone on the row."""
    ids = torch.from_numpy(row.ids.astype(np.int64))[None]
    with torch.no_grad():
        logprobs = policy.causal.eval()(ids).logits[0, :-1].double().log_softmax(-1)
    return float(logprobs.gather(1, ids[0, 1:, None])[torch.from_numpy(row.trained[1:])].sum())


@pytest.mark.parametrize("size", [1, 2, 100])
def test_they_are_those_of_the_model_in_the_order_of_the_rows(policy: Policy, size: int) -> None:
    found = reference_logprobs(policy, pairs(), size, ["pairs", size])
    wanted = [[logprob(policy, pair.chosen), logprob(policy, pair.rejected)] for pair in pairs()]
    assert found.dtype == np.float32 and np.allclose(found, wanted, rtol=1e-5)
    found = reference_logprobs(policy, labelled(), size, ["labelled", size])
    assert np.allclose(found, wanted, rtol=1e-5), "the second is that of the mismatched answer"


def test_dropout_does_not_move_them(policy: Policy) -> None:
    """A policy in training mode, whose attention drops half of its weights."""
    model = tiny_model("gpt2")
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.5
    noisy = Policy(model.train(), torch.float32, PAD_ID)
    found = reference_logprobs(noisy, pairs(), 2, [0])
    assert np.allclose(found[:, 0], [logprob(noisy, pair.chosen) for pair in pairs()], rtol=1e-5)


def computed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Gets the number of rows of each computation from here on."""
    counts: list[int] = []
    compute = reference._compute

    def counted(policy: Policy, examples: Any, numbers: Any, size: int) -> Any:
        counts.append(len(numbers))
        return compute(policy, examples, numbers, size)

    monkeypatch.setattr(reference, "_compute", counted)
    return counts


def test_they_are_computed_once_for_the_same_identity(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    counts = computed(monkeypatch)
    first = reference_logprobs(policy, pairs(), 2, [{"sha256": "a", "name": "b"}, "rows"])
    again = reference_logprobs(policy, pairs(), 3, [{"name": "b", "sha256": "a"}, "rows"])
    assert counts == [5] and np.array_equal(first, again) and first.dtype == again.dtype
    assert caplog.messages[-1] == "reference: log-probabilities of 5 rows from the cache"
    for identity in (["rows"], [{"sha256": "c", "name": "b"}, "rows"], [{"sha256": "a", "name": "b"}, "other rows"]):
        reference_logprobs(policy, pairs(), 2, identity)
    assert counts == [5] * 4, "other weights, other rows"


def test_another_way_to_compute_is_another_key(monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    counts, policy = computed(monkeypatch), tiny_policy(tiny_model("llama"))
    reference_logprobs(policy, pairs(), 2, [0])
    policy.share_prompts = False
    reference_logprobs(policy, pairs(), 2, [0])
    policy.flat = False
    policy.causal.set_attn_implementation("sdpa")
    reference_logprobs(policy, pairs(), 2, [0])
    reference_logprobs(tiny_policy(tiny_model("llama", torch.bfloat16), torch.bfloat16), pairs(), 2, [0])
    assert counts == [5] * 4 and len(list(cache.iterdir())) == 4


def test_a_file_of_another_number_of_rows_is_not_taken(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = computed(monkeypatch)
    reference_logprobs(policy, pairs(5), 2, [0])
    assert len(reference_logprobs(policy, pairs(4), 2, [0])) == 4 and counts == [5, 4]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "noise", "values", "no digest", "other name"])
def test_damage_is_said_and_mended(
    policy: Policy, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, cache: Path, damage: str
) -> None:
    counts = computed(monkeypatch)
    wanted = reference_logprobs(policy, pairs(), 2, [0])
    (file,) = cache.iterdir()
    content = file.read_bytes()
    values = load_file(file)
    if damage in ("values", "no digest", "other name"):
        name = "other" if damage == "other name" else reference.NAME
        digest = {"sha256": reference._digest(values[reference.NAME])}
        changed = values[reference.NAME] + (damage == "values")
        save_file({name: changed.astype(np.float32)}, file, metadata=None if damage == "no digest" else digest)
    else:
        flipped = content[:-3] + bytes([content[-3] ^ 1]) + content[-2:]
        file.write_bytes({"flip": flipped, "cut": content[:-4], "empty": b"", "noise": b"\xff" * 99}[damage])
    assert np.array_equal(reference_logprobs(policy, pairs(), 2, [0]), wanted)
    assert (
        counts == [5, 5] and sum("is damaged: the reference is computed again" in line for line in caplog.messages) == 1
    )
    assert file.read_bytes() == content and [path.name for path in cache.iterdir()] == [file.name]


def test_a_cache_that_cannot_be_written_is_told(policy: Policy, cache: Path) -> None:
    reference_logprobs(policy, pairs(), 2, [0])
    (file,) = cache.iterdir()
    file.unlink()
    (file / "in the way").mkdir(parents=True)
    with pytest.raises(StorageError, match=r"(?s)the reference cannot be kept there: .*TUNEKIT_CACHE"):
        reference_logprobs(policy, pairs(), 2, [0])
    assert list(cache.iterdir()) == [file], "nothing half written is left"


def test_a_file_where_the_cache_should_be_is_told(policy: Policy, cache: Path) -> None:
    cache.write_text("")
    with pytest.raises(StorageError, match="the reference cannot be kept there"):
        reference_logprobs(policy, pairs(), 2, [0])


@pytest.mark.parametrize("made", [pairs, labelled])
def test_a_batch_gets_the_policys_own_values_as_its_reference(
    policy: Policy, made: Callable[[int], Sequence[Example]]
) -> None:
    rows = made(3)
    batch = with_reference(policy.train(), policy.batch(rows))
    wanted = [logprob(policy, answer) for row in rows for answer in row.answers]
    assert batch.reference is not None and batch.reference.tolist() == pytest.approx(wanted, rel=1e-5)
    assert not batch.reference.requires_grad
    if batch.mismatched is not None:
        others = [logprob(policy, pair.rejected) for pair in pairs(3)]
        assert batch.mismatched.reference is not None
        assert batch.mismatched.reference.tolist() == pytest.approx(others, rel=1e-5)
    assert (batch.mismatched is None) == isinstance(rows[0], Pair)
