"""What a recipe trains for: its stage, by file, command or loss, and the keys of `objective` that each loss takes."""

import itertools
from pathlib import Path
from typing import Any, get_args

import pytest

from tunekit.errors import RecipeError
from tunekit.recipe.derive import LEARNING_RATE
from tunekit.recipe.hints import FOREIGN
from tunekit.recipe.load import Resolved, load, load_text
from tunekit.recipe.losses import DEFAULT, LOSSES, ONLINE, keys_of
from tunekit.recipe.objective import Objective
from tunekit.recipe.schema import Recipe
from tunekit.recipe.show import as_yaml, dump

HEAD = "model: m\nadapter: lora\ndata: d\noutput_dir: o\n"
STAGES = list(DEFAULT)
KEYS = [name for name in Objective.model_fields if name not in ("loss", "loss_weights")]
OF_ALL = {"sft_weight", "loss_weights"}  # keys that every loss over pairs takes
GOOD: dict[str, Any] = {
    **dict.fromkeys(KEYS, 0.25),
    **{"kl_estimator": "k2", "scale_rewards": "batch"},
    **dict.fromkeys(("kl_horizon", "num_ppo_epochs", "num_iterations", "num_mini_batches"), 3),
    **dict.fromkeys(("whiten_rewards", "normalize_advantages", "mask_truncated_completions", "dynamic_sampling"), True),
}


def said(text: str, *overrides: str, stage: str | None = None, folder: Path | None = None) -> list[str]:
    """The messages, without the lines that they quote."""
    with pytest.raises(RecipeError) as caught:
        if folder is None:
            load_text(text, "r.yaml", stage)
        else:
            loaded(folder, text, *overrides, stage=stage)
    return [line for line in str(caught.value).splitlines() if not line.startswith(" ")]


def loaded(folder: Path, text: str, *overrides: str, stage: str | None = None) -> Resolved:
    (folder / "r.yaml").write_text(text)
    return load(folder / "r.yaml", overrides, stage)


def objective(loss: str, **keys: Any) -> str:
    listed = "".join(f", {key}: {str(value).lower()}" for key, value in keys.items())
    stage = LOSSES[loss].stage if loss in LOSSES else ""
    return HEAD + f"objective: {{loss: {loss}{listed}}}\n" + more_of(stage)


def more_of(stage: str) -> str:
    """What a recipe of the stage must have besides."""
    return "rewards: number_match\n" if stage in ONLINE else ""


def test_every_key_of_a_loss_is_one_of_the_recipe_and_every_such_key_is_one_of_a_loss() -> None:
    taken = set().union(*(facts.keys for facts in LOSSES.values()))
    assert taken | OF_ALL | {"loss"} == set(Objective.model_fields)
    assert {facts.stage for facts in LOSSES.values()} == set(STAGES) - {"sft"}
    stages = get_args(Recipe.model_fields["stage"].annotation)
    assert list(stages) == ["sft", "reward", "dpo", "kto", *ONLINE] and set(stages) == set(STAGES) == set(LEARNING_RATE)
    assert all(LOSSES[loss].stage == stage for stage, losses in DEFAULT.items() for loss in losses)


@pytest.mark.parametrize("loss", LOSSES)
def test_a_loss_alone_resolves_to_its_stage_its_keys_and_nothing_else(loss: str) -> None:
    facts = LOSSES[loss]
    resolved = load_text(objective(loss), "r.yaml")
    values = resolved.recipe.objective.model_dump()
    assert resolved.recipe.stage == facts.stage and values.pop("loss") == (loss,)
    weight = {"sft_weight": facts.sft_weight} if facts.stage == "dpo" else {}
    assert {key: value for key, value in values.items() if value is not None} == {
        key: value for key, value in (facts.keys | weight).items() if value is not None
    }
    derived = {key for key, origin in resolved.origins.items() if origin == "derived"}
    assert {"stage", *(f"objective.{key}" for key in facts.keys if facts.keys[key] is not None)} <= derived


def test_the_defaults_of_losses_are_those_that_the_docs_of_the_keys_tell() -> None:
    def default(loss: str, key: str) -> Any:
        return keys_of((loss,)).get(key)

    assert {loss for loss in LOSSES if default(loss, "beta") == 2.0} == {"simpo"}
    assert {default(loss, "beta") for loss in LOSSES if LOSSES[loss].stage not in ONLINE} == {0.1, 2.0, None}
    assert [default(loss, "beta") for loss in ("rloo", "grpo", "dapo", "ppo")] == [0.05, 0.0, 0.0, None]
    assert (default("ppo", "gamma"), default("ppo", "kl_coef"), default("ppo", "lam")) == (1.0, 0.05, 0.95)
    assert (default("gspo", "epsilon"), default("gspo", "epsilon_high"), default("dapo", "epsilon_high")) == (
        3e-4,
        4e-4,
        0.28,
    )
    assert (default("dr_grpo", "scale_rewards"), default("grpo", "scale_rewards")) == ("none", "group")
    assert [default(loss, "label_smoothing") for loss in ("sigmoid", "robust", "exo_pair")] == [0.0, 0.1, 0.001]
    assert (default("simpo", "gamma"), default("discopop", "tau")) == (0.5, 0.05)
    assert {loss for loss in LOSSES if default(loss, "sft_weight")} == {"orpo", "cpo"}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("key", KEYS)
def test_a_key_is_taken_by_a_loss_that_has_it_and_refused_by_any_other(loss: str, key: str) -> None:
    text = objective(loss, **{key: GOOD[key]})
    if key in keys_of((loss,)):
        assert getattr(load_text(text, "r.yaml").recipe.objective, key) == GOOD[key]
        return
    (line,) = said(text)
    assert line.startswith("r.yaml:5:") and f": objective.{key}: has no effect with loss {loss}, which takes " in line
    owners = [name for name in LOSSES if key in keys_of((name,))]
    assert line.endswith(f"set a loss that has it: {', '.join(owners)}")


@pytest.mark.parametrize(
    "losses", list(itertools.combinations(["sigmoid", "ipo", "simpo", "discopop", "orpo", "robust"], 2))
)
def test_of_several_losses_each_key_has_the_default_of_the_first_that_takes_it(losses: tuple[str, str]) -> None:
    found = load_text(objective(f"[{', '.join(losses)}]"), "r.yaml").recipe.objective
    assert found.loss == losses
    for key in set(LOSSES[losses[0]].keys) | set(LOSSES[losses[1]].keys):
        first = next(loss for loss in losses if key in LOSSES[loss].keys)
        assert getattr(found, key) == LOSSES[first].keys[key]


@pytest.mark.parametrize("adapter", ["lora", "none"])
@pytest.mark.parametrize("loss", ["", *LOSSES, "[sigmoid, ipo]", "my/loss.py:steep"])
@pytest.mark.parametrize("more", ["", "train: {global_batch_size: 8}\n", "eval: {steps: 5}\n"])
def test_what_is_printed_of_any_stage_loads_again_to_the_same(adapter: str, loss: str, more: str) -> None:
    text = (objective(loss) if loss else HEAD).replace("lora", adapter) + more
    if "rewards" in text and "global_batch_size" in text:
        assert "train.global_batch_size: has no effect with stage" in said(text)[0]
        return
    resolved = load_text(text, "r.yaml")
    for printed in (dump(resolved.recipe), as_yaml(resolved)):
        for stage in (None, resolved.recipe.stage):
            assert load_text(printed, "r.yaml", stage).recipe == resolved.recipe


@pytest.mark.parametrize("stage", STAGES)
def test_a_recipe_that_does_not_say_its_stage_takes_that_of_the_command(tmp_path: Path, stage: str) -> None:
    head = HEAD + more_of(stage)
    resolved = loaded(tmp_path, head, stage=stage)
    assert (resolved.recipe.stage, resolved.origins["stage"]) == (stage, "derived")
    assert resolved.recipe == loaded(tmp_path, f"stage: {stage}\n{head}").recipe
    assert resolved.recipe == loaded(tmp_path, head, f"stage={stage}", stage=stage).recipe
    assert resolved.recipe == loaded(tmp_path, head + "stage: null\n", stage=stage).recipe
    assert (resolved.recipe.objective.loss or ()) == DEFAULT[stage]
    epochs = 3 if stage == "sft" else 1
    assert resolved.recipe.train.num_train_epochs == epochs
    assert resolved.recipe.train.learning_rate == LEARNING_RATE[stage]["lora"]
    whole = loaded(tmp_path, head.replace("lora", "none"), stage=stage).recipe
    assert whole.train.learning_rate == LEARNING_RATE[stage]["none"]


def test_learning_rates_are_smaller_the_more_weights_are_trained_and_further_from_the_data() -> None:
    assert LEARNING_RATE["sft"] == {"lora": 2e-4, "none": 2e-5}
    assert LEARNING_RATE["dpo"] == LEARNING_RATE["kto"] == {"lora": 5e-5, "none": 1e-6}
    assert LEARNING_RATE["reward"] == {"lora": 1e-4, "none": 1e-5}


@pytest.mark.parametrize(("given", "stage"), [(a, b) for a in STAGES for b in STAGES if a != b])
def test_a_recipe_of_another_stage_than_the_command_is_refused_at_its_place(
    tmp_path: Path, given: str, stage: str
) -> None:
    line, fix = said(f"{HEAD}stage: {given}\n", stage=stage)
    assert line == f"r.yaml:5:8: stage: this recipe is for tunekit {given}, and this is tunekit {stage}"
    assert fix == f"Run tunekit {given}, or change stage."
    line, _ = said(HEAD, f"stage={given}", stage=stage, folder=tmp_path)
    assert line.startswith(f"override `stage={given}`: stage: this recipe is for tunekit {given}")


@pytest.mark.parametrize("loss", [*LOSSES, "my.py:f"])
@pytest.mark.parametrize("form", ["objective: {}", "objective: {{loss: {}}}", "objective: {{loss_type: [{}]}}"])
def test_so_is_one_whose_loss_is_for_another_stage(tmp_path: Path, loss: str, form: str) -> None:
    its = LOSSES[loss].stage if loss in LOSSES else "dpo"
    text = HEAD + form.format(loss) + "\n" + more_of(its)
    for stage in STAGES:
        if stage == its:
            assert load_text(text, "r.yaml", stage).recipe.stage == stage
            continue
        line, fix = said(text, stage=stage)
        assert line.startswith("r.yaml:5:")
        assert line.endswith(f" objective.loss: this recipe is for tunekit {its}, and this is tunekit {stage}")
        assert fix == f"Run tunekit {its}, or change objective.loss."
        line, _ = said(HEAD, f"objective={loss}", stage=stage, folder=tmp_path)
        assert line.startswith(f"override `objective={loss}`: objective.loss: this recipe is for tunekit {its}")


def test_a_stage_that_does_not_exist_is_named_with_all_else_that_is_wrong() -> None:
    lines = said(HEAD + "stage: gppo\ntrain: {sede: 1}\n", stage="dpo")
    assert (
        len(lines) == 2
        and "must be 'sft', 'reward', 'dpo', 'kto', 'ppo', 'grpo' or 'rloo'" in lines[0]
        and "train.seed?" in lines[1]
    )
    assert len(said(HEAD + "objective: {loss: {a: 1}}\ntrain: {sede: 1}\n", stage="dpo")) == 2
    assert len(said(HEAD + "objective: [ipo]\n", stage="kto")) == 1


def test_rules_of_a_stage_hold_for_the_one_of_the_command_too() -> None:
    text = HEAD.replace("data: d", "data: {train: d, packing: true}")
    assert load_text(text, "r.yaml", "sft").recipe.data.packing
    (line,) = said(text, stage="dpo")
    assert line.startswith("r.yaml:3:27: data.packing: is for stage sft, and this is dpo: ")


@pytest.mark.parametrize(
    ("short", "long"),
    [
        ("objective: ipo", "objective: {loss: [ipo]}"),
        ("objective: {loss: ipo}", "objective: {loss: [ipo]}"),
        ("objective: {loss_type: simpo, simpo_gamma: 1}", "objective: {loss: [simpo], gamma: 1.0}"),
        ("objective: {loss: discopop, discopop_tau: 0.1}", "objective: {loss: [discopop], tau: 0.1}"),
        ("stage: dpo\nobjective: {rpo_alpha: 1}", "stage: dpo\nobjective: {sft_weight: 1.0}"),
    ],
)
def test_short_forms_and_second_names_are_the_long_ones(short: str, long: str) -> None:
    assert load_text(HEAD + short, "r.yaml").recipe == load_text(HEAD + long, "r.yaml").recipe


def test_where_an_adapter_starts_may_be_said_as_from() -> None:
    for start in ("new", "continue", "merge_first"):
        recipe = load_text(HEAD.replace("lora", f"{{type: lora, from: {start}}}"), "r.yaml").recipe
        assert recipe.adapter.start_from == start
        assert load_text(dump(recipe), "r.yaml").recipe == recipe
    whole = load_text(HEAD.replace("lora", "{type: none, from: merge_first}"), "r.yaml").recipe
    assert whole.adapter.start_from == "merge_first" and load_text(dump(whole), "r.yaml").recipe == whole
    assert load_text(HEAD, "r.yaml").recipe.adapter.start_from is None


@pytest.mark.parametrize(
    ("loss", "keys"),
    [
        ("[sigmoid, exo_pair]", {}),
        ("[exo_pair, sigmoid]", {"label_smoothing": 0}),
        ("exo_pair", {"label_smoothing": 0.0}),
    ],
)
def test_smoothing_of_zero_is_refused_beside_exo_pair_also_where_it_is_derived(loss: str, keys: dict[str, Any]) -> None:
    (line,) = said(objective(loss, **keys))
    assert "objective.label_smoothing: must be above 0 with exo_pair" in line and "set 0.001" in line
    assert load_text(objective(loss, label_smoothing=0.001), "r.yaml").recipe.objective.label_smoothing == 0.001
    assert load_text(objective("[exo_pair, sigmoid]"), "r.yaml").recipe.objective.label_smoothing == 0.001


@pytest.mark.parametrize(
    ("stage", "metric", "greater"),
    [
        ("sft", "perplexity", False),
        ("dpo", "loss", False),
        ("dpo", "accuracy", True),
        ("dpo", "eval_margin", True),
        ("kto", "eval_loss", False),
        ("reward", "eval_accuracy", True),
        ("reward", "margin", True),
    ],
)
def test_what_is_measured_depends_on_the_stage(stage: str, metric: str, greater: bool) -> None:
    evaluation = load_text(f"{HEAD}eval: {{metric_for_best_model: {metric}}}\n", "r.yaml", stage).recipe.eval
    assert evaluation.metric_for_best_model == f"eval_{metric.removeprefix('eval_')}"
    assert evaluation.greater_is_better is greater


@pytest.mark.parametrize("name", ["dpo", "kto", "rm", "orpo", "simpo"])
def test_a_section_called_after_a_method_is_the_objective(name: str) -> None:
    lines = said(HEAD + f"{name}: {{bta: 0.1}}\n")
    assert lines[0].startswith("r.yaml:5:1: ") and lines[0].endswith(f"call {name} is objective here")
    assert "did you mean objective.beta?" in lines[1], "what it holds is checked as that section"


def test_keys_of_online_training_elsewhere_are_told_where_it_is_here() -> None:
    for name in ("ppo", "grpo", "rlhf", "ppo_epochs", "reward_funcs"):
        assert not FOREIGN[name].ours and "the stages ppo, grpo and rloo" in FOREIGN[name].why
