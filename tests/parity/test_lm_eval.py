"""Likelihoods, choices, perplexities and answers equal those of lm-evaluation-harness on the same items and model."""

import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from lm_eval import evaluator
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from tunekit.errors import DataError
from tunekit.evals.answers import Subject
from tunekit.evals.score import TaskResult, run_task
from tunekit.evals.task import find_task
from tunekit.models.policy import Policy
from tunekit.models.serve import load_for_inference
from tunekit.stages import evaluate

ROWS: dict[str, list[dict[str, Any]]] = {
    "choice": [
        {
            "question": f"What comes after {i}?",
            "choices": [str(i + 1), f"the number {i - 1}", "nothing", "many things, such as this"][: 2 + i % 3],
            "label": i % 2,
        }
        for i in range(24)
    ],
    "pairs": [{"good": f"The cats {i} sleep.", "bad": f"The cats {i} sleeps."} for i in range(20)],
    "text": [
        {"page": "Once upon a time there was a king.  He had\nthree daughters. " * (1 + 40 * (i % 2))} for i in range(4)
    ],
    "sums": [{"question": f"{i} plus {i}?", "answer": str(2 * i)} for i in range(8)],
    "label": [{"sentence": f"He {word} it {i}.", "label": i % 2} for i, word in enumerate(["like", "sees"] * 8)],
}
OURS: dict[str, dict[str, Any]] = {
    "choice": {
        "kind": "multiple_choice",
        "prompt": "Question: {{ question }}\nAnswer:",
        "choices": "choices",
        "answer": "{{ label }}",
        "metrics": ["accuracy", "acc_norm"],
        "few_shot": 2,
        "examples": [{"question": "Is it?", "choices": ["yes", "no"], "label": 1}, ROWS["choice"][0]],
    },
    "pairs": {
        "kind": "multiple_choice",
        "choices": ["{{ good }}", "{{ bad }}"],
        "answer": 0,
        "metrics": ["accuracy"],
    },
    "text": {
        "kind": "perplexity",
        "prompt": "{{ page }}",
        "metrics": ["word_perplexity", "byte_perplexity", "bits_per_byte"],
    },
    "sums": {
        "kind": "generate",
        "prompt": "Q: {{ question }}\nA:",
        "answer": "{{ answer }}",
        "metrics": ["exact_match"],
        "generation": {"max_new_tokens": 12, "stop": ["e", "\n"]},
    },
    "label": {
        "kind": "multiple_choice",
        "prompt": "{{ sentence }}\nQuestion: Is this right?\nAnswer: ",  # the space belongs to the choice
        "choices": ["no", "yes"],
        "answer": "{{ label }}",
        "delimiter": "",
        "metrics": ["accuracy", "matthews"],
    },
}
THEIRS: dict[str, dict[str, Any]] = {
    "choice": {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "label",
        "doc_to_choice": "choices",
        "num_fewshot": 2,
        "fewshot_config": {"sampler": "first_n", "samples": OURS["choice"]["examples"]},
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    },
    "pairs": {
        "output_type": "multiple_choice",
        "doc_to_text": "",
        "doc_to_target": 0,
        "doc_to_choice": "{{[good, bad]}}",
        "metric_list": [{"metric": "acc"}],
    },
    "text": {
        "output_type": "loglikelihood_rolling",
        "doc_to_text": "",
        "doc_to_target": "{{page}}",
        "metric_list": [{"metric": "word_perplexity"}, {"metric": "byte_perplexity"}, {"metric": "bits_per_byte"}],
    },
    "sums": {
        "output_type": "generate_until",
        "doc_to_text": "Q: {{question}}\nA:",
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["e", "\n"], "max_gen_toks": 12, "do_sample": False},
        "metric_list": [{"metric": "exact_match"}],
    },
    "label": {
        "output_type": "multiple_choice",
        "doc_to_text": "{{sentence}}\nQuestion: Is this right?\nAnswer: ",
        "doc_to_target": "label",
        "doc_to_choice": ["no", "yes"],
        "target_delimiter": "",
        "metric_list": [{"metric": "acc"}, {"metric": "mcc"}],
    },
}


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, bool], tuple[TaskResult, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("tasks")
    model, tokenizer = load_for_inference("tiny-random/llama", "float32", attn_implementation="auto")
    policy = Policy(model, model.dtype, tokenizer.pad_token_id)
    policy.prove(evaluate.probes(tokenizer))
    plain, _ = load_for_inference("tiny-random/llama", "float32")
    harness = HFLM(pretrained=plain, tokenizer=tokenizer, batch_size=4)

    def run(name: str, chat: bool = False) -> tuple[TaskResult, dict[str, Any]]:
        file = folder / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in ROWS[name]))
        (folder / f"{name}.yaml").write_text(
            yaml.safe_dump({"task": name, "data": {"path": str(file)}, **OURS[name], "chat": chat})
        )
        ours = run_task(find_task(str(folder / f"{name}.yaml")), Subject(policy, tokenizer, batch_size=3))
        data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(file)}}, "test_split": "test"}
        theirs = evaluator.simple_evaluate(
            model=harness,
            tasks=[{"task": name, **data, **THEIRS[name]}],
            task_manager=TaskManager(include_defaults=False),
            bootstrap_iters=0,
            apply_chat_template=chat,
            fewshot_as_multiturn=chat,
        )
        theirs["samples"][name].sort(key=lambda sample: sample["doc_id"])
        return ours, theirs

    os.environ["HF_DATASETS_CACHE"] = str(folder / "cache")
    return run


def figures(theirs: dict[str, Any], name: str) -> dict[str, float]:
    return {key.partition(",")[0]: value for key, value in theirs["results"][name].items()}


@pytest.mark.parametrize(
    ("name", "chat", "scores"),
    [
        ("choice", False, {"accuracy": "acc", "acc_norm": "acc_norm"}),
        ("choice", True, {"accuracy": "acc", "acc_norm": "acc_norm"}),
        ("pairs", False, {"accuracy": "acc"}),
        ("label", False, {"accuracy": "acc", "matthews": "mcc"}),
    ],
)
def test_choices(both: Any, name: str, chat: bool, scores: dict[str, str]) -> None:
    ours, theirs = both(name, chat)
    for reply, sample in zip(ours.replies, theirs["samples"][name], strict=True):
        wanted = [float(answer[0]) for answer in sample["filtered_resps"]]
        assert list(reply.loglikelihoods) == pytest.approx(wanted, abs=1e-4)
        assert reply.item.gold == sample["target"] or reply.item.gold == int(sample["target"])
    for mine, yours in scores.items():
        assert ours.scores[mine].value == pytest.approx(figures(theirs, name)[yours], abs=1e-6), mine


def test_perplexities_also_of_texts_longer_than_the_context(both: Any) -> None:
    ours, theirs = both("text")
    assert max(len(str(reply.item.prompt)) for reply in ours.replies) > 2048, "of bytes, one token each"
    for reply, sample in zip(ours.replies, theirs["samples"]["text"], strict=True):
        wanted = sample["filtered_resps"][0]
        assert reply.loglikelihoods[0] == pytest.approx(
            wanted[0] if isinstance(wanted, list | tuple) else wanted, rel=1e-6
        )
    for name in ("word_perplexity", "byte_perplexity", "bits_per_byte"):
        value = figures(theirs, "text")[name]
        assert math.log(ours.scores[name].value) == pytest.approx(math.log(value), abs=1e-4)


def test_written_answers_and_their_exact_match(both: Any) -> None:
    ours, theirs = both("sums")
    wanted = [sample["filtered_resps"][0].strip() for sample in theirs["samples"]["sums"]]
    assert [reply.answered.completion for reply in ours.replies] == wanted and any(wanted)
    assert ours.scores["exact_match"].value == figures(theirs, "sums")["exact_match"]


def test_the_harness_itself_runs_its_tasks_on_local_rows(both: Any, tmp_path: Path) -> None:
    ours, theirs = both("label")
    file = tmp_path / "label.yaml"
    file.write_text(
        yaml.safe_dump({"task": "label", "dataset_path": "some/where", "test_split": "x", **THEIRS["label"]})
    )
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS["label"]))
    options: dict[str, Any] = {"engine": "lm-eval", "dtype": "float32", "batch_size": 4}
    result = evaluate.run("tiny-random/llama", [str(file)], data={str(file): str(rows)}, **options)
    (found,) = result["tasks"].values()
    assert found["scores"]["acc"]["value"] == ours.scores["accuracy"].value and found["n"] == 16
    assert found["scores"]["acc"]["low"] == ours.scores["accuracy"].low
    assert found["scores"]["mcc"]["value"] == pytest.approx(figures(theirs, "label")["mcc"])
    assert evaluate.render(result)


def test_a_task_of_the_harness_is_found_without_looking_through_all_of_them(tmp_path: Path) -> None:
    rows = [
        {"question": f"{i}?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"} for i in range(6)
    ]
    file = tmp_path / "arc.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = evaluate.run("tiny-random/llama", ["arc_easy"], data={"arc_easy": str(file)}, engine="lm-eval", limit=4)
    assert result["tasks"]["arc_easy"]["n"] == 4 and set(result["tasks"]["arc_easy"]["scores"]) == {"acc", "acc_norm"}
    file.write_text('{"question": "no choices"}\n')
    with pytest.raises(DataError, match="do not have what the task reads"):
        evaluate.run("tiny-random/llama", ["arc_easy"], data={"arc_easy": str(file)}, engine="lm-eval")
