"""A step of preference training is that of TRL's trainers on the same token ids.

Where tunekit differs on purpose the difference is tested: the loss is a mean over the pairs of the whole step, and
likelihood terms are means over the tokens of each answer, then over pairs.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig
from preference_steps import (
    add_reference,
    examples_of,
    move,
    objective_of,
    own_cache,
    pair_rows,
    reward_model,
    save_reward_model,
    step_of,
)
from tiny import PAD_ID, plain_model, relative_difference, tiny_model, tiny_policy, worst_tensor
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification
from trl_trainers import Caught, dpo_trainer, first_batch, ids_of, labelled_examples, their_step, trainer, watched_by

from tunekit.data.examples import Examples
from tunekit.models.adapters import add_lora
from tunekit.models.policy import Policy
from tunekit.models.scorer import Scorer
from tunekit.objectives.objective import Objective
from tunekit.objectives.pair_losses import PAIR_LOSSES
from tunekit.train.step import StepResult

__all__ = ["own_cache"]

COUNT, CLOSE = 8, 1e-5


def assert_same_step(ours: tuple[StepResult, dict[str, Tensor]], theirs: tuple[float, dict[str, Tensor]]) -> None:
    assert ours[0].loss == pytest.approx(theirs[0], rel=CLOSE)
    assert worst_tensor(ours[1], theirs[1]) < CLOSE


def assert_same_watched(result: StepResult, theirs: dict[str, float], names: dict[str, str]) -> None:
    for name, their_name in names.items():
        assert result.metrics[name] == pytest.approx(theirs[their_name], rel=CLOSE, abs=1e-5), name


REWARDS = {f"reward_{which}": f"rewards/{which}" for which in ("chosen", "rejected")}
LOGPS = {f"logps_{which}": f"logps/{which}" for which in ("chosen", "rejected")}
SCORES = {"accuracy": "rewards/accuracies", "margin": "rewards/margins"}


def pair_policy(examples: Examples, folder: Path) -> tuple[Policy, nn.Module]:
    """A policy that has moved away from its reference, and the same weights for TRL."""
    policy = tiny_policy(tiny_model("llama"))
    policy.prove([each.chosen for each in examples[:2]], pairs=True)
    assert policy.flat and policy.share_prompts
    add_reference(policy, examples, folder)
    move(policy.model)
    theirs = plain_model("llama")
    theirs.load_state_dict(policy.model.state_dict())
    return policy, theirs


DPO_LOSSES = {
    "sigmoid": {"beta": 0.1},
    "ipo": {"beta": 0.1},
    "hinge": {"beta": 0.1},
    "robust": {"beta": 0.1, "label_smoothing": 0.1},
    "exo_pair": {"beta": 0.1, "label_smoothing": 0.01},
    "nca_pair": {"beta": 0.1},
    "bco_pair": {"beta": 0.1},
    "sppo_hard": {"beta": 0.1},
    "aot": {"beta": 0.1, "label_smoothing": 0.1},
    "apo_zero": {"beta": 0.1},
    "apo_down": {"beta": 0.1},
    "discopop": {"beta": 0.1, "tau": 0.5},  # 0.05 is compared on given log-probabilities: it multiplies rounding by 20
    "sigmoid_norm": {"beta": 2.0},
}


def their_names(keys: dict[str, float]) -> dict[str, float]:
    renamed = {"tau": "discopop_tau", "gamma": "simpo_gamma"}
    return {renamed.get(name, name): value for name, value in keys.items()}


@pytest.mark.parametrize("name", DPO_LOSSES)
def test_a_step_on_pairs_equals_dpo_trainer(name: str, tmp_path: Path) -> None:
    examples = examples_of(pair_rows(COUNT))
    policy, model = pair_policy(examples, tmp_path)
    keys = DPO_LOSSES[name]
    dpo = dpo_trainer(model, tmp_path, examples, loss_type=[name], **their_names(keys))
    for mine, row in zip(examples, dpo.train_dataset, strict=True):
        for answer, which in zip(mine.answers, ("chosen", "rejected"), strict=True):
            assert row["prompt_ids"] + row[f"{which}_ids"] == ids_of(answer)
            assert len(row[f"{which}_ids"]) == answer.trained.sum()
    ours = step_of(policy, objective_of(tmp_path, "dpo", loss=[name], **keys), [examples[:]])
    assert_same_step(ours, their_step(dpo))
    # A reward is a mean over tokens here where the loss takes it as one; TRL notes sums.
    names = LOGPS if PAIR_LOSSES[name].per_token else LOGPS | REWARDS | SCORES
    assert_same_watched(ours[0], watched_by(dpo), names)


def test_several_losses_are_added_up_as_dpo_trainer_does(tmp_path: Path) -> None:
    examples = examples_of(pair_rows(COUNT))
    policy, model = pair_policy(examples, tmp_path)
    keys: dict[str, Any] = {"loss_weights": [0.8, 0.3, 2.0], "beta": 0.1}
    names = ["sigmoid", "ipo", "apo_down"]
    dpo = dpo_trainer(model, tmp_path, examples, loss_type=names, **keys)
    assert_same_step(step_of(policy, objective_of(tmp_path, "dpo", loss=names, **keys), [examples[:]]), their_step(dpo))


def test_a_step_of_an_adapter_equals_dpo_trainer(tmp_path: Path) -> None:
    """Its reference is the model without the adapter, there as here."""
    examples = examples_of(pair_rows(COUNT))
    targets: dict[str, Any] = {"r": 4, "target_modules": "all-linear"}
    ours = add_lora(tiny_model("llama"), alpha=12.0, dropout=0.0, **targets)
    policy = tiny_policy(ours)
    add_reference(policy, examples, tmp_path)
    move(ours, 0.05)
    adapter = LoraConfig(lora_alpha=12, task_type="CAUSAL_LM", **targets)
    dpo = dpo_trainer(plain_model("llama"), tmp_path, examples, ref_model=None, peft_config=adapter)
    dpo.model.load_state_dict(ours.state_dict())
    found = step_of(policy, objective_of(tmp_path, "dpo"), [examples[:]])
    assert_same_step(found, their_step(dpo))
    assert all("lora" in name for name in found[1])
    assert_same_watched(found[0], watched_by(dpo), LOGPS | REWARDS | SCORES)
    assert abs(found[0].metrics["margin"]) > 0.01


@pytest.mark.parametrize("above", [True, False], ids=["above", "below"])
@pytest.mark.parametrize("name", ["kto", "apo_zero_unpaired"])
def test_a_step_on_labelled_answers_equals_kto_trainer(name: str, above: bool, tmp_path: Path) -> None:
    """Below the reference the estimate of the KL divergence is negative, and 0 is taken."""
    examples = labelled_examples(COUNT, COUNT)
    weights = {"desirable_weight": 1.5, "undesirable_weight": 0.5}
    moved, plain = tiny_policy(tiny_model("llama")), tiny_policy(tiny_model("llama"))
    move(moved.model)
    policy, reference = (moved, plain) if above else (plain, moved)
    add_reference(reference, examples, tmp_path)
    models = [plain_model("llama") for _ in range(2)]
    for model, same in zip(models, (policy, reference), strict=True):
        model.load_state_dict(same.model.state_dict())
    own = trainer("kto", models[0], tmp_path, examples, ref_model=models[1], loss_type=name, **weights)
    ours = step_of(policy, objective_of(tmp_path, "kto", loss=[name], **weights), [examples[:]])
    assert_same_step(ours, their_step(own))
    noted = watched_by(own)
    assert_same_watched(ours[0], noted, LOGPS | REWARDS)
    assert ours[0].metrics.get("kl", 0.0) == pytest.approx(noted["kl"], rel=CLOSE)
    if name == "kto":
        assert (noted["kl"] > 0.1) == above


@pytest.mark.parametrize("center", [None, 0.5])
@pytest.mark.parametrize("margins", [False, True], ids=["plain", "margins"])
def test_a_step_of_a_reward_model_equals_reward_trainer(margins: bool, center: float | None, tmp_path: Path) -> None:
    examples = examples_of(pair_rows(COUNT, margins=margins))
    assert sum(each.margin for each in examples) == (7 if margins else 0)
    folder = save_reward_model("llama", tmp_path / "reward", PAD_ID)
    scorer = Scorer(reward_model(folder), torch.float32, PAD_ID)
    scorer.prove([each.chosen for each in examples[:2]], pairs=True)
    assert scorer.flat and scorer.share_prompts
    theirs = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    keys = {"center_rewards_coefficient": center}
    own = trainer("reward", theirs, tmp_path, examples, **keys)
    ours = step_of(scorer, objective_of(tmp_path, "reward", **keys), [examples[:]])
    assert_same_step(ours, their_step(own))
    assert "score.weight" in ours[1]
    assert_same_watched(ours[0], watched_by(own), {"accuracy": "accuracy", "margin": "margin"})


CPO_LOSSES = {
    "cpo": {"beta": 0.1, "label_smoothing": 0.1},
    "simpo": {"beta": 2.0, "gamma": 0.5},
}


@pytest.mark.parametrize("name", CPO_LOSSES)
def test_a_step_without_a_reference_equals_cpo_trainer(name: str, tmp_path: Path) -> None:
    examples, keys = examples_of(pair_rows(COUNT)), CPO_LOSSES[name]
    objective = objective_of(tmp_path, "dpo", loss=[name], sft_weight=0, **keys)
    assert not objective.needs_reference
    loss_type = "sigmoid" if name == "cpo" else name
    options = {"loss_type": loss_type, "cpo_alpha": 0.0, **their_names(keys)}
    cpo = trainer("cpo", plain_model("llama"), tmp_path, examples, **options)
    ours = step_of(tiny_policy(tiny_model("llama")), objective, [examples[:]])
    assert_same_step(ours, their_step(cpo))
    assert_same_watched(ours[0], watched_by(cpo), REWARDS | SCORES | (LOGPS if name == "cpo" else {}))


def odds_ratio_only(orpo: Any) -> Callable[[Any, Any], Tensor]:
    def loss(model: Any, inputs: Any) -> Tensor:
        chosen, rejected, *_ = orpo.concatenated_forward(model, inputs)
        return -orpo.odds_ratio_loss(chosen, rejected)[0].mean()

    return loss


def test_the_odds_ratio_of_a_step_equals_that_of_orpo_trainer(tmp_path: Path) -> None:
    examples = examples_of(pair_rows(COUNT))
    objective = objective_of(tmp_path, "dpo", loss=["orpo"], sft_weight=0, beta=0.3)
    orpo = trainer("orpo", plain_model("llama"), tmp_path, examples, beta=0.3)
    ours = step_of(tiny_policy(tiny_model("llama")), objective, [examples[:]])
    assert_same_step(ours, their_step(orpo, odds_ratio_only(orpo)))


@torch.no_grad()
def test_likelihood_terms_are_means_over_answers_and_then_pairs_and_those_of_trl_over_tokens(tmp_path: Path) -> None:
    """On purpose: TRL's ORPO learns the prompt too, and in its ORPO and CPO long answers outweigh short ones."""
    examples, model = examples_of(pair_rows(COUNT)), plain_model("llama")
    policy = tiny_policy(tiny_model("llama"))
    answers, whole = [], []
    for pair in examples:
        ids = torch.tensor(ids_of(pair.chosen))
        losses = F.cross_entropy(model(ids[None]).logits[0, :-1], ids[1:], reduction="none")
        answers.append(losses[pair.prompt_length - 1 :])
        whole.append(losses)
    mine = float(torch.stack([losses.mean() for losses in answers]).mean())
    expected = {"orpo": float(torch.cat(whole).mean()), "cpo": float(torch.cat(answers).mean())}
    assert abs(mine - expected["orpo"]) > 1e-3 and abs(mine - expected["cpo"]) > 1e-3
    for name in expected:
        keys = {"loss_type": "sigmoid", "cpo_alpha": 1.0} if name == "cpo" else {}
        theirs = trainer(name, model, tmp_path, examples, beta=0.3, **keys)
        total = theirs.compute_loss(theirs.model.train(), first_batch(theirs)).item()
        pure, ours = (
            loss_at(policy, objective_of(tmp_path, "dpo", loss=[name], beta=0.3, sft_weight=weight), examples)
            for weight in (0, 1)
        )
        assert total - pure == pytest.approx(expected[name], rel=CLOSE)
        assert ours - pure == pytest.approx(mine, rel=CLOSE)


def loss_at(policy: Policy, objective: Objective, examples: Examples) -> float:
    batch = policy.batch(examples[:])
    return float(objective.terms(policy(batch), batch, 0.0).loss_sum) / batch.weight


def test_pairs_weigh_the_same_in_micro_batches_of_unequal_size_and_not_in_trl(tmp_path: Path) -> None:
    """On purpose: 3 + 1 pairs are a step of 4 pairs; TRL takes the mean of the two means."""
    examples = examples_of(pair_rows(4))
    policy, model = pair_policy(examples, tmp_path)
    keys = {"gradient_accumulation_steps": 2, "max_steps": 1, "max_grad_norm": 0.0, "warmup_steps": 0}
    dpo, caught = dpo_trainer(model, tmp_path, examples, per_device_train_batch_size=3, beta=0.3, **keys), Caught()
    dpo.add_callback(caught)
    dpo.train()
    objective = objective_of(tmp_path, "dpo", beta=0.3)
    whole, apart = step_of(policy, objective, [examples[:]]), step_of(policy, objective, [examples[:3], examples[3:]])
    assert apart[0].loss == pytest.approx(whole[0].loss, rel=CLOSE) and worst_tensor(apart[1], whole[1]) < CLOSE
    three, one = (step_of(policy, objective, [part])[1] for part in (examples[:3], examples[3:]))
    means = {name: (three[name] + one[name]) / 2 for name in three}
    assert worst_tensor(caught.gradients, means) < CLOSE
    assert relative_difference(caught.gradients, whole[1]) > 0.05
