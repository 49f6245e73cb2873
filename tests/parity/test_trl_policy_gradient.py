"""A step of GRPO, its variants and RLOO is that of TRL's trainers on the same rollouts, from rewards to gradients.

TRL is given prompts, answers and rewards in place of generating them; log-probabilities of the reference, advantages
and the loss are its own. Where tunekit differs on purpose the difference is tested: k3 is added to the loss of a token
as in Shao et al. 2024, and not multiplied by the ratio first, which TRL does unless `use_bias_correction_kl` is false.

Axes: S answers, P prompts, G answers to each, L tokens of the longest answer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from rollout_rows import PROMPTS, actor_of, looked_at, moved_from_reference, older, online_step, sampled_rows, without
from tiny import gradients, plain_model, worst_tensor
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from tunekit.data.rows import Sampled
from tunekit.models.actor import Actor
from tunekit.models.load import load_tokenizer, locate
from tunekit.objectives.policy_gradient import grpo, rloo
from tunekit.ops.advantages import group_advantages, leave_one_out
from tunekit.rollout.advantages import Grouped, LeaveOneOut

CLOSE, TEMPERATURE, LONGEST = 1e-5, 0.7, 16
G = 4
REWARDS = [1.0, 0.0, 0.5, 3.0, -1.0, 2.0, 2.0, 0.25, 0.1, 0.2, -0.3, 0.7]
KINDS: dict[str, tuple[Any, Any]] = {"grpo": (GRPOTrainer, GRPOConfig), "rloo": (RLOOTrainer, RLOOConfig)}
NAN = float("nan")


def trainer(kind: str, model: Any, folder: Path, rewards: Sequence[float], **settings: Any) -> Any:
    """TRL's trainer, all answers one batch; its reference is the model as it was loaded."""
    made, config = KINDS[kind]
    options = {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": False,
        "gradient_checkpointing": False,
        "disable_dropout": True,
        "per_device_train_batch_size": len(rewards),
        "num_generations": G,
        "max_completion_length": LONGEST,
        "temperature": TEMPERATURE,
        "max_steps": 1,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
    }

    def reward(**given: Any) -> list[float | None]:
        return [None if np.isnan(each) else each for each in rewards]

    found = made(
        model,
        reward_funcs=reward,
        args=config(**options | settings),
        train_dataset=Dataset.from_list([{"prompt": "a"}]),
        processing_class=load_tokenizer(locate("tiny-random/llama")),
    )
    found.current_gradient_accumulation_steps = 1  # which `train` sets
    return found


def their_inputs(made: Any, rows: Sequence[Sampled]) -> dict[str, Tensor]:
    """What TRL makes of the answers, as if it had generated them."""
    prompts = [row.tokens.ids[: row.prompt_length].tolist() for row in rows]
    answers = [row.tokens.ids[row.prompt_length :].tolist() for row in rows]
    texts = ["a"] * len(rows)
    generated: tuple[Any, ...] = (prompts, answers, None, texts, None, {}, None, [])
    made._generate = lambda _: generated if isinstance(made, GRPOTrainer) else (prompts, answers, texts)
    made.model.train()
    return made._generate_and_score_completions([{"prompt": "a"}] * len(rows))


def as_matrix(rows: Sequence[Sampled], name: str) -> Tensor:
    """`(S, L)`"""
    return pad_sequence([torch.from_numpy(getattr(row, name)) for row in rows], batch_first=True)


def their_step(made: Any, inputs: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    loss = made.compute_loss(made.model, inputs)
    loss.backward()
    return loss.item(), gradients(made.model)


def sides(kind: str, folder: Path, rewards: Sequence[float], **settings: Any) -> tuple[Actor, list[Sampled], Any]:
    """An actor that has moved away from its reference, what both give the answers, and the same weights in TRL."""
    actor = actor_of("llama", temperature=TEMPERATURE)
    reference = moved_from_reference(actor)
    theirs = plain_model("llama")
    theirs.load_state_dict(actor.model.state_dict())
    rows = looked_at(actor, reference, sampled_rows())
    return actor, rows, trainer(kind, theirs, folder, rewards, **settings)


def assert_same_step(
    actor: Actor, objective: Any, rows: Sequence[Sampled], made: Any, inputs: dict[str, Tensor]
) -> dict[str, float]:
    """The metrics of our step."""
    result, found = online_step(actor, objective, [rows])
    loss, expected = their_step(made, inputs)
    assert result.loss == pytest.approx(loss, rel=CLOSE, abs=CLOSE)
    assert worst_tensor(found, expected) < CLOSE
    return result.metrics


def assert_same_rows(rows: Sequence[Sampled], inputs: dict[str, Tensor]) -> None:
    """The tokens that are trained, and the advantage of each answer."""
    for i, row in enumerate(rows):
        trained = inputs["completion_ids"][i][inputs["completion_mask"][i].bool()]
        assert trained.tolist() == row.tokens.ids[row.tokens.trained].tolist()
        assert row.advantages is not None
        assert row.advantages.tolist() == pytest.approx([float(inputs["advantages"][i])] * len(trained), rel=CLOSE)


LOSSES: dict[str, dict[str, Any]] = {
    "grpo": {"loss_type": "grpo"},
    "dr_grpo": {"loss_type": "dr_grpo", "scale_rewards": "none"},
    "dapo": {"loss_type": "dapo", "scale_rewards": "batch"},
    "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
}


@pytest.mark.parametrize("epsilon_high", [None, 0.28])
@pytest.mark.parametrize("beta", [0.0, 0.1])
@pytest.mark.parametrize("off_policy", [False, True], ids=["on-policy", "off-policy"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_step_equals_grpo_trainer(
    name: str, off_policy: bool, beta: float, epsilon_high: float | None, tmp_path: Path
) -> None:
    settings = {"beta": beta, "epsilon": 0.1, "epsilon_high": epsilon_high}
    plain = {"use_bias_correction_kl": False}
    actor, rows, made = sides("grpo", tmp_path, REWARDS, **settings, **LOSSES[name], **plain)
    inputs = their_inputs(made, rows)
    method = Grouped(LOSSES[name].get("scale_rewards", "group"), by_tokens=name == "dapo")
    rows, _ = method.assign(rows, torch.tensor(REWARDS).view(-1, G))
    assert_same_rows(rows, inputs)
    if beta:
        theirs = inputs["ref_per_token_logps"] * inputs["completion_mask"]
        torch.testing.assert_close(as_matrix(rows, "reference"), theirs, rtol=0, atol=CLOSE)
    if off_policy:
        rows = older(rows, 0.3)
        inputs["old_per_token_logps"] = as_matrix(rows, "old")
    else:
        assert "old_per_token_logps" not in inputs
        rows = without(rows, "old")
    objective = grpo(name, max_new_tokens=LONGEST, **settings)  # type: ignore[arg-type]
    metrics = assert_same_step(actor, objective, rows, made, inputs)
    noted = {key: values[-1] for key, values in made._metrics["train"].items()}
    if beta:
        assert metrics["kl_token"] == pytest.approx(noted["kl"], rel=1e-4) and noted["kl"] > 1e-3
    assert (0.05 < noted["clip_ratio/region_mean"] < 0.95) == off_policy
    if name != "gspo":  # whose answers count as tokens here, and as one there
        assert metrics["clip_fraction"] == pytest.approx(noted["clip_ratio/region_mean"], abs=1e-6)


def test_k3_is_not_multiplied_by_the_ratio_as_in_trl(tmp_path: Path) -> None:
    """On purpose; the losses are as far apart as that makes them, the mean of (ratio - 1) beta k3."""
    settings: dict[str, Any] = {"beta": 0.1, "epsilon": 0.1, "epsilon_high": None}
    actor, rows, made = sides("grpo", tmp_path, REWARDS, loss_type="dapo", **settings)
    inputs = their_inputs(made, rows)
    rows, _ = Grouped("group", by_tokens=True).assign(rows, torch.tensor(REWARDS).view(-1, G))
    now = np.concatenate([row.old for row in rows if row.old is not None]).astype(np.float64)
    rows = older(rows, 0.3)
    inputs["old_per_token_logps"] = as_matrix(rows, "old")
    old, reference = (np.concatenate([getattr(row, name) for row in rows]) for name in ("old", "reference"))
    apart = 0.1 * (np.expm1(now - old) * (np.exp(reference - now) - 1 - (reference - now))).mean()
    objective = grpo("dapo", max_new_tokens=LONGEST, **settings)
    ours, theirs = online_step(actor, objective, [rows])[0].loss, their_step(made, inputs)[0]
    assert theirs - ours == pytest.approx(apart, rel=1e-3) and abs(apart) > 1e-4


@pytest.mark.parametrize("epsilon_high", [None, 0.4])
@pytest.mark.parametrize("beta", [0.0, 0.05])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("off_policy", [False, True], ids=["on-policy", "off-policy"])
def test_a_step_equals_rloo_trainer(
    off_policy: bool, normalize: bool, beta: float, epsilon_high: float | None, tmp_path: Path
) -> None:
    settings = {"beta": beta, "normalize_advantages": normalize, "epsilon": 0.2, "epsilon_high": epsilon_high}
    actor, rows, made = sides("rloo", tmp_path, REWARDS, **settings)
    inputs = their_inputs(made, rows)
    rows, _ = LeaveOneOut(beta, normalize).assign(rows, torch.tensor(REWARDS).view(-1, G))
    assert_same_rows(rows, inputs)
    if off_policy:
        rows = older(rows, 0.15)
        inputs["old_logps"] = as_matrix(rows, "old").sum(1)
    else:
        rows = without(rows, "old")
    metrics = assert_same_step(actor, rloo(epsilon=0.2, epsilon_high=epsilon_high), rows, made, inputs)
    noted = made._metrics["train"]["clip_ratio/region_mean"][-1]
    assert metrics["clip_fraction"] == pytest.approx(noted, abs=1e-6)
    assert (0.05 < noted < 0.95) == off_policy


FAILED = {
    "some": [1.0, NAN, 0.5, 3.0, NAN, 2.0, NAN, 0.25, NAN, NAN, NAN, NAN],
    "all-but-one": [1.0, 0.0, 0.5, 3.0, NAN, 2.0, NAN, NAN, 0.1, 0.2, -0.3, 0.7],
    "equal": [0.1] * 4 + REWARDS[4:],
}


@pytest.mark.parametrize("rewards", FAILED.values(), ids=FAILED)
@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_with_rewards_that_failed_equal_grpo_trainer(
    scale: str, rewards: list[float], tmp_path: Path
) -> None:
    made = trainer("grpo", plain_model("llama"), tmp_path, rewards, beta=0.0, scale_rewards=scale)
    theirs = their_inputs(made, sampled_rows())["advantages"]
    ours = group_advantages(torch.tensor(rewards, dtype=torch.float64).view(-1, G), scale=scale)
    assert ours.shape == (len(PROMPTS), G)
    torch.testing.assert_close(ours.flatten().float(), theirs, rtol=CLOSE, atol=1e-4)


@pytest.mark.parametrize("rewards", FAILED.values(), ids=FAILED)
@pytest.mark.parametrize("normalize", [False, True])
def test_advantages_with_rewards_that_failed_equal_rloo_trainer(
    normalize: bool, rewards: list[float], tmp_path: Path
) -> None:
    made = trainer("rloo", plain_model("llama"), tmp_path, rewards, beta=0.0, normalize_advantages=normalize)
    theirs = their_inputs(made, sampled_rows())["advantages"]
    ours = leave_one_out(torch.tensor(rewards, dtype=torch.float64).view(-1, G), normalize=normalize)
    torch.testing.assert_close(ours.flatten().float(), theirs, rtol=CLOSE, atol=CLOSE)
