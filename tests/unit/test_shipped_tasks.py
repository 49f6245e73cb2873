"""Every task that comes with the package loads, fits its items, and runs."""

import ast
import json
import operator
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tunekit.errors import MissingEnvironment
from tunekit.evals.extract import extractor
from tunekit.evals.items import read_items
from tunekit.evals.task import SHIPPED, find_task, shipped
from tunekit.models import builtin
from tunekit.models.tiny_random import tokenizer
from tunekit.stages import evaluate

TASKS = list(shipped())
OF_HUB = ("cola", "sst2", "mrpc", "rte", "squad", "wikitext")
SAMPLES = SHIPPED.parent / "samples"
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


@pytest.mark.parametrize("name", TASKS)
def test_a_task_has_its_name_its_licence_and_items_that_fit(name: str) -> None:
    found = find_task(name)
    assert found.task.task == name and found.task.description and found.task.license and found.task.source
    if name in OF_HUB:
        with pytest.raises(MissingEnvironment):
            read_items(found)
        return
    asked = read_items(found)
    assert len({each.id for each in asked.items}) >= 0.95 * len(asked.items), "asked twice"
    assert all(each.prompt or each.choices for each in asked.items)


def test_samples_are_small_and_licensed() -> None:
    files = [file for file in SAMPLES.iterdir() if file.suffix == ".gz"]
    assert sum(file.stat().st_size for file in files) < 1_000_000
    rows = _table(SAMPLES / "LICENSES.md")
    licences = {file: row[3] for row in rows for file in row[0].split(", ")}
    assert licences.keys() == {file.name.removesuffix(".jsonl.gz") for file in files}
    for task in (find_task(name).task for name in TASKS if name not in OF_HUB):
        assert licences[Path(task.data.path).name.removesuffix(".jsonl.gz")] == task.license
    assert {Path(find_task(name).task.data.path).name for name in TASKS if name not in OF_HUB} == {
        file.name for file in files
    }


def test_examples_of_gsm8k_are_the_eight_of_the_paper_and_their_sums_are_right() -> None:
    task = find_task("gsm8k").task
    assert isinstance(task.examples, list) and len(task.examples) == task.few_shot == 8
    prompt = str(read_items(find_task("gsm8k"), limit=1).items[0].prompt)
    assert prompt.count("Q: ") == 9 and prompt.endswith("\nA:")
    assert "21 - 15 = 6. The answer is 6.\n\nQ: If there are 3 cars" in prompt


@pytest.mark.parametrize("name", [name for name in TASKS if find_task(name).task.few_shot])
def test_no_example_is_an_item(name: str) -> None:
    found = find_task(name)
    assert isinstance(found.task.examples, list)
    shown = {example["question"] for example in found.task.examples}
    items = read_items(found).items
    assert shown.isdisjoint(item.row["question"] for item in items)
    assert all(str(item.prompt).count(item.row["question"]) == 1 for item in items)


def test_the_page_of_tasks_says_what_their_files_say() -> None:
    rows = {row[0].strip("`"): row[2:6] for row in _table(Path(__file__).parents[2] / "docs" / "tasks.md")}
    assert list(rows) == TASKS
    for name, (kind, metrics, items, licence) in rows.items():
        task = find_task(name).task
        size = "hub" if name in OF_HUB else f"{read_items(find_task(name)).of:,}"
        assert (kind, metrics, items, licence) == (task.kind, ", ".join(task.metrics), size, task.license)


def test_a_place_among_the_choices_gives_no_hint() -> None:
    for name in ("truthfulness", "winobias", "winogender"):
        gold = Counter(item.gold for item in read_items(find_task(name)).items)
        assert gold[0] == gold[1] == gold.total() / 2, name


def test_both_sides_of_winobias_ask_about_the_same_people() -> None:
    sides = {"pro": Counter[str](), "anti": Counter[str]()}
    for item in read_items(find_task("winobias")).items:
        for person in item.choices:
            assert person.startswith("the ") and person.removeprefix("the ") in item.row["sentence"]
        sides[item.group][" ".join(item.choices)] += 1
    assert sides["pro"] == sides["anti"]


def test_the_right_sum_is_chosen_and_a_wrong_one_rejected() -> None:
    for item in read_items(find_task("arithmetic_preference")).items:
        verdicts = []
        for answer in item.choices:
            left, _, result = answer.partition(" = ")
            term = ast.parse(left, mode="eval").body
            assert isinstance(term, ast.BinOp)
            found = OPERATIONS[type(term.op)](ast.literal_eval(term.left), ast.literal_eval(term.right))
            verdicts.append(found == int(result))
        assert verdicts == [True, False], item.row


def test_paraphrases_come_in_threes_and_marks_around_an_answer_do_not_count() -> None:
    found = find_task("consistency")
    assert set(Counter(item.group for item in read_items(found).items).values()) == {3}
    extract = extractor(found.task.extract)
    for text in ("Paris", " Paris.\n\nIt is in France.", '**"Paris"**', "\n- Paris!"):
        assert extract(text) == "Paris"
    assert extract("It is Paris, I think.") == "It is Paris, I think" and extract("") == extract("...") == ""


def test_every_task_runs() -> None:
    names = [name for name in TASKS if name not in OF_HUB and find_task(name).task.kind != "preference"]
    result = evaluate.run("tiny-random/llama", names, limit=3, batch_size=3)
    assert list(result["tasks"]) == names
    for name, task in result["tasks"].items():
        assert task["n"] == 3 and task["scores"], name


def test_the_task_of_preferences_runs_on_a_reward_model(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = str(builtin.resolve("tiny-random/llama"))
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    model.config.pad_token_id = tokenizer().pad_token_id
    model.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    task = evaluate.run(str(tmp_path), ["arithmetic_preference"], limit=8)["tasks"]["arithmetic_preference"]
    assert task["n"] == 8 and task["groups"]["accuracy"].keys() <= {"plus", "minus", "times"}


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("cola", {"sentence": "He sleep.", "label": 0}),
        ("sst2", {"sentence": "good", "label": 1}),
        ("mrpc", {"sentence1": "a", "sentence2": "b", "label": 1}),
        ("rte", {"sentence1": "a", "sentence2": "b", "label": 0}),
        ("squad", {"context": "a b", "question": "c?", "answers": {"text": [], "answer_start": []}}),
        ("wikitext", {"text": " = Title = \n"}),
    ],
)
def test_tasks_of_the_hub_take_local_rows_of_the_same_columns(name: str, row: dict, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text((json.dumps(row) + "\n") * 4)
    result = evaluate.run("tiny-random/llama", [name], data={name: str(file)}, limit=2)
    assert result["tasks"][name]["n"] == 2


def _table(page: Path) -> list[list[str]]:
    """The rows of the first table of a page, without its head."""
    lines = re.findall(r"^\| (.*) \|$", page.read_text(), re.M)
    return [[cell.strip() for cell in line.split(" |")] for line in lines[1:] if not line.startswith("---")]
