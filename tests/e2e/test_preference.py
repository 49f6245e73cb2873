"""Whole runs of dpo, kto and reward, as a user starts them, on a tiny random model."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from peft import AutoPeftModelForCausalLM
from preferences import ROWS, pairs, result_of, run, unprove, write_recipe, write_rows
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer, pipeline
from typer.testing import CliRunner, Result

from tunekit.cli import app
from tunekit.models.fixed_rewards import TEXTS
from tunekit.models.reward import load_reward_model
from tunekit.recipe.load import load
from tunekit.stages import evaluate

LN2 = 0.6931471805599453
RUNS = [(stage, adapter) for stage in ("dpo", "kto", "reward") for adapter in ("lora", "none")]
OWN_LOSS = """
import torch.nn.functional as F

def mine(pairs, *, beta, label_smoothing):
    print("beta", beta, "smoothing", label_smoothing)
    return F.softplus(-beta * pairs.margin) + label_smoothing

def greedy(pairs, *, tau):
    return pairs.margin
"""


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("TUNEKIT_CACHE", str(folder))
        yield folder


@pytest.fixture
def unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    unprove(monkeypatch)


def tunekit(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def said(done: Result) -> str:
    return " ".join(done.stderr.split())


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> dict[tuple[str, str], Path]:
    """The folder of each of `RUNS`, two of them from a process of their own and with the proof of the artefact."""
    folder, folders = tmp_path_factory.mktemp("runs"), {}
    for stage, adapter in RUNS:
        recipe = write_recipe(folder / f"{stage}-{adapter}", stage, adapter=adapter, save="{steps: 1, total_limit: 9}")
        folders[stage, adapter] = recipe.parent / "out"
        if (stage, adapter) in (("dpo", "none"), ("reward", "lora")):
            command = [sys.executable, "-m", "tunekit", stage, str(recipe), "--json"]
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=180)
            assert done.returncode == 0, done.stderr
            assert json.loads(done.stdout) == result_of(recipe.parent / "out")
            continue
        with pytest.MonkeyPatch.context() as patch:
            unprove(patch)
            done = tunekit(stage, recipe, "--json")
        assert done.exit_code == 0, done.stderr
    return folders


def metrics_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(("stage", "adapter"), RUNS)
def test_a_run_says_what_it_did(runs: dict[tuple[str, str], Path], stage: str, adapter: str) -> None:
    out = runs[stage, adapter]
    result, metrics = result_of(out), metrics_of(out)
    assert (result["stage"], result["status"], result["exit_code"], result["steps"]) == (stage, "done", 0, 4)
    trained = [row for row in metrics if "loss" in row]
    assert [row["step"] for row in trained] == [1, 2, 3, 4] and all(row["weight"] == 2 for row in trained)
    watched = {"reward_chosen", "reward_rejected"}
    watched |= {"logps_chosen", "logps_rejected", "kl"} if stage != "reward" else set()
    watched |= {"accuracy", "margin"} if stage != "kto" else set()
    watched |= {"length_chosen", "length_rejected"} if stage == "dpo" else set()
    # Of two labelled answers both may be wanted.
    seen = set().union(*trained)
    assert watched <= seen and {f"eval_{name}" for name in watched} | {"eval_loss"} <= result["after"].keys()
    assert result["after"]["eval_loss"] != result["before"]["eval_loss"]
    assert all(Path(path).exists() for path in result["paths"].values())


def test_dpo_starts_at_a_loss_of_ln_2_and_a_margin_of_0(runs: dict[tuple[str, str], Path]) -> None:
    for adapter in ("lora", "none"):
        before, first, second = metrics_of(runs["dpo", adapter])[:3]
        assert before["eval_loss"] == pytest.approx(LN2, abs=1e-6) and first["loss"] == pytest.approx(LN2, abs=1e-6)
        assert before["eval_margin"] == pytest.approx(0, abs=1e-5) and first["margin"] == pytest.approx(0, abs=1e-5)
        assert before["eval_accuracy"] == 0.5 == first["accuracy"] and abs(second["margin"]) > 1e-3
    before, first = metrics_of(runs["kto", "lora"])[:2]
    assert before["eval_loss"] == pytest.approx(0.5, abs=1e-6) and first["loss"] == pytest.approx(0.5, abs=1e-6)
    assert before["eval_kl"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("stage", ["dpo", "kto"])
def test_an_aligned_model_loads_as_any_other(runs: dict[tuple[str, str], Path], stage: str) -> None:
    adapted = AutoPeftModelForCausalLM.from_pretrained(runs[stage, "lora"] / "model")
    assert any("lora" in name for name, _ in adapted.named_parameters())
    _, info = AutoModelForCausalLM.from_pretrained(runs[stage, "none"] / "model", output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert "pipeline_tag: text-generation" in (runs[stage, "lora"] / "model" / "README.md").read_text()


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_a_reward_model_is_an_ordinary_classifier_with_one_output(
    runs: dict[tuple[str, str], Path], adapter: str
) -> None:
    folder = runs["reward", adapter] / "model"
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"] and model.config.num_labels == 1
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        alone = [float(model(**tokenizer(text, return_tensors="pt")).logits) for text in TEXTS]
    assert max(alone) - min(alone) > 1e-2
    classify = pipeline("text-classification", model=str(folder), dtype=torch.float32)
    assert [each["score"] for each in classify(TEXTS, batch_size=5)] == pytest.approx(alone, abs=1e-4)
    assert load_reward_model(str(folder.parent), "float32", 3).rewards(TEXTS) == pytest.approx(alone, abs=1e-4)
    card = (folder / "README.md").read_text()
    assert "pipeline_tag: text-classification" in card and "A reward model from" in card
    assert "tunekit chat" not in card and "AutoPeft" not in card
    assert json.loads((folder / "tunekit.json").read_text())["base_model"]["name"] == "tiny-random/llama"
    assert (folder.parent / "adapter" / "adapter_config.json").exists() == (adapter == "lora")


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_the_rewards_of_the_artefact_are_those_that_were_measured(
    runs: dict[tuple[str, str], Path], adapter: str
) -> None:
    """By the tokenizer's own template, in the run's figures and in a task of kind preference."""
    out = runs["reward", adapter]
    model, result = load_reward_model(str(out), "float32"), result_of(out)
    rewards = [
        model.rewards([model.tokenizer.apply_chat_template([*row["prompt"], *row[name]], tokenize=False)])[0]
        for row in pairs()[:4]
        for name in ("chosen", "rejected")
    ]
    margins = [chosen - rejected for chosen, rejected in zip(rewards[::2], rewards[1::2], strict=True)]
    figures = result["reward"]
    assert figures["margin"] == pytest.approx(sum(margins) / 4, abs=1e-3)
    assert figures["accuracy"]["value"] == sum(margin > 0 for margin in margins) / 4 == result["after"]["eval_accuracy"]
    assert figures["accuracy"]["low"] < figures["accuracy"]["value"] < figures["accuracy"]["high"]
    assert 0 < figures["ece"] < 1 and -1 <= figures["length_correlation"] <= 1 and figures["pairs"] == 4

    turns = [{**row, "prompt": row["prompt"][-1]["content"]} for row in pairs()[:4]]
    task = {"task": "mine", "kind": "preference", "data": {"path": "rows.jsonl"}, "prompt": "{{ prompt }}",
            "chat": True, "chosen": "{{ chosen[0].content }}", "rejected": "{{ rejected[0].content }}",
            "metrics": ["accuracy"]}  # fmt: skip
    write_rows(out.parent / "rows.jsonl", turns)
    (out.parent / "mine.yaml").write_text(yaml.safe_dump(task))
    measured = evaluate.run(str(out), [str(out.parent / "mine.yaml")], dtype="float32")["tasks"]["mine"]
    assert all(len(row["prompt"]) == 1 for row in pairs()[:4]), "the task asks the last turn alone"
    assert measured["scores"]["accuracy"]["value"] == figures["accuracy"]["value"]


def test_a_loss_of_the_users_own_runs_where_it_is_allowed(
    tmp_path: Path, unproven: None, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "losses.py").write_text(OWN_LOSS)
    loss = f"objective.loss={tmp_path}/losses.py:mine"
    recipe = write_recipe(tmp_path, "dpo")
    for verb in ("dpo", "check"):
        refused = tunekit(verb, recipe, loss)
        assert refused.exit_code == 2 and "--allow-code" in refused.output, refused.output
    assert not (tmp_path / "out" / "model").exists()
    done = tunekit("dpo", recipe, loss, "objective.beta=0.25", "objective.label_smoothing=0.125", "--allow-code")
    assert done.exit_code == 0, done.stderr
    digest = hashlib.sha256((tmp_path / "losses.py").read_bytes()).hexdigest()
    assert "beta 0.25 smoothing 0.125" in done.stderr and digest in caplog.text
    assert result_of(tmp_path / "out")["before"]["eval_loss"] == pytest.approx(LN2 + 0.125, abs=1e-5)
    checked = tunekit("check", recipe, loss, f"output_dir={tmp_path}/other", "--allow-code")
    assert checked.exit_code == 0, checked.output


@pytest.mark.parametrize(
    ("name", "words"),
    [("greedy", "takes tau"), ("nothing", "has no function nothing"), ("../mine", "no such Python file")],
)
def test_a_loss_that_is_not_there_or_takes_another_key_is_told(tmp_path: Path, name: str, words: str) -> None:
    (tmp_path / "losses.py").write_text(OWN_LOSS)
    place = f"{tmp_path}/{name}.py:mine" if "/" in name else f"{tmp_path}/losses.py:{name}"
    done = tunekit("dpo", write_recipe(tmp_path, "dpo"), f"objective.loss={place}", "--allow-code")
    assert done.exit_code == 2 and words in said(done) and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("stage", "rows", "command"),
    [
        ("dpo", "sft", "tunekit sft"),
        ("dpo", "kto", "tunekit kto"),
        ("kto", "dpo", "tunekit dpo or reward"),
        ("kto", "sft", "tunekit sft"),
        ("reward", "sft", "tunekit sft"),
        ("reward", "kto", "tunekit kto"),
        ("sft", "kto", "tunekit kto"),
    ],
)
def test_rows_of_another_kind_are_refused_with_the_command_for_them(
    tmp_path: Path, stage: str, rows: str, command: str
) -> None:
    recipe = write_recipe(tmp_path, stage)
    write_rows(tmp_path / "train.jsonl", ROWS[rows]())
    write_rows(tmp_path / "eval.jsonl", ROWS[rows]()[:2])
    done = tunekit(stage, recipe)
    assert done.exit_code == 3 and command in said(done), done.stderr


@pytest.mark.parametrize(("stage", "adapter"), RUNS)
def test_check_passes_and_leaves_nothing(tmp_path: Path, stage: str, adapter: str) -> None:
    recipe = write_recipe(tmp_path, stage, adapter=adapter)
    done = tunekit("check", recipe)
    assert done.exit_code == 0, done.output
    assert "2 optimizer steps" in done.stdout and not (tmp_path / "out").exists()


def test_the_best_model_by_accuracy_is_taken_at_the_end(tmp_path: Path, unproven: None) -> None:
    evaluation = "{steps: 1, metric_for_best_model: eval_accuracy, load_best_model_at_end: true}"
    recipe = write_recipe(tmp_path, "reward", eval=evaluation)
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in pairs()[:4]]
    write_rows(tmp_path / "train.jsonl", swapped)  # so that what is learnt is wrong
    result = run(recipe, "reward", "train.max_steps=12", "train.seed=1")
    found = {row["step"]: row["eval_accuracy"] for row in metrics_of(tmp_path / "out") if "eval_accuracy" in row}
    best = max(list(found)[1:], key=lambda step: found[step])
    assert found[best] > found[12], "the last model is not the best"
    assert result["best_step"] == best and result["after"]["eval_accuracy"] == found[best]
    assert result["reward"]["accuracy"]["value"] == found[best]


def test_the_verb_says_what_a_recipe_without_a_stage_is(tmp_path: Path) -> None:
    recipe = write_recipe(tmp_path, "dpo")
    recipe.write_text(recipe.read_text().replace("stage: dpo\n", ""))
    assert load(str(recipe), (), "reward").recipe.objective.loss == ("bradley_terry",)
    done = tunekit("kto", write_recipe(tmp_path / "other", "dpo"))
    assert done.exit_code == 2 and "tunekit dpo" in said(done)
