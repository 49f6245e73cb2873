"""The end of a reward model's run: figures on held-out pairs, and an ordinary sequence-classification checkpoint."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from tunekit.errors import StorageError
from tunekit.evals.rewards import reward_report, sentences
from tunekit.models.adapters import merge, merge_adapter, put_beside, save_adapter
from tunekit.models.export import serving_attention, weights_of
from tunekit.models.fixed_rewards import fixed_rewards, verify
from tunekit.models.load import PASSPORT, load_model
from tunekit.models.scorer import Scorer
from tunekit.recipe.schema import Recipe
from tunekit.stages.artefact import base_passport
from tunekit.stages.base import Base
from tunekit.stages.rows import Rows
from tunekit.train.checkpoint import staged
from tunekit.train.training import Training

log = logging.getLogger("tunekit")


def head_options(base: Base) -> dict[str, Any]:
    """How transformers loads it: `regression` makes its pipelines give the reward itself and not its logistic."""
    return {
        "auto_class": AutoModelForSequenceClassification,
        "num_labels": 1,
        "problem_type": "regression",
        "pad_token_id": base.tokenizer.pad_token_id,
    }


def write_reward_model(
    recipe: Recipe, training: Training, base: Base, rows: Rows, folder: Path, facts: dict[str, Any], card: str
) -> dict[str, Any]:
    """`model/` in `folder`, whole also where an adapter was trained (which is in `adapter/` too), with its figures.

    Raises `StorageError` where a fresh process gives other rewards than the model that was written.
    """
    scorer = training.policy
    assert isinstance(scorer, Scorer)
    with serving_attention(scorer.causal):
        trained = fixed_rewards(scorer.causal, base.tokenizer)
    passport = {"base_model": base_passport(base, scorer), **facts}
    result: dict[str, Any] = {}
    if recipe.model.quantization == "none":
        result |= _figures(recipe, scorer, rows)
    model, expected = scorer.causal, trained
    if recipe.adapter.type == "lora":
        model, unmerged = _merged(scorer.model, scorer.causal, base, folder / "adapter")
        if recipe.model.quantization != "none":  # whose rounding is no mistake of the merge
            result["quantised_difference"], expected = float((unmerged - trained).abs().max()), unmerged
            log.info("reward model: with its adapter in the full base, as it is kept:")
            result |= _figures(recipe, Scorer(model, model.dtype, scorer.pad_id), rows)
    else:
        model.set_attn_implementation("sdpa" if model._supports_sdpa else "eager")
    rewards = fixed_rewards(model, base.tokenizer)
    result["merge_difference"] = difference = float((rewards - expected).abs().max())
    largest = float(rewards.abs().max())
    if not difference <= 128 * torch.finfo(scorer.dtype).eps * max(1.0, largest):
        raise StorageError(f"{folder / 'model'}: merged, its rewards differ by {difference:.3g} from those trained")
    with staged(folder / "model") as staging:
        model.save_pretrained(staging, state_dict=weights_of(model))
        base.tokenizer.save_pretrained(staging)
        (staging / PASSPORT).write_text(json.dumps(passport, indent=1) + "\n")
        (staging / "README.md").write_text(card, encoding="utf-8")
        single, batched = verify(staging, rewards, model.dtype, model.device)
        eps = torch.finfo(model.dtype).eps
        # Padded batches are products of other shapes, which round differently in each layer.
        if not (single <= max(1e-5, 2 * eps * largest) and batched <= max(1e-3, 64 * eps * max(1.0, largest))):
            raise StorageError(f"{folder / 'model'}: reloaded, its rewards differ by {single:.3g} and {batched:.3g}")
    log.info("%s: reloaded by a fresh process, largest reward difference %.3g", folder / "model", single)
    return {**result, "reload_difference": single}


def _merged(adapted: nn.Module, causal: PreTrainedModel, base: Base, folder: Path) -> tuple[PreTrainedModel, Tensor]:
    """The base in its stored precision with adapter and head in it, and its fixed rewards before they were merged.

    The adapter is kept in `folder`.
    """
    with staged(folder) as staging:
        save_adapter(adapted, staging)  # type: ignore[arg-type]
    model = load_model(
        base.location, dtype="auto", device=causal.device, attn_implementation=None, **head_options(base)
    )
    if base.adapter is not None:
        model = merge_adapter(model, base.adapter.path)
    take_new_weights(model, causal)
    beside = put_beside(model, str(folder))
    rewards = fixed_rewards(beside.get_base_model(), base.tokenizer)
    return merge(beside, str(folder)).eval(), rewards


@torch.no_grad()
def take_new_weights(model: PreTrainedModel, trained: PreTrainedModel) -> None:
    """Gives `model` the frozen weights of `trained` that the base's checkpoint does not have (an encoder's pooler).

    Each load makes those anew at random; the others are equal in the precision of `trained`, or quantised there.
    """
    frozen = {
        name.replace(".base_layer.", ".").replace(".original_module.", "."): weight
        for name, weight in weights_of(trained).items()
        if ".lora_" not in name and ".modules_to_save." not in name and weight.is_floating_point()
    }
    for name, weight in model.state_dict().items():
        known = frozen.get(name)
        if known is not None and not torch.equal(weight.to(known.dtype), known):
            weight.copy_(known)


def _figures(recipe: Recipe, scorer: Scorer, rows: Rows) -> dict[str, Any]:
    """`reward`: what `scorer` makes of the held-out pairs, also said aloud; {} where there are none."""
    examples = rows.held_out_examples
    if examples is None:
        return {}
    rewards = scorer.rewards(examples, recipe.eval.per_device_eval_batch_size).double().cpu().numpy()
    lengths = examples.rows.trained.reshape(-1, 2)
    report = reward_report(rewards[:, 0], rewards[:, 1], lengths[:, 0], lengths[:, 1])
    for sentence in sentences(report):
        log.info("reward model: %s", sentence)
    return {"reward": report}
