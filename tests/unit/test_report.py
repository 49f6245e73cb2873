"""The page of a run and the card of its model say what is in its files, and nothing that comes from them is code."""

import json
import re
import time
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from tunekit.cli import app
from tunekit.errors import StorageError
from tunekit.recipe.load import load_text
from tunekit.report.card import model_card
from tunekit.report.charts import lines, reduced, ticks, whiskers
from tunekit.report.facts import read_facts
from tunekit.report.page import page

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def score(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 40, "interval": "wilson", "better": "higher"}


def task(value: float, items: str) -> dict[str, Any]:
    return {"task": "blimp", "n": 40, "of": 40, "scores": {"accuracy": score(value, 0.4, 0.8)}, "groups": {},
            "configuration": {"prompt": "x"}, "items": items}  # fmt: skip


RESULT: dict[str, Any] = {
    "stage": "sft",
    "status": "failed",
    "exit_code": 8,
    "error": f"gates failed {EVIL}",
    "steps": 40,
    "tokens": 12_345,
    "trained_tokens": 6_000,
    "tokens_per_second": 812.3,
    "seconds": 3725,
    "before": {"eval_loss": 2.5},
    "after": {"eval_loss": 1.25},
    "sample": {"prompt": EVIL, "before": "old", "after": EVIL, "reference": "right"},
    "gates": [{"name": "eval_loss", "condition": "< 1", "passed": False, "reason": "1.25 is not < 1"}],
    "tasks": {
        "before": {"blimp": task(0.5, "items/blimp.before.jsonl")},
        "after": {"blimp": task(0.75, "items/blimp.after.jsonl")},
        "change": {"blimp": {"accuracy": {"value": 0.25, "low": 0.1, "high": 0.4, "n": 40, "p_value": 0.01}}},
    },
}
PART = {"rows": 9, "tokens": 100, "trained": 40, "lengths": {"median": 10, "max": 20}, "dropped": 1, "answers_cut": 2}
MANIFEST = {
    "base_model": {"name": "smollm2-135m-instruct"},
    "data": {"train": PART, "rejected": 3, "overlap": {"duplicates": 4, "exact": 0, "ngram": 0}},
    "versions": {"torch": "2.13.0"},
    "git": {"commit": "0123456789abcdef", "dirty": True},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "a run"
    (made / "items").mkdir(parents=True)
    (made / "result.json").write_text(json.dumps(RESULT))
    (made / "manifest.json").write_text(json.dumps(MANIFEST))
    (made / "recipe.yaml").write_text(f"model: m  # {EVIL}\n")
    rows = [
        {"step": i, "loss": 3 - i / 40, "grad_norm": 1.0, "lr": 1e-4, "seconds": 0.5, "num_tokens": 400}
        for i in range(1, 41)
    ]
    (made / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"step": 41, "lo')
    for when, said in (("before", "first"), ("after", EVIL)):
        line = {"id": "1", "prompt": "What?", "references": ["this"], "completion": said, "scores": {"accuracy": 1.0}}
        (made / "items" / f"blimp.{when}.jsonl").write_text(json.dumps(line) + "\n")
    return made


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))


def test_the_page_says_what_the_files_say(folder: Path) -> None:
    text = page(read_facts(folder))
    for said in (
        *(
            "a run",
            "smollm2-135m-instruct",
            "failed: exit code 8",
            "12,345",
            "1 h 2 min",
            "40 (40%)",
            "3 rejected rows",
        ),
        *("4 copies", "eval_loss &lt; 1", "1.25 is not &lt; 1", "0.75 [0.4, 0.8]", "+0.25 [0.1, 0.4]"),
        *("0123456789ab (with changes)", "What?", "first", "this"),
    ):
        assert said in text, said


def test_nothing_of_a_run_is_code_in_the_page_and_nothing_is_fetched(folder: Path) -> None:
    text = page(read_facts(folder))
    tags = Tags(text).tags
    assert not [tag for tag, _ in tags if tag in ("script", "img", "link", "iframe", "object", "base", "form")]
    assert not [name for _, given in tags for name in given if name.startswith("on") or name in ("src", "href")]
    assert "default-src 'none'" in text and text.count("&lt;script&gt;") >= 4
    assert not re.search(r"url\(|@import|https?://", text)


def test_what_is_missing_is_left_out_and_what_is_torn_is_said(folder: Path) -> None:
    (folder / "result.json").write_text("{")
    (folder / "manifest.json").unlink()
    text = page(read_facts(folder))
    assert "result.json cannot be read" in text and "Loss" in text
    assert ">Gates<" not in text and ">Data<" not in text and ">Scores<" not in text


def test_a_folder_that_is_no_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="holds no run"):
        read_facts(tmp_path)


def test_a_long_run_stays_small_and_keeps_its_spikes(folder: Path) -> None:
    rows = [
        {"step": i, "loss": 2.0, "grad_norm": 1.0, "lr": 1e-4, "seconds": 0.5, "num_tokens": 9} for i in range(10_000)
    ]
    rows[7_777]["loss"] = 99.0
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    started = time.process_time()
    text = page(read_facts(folder))
    assert time.process_time() - started < 2 and len(text) < 300_000
    kept = reduced([(row["step"], row["loss"]) for row in rows])
    assert (7_777, 99.0) in kept and len(kept) <= 1200 and kept == sorted(kept)


def test_charts_name_what_they_show_and_leave_out_what_is_no_number() -> None:
    chart = str(lines("Loss", {"training": [(1, 2.0), (2, float("nan")), (3, 1.0)], "none": []}))
    assert 'aria-label="Loss: training, steps 1 to 3"' in chart and "nan" not in chart
    assert "training: 2 at step 1, 1 at step 3" in chart
    assert not lines("Loss", {"training": []}) and not whiskers("scores", [])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.41, 0.43), (1e-5, 2e-4), (-3, 1200), (5, 5)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 8 and all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)


def test_two_runs_are_compared_item_by_item(folder: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    (other / "items").mkdir(parents=True)
    changed = json.loads(json.dumps(RESULT))
    changed["tasks"]["after"]["blimp"]["configuration"]["prompt"] = "y"
    (other / "result.json").write_text(json.dumps(changed))
    line = {"id": "1", "scores": {"accuracy": 0.0}}
    (other / "items" / "blimp.after.jsonl").write_text(json.dumps(line) + "\n")
    done = CliRunner().invoke(app, ["compare", str(folder), str(other), "--html", str(tmp_path / "c.html"), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    test = report["paired"][str(other)]["blimp.accuracy"]
    assert test["value"] == -1 and test["n"] == 1 and test["said"].startswith("worse by 100.0 points")
    assert "asked differently" in report["warnings"][0] and "prompt" in report["warnings"][0]
    assert "worse by 100.0 points" in (tmp_path / "c.html").read_text()


def test_one_run_alone_is_not_compared(folder: Path) -> None:
    done = CliRunner().invoke(app, ["compare", str(folder)])
    assert done.exit_code == 2 and "two or more" in done.output


def test_the_command_writes_the_page_into_the_folder(folder: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 0 and (folder / "report.html").is_file()


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_a_card_holds_the_facts_and_loads_as_the_hub_reads_it(adapter: str) -> None:
    text = f"model: org/base\nadapter: {adapter}\ndata: {{train: [org/rows, mine.jsonl]}}\noutput_dir: out\n"
    recipe = load_text(text, "r.yaml").recipe.model_dump(mode="json")
    manifest = MANIFEST | {"base_model": {"name": "org/base"}}
    card = ModelCard(model_card("mine", recipe, RESULT, manifest, "out/model", chat=True))
    assert card.data.base_model == "org/base" and card.data.datasets == ["org/rows"]
    assert card.data.library_name == ("peft" if adapter == "lora" else "transformers")
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("blimp", "accuracy", 0.75)
    assert "| eval_loss (held-out rows) | 2.5 | 1.25 |" in card.text
    assert "| blimp accuracy (n = 40) | 0.5 [0.4, 0.8] | 0.75 [0.4, 0.8] |" in card.text
    assert ("rank 16" in card.text) == (adapter == "lora")
