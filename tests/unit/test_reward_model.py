"""Models as judges: rewards and probabilities are transformers' own, and what is no judge is refused."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForSequenceClassification, pipeline

from tunekit.data.rows import Prompt
from tunekit.errors import RecipeError
from tunekit.models import builtin
from tunekit.models.reward import load_reward_model
from tunekit.models.tiny_random import tokenizer
from tunekit.rollout.rewards import make_rewards, score
from tunekit.rollout.samples import Response
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


def test_a_text_that_is_too_long_loses_its_beginning_and_that_is_said_once(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(folder, tmp_path / "short")
    config = json.loads((tmp_path / "short" / "config.json").read_text())
    (tmp_path / "short" / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 40}))
    short, whole = (load_reward_model(str(path), "float32") for path in (tmp_path / "short", folder))
    texts = [f"{'ab' * 30}{i} and the end of the text, of 40 bytes.."[-50:] for i in range(3)]
    for _ in range(2):
        assert short.rewards(["brief", *texts]) == pytest.approx(whole.rewards(["brief", *(t[-40:] for t in texts)]))
    assert (short.context.cut, short.context.seen, whole.context.cut) == (6, 8, 0)
    (said,) = (record.getMessage() for record in caplog.records if "reads 40 tokens" in record.getMessage())
    assert "3 of the first 4 texts are longer" in said and "beginning" in said


def asked(text: str, *, ended: bool = True, prompt: Any = ({"role": "user", "content": "Why?"},)) -> Response:
    rendered = f"<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n{text}"
    return Response(Prompt(prompt, "rows.jsonl:1"), text, 9, ended, rendered + "<|im_end|>" * ended)


@pytest.fixture(scope="module")
def foreign(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights with other marks and another chat template, which takes no system message."""
    made = tmp_path_factory.mktemp("foreign") / "judge"
    shutil.copytree(folder, made)
    for file in made.glob("*token*.json"):
        file.write_text(file.read_text().replace("<|im_start|>", "<<open>>").replace("<|im_end|>", "<<close>>"))
    (made / "chat_template.jinja").write_text(
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
        "[{{ m.role }}]{{ m.content }}<<close>>{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    return made


def rewards_of(name: Path, responses: list[Response], **more: Any) -> list[float]:
    keys = dict.fromkeys(("function", "label", "extract", "pattern", "target", "schema_path"))
    settings = [keys | {"model": str(name), "weight": 1.0} | more]
    made = make_rewards(settings, allow_code=False, tokenizer=tokenizer(), dtype="float32")
    return score(made, responses, limit=0.5).total.tolist()


def test_a_model_with_the_tokens_of_the_policy_reads_what_it_wrote(folder: Path) -> None:
    responses = [asked("Because."), asked("As I", ended=False), asked("x", prompt="raw")]
    wanted = load_reward_model(str(folder), "float32").rewards([each.rendered for each in responses])
    assert rewards_of(folder, responses) == pytest.approx(wanted, abs=1e-5)


def test_a_model_with_another_tokenizer_reads_prompt_and_answer_in_its_own_template(
    foreign: Path, caplog: pytest.LogCaptureFixture
) -> None:
    responses = [asked("Because."), asked("As I", ended=False), asked(" indeed", prompt="It is")]
    read = ["[user]Why?<<close>>[assistant]Because.<<close>>", "[user]Why?<<close>>[assistant]As I", "It is indeed"]
    judge = load_reward_model(str(foreign), "float32")
    with caplog.at_level(logging.INFO, logger="tunekit"):
        found = rewards_of(foreign, responses)
    assert found == pytest.approx(judge.rewards(read), abs=1e-5)
    assert found != pytest.approx(judge.rewards([each.rendered for each in responses]), abs=1e-3)
    said = [record.getMessage() for record in caplog.records if "than the policy" in record.getMessage()]
    assert len(said) == 1 and "another tokenizer" in said[0]


def test_what_the_template_of_the_model_refuses_is_a_failed_reward(
    foreign: Path, caplog: pytest.LogCaptureFixture
) -> None:
    system = ({"role": "system", "content": "Be kind."}, {"role": "user", "content": "Why?"})
    found = rewards_of(foreign, [asked("a"), asked("b", prompt=system), asked("c")])
    assert np.isnan(found).tolist() == [False, True, False]
    assert found[2] == pytest.approx(rewards_of(foreign, [asked("c")])[0], abs=1e-5)
    assert "no system" in caplog.text


def test_a_model_without_a_template_reads_the_marks_of_the_policy_and_that_is_said(
    foreign: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(foreign, tmp_path / "plain")
    (tmp_path / "plain" / "chat_template.jinja").unlink()
    found = rewards_of(tmp_path / "plain", [asked("Because.")])
    judge = load_reward_model(str(foreign), "float32")
    assert found == pytest.approx(judge.rewards([asked("Because.").rendered]), abs=1e-5)
    assert "no chat template" in caplog.text


@pytest.fixture(scope="module", params=["single_label_classification", "multi_label_classification"])
def moods(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(1)
    made = tmp_path_factory.mktemp("moods")
    labels = {0: "NEGATIVE", 1: "neutral", 2: "POSITIVE"}
    model = AutoModelForSequenceClassification.from_pretrained(
        builtin.resolve("tiny-random/llama"), num_labels=3, id2label=labels, problem_type=request.param
    )
    model.config.pad_token_id = tokenizer().pad_token_id
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(made)
    tokenizer().save_pretrained(made)
    return made


def test_a_label_gives_the_probability_that_the_pipeline_gives(moods: Path) -> None:
    texts = ["Fine.", "x" * 70, "A longer answer, not so good.", "?"]
    classify = pipeline("text-classification", model=str(moods), top_k=None, dtype=torch.float32)
    wanted = [{each["label"]: each["score"] for each in found}["POSITIVE"] for found in classify(texts)]
    found = rewards_of(moods, [asked(text) for text in texts], label="positive")
    assert found == pytest.approx(wanted, abs=1e-4)
    assert max(found) - min(found) > 0.01


def test_an_empty_answer_has_a_probability_too(moods: Path) -> None:
    (alone,), (_, beside) = (
        rewards_of(moods, [asked(t) for t in texts], label="neutral") for texts in ([""], ["a", ""])
    )
    assert 0 < alone < 1 and alone == pytest.approx(beside, abs=1e-5)


def test_labels_that_a_model_does_not_have_are_refused(moods: Path, folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"no such label\nIt has: NEGATIVE, neutral, POSITIVE"):
        rewards_of(moods, [], label="happy")
    with pytest.raises(RecipeError, match="is no classifier: it has one output"):
        rewards_of(folder, [], label="positive")
    with pytest.raises(RecipeError, match="is no classifier: its head is missing"):
        rewards_of(Path("tiny-random/llama"), [], label="positive")
