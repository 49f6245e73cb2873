"""Values of other tools one by one: what a recipe makes of each, and what it says where that is not the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from tunekit.recipe.convert import convert
from tunekit.recipe.foreign import VALUES
from tunekit.recipe.load import load_text
from tunekit.recipe.parse import leaves, parse

TRL = {"model_name_or_path": "m", "dataset_name": "org/d", "output_dir": "o"}
AXOLOTL = {"base_model": "m", "datasets": [{"path": "org/d"}], "output_dir": "o"}
FACTORY = {"model_name_or_path": "m", "dataset": "d", "stage": "sft", "output_dir": "o"}
DIFFERENT, MISSING, NEEDLESS = "Different from", "Without counterpart:", "Not needed:"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def converted(tool: str, config: dict[str, Any], registry: dict[str, Any] | None = None) -> str:
    if registry:
        Path("data").mkdir(exist_ok=True)
        Path("data/dataset_info.json").write_text(json.dumps(registry))
    Path("c.yaml").write_text(json.dumps(config))
    return convert("c.yaml", tool).recipe


def values(recipe: str) -> dict[str, Any]:
    return {".".join(map(str, path)): value for path, value in leaves(parse(recipe, "r.yaml").value)}


def listed(recipe: str, title: str) -> list[str]:
    lines = recipe.partition(f"# {title}")[2].splitlines()[1:]
    end = next((i for i, line in enumerate(lines) if not line.startswith("#   ")), len(lines))
    return [line.removeprefix("#   ") for line in lines[:end]]


def test_null_as_the_length_is_no_limit_and_not_the_default_of_trl() -> None:
    recipe = converted("trl", TRL | {"max_length": None, "gradient_checkpointing": None})
    assert not {"data.max_length", "data.overlong", "train.activation_checkpointing"} & values(recipe).keys()
    assert "max_length:  # the default of data.max_length" in listed(recipe, NEEDLESS)
    loaded = load_text(recipe, "r.yaml").recipe
    assert (loaded.data.max_length, loaded.train.activation_checkpointing) == (None, False)
    assert values(converted("trl", TRL | {"learning_rate": None}))["train.learning_rate"] == 2e-5, (
        "else it says nothing"
    )


@pytest.mark.parametrize(
    ("key", "value", "ours", "held"),
    [
        ("lr_scheduler_type", "inverse_sqrt", "train.lr_scheduler_type", "cosine"),
        ("truncation_mode", "keep_end", "data.overlong", "error"),
        ("optim", "muon", "train.optim", "adamw_torch"),
        ("optim", "adamw_torch_4bit", "train.optim", "adamw_torch"),
        ("learning_rate", -1, "train.learning_rate", None),
        ("metric_for_best_model", "eval_accuracy", "eval.metric_for_best_model", None),
        ("save_steps", 0.5, "save.steps", 100),
    ],
)
def test_a_value_without_counterpart_is_not_the_tool_s_default_and_what_holds_is_said(
    key: str, value: Any, ours: str, held: Any
) -> None:
    recipe = converted("trl", TRL | {key: value})
    assert ours not in values(recipe)
    (line,) = (line for line in listed(recipe, MISSING) if line.startswith(f"{key}: "))
    assert line.endswith(f" the recipe has {ours}: {held}") == (held is not None)
    section, name = ours.split(".")
    loaded = getattr(getattr(load_text(recipe, "r.yaml").recipe, section), name)
    assert loaded == held or held is None


@pytest.mark.parametrize(
    ("tool", "config", "quantization"),
    [
        ("trl", TRL | {"use_peft": True, "load_in_4bit": True}, "4bit"),
        ("trl", TRL | {"use_peft": True, "load_in_8bit": True}, "8bit"),
        ("trl", TRL | {"use_peft": True, "load_in_4bit": False}, "none"),
        ("trl", TRL | {"load_in_4bit": True}, "none"),
        ("axolotl", AXOLOTL | {"adapter": "qlora"}, "4bit"),
        ("axolotl", AXOLOTL | {"adapter": "qlora", "load_in_4bit": True}, "4bit"),
        ("axolotl", AXOLOTL | {"adapter": "lora", "load_in_8bit": "yes"}, "8bit"),
        ("llamafactory", FACTORY | {"finetuning_type": "lora", "quantization_bit": 4}, "4bit"),
        ("llamafactory", FACTORY | {"quantization_bit": 8, "quantization_method": "bnb"}, "8bit"),
        ("llamafactory", FACTORY | {"quantization_bit": 3}, "none"),
        ("llamafactory", FACTORY | {"finetuning_type": "full", "quantization_bit": 4}, "none"),
    ],
)
def test_a_quantised_base_stays_one_where_there_is_an_adapter(
    tool: str, config: dict[str, Any], quantization: str
) -> None:
    recipe = converted(tool, config)
    assert values(recipe).get("model.quantization", "none") == quantization
    asked = [key for key in config if key.startswith(("load_in", "quantization_bit"))]
    taken = quantization != "none" or config.get("load_in_4bit") is False
    assert any(line.startswith(tuple(asked)) for line in listed(recipe, MISSING)) == (bool(asked) and not taken)


@pytest.mark.parametrize(("theirs", "left"), [("nf4", NEEDLESS), ("fp4", MISSING)])
def test_the_form_of_four_bits_is_nf4_and_another_one_is_said_to_be_missing(theirs: str, left: str) -> None:
    recipe = converted("trl", TRL | {"use_peft": True, "load_in_4bit": True, "bnb_4bit_quant_type": theirs})
    assert f"bnb_4bit_quant_type: {theirs}" in " ".join(listed(recipe, left))
    assert any("use_bnb_nested_quant" in line for line in listed(recipe, DIFFERENT))


@pytest.mark.parametrize(
    ("tool", "config", "key"), [("trl", TRL, "lr_scheduler_type"), ("axolotl", AXOLOTL, "lr_scheduler")]
)
@pytest.mark.parametrize(
    ("theirs", "ours", "difference"),
    [
        ("cosine_with_min_lr", "cosine", "ends at its min_lr"),
        ("cosine_warmup_with_min_lr", "cosine", "ends at its min_lr"),
        ("cosine_with_restarts", "cosine", "starts again where its num_cycles is over 1"),
        ("polynomial", "linear", "ends at its lr_end"),
        ("constant_with_warmup", "constant", ""),
        ("linear", "linear", ""),
    ],
)
def test_schedules_are_the_nearest_one_and_what_is_different_is_said(
    tool: str, config: dict[str, Any], key: str, theirs: str, ours: str, difference: str
) -> None:
    recipe = converted(tool, config | {key: theirs})
    assert load_text(recipe, "r.yaml").recipe.train.lr_scheduler_type == ours
    said = [line for line in listed(recipe, DIFFERENT) if "learning rate" in line]
    assert [f"{theirs} " in line and difference in line for line in said] == ([True] if difference else [])


@pytest.mark.parametrize(
    ("assistant", "completion", "loss_on"),
    [
        (True, None, "assistant"),
        (True, False, "assistant"),
        (True, True, "completion"),
        (False, True, "completion"),
        (None, True, "completion"),
        (False, False, "all"),
        (None, False, "all"),
        (False, None, None),
        (None, None, None),
    ],
)
def test_the_two_keys_of_trl_about_the_loss_say_it_together_in_any_order(
    assistant: bool | None, completion: bool | None, loss_on: str | None
) -> None:
    keys = {"assistant_only_loss": assistant, "completion_only_loss": completion}
    given = [(key, value) for key, value in keys.items() if value is not None]
    recipes = {converted("trl", TRL | dict(order)) for order in (given, given[::-1])}
    (recipe,) = {recipe.partition("\n\n")[0] for recipe in recipes}
    assert load_text(recipe, "r.yaml").recipe.data.loss_on == (loss_on or "assistant")
    for whole in recipes:
        assert any("TRL trains all its tokens" in line for line in listed(whole, DIFFERENT)) == (loss_on is None)
        assert all(f"{key}: {json.dumps(value)}" in whole for key, value in given)


def test_texts_that_others_cut_into_pieces_are_said_to_be_rows_here() -> None:
    axolotl = converted("axolotl", AXOLOTL | {"datasets": [{"path": "org/d", "type": "completion"}]})
    assert any("axolotl cuts it into pieces of sequence_len" in line for line in listed(axolotl, DIFFERENT))
    for packing, packed in ((None, True), (True, True), (False, False)):
        recipe = converted(
            "llamafactory", FACTORY | {"stage": "pt", "packing": packing}, {"d": {"file_name": "d.json"}}
        )
        assert load_text(recipe, "r.yaml").recipe.data.packing is packed
        assert any("joins all texts" in line for line in listed(recipe, DIFFERENT)) is packed
    sft = converted("llamafactory", FACTORY, {"d": {"file_name": "d.json"}})
    assert not load_text(sft, "r.yaml").recipe.data.packing and "joins all texts" not in sft


@pytest.mark.parametrize(("strategy", "title"), [("bfd", NEEDLESS), ("bfd_split", MISSING), ("wrapped", MISSING)])
def test_packing_that_cuts_examples_has_no_counterpart(strategy: str, title: str) -> None:
    recipe = converted("trl", TRL | {"packing": True, "packing_strategy": strategy})
    assert any(
        line.startswith(f"packing_strategy: {strategy}  # examples are packed whole") for line in listed(recipe, title)
    )


@pytest.mark.parametrize(
    ("tool", "config", "keys"),
    [
        ("axolotl", AXOLOTL | {"deepspeed": "zero2.json"}, "deepspeed is"),
        ("axolotl", AXOLOTL | {"fsdp": ["full_shard"], "fsdp_config": {"a": 1}}, "fsdp, fsdp_config are"),
        ("llamafactory", FACTORY | {"ddp_timeout": 180000000}, "ddp_timeout is"),
        ("axolotl", AXOLOTL | {"deepspeed": None, "fsdp": []}, ""),
        ("trl", TRL, ""),
    ],
)
def test_a_config_for_several_gpus_says_what_becomes_of_its_batch(tool: str, config: dict[str, Any], keys: str) -> None:
    said = [line for line in listed(converted(tool, config), DIFFERENT) if "gradient_accumulation_steps" in line]
    assert [f"{keys} for several processes: set distributed.processes to" in line for line in said] == (
        [True] if keys else []
    )


@pytest.mark.parametrize(
    ("entry", "source", "missing"),
    [
        ({"formatting": "openai"}, {"format": "messages"}, ""),
        (
            {
                "formatting": "openai",
                "columns": {"messages": "m"},
                "tags": {"role_tag": "role", "content_tag": "content"},
            },
            {"format": "messages", "columns.messages": "m"},
            "",
        ),
        ({"formatting": "sharegpt"}, {"format": "sharegpt"}, ""),
        (
            {"formatting": "sharegpt", "tags": {"role_tag": "role", "content_tag": "content"}},
            {"format": "messages", "columns.messages": "conversations"},
            "",
        ),
        (
            {"formatting": "sharegpt", "tags": {"user_tag": "Human"}},
            {"format": "sharegpt"},
            "d.tags.user_tag: Human  # roles are",
        ),
        ({"formatting": "xml"}, {}, "d.formatting: xml  # no format of this name"),
        ({}, {"format": "alpaca"}, ""),
    ],
)
def test_each_formatting_of_a_registry_is_its_format(
    entry: dict[str, Any], source: dict[str, str], missing: str
) -> None:
    recipe = converted("llamafactory", FACTORY, {"d": {"file_name": "d.json", **entry}})
    said = {
        key.removeprefix("data.train.0."): value
        for key, value in values(recipe).items()
        if key.startswith("data.train.0.")
    }
    said.pop("path", None)
    assert said == source
    assert [line for line in listed(recipe, MISSING) if missing and line.startswith(missing)] or not missing


def test_files_of_a_kind_that_is_not_read_are_left_to_do() -> None:
    registry = converted("llamafactory", FACTORY | {"stage": "pt"}, {"d": {"file_name": "d.txt"}})
    config = AXOLOTL | {"datasets": [{"path": "text", "data_files": "d.txt", "type": "completion"}]}
    for recipe in (registry, converted("axolotl", config)):
        assert values(recipe)["data.train.0.path"].endswith("d.txt as JSONL or parquet, since .txt files are not read")


def test_columns_that_trl_hands_to_the_template_have_no_counterpart() -> None:
    mixture = {
        "datasets": [
            {"id": "org/a", "columns": ["messages", "chat_template_kwargs"]},
            {"id": "b", "columns": ["messages"]},
        ]
    }
    recipe = converted("trl", {**TRL, "dataset_name": None, "dataset_mixture": mixture})
    assert any(line.startswith("dataset_mixture.datasets.0.columns: ") for line in listed(recipe, MISSING))
    assert any(line.startswith("dataset_mixture.datasets.1.columns: ") for line in listed(recipe, NEEDLESS))


def test_settings_of_evaluations_that_there_are_not_are_listed() -> None:
    keys = {"eval_steps": 5, "metric_for_best_model": "accuracy", "greater_is_better": True}
    for config in (TRL | keys, TRL | keys | {"eval_strategy": "steps"}):
        recipe = converted("trl", config)
        held_out = "eval_strategy" in config
        assert values(recipe).get("eval.steps") == (5 if held_out else None)
        assert "eval.greater_is_better" not in values(recipe), "it was about another metric"
        assert any(
            line.startswith("greater_is_better: true  # it is about a metric") for line in listed(recipe, MISSING)
        )
        load_text(recipe, "r.yaml")
    answers = converted("axolotl", AXOLOTL | {"eval_max_new_tokens": 64, "val_set_size": 9})
    assert any(
        line.startswith("eval_max_new_tokens: 64  # it is for eval.metrics") for line in listed(answers, MISSING)
    )


@pytest.mark.parametrize(
    ("ours", "word", "meant"),
    [
        (ours, word, meant)
        for ours in ("model.dtype", "train.optim", "train.lr_scheduler_type", "resume")
        for word, meant in VALUES[ours].items()
    ],
)
def test_what_a_hint_proposes_for_another_tool_s_word_is_what_a_conversion_takes(
    ours: str, word: str, meant: str
) -> None:
    key = {"resume": "resume_from_checkpoint"}.get(ours, ours.rpartition(".")[2])
    value: Any = load_text(converted("trl", TRL | {key: word}), "r.yaml").recipe
    for part in ours.split("."):
        value = getattr(value, part)
    assert value == meant


@pytest.mark.parametrize(("key", "ours"), [("include", "extends"), ("peft", "adapter"), ("precision", "model.dtype")])
def test_a_key_of_no_tool_in_question_is_listed_with_ours(key: str, ours: str) -> None:
    recipe = converted("axolotl", AXOLOTL | {key: "x.yaml"})
    (line,) = (line for line in listed(recipe, MISSING) if line.startswith(f"{key}: x.yaml  # "))
    assert ours in line and "unknown key" not in line
    load_text(recipe, "r.yaml")


@pytest.mark.parametrize(
    ("tool", "keys", "stage", "loss"),
    [
        ("trl", {"loss_type": "ipo"}, "dpo", ("ipo",)),
        ("trl", {"loss_type": ["exo_pair"], "label_smoothing": 0.01}, "dpo", ("exo_pair",)),
        ("trl", {"beta": 0.2}, "dpo", ("sigmoid",)),
        ("trl", {"loss_type": "kto", "beta": 0.2}, "kto", ("kto",)),
        ("trl", {"loss_type": "apo_zero_unpaired"}, "kto", ("apo_zero_unpaired",)),
        ("trl", {"desirable_weight": 2.0}, "kto", ("kto",)),
        ("trl", {"center_rewards_coefficient": 0.01}, "reward", ("bradley_terry",)),
        ("trl", {"loss_type": "simpo", "simpo_gamma": 0.7}, "dpo", ("simpo",)),
        ("trl", {"cpo_alpha": 0.5}, "dpo", ("cpo",)),
        ("trl", {"loss_type": "nll"}, "sft", None),
        ("trl", {"beta": None}, "sft", None),
        ("axolotl", {"rl": "dpo"}, "dpo", ("sigmoid",)),
        ("axolotl", {"rl": "ipo"}, "dpo", ("ipo",)),
        ("axolotl", {"rl": "simpo"}, "dpo", ("simpo",)),
        ("axolotl", {"rl": "orpo", "orpo_alpha": 0.3}, "dpo", ("orpo",)),
        ("axolotl", {"rl": "kto", "kto_desirable_weight": 2.0}, "kto", ("kto",)),
        ("axolotl", {"reward_model": True}, "reward", ("bradley_terry",)),
        ("axolotl", {"rl": None, "reward_model": False}, "sft", None),
        ("llamafactory", {"stage": "dpo"}, "dpo", ("sigmoid",)),
        ("llamafactory", {"stage": "dpo", "pref_loss": "simpo", "simpo_gamma": 0.7}, "dpo", ("simpo",)),
        ("llamafactory", {"stage": "dpo", "pref_loss": "hinge", "pref_ftx": 0.5}, "dpo", ("hinge",)),
        ("llamafactory", {"stage": "kto", "kto_rejected_weight": 2.0}, "kto", ("kto",)),
        ("llamafactory", {"stage": "rm"}, "reward", ("bradley_terry",)),
    ],
)
def test_what_another_tool_trains_for_is_the_stage_and_the_loss(
    tool: str, keys: dict[str, Any], stage: str, loss: tuple[str, ...] | None
) -> None:
    config = {"trl": TRL, "axolotl": AXOLOTL, "llamafactory": FACTORY}[tool]
    recipe = converted(tool, config | keys, {"d": {"file_name": "d.json"}})
    found = load_text(recipe, "r.yaml").recipe
    assert (found.stage, found.objective.loss) == (stage, loss)
    told = {name for name, value in found.objective.model_dump().items() if value in keys.values()}
    numbers = {value for value in keys.values() if isinstance(value, float)}
    assert len(told) >= len(numbers), "every number of the config is one of the objective"
    if stage != "sft":
        assert not any("trains all its tokens" in line for line in listed(recipe, DIFFERENT)), "that is about sft"


@pytest.mark.parametrize(
    ("tool", "keys", "line"),
    [
        ("trl", {"loss_type": "sft_loss"}, "loss_type: sft_loss  # of stage dpo there are the losses sigmoid, ipo"),
        (
            "trl",
            {"loss_type": "hinge", "cpo_alpha": 1.0},
            "loss_type: hinge  # without a reference there are the losses",
        ),
        ("trl", {"loss_type": "dft"}, "loss_type: dft  # this version does not have this method"),
        ("trl", {"loss_type": "ipo", "label_smoothing": 0.1}, "label_smoothing: 0.1  # loss ipo does not take"),
        ("trl", {"loss_type": "ipo", "f_divergence_type": "js_divergence"}, "f_divergence_type: js_divergence  # "),
        ("llamafactory", {"stage": "dpo", "pref_loss": "kto_pair"}, "pref_loss: kto_pair  # of stage dpo there are"),
        ("llamafactory", {"stage": "kto", "pref_ftx": 0.5}, "pref_ftx: 0.5  # loss kto does not take"),
        (
            "llamafactory",
            {"stage": "sft", "pref_beta": 0.1},
            "pref_beta: 0.1  # stage sft does not take objective.beta",
        ),
        ("llamafactory", {"stage": "rm", "neat_packing": True}, "neat_packing: true  # data.packing is for sft"),
        ("axolotl", {"rl": "dpo", "dpo_use_weighting": True}, "dpo_use_weighting: true  # this version does not have"),
    ],
)
def test_what_of_an_objective_there_is_not_is_listed_and_the_recipe_loads(
    tool: str, keys: dict[str, Any], line: str
) -> None:
    config = {"trl": TRL, "axolotl": AXOLOTL, "llamafactory": FACTORY}[tool]
    recipe = converted(tool, config | keys, {"d": {"file_name": "d.json"}})
    assert any(found.startswith(line) for found in listed(recipe, MISSING)), listed(recipe, MISSING)
    load_text(recipe, "r.yaml")


@pytest.mark.parametrize(("told", "left"), [(None, None), (True, None), (False, 0.05)])
def test_dropout_that_trl_switches_off_is_not_taken_over(told: bool | None, left: float | None) -> None:
    keys = {"loss_type": "ipo", "use_peft": True, "lora_dropout": 0.05, "disable_dropout": told}
    assert values(converted("trl", TRL | keys)).get("adapter.dropout") == left
    keys = {"loss_type": "ipo", "use_peft": True, "disable_dropout": told}
    assert values(converted("trl", TRL | keys)).get("adapter.dropout") == left


def test_the_likelihood_of_llama_factory_s_orpo_is_added_to_its_own() -> None:
    for loss, weight in (("sigmoid", 0.25), ("orpo", 1.25)):
        recipe = converted("llamafactory", FACTORY | {"stage": "dpo", "pref_loss": loss, "pref_ftx": 0.25})
        assert values(recipe)["objective.sft_weight"] == weight
    recipe = converted("llamafactory", FACTORY | {"stage": "dpo", "pref_loss": "orpo"})
    assert "objective.sft_weight" not in values(recipe)
