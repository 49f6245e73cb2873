"""Scores are those of the model: no batch size, packing or order changes them."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tunekit.cli import app
from tunekit.errors import RecipeError
from tunekit.evals.answers import Subject
from tunekit.evals.likelihood import score
from tunekit.evals.score import run_task
from tunekit.evals.task import find_task
from tunekit.models.attention import SEGMENTS
from tunekit.models.policy import Policy
from tunekit.models.serve import load_for_inference
from tunekit.stages import evaluate, report

ROWS = [
    {"q": f"What is {i} and {i * 7}?" + " Say." * (i % 5), "options": [str(8 * i), "none", "x" * (i % 9 + 1)]}
    for i in range(40)
]


@pytest.fixture(scope="module", params=["float32", "bfloat16"])
def subject(request: pytest.FixtureRequest) -> Subject:
    model, tokenizer = load_for_inference("tiny-random/llama", request.param, attn_implementation="auto")
    policy = Policy(model, model.dtype, tokenizer.pad_token_id)
    policy.prove(evaluate.probes(tokenizer))
    assert policy.flat
    return Subject(policy, tokenizer, batch_size=4)


def bound(subject: Subject) -> float:
    """In nats, of sums of up to 45 tokens."""
    return 1e-4 if subject.policy.dtype.itemsize == 4 else 0.5


def rows_of(subject: Subject) -> list[tuple[list[int], int]]:
    texts = [f"{row['q']} {option}" for row in ROWS for option in row["options"]]
    return [(ids, 3) for ids in subject.tokenizer(texts)["input_ids"]]


def totals(subject: Subject, rows: list[tuple[list[int], int]], **options: Any) -> list[float]:
    return [each.total for each in score(subject.policy, rows, **options)]


def test_likelihoods_do_not_depend_on_the_size_of_batches(subject: Subject) -> None:
    rows = rows_of(subject)
    alone = totals(subject, rows, batch_tokens=1)
    for size in (64, 500, 100_000):
        assert totals(subject, rows, batch_tokens=size) == pytest.approx(alone, abs=bound(subject))


def test_likelihoods_do_not_depend_on_the_order(subject: Subject) -> None:
    rows = rows_of(subject)
    order = list(range(len(rows)))
    random.Random(0).shuffle(order)
    mixed = totals(subject, [rows[i] for i in order])
    assert [mixed[order.index(i)] for i in range(len(rows))] == pytest.approx(totals(subject, rows), abs=bound(subject))


def test_padded_batches_give_what_packed_ones_give(subject: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = rows_of(subject)
    packed = totals(subject, rows)
    monkeypatch.setattr(subject.policy, "flat", False)
    subject.policy.causal.set_attn_implementation("sdpa")
    try:
        assert totals(subject, rows) == pytest.approx(packed, abs=bound(subject))
    finally:
        subject.policy.causal.set_attn_implementation(SEGMENTS)


def test_a_row_over_the_context_keeps_its_end(subject: Subject) -> None:
    (ids, _), *_ = rows_of(subject)
    (whole,) = score(subject.policy, [(ids[-10:], 7)])
    (cut,) = score(subject.policy, [([5] * 90 + ids[-10:], 97)], room=10)
    assert cut.cut == 90 and cut.total == pytest.approx(whole.total) and cut.num_tokens == 3


@pytest.fixture
def task(tmp_path: Path) -> Path:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    content = {
        "task": "mine",
        "kind": "generate",
        "data": {"path": "rows.jsonl"},
        "prompt": "{{ q }}",
        "answer": "{{ options }}",
        "generation": {"max_new_tokens": 5},
        "metrics": ["exact_match", "token_f1"],
    }
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content))
    return tmp_path / "mine.yaml"


def test_written_answers_do_not_depend_on_the_batch_size(subject: Subject, task: Path) -> None:
    if subject.policy.dtype.itemsize == 2:
        pytest.skip("in bf16 the likeliest of two tokens may change by rounding")
    found = find_task(str(task))
    first, second = (run_task(found, Subject(subject.policy, subject.tokenizer, size)) for size in (1, 7))
    assert [each.answered for each in first.replies] == [each.answered for each in second.replies]
    assert first.scores == second.scores


def test_an_item_that_leaves_no_room_for_an_answer_is_not_answered_and_said(
    subject: Subject, task: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = {"q": "long " * 500, "options": ["x"]}
    (task.parent / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [ROWS[0], long, ROWS[1]]))
    result = run_task(find_task(str(task)), subject)
    first, second, third = result.replies
    assert second.answered.completion == "" and second.cut and first.answered.completion and third.answered.completion
    assert "1 of 3 items do not fit the model's context: not answered" in caplog.text


def test_the_command_writes_scores_and_every_answer(task: Path, tmp_path: Path) -> None:
    words = ["eval", "tiny-random/llama", "--tasks", f"{task},blimp", "--limit", "6", "--output", str(tmp_path / "out")]
    train = tmp_path / "train.jsonl"
    train.write_text(json.dumps({"prompt": ROWS[4]["q"], "completion": "32"}) + "\n")
    done = CliRunner().invoke(app, [*words, "--train-data", str(train), "--json"])
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["status"] == "done" and list(result["tasks"]) == ["mine", "blimp"]
    mine = result["tasks"]["mine"]
    assert mine["n"] == 6 and mine["of"] == 40 and mine["configuration"]["prompt"] == "{{ q }}"
    lines = [json.loads(line) for line in (tmp_path / "out" / mine["items"]).read_text().splitlines()]
    assert len(lines) == 6 and all({"id", "place", "prompt", "references"} <= line.keys() for line in lines)
    mean = sum(line["scores"]["token_f1"] for line in lines) / 6
    assert mine["scores"]["token_f1"]["value"] == pytest.approx(mean)
    found = [line for line in lines if line["prompt"] == ROWS[4]["q"]]
    assert mine["leakage"]["items"] == len(found) and ("scores_without" in mine["leakage"]) == bool(found)


def test_the_report_of_an_evaluation_names_what_leaked_and_the_scores_without_it(task: Path, tmp_path: Path) -> None:
    train = tmp_path / "train.jsonl"
    train.write_text(json.dumps({"prompt": ROWS[4]["q"], "completion": "32"}) + "\n")
    found = evaluate.run("tiny-random/llama", [str(task)], output=str(tmp_path / "out"), train_data=[str(train)])
    without = found["tasks"]["mine"]["leakage"]["scores_without"]["token_f1"]
    assert without["n"] == 39
    page = report.run(str(tmp_path / "out")).read_text()
    assert "1 of 40 items are in the training data" in page and "Without them: exact_match" in page
    assert "no score" not in page


def test_a_finished_evaluation_is_not_overwritten_and_one_that_was_interrupted_is(
    task: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["eval", "tiny-random/llama", "--tasks", "blimp", "--limit", "3", "--output", str(tmp_path / "out")]

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "run_task", interrupt)
        done = CliRunner().invoke(app, words)
    assert done.exit_code == 130 and "interrupted" in done.output
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (result["status"], result["exit_code"]) == ("interrupted", 130)
    assert CliRunner().invoke(app, words).exit_code == 0
    before = (tmp_path / "out" / "result.json").read_bytes()
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 2 and "Choose another --output" in done.output and "resume" not in done.output
    assert (tmp_path / "out" / "result.json").read_bytes() == before


def test_a_metric_of_the_hub_is_code_that_runs_only_if_it_may(task: Path, tmp_path: Path) -> None:
    script = tmp_path / "same_length.py"
    script.write_text(
        "import datasets\nimport evaluate\n\n\n"
        "class SameLength(evaluate.Metric):\n"
        "    def _info(self):\n"
        "        text = datasets.Value('string')\n"
        "        features = datasets.Features({'predictions': text, 'references': text})\n"
        "        return evaluate.MetricInfo(description='', citation='', features=features)\n\n"
        "    def _compute(self, predictions, references):\n"
        "        return {'same': sum(len(p) == len(r) for p, r in zip(predictions, references)) / len(predictions)}\n"
    )
    content = yaml.safe_load(task.read_text())
    task.write_text(yaml.safe_dump(content | {"metrics": [f"hub:{script}"]}))
    with pytest.raises(RecipeError, match="is code of a hub"):
        evaluate.run("tiny-random/llama", [str(task)], limit=5)
    found = evaluate.run("tiny-random/llama", [str(task)], limit=5, allow_code=True, output=str(tmp_path / "out"))
    items = (tmp_path / "out" / "items" / "mine.jsonl").read_text().splitlines()
    same = [len(line.get("answer", "")) == len(line["references"][0]) for line in map(json.loads, items)]
    assert found["tasks"]["mine"]["scores"][f"hub:{script}"]["value"] == pytest.approx(sum(same) / 5)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--tasks", "blmp"], 2, "did you mean blimp"),
        (["--tasks", "blimp,blimp"], 2, "given twice"),
        (["--tasks", "blimp", "--data", "mine=x.jsonl"], 2, "is none of the tasks: blimp"),
        (["--tasks", "blimp", "--data", "blimp"], 2, "is not TASK=PATH"),
        (["--tasks", "blimp", "--data", "blimp=gone.jsonl"], 3, "or give other rows: --data blimp=PATH"),
        (["--tasks", "blimp", "--engine", "trl"], 2, "Accepted: tunekit, lm-eval"),
        (["--tasks", "arc_eazy", "--engine", "lm-eval"], 2, "did you mean arc_easy"),
    ],
)
def test_mistakes_are_told(words: list[str], code: int, said: str) -> None:
    done = CliRunner().invoke(app, ["eval", "tiny-random/llama", *words])
    assert done.exit_code == code and said in done.output.replace("\n", " "), done.output
