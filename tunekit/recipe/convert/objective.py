"""What a config says of its stage and of its losses, which decide what its other keys mean."""

from __future__ import annotations

from typing import Any, NoReturn

from tunekit.errors import RecipeError
from tunekit.recipe.convert.draft import Draft, coerced, default_of
from tunekit.recipe.convert.sources import names_in
from tunekit.recipe.explain import place_of, shown
from tunekit.recipe.foreign import AXOLOTL, LLAMA_FACTORY, TRL
from tunekit.recipe.gaps import NO_METHOD, NO_RL
from tunekit.recipe.losses import LOSSES, keys_of, losses_of
from tunekit.recipe.parse import Document
from tunekit.recipe.stage_rules import ONLY_SFT

FACTORY_STAGES = {"sft": "sft", "pt": "sft", "rm": "reward", "dpo": "dpo", "kto": "kto"}
AXOLOTL_LOSSES = {"dpo": "sigmoid", "ipo": "ipo", "simpo": "simpo", "orpo": "orpo", "kto": "kto"}
# Keys that make a config one of a stage that there is not.
ELSEWHERE = {AXOLOTL: ("process_reward_model",), TRL: ("reward_model_path", "reward_funcs", "num_generations")}
OF_CPO = ("cpo_alpha", "simpo_gamma")
SUPERVISED = {"nll", "chunked_nll", "dft"}
LIKELIHOOD = "sft"  # TRL's name for the likelihood of the chosen answers in a list of losses
PERHAPS = "beta alone does not say for which of TRL's trainers this is; it was taken for DPO's"
# What the tools do where a config of another stage than sft says nothing, over what they do for sft.
ALIGNED: dict[str, dict[str, Any]] = {
    LLAMA_FACTORY: {"train.num_train_epochs": 3},
    TRL: {"train.num_train_epochs": 3, "train.learning_rate": 1e-6},
}
OF_LOSS: dict[tuple[str, str], dict[str, Any]] = {
    (AXOLOTL, "simpo"): {"objective.beta": 0.1, "objective.sft_weight": 1.0},
    (LLAMA_FACTORY, "simpo"): {"objective.beta": 0.1},
    (TRL, "simpo"): {"objective.beta": 0.1, "objective.sft_weight": 1.0},
    (TRL, "robust"): {"objective.label_smoothing": 0.0},
    (TRL, "bradley_terry"): {"train.learning_rate": 1e-4},
}


def read_stage(draft: Draft, document: Document) -> None:
    """Takes over the stage and the losses. Raises `RecipeError` for a stage that there is not."""
    for key in ELSEWHERE.get(draft.tool, ()):
        if document.value.get(key):
            _refuse(document, key)
    {AXOLOTL: _axolotl, LLAMA_FACTORY: _llama_factory, TRL: _trl}[draft.tool](draft, document)


def _refuse(document: Document, key: str) -> NoReturn:
    spot = place_of(document, (key,)).of_value
    raise RecipeError(document.quote(spot, f"{spot}: {key}: {shown(document.value[key])}: {NO_RL}"))


def _axolotl(draft: Draft, document: Document) -> None:
    raw = document.value
    if isinstance(raw.get("reward_model"), bool):
        draft.done.add("reward_model")
    if raw.get("reward_model") is True:
        draft.put("stage", "reward", "reward_model", True)
    if not raw.get("rl"):
        return
    if not isinstance(raw["rl"], str) or raw["rl"] not in AXOLOTL_LOSSES:
        _refuse(document, "rl")
    draft.done.add("rl")
    loss = AXOLOTL_LOSSES[raw["rl"]]
    draft.put("stage", LOSSES[loss].stage, "rl", raw["rl"])
    draft.values["objective.loss"] = loss


def _llama_factory(draft: Draft, document: Document) -> None:
    raw = document.value
    given = raw.get("stage") or "sft"
    if not isinstance(given, str) or given not in FACTORY_STAGES:
        _refuse(document, "stage")
    stage = FACTORY_STAGES[given]
    if stage != "sft":
        draft.done.add("stage")
        draft.put("stage", stage, "stage", given)
    if stage == "dpo":
        draft.done.add("pref_loss")
        _put_losses(draft, "pref_loss", names_in(raw.get("pref_loss")) or ["sigmoid"], raw.get("pref_loss"))


def _trl(draft: Draft, document: Document) -> None:
    """The stage, of which a config of TRL has no key, by the keys that only one of its trainers has."""
    raw = document.value
    names, of_cpo = names_in(raw.get("loss_type")), [key for key in OF_CPO if raw.get(key) is not None]
    if names and set(names) <= SUPERVISED:
        draft.done.add("loss_type")
        known = "dft" not in names
        draft.leave("loss_type", raw["loss_type"], "it is so" if known else NO_METHOD, needless=known)
        return
    stage = _stage_of_trl(raw, names, of_cpo)
    if stage == "sft":
        return
    draft.values["stage"] = stage
    if of_cpo and names in ([], ["sigmoid"]):
        names = ["cpo"]
    if of_cpo and not set(names) <= {"cpo", "simpo"}:
        draft.done.add("loss_type")
        draft.leave("loss_type", raw["loss_type"], "without a reference there are the losses simpo, orpo and cpo")
    elif names:
        draft.done.add("loss_type")
        _put_losses(draft, "loss_type", names, raw.get("loss_type"), raw.get("loss_weights"))
    elif stage == "dpo":
        draft.values["objective.loss"] = "sigmoid"
        draft.differ(PERHAPS)


def _stage_of_trl(raw: dict[str, Any], names: list[str], of_cpo: list[str]) -> str:
    unpaired = names and all(name in LOSSES and LOSSES[name].stage == "kto" for name in names)
    if unpaired or any(raw.get(key) is not None for key in ("desirable_weight", "undesirable_weight")):
        return "kto"
    if raw.get("center_rewards_coefficient") is not None:
        return "reward"
    return "dpo" if names or of_cpo or raw.get("beta") is not None else "sft"


def _put_losses(draft: Draft, key: str, names: list[str], original: Any, weights: Any = None) -> None:
    """Losses with their weights; the likelihood among them has a key of its own here."""
    ours = [name if name == LIKELIHOOD else coerced("objective.loss", name) for name in names]
    of_stage = [name for name, facts in LOSSES.items() if facts.stage == draft.stage]
    if not set(ours) <= {LIKELIHOOD, *of_stage}:
        draft.leave(key, original, f"of stage {draft.stage} there are the losses {', '.join(of_stage)}")
        return
    each = weights if isinstance(weights, list) and len(weights) == len(ours) else [1.0] * len(ours)
    kept = [(name, weight) for name, weight in zip(ours, each, strict=True) if name != LIKELIHOOD]
    draft.put("objective.loss", [name for name, _ in kept] if len(kept) != 1 else kept[0][0], key, original)
    if each is weights:
        draft.done.add("loss_weights")
        draft.put("objective.loss_weights", [weight for _, weight in kept], "loss_weights", weights)
    for name, weight in zip(ours, each, strict=True):
        if name == LIKELIHOOD:
            draft.put("objective.sft_weight", weight, key, original)


def fit_objective(draft: Draft, raw: dict[str, Any]) -> None:
    """Takes out what the stage and the losses have no use for, so that the recipe loads."""
    given = draft.values.get("objective.loss", [])
    listed = tuple([given] if isinstance(given, str) else given)
    if any(name in LOSSES and LOSSES[name].stage != draft.stage for name in listed):
        draft.withdraw("objective.loss", f"it is for another stage than {draft.stage}")
        listed = ()
    losses = losses_of(draft.stage, listed or None)
    whose = f"loss {', '.join(losses)}" if losses else f"stage {draft.stage}"
    for ours in [key for key in draft.values if key.startswith("objective.") and key != "objective.loss"]:
        if ours.partition(".")[2] not in keys_of(losses):
            draft.withdraw(ours, f"{whose} does not take {ours}")
    if draft.stage != "sft":
        # All of them, but for a reward model LLaMA-Factory, switch it off unless they are told not to.
        if raw.get("disable_dropout") is not False and (draft.tool, draft.stage) != (LLAMA_FACTORY, "reward"):
            draft.withdraw("adapter.dropout", f"{draft.tool} switches it off for stage {draft.stage}", needless=True)
            draft.said.add("adapter.dropout")
        for ours, why in {**ONLY_SFT, "data.shuffle_buffer": ONLY_SFT["data.streaming"]}.items():
            if draft.values.get(ours) != default_of(ours):
                draft.withdraw(ours, f"{ours} is for sft: {why}")


def defaults_of(draft: Draft) -> dict[str, Any]:
    """What the tool does where its config of this stage, with this loss, says nothing, if not what it does for sft."""
    if draft.stage == "sft":
        return {}
    given = draft.values.get("objective.loss")
    losses = losses_of(draft.stage, (given,) if isinstance(given, str) else tuple(given or ()))
    return {**ALIGNED.get(draft.tool, {}), **OF_LOSS.get((draft.tool, losses[0]), {})}
