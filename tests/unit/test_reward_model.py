"""Preferences by a reward model: its rewards are transformers' own, and what is none is refused."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, pipeline

from tunekit.errors import RecipeError
from tunekit.models import builtin
from tunekit.models.reward import load_reward_model
from tunekit.models.tiny_random import tokenizer
from tunekit.stages import evaluate


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    made = tmp_path_factory.mktemp("reward")
    base = builtin.resolve("tiny-random/llama")
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.pad_token_id = tokenizer().pad_token_id
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(made)
    tokenizer().save_pretrained(made)
    return made


def test_rewards_are_those_of_the_pipeline_whatever_the_batch(folder: Path) -> None:
    texts = ["A short one.", "x" * 90, "Another text of some length.", "y"]
    classify = pipeline("text-classification", model=str(folder), function_to_apply="none", dtype=torch.float32)
    wanted = [each["score"] for each in classify(texts)]
    for size in (1, 3):
        assert load_reward_model(str(folder), "float32", size).rewards(texts) == pytest.approx(wanted, abs=1e-4)


def test_accuracy_is_how_often_the_better_answer_has_the_higher_reward(folder: Path, tmp_path: Path) -> None:
    pairs = [{"q": f"Say {i}.", "good": "ab" * (i % 5 + 1), "bad": "zq" * (i % 3 + 1)} for i in range(1, 13)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    task = {"task": "mine", "kind": "preference", "data": {"path": "rows.jsonl"}, "prompt": "{{ q }}", "chat": True,
            "chosen": "{{ good }}", "rejected": "{{ bad }}", "metrics": ["accuracy"]}  # fmt: skip
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(task))
    found = evaluate.run(str(folder), [str(tmp_path / "mine.yaml")], dtype="float32")["tasks"]["mine"]
    tok, model = tokenizer(), load_reward_model(str(folder), "float32")

    def reward(row: dict[str, str], answer: str) -> float:
        turns = [{"role": "user", "content": row["q"]}, {"role": "assistant", "content": row[answer]}]
        return model.rewards([tok.apply_chat_template(turns, tokenize=False)])[0]

    wanted = sum(reward(row, "good") > reward(row, "bad") for row in pairs) / len(pairs)
    assert found["scores"]["accuracy"]["value"] == wanted and 0 < wanted < 1


def test_a_model_that_gives_no_reward_is_refused(folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"no reward model: its head is missing \(score.weight\)"):
        load_reward_model("tiny-random/llama")
    with pytest.raises(RecipeError, match="measure them apart"):
        evaluate.run(str(folder), ["blimp", str(_task(folder))], limit=2)


def _task(folder: Path) -> Path:
    file = folder / "p.yaml"
    (folder / "rows.jsonl").write_text('{"q": "a", "good": "b", "bad": "c"}\n')
    file.write_text(
        'task: p\nkind: preference\ndata: {path: rows.jsonl}\nprompt: "{{ q }}"\nchosen: "{{ good }}"\n'
        'rejected: "{{ bad }}"\nmetrics: [accuracy]\n'
    )
    return file
