"""Every task that comes with the package loads, fits its items, and runs."""

import json
from pathlib import Path

import pytest

from tunekit.errors import MissingEnvironment
from tunekit.evals.items import read_items
from tunekit.evals.task import SHIPPED, find_task, shipped
from tunekit.stages import evaluate

TASKS = list(shipped())
OF_HUB = ("cola", "sst2", "mrpc", "rte", "squad", "wikitext")
SAMPLES = SHIPPED.parent / "samples"


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
    table = (SAMPLES / "LICENSES.md").read_text()
    assert all(file.name.removesuffix(".jsonl.gz") in table for file in files)
    assert {Path(find_task(name).task.data.path).name for name in TASKS if name not in OF_HUB} == {
        file.name for file in files
    }


def test_examples_of_gsm8k_are_the_eight_of_the_paper_and_their_sums_are_right() -> None:
    task = find_task("gsm8k").task
    assert isinstance(task.examples, list) and len(task.examples) == task.few_shot == 8
    prompt = str(read_items(find_task("gsm8k"), limit=1).items[0].prompt)
    assert prompt.count("Q: ") == 9 and prompt.endswith("\nA:")
    assert "21 - 15 = 6. The answer is 6.\n\nQ: If there are 3 cars" in prompt


def test_every_task_runs() -> None:
    names = [name for name in TASKS if name not in OF_HUB]
    result = evaluate.run("tiny-random/llama", names, limit=3, batch_size=3)
    for name, task in result["tasks"].items():
        assert task["n"] == 3 and task["scores"], name


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
