"""A recipe over its bases: what wins, where each value comes from, and what is dropped by an override."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunekit.recipe.compose import read_recipe
from tunekit.recipe.load import Resolved, load
from tunekit.recipe.parse import leaves
from tunekit.recipe.show import as_yaml, dump

BASE = """\
model: {name_or_path: m, revision: main}
adapter: lora
data: {train: [a.jsonl, b.jsonl], eval: e.jsonl, max_length: 512}
train:
  seed: 1
  learning_rate: 1e-3
output_dir: out/base
"""
LORA = ("lora", 16, False)


def write(folder: Path, **texts: str) -> None:
    for name, text in texts.items():
        path = folder / f"{name.replace('__', '/')}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


def resolve(folder: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str, **texts: str) -> Resolved:
    write(folder, **texts)
    monkeypatch.chdir(folder)
    return load("r.yaml", overrides)


def test_sections_are_merged_by_key_and_lists_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = "extends: base.yaml\nmodel: n\ndata: {train: c.jsonl}\ntrain: {seed: 2}\noutput_dir: out/r\n"
    resolved = resolve(tmp_path, monkeypatch, r=child, base=BASE)
    recipe = resolved.recipe
    assert (recipe.model.name_or_path, recipe.model.revision, recipe.adapter.type) == ("n", "main", "lora")
    assert [source.path for source in recipe.data.train] == ["c.jsonl"]
    assert recipe.data.eval is not None and recipe.data.max_length == 512
    assert (recipe.train.seed, recipe.train.learning_rate, recipe.output_dir) == (2, 1e-3, "out/r")
    assert {
        key: resolved.origins[key]
        for key in ("model.name_or_path", "model.revision", "adapter.type", "data.train.0.path", "data.eval.0.path")
    } == {
        "model.name_or_path": "r.yaml:2",
        "model.revision": "base.yaml:1",
        "adapter.type": "base.yaml:2",
        "data.train.0.path": "r.yaml:3",
        "data.eval.0.path": "base.yaml:3",
    }
    assert resolved.origins["train.learning_rate"] == "base.yaml:6" and resolved.origins["train.seed"] == "r.yaml:4"


def test_a_later_base_wins_and_the_file_itself_over_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = "train: {seed: 1, max_steps: 1, logging_steps: 1}\n", "train: {seed: 2, max_steps: 2}\n"
    for child in ("extends: [base.yaml, one.yaml, two.yaml]\n", "extends:\n- base.yaml\n- one.yaml\n- two.yaml\n"):
        resolved = resolve(tmp_path, monkeypatch, r=child + "train: {seed: 3}\n", base=BASE, one=one, two=two)
        train = resolved.recipe.train
        assert (train.seed, train.max_steps, train.logging_steps) == (3, 2, 1)


def test_a_base_is_found_beside_the_file_that_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "sub__base": "extends: deeper.yaml\nadapter: none\n",
        "sub__deeper": "extends: ../base.yaml\n",
        "base": BASE,
    }
    resolved = resolve(tmp_path, monkeypatch, r="extends: sub/base.yaml\n", **texts)
    assert resolved.recipe.adapter.type == "none"
    assert resolved.origins["train.seed"] == "sub/../base.yaml:5"
    (tmp_path / "abs.yaml").write_text(f"extends: {tmp_path}/base.yaml\n")
    monkeypatch.chdir("/")
    assert load(tmp_path / "abs.yaml").recipe.output_dir == "out/base"


@pytest.mark.parametrize("data", ["c.jsonl", "{train: c.jsonl}", "{train: [c.jsonl]}", "{train: [{path: c.jsonl}]}"])
@pytest.mark.parametrize("base", ["a.jsonl", "{train: a.jsonl}", "{train: [{path: a.jsonl, weight: 2}]}"])
def test_short_forms_mean_the_same_in_every_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: str, base: str
) -> None:
    text = f"model: m\ndata: {base}\noutput_dir: o\n"
    resolved = resolve(tmp_path, monkeypatch, r=f"extends: base.yaml\ndata: {data}\n", base=text)
    assert [(s.path, s.weight) for s in resolved.recipe.data.train] == [("c.jsonl", None)]
    assert resolved.origins["data.train.0.path"] == "r.yaml:2"
    kept = resolve(tmp_path, monkeypatch, r="extends: base.yaml\ndata: {max_length: 9}\n", base=text)
    assert kept.recipe.data.train[0].path == "a.jsonl" and kept.origins["data.train.0.path"] == "base.yaml:2"


def test_synonyms_meet_across_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = BASE.replace("seed: 1", "gradient_checkpointing: true")
    child = "extends: base.yaml\ntrain: {activation_checkpointing: false}\n"
    assert resolve(tmp_path, monkeypatch, r=child, base=base).recipe.train.activation_checkpointing is False


@pytest.mark.parametrize(
    ("child", "read", "value"),
    [
        ("data: {eval: null}", lambda r: r.data.eval, None),
        ("data: {max_length: null}", lambda r: r.data.max_length, None),
        ("train: {learning_rate: null}", lambda r: r.train.learning_rate, 2e-4),
        ("train: {seed: null}", lambda r: (r.train.seed, r.train.learning_rate), (42, 1e-3)),
        ("train: null", lambda r: (r.train.seed, r.train.learning_rate), (42, 2e-4)),
        ("train:", lambda r: r.train.seed, 42),
        ("adapter: {r: null, use_dora: ~}", lambda r: (r.adapter.type, r.adapter.r, r.adapter.use_dora), LORA),
        ("adapter: null", lambda r: (r.adapter.type, r.adapter.r), ("none", 16)),
        ("data: {train: b.jsonl, eval: null}", lambda r: [s.path for s in r.data.train], ["b.jsonl"]),
        ("report_to: null", lambda r: r.report_to, ()),
    ],
)
def test_null_resets_what_a_base_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, child: str, read: Any, value: Any
) -> None:
    base = BASE.replace("adapter: lora", "adapter: {type: lora, r: 4, use_dora: true}") + "report_to: wandb\n"
    resolved = resolve(tmp_path, monkeypatch, r=f"extends: base.yaml\n{child}\n", base=base)
    assert read(resolved.recipe) == value


def test_what_null_reset_has_its_default_as_origin_and_may_be_set_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = {"r": "extends: [base.yaml, mid.yaml]\n", "mid": "train: {seed: null}\nadapter: null\n", "base": BASE}
    resolved = resolve(tmp_path, monkeypatch, **texts)
    assert {resolved.origins["train.seed"], resolved.origins["adapter.type"]} == {"default"}
    again = resolve(tmp_path, monkeypatch, "train.seed=7", **(texts | {"r": texts["r"] + "adapter: lora\n"}))
    assert (again.recipe.train.seed, again.recipe.adapter.type) == (7, "lora")
    assert (again.origins["train.seed"], again.origins["adapter.type"]) == ("override", "r.yaml:2")


def test_what_is_printed_extends_nothing_and_needs_no_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    resolved = resolve(tmp_path, monkeypatch, r="extends: base.yaml\ntrain: {seed: 2}\n", base=BASE)
    for text in (dump(resolved.recipe), as_yaml(resolved)):
        assert "extends" not in text
        (tmp_path / "again.yaml").write_text(text)
        assert load("again.yaml").recipe == resolved.recipe


def test_a_base_may_be_named_twice_where_that_is_no_circle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {
        "one": "extends: base.yaml\nadapter: none\n",
        "two": "extends: base.yaml\ntrain: {seed: 5}\n",
        "base": BASE,
    }
    recipe = resolve(tmp_path, monkeypatch, r="extends: [one.yaml, two.yaml]\n", **texts).recipe
    assert recipe.train.seed == 5
    assert recipe.adapter.type == "lora", "of the second base all that it resolves to wins, its own base included"


TREES = st.recursive(
    st.integers(0, 9) | st.none() | st.text("xy", max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, max_size=3) | st.lists(inner, max_size=2),
    max_leaves=8,
)
FILES = st.dictionaries(st.sampled_from("abc"), TREES, min_size=1, max_size=3)


def merged(base: Any, over: Any) -> Any:
    """What a merge should be, by its definition: of each key the value of the last file that has it; null drops one."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    dropped = {key for key, value in over.items() if value is None and base.get(key) is not None}
    return {
        key: merged(base[key], over[key]) if key in base and key in over else over.get(key, base.get(key))
        for key in {*base, *over} - dropped
    }


@settings(max_examples=150, deadline=None)
@given(st.lists(FILES, min_size=1, max_size=4))
def test_any_files_are_merged_by_key_and_every_value_knows_the_file_it_is_from(files: list[dict[str, Any]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for index, content in enumerate(files):
            Path(folder, f"{index}.yaml").write_text(json.dumps(content))
        names = [f"{index}.yaml" for index in range(len(files) - 1)]
        top = {"extends": names, **files[-1]} if names else files[-1]
        Path(folder, "r.yaml").write_text(json.dumps(top))
        document = read_recipe(f"{folder}/r.yaml")
    expected = files[0]
    for content in files[1:]:
        expected = merged(expected, content)
    assert document.value == expected
    for path, value in leaves(document.value):
        name = Path(document.places[path].source).stem
        origin: Any = files[-1] if name == "r" else files[int(name)]
        for part in path:
            origin = origin[part]
        assert origin == value or value == {}, "but for a section that null emptied"


@pytest.mark.parametrize(
    ("overrides", "read", "value"),
    [
        (["~train.seed"], lambda r: r.train.seed, 42),
        (["~train"], lambda r: (r.train.seed, r.train.learning_rate), (42, 2e-4)),
        (["~data.eval"], lambda r: r.data.eval, None),
        (["~data.train.0"], lambda r: [s.path for s in r.data.train], ["b.jsonl"]),
        (["~data.train.0", "data.train.1=c.jsonl"], lambda r: [s.path for s in r.data.train], ["b.jsonl", "c.jsonl"]),
        (["~train.seed", "train.seed=3"], lambda r: r.train.seed, 3),
        (["train.seed=3", "~train.seed"], lambda r: r.train.seed, 42),
        (["train.max_steps=3", "~train.max_steps"], lambda r: r.train.max_steps, None),
        (["~model.revision", "model.revision=v1"], lambda r: r.model.revision, "v1"),
        (["train.gradient_checkpointing=true", "~train.activation_checkpointing"], lambda r: r.train.seed, 1),
    ],
)
def test_dropped_values_are_back_at_their_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, overrides: list[str], read: Any, value: Any
) -> None:
    assert read(resolve(tmp_path, monkeypatch, *overrides, r="extends: base.yaml\n", base=BASE).recipe) == value


def test_origins_after_an_item_of_a_list_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "model: m\ndata:\n  train:\n  - a\n  - path: o/b\n    split: x\n  - c\noutput_dir: o\n"
    resolved = resolve(tmp_path, monkeypatch, "~data.train.0", r=text)
    assert [source.path for source in resolved.recipe.data.train] == ["o/b", "c"]
    assert resolved.origins["data.train.0.path"] == "r.yaml:5" and resolved.origins["data.train.0.split"] == "r.yaml:6"
    assert resolved.origins["data.train.1.path"] == "r.yaml:7"


def test_set_and_arguments_reach_the_recipe_in_their_order(tmp_path: Path) -> None:
    write(tmp_path, r=BASE)
    command = [sys.executable, "-m", "tunekit", "show", "r.yaml", "train.seed=5", "~data.eval", "--set", "train.seed=6"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert any(line.split()[:2] == ["seed:", "6"] and line.endswith("# override") for line in done.stdout.splitlines())
    assert any(line.startswith("  eval: null") for line in done.stdout.splitlines())
