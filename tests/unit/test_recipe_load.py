"""Recipes as users write them: short forms, overrides, derived values, and every mistake named at its place."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tunekit.errors import RecipeError
from tunekit.recipe.hints import FOREIGN, keys_of
from tunekit.recipe.load import Resolved, load
from tunekit.recipe.schema import Recipe

SHORT = "model: tiny-random/llama\nadapter: lora\ndata: chat.jsonl\noutput_dir: out/chat\n"
FULL = """\
model: {name_or_path: m, revision: main, dtype: float32, attn_implementation: sdpa}
adapter: {type: lora, r: 8, alpha: 16, dropout: 0.1, target_modules: [q_proj, v_proj], init_lora_weights: pissa}
data:
  train:
    - {path: a.jsonl, format: text}
    - {path: org/b, name: c, split: train, revision: main, data_files: [x.json], columns: {prompt: q, b: "{a} {b}"}}
  eval: [e.jsonl]
  max_length: 512
train: {learning_rate: 1e-4, warmup_steps: 3, global_batch_size: 16}
eval: {steps: 5, metrics: [exact_match], metric_for_best_model: exact_match}
output_dir: out
report_to: [wandb]
"""


def resolve(folder: Path, text: str, *overrides: str) -> Resolved:
    path = folder / "r.yaml"
    path.write_text(text, encoding="utf-8")
    return load(path, overrides)


def refusal(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        resolve(folder, text, *overrides)
    said = str(caught.value).replace(f"{folder}/", "")
    return "\n".join(line for line in said.splitlines() if not re.match(r" *\d* \| ", line))  # without the lines quoted


def test_short_forms_equal_their_long_forms(tmp_path: Path) -> None:
    long = (
        "model: {name_or_path: tiny-random/llama}\nadapter: {type: lora}\n"
        "data: {train: [{path: chat.jsonl}]}\noutput_dir: out/chat\nreport_to: [wandb]\n"
    )
    assert resolve(tmp_path, SHORT + "report_to: wandb\n").recipe == resolve(tmp_path, long).recipe
    data = resolve(tmp_path, SHORT.replace("chat.jsonl", "{train: [a, b], eval: c}")).recipe.data
    assert [source.path for source in data.train] == ["a", "b"]
    assert data.eval is not None and data.eval[0].path == "c"


@pytest.mark.parametrize("layers", ['"0-3,7"', '"7, 0 - 3,1"', "[0, 1, 2, 3, 7]"])
def test_frozen_layers_may_be_ranges_or_a_list(tmp_path: Path, layers: str) -> None:
    text = SHORT.replace("lora", "none") + f"freeze: {{layers: {layers}}}\n"
    freeze = resolve(tmp_path, text).recipe.freeze
    assert freeze is not None and freeze.layers == (0, 1, 2, 3, 7)


def test_numbers_and_words_follow_yaml_1_2(tmp_path: Path) -> None:
    recipe = resolve(
        tmp_path, SHORT + "run_name: no\ntrain: {learning_rate: 1e-4, weight_decay: 1, seed: 010}\n"
    ).recipe
    assert recipe.run_name == "no"
    assert recipe.train.learning_rate == 1e-4
    assert isinstance(recipe.train.weight_decay, float) and recipe.train.weight_decay == 1.0
    assert recipe.train.seed == 10


def test_derived_values(tmp_path: Path) -> None:
    lora = resolve(tmp_path, SHORT + "train: {global_batch_size: 32}\n")
    assert (lora.recipe.adapter.alpha, lora.recipe.train.learning_rate, lora.recipe.train.warmup_ratio) == (
        32,
        2e-4,
        0.03,
    )
    assert lora.recipe.train.gradient_accumulation_steps == 4
    assert lora.recipe.eval.greater_is_better is False and lora.recipe.data.eval_split is None
    for path in ("adapter.alpha", "train.learning_rate", "train.gradient_accumulation_steps", "eval.greater_is_better"):
        assert lora.origins[path] == "derived"
    adapter = re.search("adapter: .*", FULL)
    assert adapter is not None
    full = resolve(tmp_path, FULL.replace(adapter[0], "adapter: none").replace("learning_rate: 1e-4, ", "")).recipe
    assert full.train.learning_rate == 2e-5
    assert full.train.warmup_ratio is None
    assert full.data.eval_split == 0
    assert full.eval.greater_is_better is True
    for metric in ("loss", "eval_perplexity"):
        assert resolve(tmp_path, SHORT, f"eval.metric_for_best_model={metric}").recipe.eval.greater_is_better is False


def test_origins_name_the_line(tmp_path: Path) -> None:
    text = (
        SHORT.replace("chat.jsonl", "org/chat") + "train:\n  # a comment\n  seed: 1\n  gradient_checkpointing: true\n"
    )
    resolved = resolve(tmp_path, text, "train.logging_steps=5", "data.train.0.split=test")
    file = str(tmp_path / "r.yaml")
    expected = {
        "model.name_or_path": f"{file}:1",
        "model.dtype": "default",
        "adapter.type": f"{file}:2",
        "data.train.0.path": f"{file}:3",
        "data.train.0.split": "override",
        "data.train.0.name": "default",
        "train.seed": f"{file}:7",
        "train.activation_checkpointing": f"{file}:8",
        "train.logging_steps": "override",
        "freeze": "default",
    }
    assert {key: resolved.origins[key] for key in expected} == expected


@pytest.mark.parametrize(
    ("override", "read", "value"),
    [
        ("train.learning_rate=1e-3", lambda r: r.train.learning_rate, 1e-3),
        ("train.gradient_checkpointing=true", lambda r: r.train.activation_checkpointing, True),
        ("resume=auto", lambda r: r.resume, "auto"),
        ("run_name=2024-01-01", lambda r: r.run_name, "2024-01-01"),
        ("run_name=", lambda r: r.run_name, None),
        ("data.system=Be: brief # now", lambda r: r.data.system, "Be: brief # now"),
        ('data.system="a\\nb"', lambda r: r.data.system, "a\nb"),
        ("data.train.0.path=x.jsonl", lambda r: r.data.train[0].path, "x.jsonl"),
        ("data.train.1=y.jsonl", lambda r: [s.path for s in r.data.train], ["chat.jsonl", "y.jsonl"]),
        ("data.eval.0.path=e.jsonl", lambda r: r.data.eval[0].path, "e.jsonl"),
        ("data.train=[a, b]", lambda r: [s.path for s in r.data.train], ["a", "b"]),
        ("adapter=none", lambda r: r.adapter.type, "none"),
        ("adapter={type: lora, r: 4}", lambda r: (r.adapter.r, r.adapter.alpha), (4, 8.0)),
        ("report_to=wandb", lambda r: r.report_to, ("wandb",)),
        ("data.eval_split=50", lambda r: r.data.eval_split, 50),
        ("output_dir=a=b", lambda r: r.output_dir, "a=b"),
    ],
)
def test_overrides(tmp_path: Path, override: str, read, value) -> None:  # type: ignore[no-untyped-def]
    assert read(resolve(tmp_path, SHORT, override).recipe) == value


def test_the_last_override_wins_over_the_file(tmp_path: Path) -> None:
    text = SHORT + "train: {activation_checkpointing: false, seed: 1}\n"
    train = resolve(tmp_path, text, "train.gradient_checkpointing=true", "train.seed=2", "train.seed=3").recipe.train
    assert train.activation_checkpointing is True and train.seed == 3


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("trian.seed=1", "override `trian.seed=1`: trian: unknown key; did you mean train?"),
        ("train.sede=1", "override `train.sede=1`: train.sede: unknown key; did you mean train.seed?"),
        (
            "learning_rate=1",
            "override `learning_rate=1`: learning_rate: unknown key here; it belongs at train.learning_rate",
        ),
        ("train.seed=x", 'override `train.seed=x`: train.seed: "x", must be a whole number'),
        (
            "data.train.7.path=x",
            "override `data.train.7.path=x`: data.train is a list of 1; name an item from 0, or 1 to add one",
        ),
        ("output_dir.x=1", "override `output_dir.x=1`: output_dir is a single value, without keys of its own"),
        (
            "data.train.0.path.x=1",
            "override `data.train.0.path.x=1`: data.train.0.path is a single value, without keys",
        ),
        ("train.seed.x=3", "override `train.seed.x=3`: train.seed: a section, must be a whole number"),
        ("train.5=1", "override `train.5=1`: train"),
        ("seed", "override 'seed': is not of the form key=value"),
        ("=1", "override '=1': is not of the form key=value"),
        ("~", "override '~': is not of the form key=value, section.key=value or ~section.key"),
        ("~train.seed=1", "override '~train.seed=1': is not of the form"),
        ("~train.seed", "override `~train.seed`: train.seed is not set, so there is nothing to drop"),
        ("~train.sede", "override `~train.sede`: train.sede: unknown key; did you mean train.seed?"),
        ("~trian.seed", "override `~trian.seed`: trian: unknown key; did you mean train?"),
        ("~data.train.3", "override `~data.train.3`: data.train.3 is not set"),
        ("~output_dir", "override `~output_dir`: output_dir: is missing. Folder"),
        ("~data.train.0", "data.train: an empty list, must be a list with at least one item"),
        ("extends=b.yaml", "override `extends=b.yaml`: extends is for recipe files"),
        ("report_to=[wandb", "override `report_to=[wandb`:1:"),
        ("run_name=\udcff", "is not UTF-8 text"),
    ],
)
def test_wrong_overrides_name_themselves(tmp_path: Path, override: str, message: str) -> None:
    assert message in refusal(tmp_path, SHORT, override)


def test_every_mistake_is_named_at_once_and_in_order(tmp_path: Path) -> None:
    text = (
        "model: m\nlearning_rate: 1\nadapter: {tpye: lora, r: '8'}\n"
        "data:\n  train: [a, {paht: x}]\n  packing: yes\n  eval: b\n  eval_split: 0.1\n"
        "train:\n  warmup_steps: 3\n  warmup_ratio: 0.1\n  seed: 1\n  seed: 2\nzzz: 1\n"
    )
    assert refusal(tmp_path, text, "save.steps=0").splitlines() == [
        "r.yaml:1:1: output_dir: is missing. Folder that receives all that the run writes.",
        "r.yaml:2:1: learning_rate: unknown key here; it belongs at train.learning_rate",
        "r.yaml:3:11: adapter.tpye: unknown key; did you mean adapter.type?",
        'r.yaml:3:26: adapter.r: "8", must be a whole number (without quotes)',
        "r.yaml:5:15: data.train.1.paht: unknown key; did you mean data.train.1.path?",
        'r.yaml:6:12: data.packing: "yes", must be true or false',
        "r.yaml:8:15: data.eval_split: excludes data.eval; remove one of the two",
        "r.yaml:11:17: train.warmup_ratio: excludes warmup_steps; remove one of the two",
        "r.yaml:13:3: train.seed: is given twice, first in line 12; remove one of the two",
        f"r.yaml:14:1: zzz: unknown key; a recipe has the keys {', '.join(Recipe.model_fields)}, extends, reward_model",
        "override `save.steps=0`: save.steps: 0, must be greater than or equal to 1",
    ]


def test_what_is_wrong_inside_a_source_is_said_once_and_hides_nothing_else(tmp_path: Path) -> None:
    text = (
        "model: m\noutput_dir: o\ndata:\n  train:\n"
        "  - {path: o/a, columns: {q: 3}, data_files: [4]}\n  - {path: b, wieght: 1}\n  - {path: c, format: x}\n"
    )
    assert [line.partition(",")[0] for line in refusal(tmp_path, text).splitlines()] == [
        "r.yaml:5:30: data.train.0.columns.q: 3",
        "r.yaml:5:47: data.train.0.data_files.0: 4",
        "r.yaml:6:15: data.train.1.wieght: unknown key; did you mean data.train.1.weight?",
        'r.yaml:7:23: data.train.2.format: "x"',
    ]


@pytest.mark.parametrize("known", ["str", "list", "int", "bool", "constrained-str", "<<", "0"])
def test_unknown_keys_that_look_like_types_are_named(tmp_path: Path, known: str) -> None:
    assert f"r.yaml:5:1: {known}: unknown key" in refusal(tmp_path, SHORT + f'"{known}": 1\n')


@pytest.mark.parametrize(("name", "ours"), [(name, known.ours) for name, known in FOREIGN.items() if known.ours])
def test_names_of_other_tools_lead_to_ours(tmp_path: Path, name: str, ours: str) -> None:
    message = refusal(tmp_path, SHORT + f"{name}: 1\n")
    assert message.startswith(f"r.yaml:5:1: {name}: unknown key; what ") and message.endswith(f"is {ours} here")
    *section, key = ours.replace("[]", "").split(" or ")[0].split(".")
    assert key in keys_of(".".join(section))


@pytest.mark.parametrize(
    ("override", "accepted"),
    [
        ("train.seed=true", "a whole number"),
        ("train.seed=1.0", "a whole number"),
        ("train.seed=-1", "greater than or equal to 0"),
        ("train.seed=4294967296", "less than 4294967296"),
        ("train.seed=", "is empty, must be a whole number; remove the line for the default (42)"),
        ("train.learning_rate='1e-4'", "a number"),
        ("train.learning_rate=true", "a number"),
        ("train.learning_rate=0", "greater than 0"),
        ("train.learning_rate=-1e-4", "greater than 0"),
        ("train.learning_rate=.inf", "a finite number"),
        ("train.learning_rate=1e999", "a finite number"),
        ("train.learning_rate=.nan", "a finite number"),
        ("train.learning_rate=" + "9" * 399, "a "),
        ("train.warmup_ratio=1", "less than 1"),
        ("train.max_grad_norm=0", "greater than 0"),
        ("train.num_train_epochs=0", "greater than 0"),
        ("train.max_steps=1e3", "a whole number"),
        ("train.per_device_train_batch_size=0", "greater than or equal to 1"),
        ("train.lr_scheduler_type=cosin", "'cosine', 'linear' or 'constant'; did you mean cosine?"),
        ("train.activation_checkpointing=1", "true or false"),
        ("train.activation_checkpointing=on", "true or false"),
        ("adapter.type=Lora", "'none' or 'lora'; did you mean lora?"),
        ("adapter.r=0", "greater than or equal to 1"),
        ("adapter.dropout=1", "less than 1"),
        ("adapter.target_modules=[q, 3]", "adapter.target_modules.1: 3, must be text (put it in quotes)"),
        ("adapter.target_modules=3", "text (put it in quotes) or a list"),
        ("adapter.init_lora_weights=3", "true or false or 'gaussian'"),
        ("data.eval_split=1.0", "a share of rows between 0 and 1, or a number of rows"),
        ("data.eval_split=-1", "a share of rows between 0 and 1"),
        ("data.eval_split=true", "a number"),
        ("data.max_length=0", "greater than or equal to 1"),
        ("data.train=[]", "a list with at least one item"),
        ("data.train=3", "a list"),
        ("model=3", "a section"),
        ("model=", "is empty, must be a section"),
        ("output_dir=", "is empty, must be text"),
        ("output_dir=''", "some text"),
        ("run_name=2024", "text (put it in quotes)"),
        ("report_to=wandbb", "did you mean wandb?"),
        ("resume=true", "text; did you mean auto?"),
        ("save.total_limit=0", "greater than or equal to 1"),
        ("eval.metrics=exact_match", "a list"),
        ("freeze.layers=3-1", 'must be ranges such as "0-19"'),
        ("freeze.layers=0-99999", 'must be ranges such as "0-19"'),
        ("freeze.layers=[-1]", "greater than or equal to 0"),
    ],
)
def test_wrong_values_say_what_is_accepted(tmp_path: Path, override: str, accepted: str) -> None:
    key = override.partition("=")[0]
    message = refusal(tmp_path, SHORT.replace("lora", "none"), override)
    assert key in message.split(": ", 1)[1] and accepted in message
    assert message.count("\n") == 0, message


@pytest.mark.parametrize(
    ("text", "at", "fix"),
    [
        ("freeze: {layers: '0-3'}", "5:9: freeze", "remove freeze, or set adapter: none"),
        ("train: {global_batch_size: 12}", "5:28: train.global_batch_size", "set 16, or change that one"),
        ("train: {global_batch_size: 4}", "5:28: train.global_batch_size", "set 8, or change that one"),
        (
            "train: {global_batch_size: 16, gradient_accumulation_steps: 4}",
            "5:28: train.global_batch_size",
            "remove one",
        ),
        ("train: {warmup_steps: 0, warmup_ratio: 0}", "5:40: train.warmup_ratio", "remove one of the two"),
        ("eval: {early_stopping_patience: 3}", "eval.early_stopping_patience", "needs held-out rows"),
        ("eval: {metrics: [exact_match]}", "eval.metrics", "needs held-out rows"),
        ("eval: {load_best_model_at_end: true}", "eval.load_best_model_at_end", "needs held-out rows"),
        ("train: {activation_checkpointing: true, gradient_checkpointing: true}", "5:41: train.grad", "remove one of"),
    ],
)
def test_values_that_exclude_each_other_name_the_fix(tmp_path: Path, text: str, at: str, fix: str) -> None:
    if at.startswith("eval."):
        message = refusal(tmp_path, SHORT.replace("chat.jsonl", "{train: c, eval_split: 0}") + text)
    else:
        message = refusal(tmp_path, SHORT + text)
    assert at in message and fix in message


def test_a_freeze_that_freezes_nothing_is_refused(tmp_path: Path) -> None:
    message = refusal(tmp_path, SHORT.replace("lora", "none") + "freeze: {}")
    assert message.startswith("r.yaml:5:9: freeze: freezes nothing; give layers")


def test_an_adapter_without_a_type_is_not_taken_for_none(tmp_path: Path) -> None:
    message = refusal(tmp_path, SHORT.replace("lora", "{r: 8}"))
    assert message == "r.yaml:2:10: adapter: sets r but no type; add type: lora (or type: none)"


def test_a_missing_file_suggests_its_neighbour(tmp_path: Path) -> None:
    (tmp_path / "chat.yaml").write_text(SHORT)
    with pytest.raises(RecipeError, match=r"chatt.yaml: no such file\nDid you mean .*/chat.yaml\?") as caught:
        load(tmp_path / "chatt.yaml")
    assert caught.value.exit_code == 2


def test_a_recipe_loads_without_the_heavy_libraries() -> None:
    heavy = "{'torch', 'transformers', 'numpy', 'datasets', 'peft'}"
    program = (
        f"import sys, tunekit.recipe.load, tunekit.recipe.show; sys.exit(', '.join({heavy} & set(sys.modules)) or None)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
