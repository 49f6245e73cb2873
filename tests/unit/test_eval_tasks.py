"""Task files: what is wrong in one is told by its place; items, examples and groups come out as the task says."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tunekit.errors import DataError, RecipeError
from tunekit.evals.items import read_items
from tunekit.evals.task import FoundTask, find_task

ROWS: list[dict[str, Any]] = [
    {
        "question": f"{i} or {i + 1}?",
        "options": [f"{i}", f"{i + 1}"],
        "label": i % 2,
        "kind": "even" if i % 2 else "odd",
    }
    for i in range(10)
]
CHOICE: dict[str, Any] = {
    "task": "mine",
    "kind": "multiple_choice",
    "data": {"path": "rows.jsonl"},
    "prompt": "Q: {{ question }}\nA:",
    "choices": "options",
    "answer": "{{ label }}",
    "metrics": ["accuracy"],
}


@pytest.fixture
def task(tmp_path: Path) -> Any:
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))

    def write(**changes: Any) -> FoundTask:
        content = {key: value for key, value in (CHOICE | changes).items() if value is not None}
        (tmp_path / "mine.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
        return find_task(str(tmp_path / "mine.yaml"))

    return write


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"metric": ["accuracy"]}, "mine.yaml:12:1: metric: unknown key; did you mean metrics?"),
        (
            {"kind": "choice"},
            "mine.yaml:2:1: kind: must be 'multiple_choice', 'generate', 'perplexity' or 'preference'",
        ),
        ({"metrics": ["acuracy"]}, "did you mean accuracy?"),
        ({"metrics": []}, "metrics"),
        ({"choices": None}, "kind: multiple_choice needs the key choices"),
        ({"answer": None}, "kind: multiple_choice needs the key answer"),
        ({"few_shot": 2}, "few_shot needs examples"),
        ({"few_shot": "2"}, "few_shot"),
        ({"data": {"pth": "x"}}, "data.pth: unknown key; did you mean path?"),
        ({"generation": {"max_new_tokens": 0}}, "generation.max_new_tokens"),
        ({"extract": "numbr"}, "did you mean number?"),
        ({"extract": "(", "kind": "generate"}, "no regular expression"),
        ({"prompt": "Q: {{ question"}, "mine.yaml:5:9: prompt: 'Q: {{ question' is no Jinja: "),
        ({"choices": ["{{ a }}", "{% b"]}, "choices: '{% b' is no Jinja: "),
        ({"where": "kind =="}, "where: 'kind ==' is no Jinja: "),
    ],
)
def test_what_is_wrong_in_a_task_is_told_with_its_place(task: Any, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError) as caught:
        task(**changes)
    assert said in str(caught.value)


def test_a_task_that_is_not_there_is_told_with_the_nearest_name(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="did you mean blimp"):
        find_task("blmp")
    (tmp_path / "torn.yaml").write_text("task: [")
    with pytest.raises(RecipeError, match=r"torn\.yaml:1"):
        find_task(str(tmp_path / "torn.yaml"))


def test_items_are_what_the_templates_say(task: Any) -> None:
    asked = read_items(task(group="{{ kind }}"))
    first = asked.items[0]
    assert (first.prompt, first.choices, first.gold, first.references) == ("Q: 0 or 1?\nA:", ("0", "1"), 0, ("0",))
    assert [each.group for each in asked.items[:2]] == ["odd", "even"] and asked.of == 10
    assert len({each.id for each in asked.items}) == 10


@pytest.mark.parametrize(("answer", "gold"), [("{{ options[1] }}", 1), ("B", 1), ("b", 1), (0, 0), ("A", 0)])
def test_the_right_choice_is_named_by_number_letter_or_text(task: Any, answer: Any, gold: int) -> None:
    assert read_items(task(answer=answer)).items[5].gold == gold


def test_a_number_is_the_place_of_a_choice_also_where_one_reads_the_same(task: Any) -> None:
    for answer, gold in (("{{ label }}", 1), ("{{ label | string }}", 0), (1, 1)):
        assert read_items(task(choices=["1", "2"], answer=answer)).items[1].gold == gold


def test_an_answer_that_is_no_choice_is_told_with_its_row(task: Any) -> None:
    with pytest.raises(
        DataError, match=r"10 of 10 rows do not fit(.|\n)*rows\.jsonl:1: answer: 'C' is none of the choices"
    ):
        read_items(task(answer="C"))
    with pytest.raises(DataError, match=r"rows\.jsonl:1: 'missing' is undefined"):
        read_items(task(prompt="{{ missing }}"))


def test_several_accepted_answers_come_from_a_list_or_an_expression(task: Any) -> None:
    for answer in ("{{ options }}", ["{{ options[0] }}", "{{ options[1] }}"]):
        found = read_items(task(kind="generate", choices=None, answer=answer, metrics=["exact_match"]))
        assert found.items[3].references == ("3", "4")


def test_examples_stand_before_the_question_as_text_or_as_turns(task: Any) -> None:
    shots = {"few_shot": 1, "examples": ROWS[:1], "system": "Choose.", "separator": "\n--\n"}
    assert read_items(task(**shots)).items[4].prompt == "Choose.\n--\nQ: 0 or 1?\nA: 0\n--\nQ: 4 or 5?\nA:"
    prompt = read_items(task(chat=True, **shots)).items[4].prompt
    assert [each["role"] for each in prompt] == ["system", "user", "assistant", "user"]  # type: ignore[index]
    assert [each["content"] for each in prompt][1:3] == ["Q: 0 or 1?\nA:", "0"]  # type: ignore[index]


def test_examples_from_the_items_never_hold_the_item_itself(task: Any) -> None:
    asked = read_items(task(few_shot=9, examples={"path": "rows.jsonl"}))
    for item in asked.items:
        assert str(item.prompt).count("Q:") == 10 and str(item.prompt).count(item.row["question"]) == 1


def test_more_examples_than_there_are_is_an_error(task: Any) -> None:
    with pytest.raises(DataError, match="few_shot: 10, and there are 10 examples"):
        read_items(task(few_shot=10, examples={"path": "rows.jsonl"}))


def test_a_limit_takes_some_of_all_items_by_the_seed_in_their_order(task: Any) -> None:
    first, again, other = ([each.place for each in read_items(task(seed=seed), limit=4).items] for seed in (0, 0, 1))
    assert first == again != other and first == sorted(first, key=lambda place: int(place.rpartition(":")[2]))
    assert read_items(task(), limit=99).of == 10


def test_rows_may_be_left_out(task: Any) -> None:
    assert read_items(task(where="kind == 'odd' and label == 0")).of == 5
    with pytest.raises(DataError, match="no row with label == 7"):
        read_items(task(where="label == 7"))
    with pytest.raises(DataError, match="where: labl"):
        read_items(task(where="labl == 7"))


def test_the_text_of_a_row_is_never_a_template(task: Any, tmp_path: Path) -> None:
    found = task(kind="generate", choices=None, answer="{{ question }}", metrics=["exact_match"])
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "{{ 7 * 7 }}"}) + "\n")
    (item,) = read_items(found).items
    assert item.prompt == "Q: {{ 7 * 7 }}\nA:" and item.references == ("{{ 7 * 7 }}",)


def test_a_template_reaches_nothing_but_the_row(task: Any) -> None:
    for text in ("{{ ''.__class__.__mro__ }}", "{{ options.append(1) }}"):
        with pytest.raises(DataError, match="do not fit its templates"):
            read_items(task(prompt=text))


def test_the_task_that_the_page_shows_fits_its_rows(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "eval.md").read_text()
    (tmp_path / "t.yaml").write_text("task: " + page.partition("```yaml\ntask: ")[2].partition("```")[0])
    (tmp_path / "mine.jsonl").write_text(json.dumps({"question": "Is ice hot?", "label": 0, "topic": "ice"}) + "\n")
    (item,) = read_items(find_task(str(tmp_path / "t.yaml"))).items
    assert item.gold == 0 and item.group == "ice" and str(item.prompt).count("Answer:") == 3
