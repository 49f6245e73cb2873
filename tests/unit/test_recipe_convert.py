"""Configs of other tools become recipes that load; what has no counterpart is listed, whatever it is."""

import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from corpus.recipes.foreign.expected import EXPECTED, Expected
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tunekit.errors import RecipeError
from tunekit.recipe.convert import DATA, convert
from tunekit.recipe.convert.draft import Draft
from tunekit.recipe.convert.finish import DEFAULTS
from tunekit.recipe.convert.objective import defaults_of
from tunekit.recipe.foreign import FOREIGN, LLAMA_FACTORY, TRL
from tunekit.recipe.load import load, load_text
from tunekit.recipe.losses import LOSSES
from tunekit.recipe.parse import leaves, parse
from tunekit.recipe.types import Optimizer
from tunekit.train import optim

FOLDER = Path(__file__).parents[1] / "corpus" / "recipes" / "foreign"
FILES = sorted(str(path.relative_to(FOLDER)) for path in FOLDER.glob("*/*.y*ml"))
OPTIONS = {"axolotl": "axolotl", "llama_factory": "llamafactory", "trl": "trl"}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    shutil.copytree(FOLDER, tmp_path / "configs", ignore=shutil.ignore_patterns("*.py", "__pycache__"))
    monkeypatch.chdir(tmp_path / "configs")
    yield tmp_path / "configs"


def values_of(text: str) -> dict[str, Any]:
    """What a recipe says, by dotted key, whether or not it is complete."""
    return {".".join(map(str, path)): value for path, value in leaves(parse(text, "r.yaml").value)}


def test_there_are_at_least_four_files_of_each_tool_and_each_is_expected_something_of() -> None:
    assert all(sum(name.startswith(f"{tool}/") for name in FILES) >= 4 for tool in OPTIONS)
    assert set(FILES) == set(EXPECTED)


@pytest.mark.parametrize("name", FILES)
def test_each_file_becomes_the_recipe_that_it_means(folder: Path, name: str) -> None:
    expected: Expected = EXPECTED[name]
    converted = convert(name)
    said = values_of(converted.recipe)
    assert {key: said.get(key) for key in expected.values} == expected.values
    assert not set(expected.absent) & said.keys()
    for words in expected.missing:
        assert f"#   {words}" in section(converted.recipe, "Without counterpart:"), words
    for words in expected.different:
        assert words in section(converted.recipe, "Different from"), words
    for words in expected.needless:
        assert words in section(converted.recipe, "Not needed:"), words
    remarks = [line.removeprefix("# ") for line in converted.recipe.splitlines() if line.startswith("# ")][1:]
    assert all(line in converted.report for line in remarks)


def section(recipe: str, title: str) -> str:
    """The lines below a title that begins so, up to the next one."""
    after = recipe.partition(f"# {title}")[2].partition("\n")[2]
    return "".join(
        f"{line}\n" for line in itertools.takewhile(lambda line: line.startswith("#   "), after.splitlines())
    )


@pytest.mark.parametrize("name", FILES)
def test_the_result_loads_or_says_what_is_to_be_filled_in(folder: Path, name: str) -> None:
    converted = convert(name)
    todo = EXPECTED[name].todo
    if not todo:
        load_text(converted.recipe, "r.yaml")
        assert "does not load" not in converted.report
        return
    with pytest.raises(RecipeError) as caught:
        load_text(converted.recipe, "r.yaml")
    lines = [line for line in str(caught.value).splitlines() if line.startswith("r.yaml:")]
    assert len(lines) == len(todo) and all("is still to be filled in: " in line for line in lines)
    assert all(any(f": {key}: " in line for line in lines) for key in todo)
    assert "It does not load yet:" in converted.report and "to be filled in" in converted.report
    (folder / "filled.yaml").write_text(
        "".join(
            line.partition("TODO")[0].rstrip('"') + "x\n" if "TODO" in line else f"{line}\n"
            for line in converted.recipe.splitlines()
            if not line.startswith("#")
        ).replace("max_steps: x", "max_steps: 3")
    )
    load(folder / "filled.yaml")


@pytest.mark.parametrize("name", FILES)
def test_no_key_is_lost_it_changes_the_recipe_or_it_is_listed(folder: Path, name: str) -> None:
    raw = parse((folder / name).read_text(), name).value
    option = OPTIONS[name.partition("/")[0]]
    whole, listed = parts(convert(name, option).recipe)
    for key in raw:
        without = folder / Path(name).parent / "without.yaml"
        without.write_text(json.dumps({other: value for other, value in raw.items() if other != key}))
        changed = parts(convert(str(without), option).recipe)[0] != whole
        named = any(words in listed for words in (f"{key}:", f"{key}.", f"{key} says the same"))
        assert changed or named, key


def parts(recipe: str) -> tuple[str, str]:
    """The recipe without its first line, which names the file, and what is listed below it."""
    body, _, listed = recipe.partition("\n\n# ")
    return body.partition("\n")[2], listed


@pytest.mark.parametrize("name", FILES)
def test_the_tool_is_told_by_its_own_keys(folder: Path, name: str) -> None:
    tool, raw = name.partition("/")[0], parse((folder / name).read_text(), name).value
    first = convert(name).report.splitlines()[0]
    reasons = first.partition(", by its keys ")[2].split(", ")
    assert first.startswith(f"{name}: ") and tool.replace("_", "").replace("llama", "llama-") in first.lower()
    assert reasons and all(key in raw and FOREIGN[key].tool in DATA for key in reasons)
    assert convert(name, OPTIONS[tool]).report.splitlines()[0].endswith(", as --from says")


@pytest.mark.parametrize(
    ("text", "option", "message"),
    [
        ("learning_rate: 1\n", None, "cannot tell which tool it is for; keys that only one of them has: none"),
        ("base_model: m\ncutoff_len: 5\n", None, "1 of axolotl, 1 of LLaMA-Factory\nSay it: --from axolotl or"),
        (
            "base_model: m\n",
            "axolotel",
            "--from axolotel: no such tool; did you mean axolotl?\nAccepted: axolotl, llama",
        ),
        ("base_model: m\nrl: grpo\n", None, 'c.yaml:2:5: rl: "grpo": online RL has the stages ppo, grpo'),
        ("base_model: m\nrl: [dpo]\n", None, "c.yaml:2:5: rl: a list: online RL has the stages"),
        ("base_model: m\nprocess_reward_model: true\n", None, "c.yaml:2:23: process_reward_model: true: online RL"),
        ("template: x\nfinetuning_type: lora\nstage: ppo\n", None, 'c.yaml:3:8: stage: "ppo": online RL has'),
        ("dataset_name: x\nreward_funcs: f\n", None, 'reward_funcs: "f": online RL has the stages'),
        ("base_model: m\nbase_model: n\n", None, "c.yaml:2:1: base_model: is given twice"),
        ("base_model: &m m\nx: *m\n", None, "an anchor (&m) is not accepted; write the value out\n"),
        ("- base_model\n", None, "does not hold keys with values"),
        ("base_model: [\n", None, "not valid YAML"),
        ("", None, "is empty"),
    ],
)
def test_what_cannot_be_converted_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, option: str | None, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text(text)
    with pytest.raises(RecipeError) as caught:
        convert("c.yaml", option)
    assert message in str(caught.value)


def test_a_tool_does_what_its_defaults_say_where_the_file_says_nothing() -> None:
    """The defaults of TRL, read from the TRL that is installed."""
    from trl.trainer.model_config import ModelConfig
    from trl.trainer.sft_config import SFTConfig

    theirs: dict[str, Any] = {**SFTConfig.__dataclass_fields__, **ModelConfig.__dataclass_fields__}
    names = {
        "adapter.alpha": "lora_alpha",
        "adapter.dropout": "lora_dropout",
        "data.max_length": "max_length",
        "train.learning_rate": "learning_rate",
        "train.lr_scheduler_type": "lr_scheduler_type",
        "train.warmup_ratio": "warmup_steps",
        "train.activation_checkpointing": "gradient_checkpointing",
    }
    for ours, name in names.items():
        assert DEFAULTS[TRL][ours] == theirs[name].default, ours
    assert (theirs["truncation_mode"].default, DEFAULTS[TRL]["data.overlong"]) == ("keep_start", "truncate")
    for ours, name in {"adapter.r": "lora_r", "train.num_train_epochs": "num_train_epochs"}.items():
        section, _, key = ours.partition(".")
        recipe = load_text("model: m\nadapter: lora\ndata: d\noutput_dir: o\n", "r").recipe
        assert getattr(getattr(recipe, section), key) == theirs[name].default


def test_what_trl_does_in_another_stage_is_what_its_trainers_do_where_the_file_says_nothing() -> None:
    from trl.experimental.cpo import CPOConfig
    from trl.experimental.kto import KTOConfig
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.reward_config import RewardConfig

    for theirs, loss in ((DPOConfig, "sigmoid"), (KTOConfig, "kto"), (RewardConfig, "bradley_terry")):
        fields = theirs.__dataclass_fields__
        draft = Draft(TRL, {"stage": LOSSES[loss].stage, "objective.loss": loss})
        ours = DEFAULTS[TRL] | defaults_of(draft)
        for name in ("learning_rate", "num_train_epochs", "max_length", "lr_scheduler_type"):
            section = "data" if name == "max_length" else "train"
            assert ours[f"{section}.{name}"] == fields[name].default, (loss, name)
        assert ours["train.activation_checkpointing"] == fields["gradient_checkpointing"].default
        for name in ("beta", "desirable_weight", "undesirable_weight", "center_rewards_coefficient"):
            if name in LOSSES[loss].keys:
                assert LOSSES[loss].keys[name] == fields[name].default
        assert fields["disable_dropout"].default is True
    cpo, simpo = CPOConfig.__dataclass_fields__, Draft(TRL, {"stage": "dpo", "objective.loss": "simpo"})
    assert defaults_of(simpo)["objective.beta"] == cpo["beta"].default
    assert defaults_of(simpo)["objective.sft_weight"] == LOSSES["cpo"].sft_weight == cpo["cpo_alpha"].default
    assert LOSSES["simpo"].keys["gamma"] == cpo["simpo_gamma"].default
    robust = Draft(TRL, {"stage": "dpo", "objective.loss": "robust"})
    assert defaults_of(robust)["objective.label_smoothing"] == DPOConfig.__dataclass_fields__["label_smoothing"].default
    assert LOSSES["discopop"].keys["tau"] == DPOConfig.__dataclass_fields__["discopop_tau"].default


def test_optimizers_are_those_that_a_run_takes() -> None:
    assert set(optim.OPTIMIZERS) == set(get_args(Optimizer))


def test_the_registry_is_found_above_the_config_too(folder: Path) -> None:
    (folder / "llama_factory" / "deep" / "er").mkdir(parents=True)
    shutil.copy("llama_factory/lora_sft.yaml", "llama_factory/deep/er/c.yaml")
    assert values_of(convert("llama_factory/deep/er/c.yaml").recipe)["data.train.0.path"] == (
        "llama_factory/data/identity.json"
    )


WORDS = st.sampled_from(
    ["x", "lora", "no", "yes", "auto", "a,b", "{a}", "TODO", "a: b", "1e-4", "\u2028", "a\nb", "json"]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 10**6) | st.floats(allow_nan=False, allow_infinity=False) | WORDS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["path", "type", "split", "columns", "id", "weight", "r", "name", "roles"]), inner
        )
    ),
    max_leaves=6,
)
KEYS = sorted(
    {*FOREIGN, "dataset", "adapter", "max_length", "optim", "learning_rate", "seed", "packing", "zzz", "model"}
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@example(raw={"roles_to_train": {"path": None}}, tool="axolotl")
@given(raw=st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=8), tool=st.sampled_from(sorted(OPTIONS.values())))
def test_any_config_is_converted_or_refused_and_every_key_of_it_is_accounted_for(
    raw: dict[str, Any], tool: str
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "c.yaml"
        path.write_text(json.dumps(raw, ensure_ascii=False) if raw else "{}", encoding="utf-8")
        try:
            converted = convert(str(path), tool)
        except RecipeError as error:
            assert str(error)
            return
    said = values_of(converted.recipe)
    assert {"output_dir"} <= said.keys() and any(key.startswith("data") for key in said)
    try:
        load_text(converted.recipe, "r.yaml")
    except RecipeError as error:
        assert str(error) in converted.report.replace("the recipe:", "r.yaml:") or "r.yaml" not in str(error)


@pytest.mark.parametrize("key", ["wandb_project", "model_type", "no\u2028key", "chat_template", "load_in_4bit"])
@pytest.mark.parametrize("end", ["\n", "\r", "\x85", "\u2028", "\u2029", "\x0c"])
def test_no_value_of_a_config_can_leave_its_comment(tmp_path: Path, key: str, end: str) -> None:
    raw = {"base_model": "m", "datasets": [{"path": "d"}], "output_dir": "o", key: f"x{end}resume: auto"}
    path = tmp_path / "c.yaml"
    path.write_text(json.dumps(raw))
    if not key.isprintable():
        with pytest.raises(RecipeError, match="a key must be one word of printable text"):
            convert(str(path))
        return
    recipe = convert(str(path)).recipe
    assert all(line.isprintable() for line in recipe.split("\n"))
    assert load_text(recipe, "r.yaml").recipe.resume == "never"


def test_llama_factory_s_newer_nested_form_is_read(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text(
        "model: org/m\ntemplate: x\ntrain_dataset: data/sets.yaml\noutput_dir: o\n"
        "peft_config: {name: lora, r: 4, lora_alpha: 8, target_modules: all, zzz: 1}\n"
    )
    converted = convert(str(tmp_path / "c.yaml"))
    said = values_of(converted.recipe)
    assert (said["model"], said["adapter.r"], said["adapter.alpha"]) == ("org/m", 4, 8)
    assert "TODO" in said["data.train"] and "peft_config.zzz: 1" in converted.recipe
    assert DEFAULTS[LLAMA_FACTORY]["data.max_length"] == said["data.max_length"]
