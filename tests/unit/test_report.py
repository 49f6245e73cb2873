"""The page of a run and the card of its model say what is in its files, and nothing that comes from them is code."""

import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from tunekit.cli import app
from tunekit.errors import StorageError
from tunekit.models.load import Location
from tunekit.recipe.load import load_text
from tunekit.report import charts
from tunekit.report.card import licence_of, model_card
from tunekit.report.charts import Interval, lines, ranged, reduced, sampled, tick_label, ticks, whiskers
from tunekit.report.facts import read_facts
from tunekit.report.page import page
from tunekit.stages import sft

EVIL = '<script>alert("x")</script><img src=x onerror=alert(1)>'


def score(value: float, low: float, high: float) -> dict[str, Any]:
    return {"value": value, "low": low, "high": high, "n": 40, "interval": "wilson", "better": "higher"}


def task(value: float, items: str) -> dict[str, Any]:
    return {"task": "blimp", "n": 40, "of": 40, "scores": {"accuracy": score(value, 0.4, 0.8)},
            "groups": {"accuracy": {"quantifiers": score(0.61, 0.4, 0.8)}},
            "configuration": {"prompt": "x", "limit": 7}, "items": items}  # fmt: skip


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
    "best_step": 30,
    "sources": [{"path": f"/data/{EVIL}.jsonl", "trained_tokens": 6_000}],
    "streamed": {"rows": 77, "rejected": 0},
    "events": [{"step": 20, "text": "resumed from step 20"}],
    "weights": {"trained": 1_000, "all": 4_000},
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
    "base_model": {"name": "smollm2-135m-instruct", "revision": "r1", "sha256": "ab" * 32},
    "contract": {"adapter.type": "lora", "adapter.r": 16, "adapter.alpha": 32.0, "train.learning_rate": 2e-4},
    "data": {"train": PART, "rejected": 3, "overlap": {"duplicates": 4, "exact": 0, "ngram": 0}},
    "versions": {"torch": "2.13.0"},
    "git": {"commit": "0123456789abcdef", "dirty": True},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "a run"
    (made / "items").mkdir(parents=True)
    (made / "checkpoints" / "step-40").mkdir(parents=True)
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
        *("4 copies", "eval_loss &lt; 1", "1.25 is not &lt; 1", "0.75 [0.40, 0.80]", "+0.25 [+0.10, +0.40], p 0.01"),
        *("0123456789ab (with changes)", "What?", "first", "this", "before, accuracy 1", "quantifiers", "2.5 → 1.25"),
        *("LoRA, rank 16, alpha 32", "1,000 of 4,000 (25.00%)", "resumed from step 20", "the best evaluation", "77"),
        *("checkpoint, still in the folder", "&#34;limit&#34;: 7", "r1", "abababababab<"),
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
    (folder / "result.json").unlink()
    assert "There is no result.json: the run has not ended, or was killed." in page(read_facts(folder))


@pytest.mark.parametrize("name", ["result.json", "manifest.json", "metrics.jsonl", "recipe.yaml"])
def test_bytes_that_are_no_text_are_said(folder: Path, name: str) -> None:
    (folder / name).write_bytes(b"\xff\xfe\x00" * 9)
    assert f"{name} cannot be read" in page(read_facts(folder))


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    for key in tree if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield (*path, key)
        yield from places(tree[key], (*path, key))


@pytest.mark.parametrize(("name", "whole"), [("result.json", RESULT), ("manifest.json", MANIFEST)])
@pytest.mark.parametrize("nothing", ["left out", "null"])
def test_any_fact_may_be_missing(folder: Path, name: str, whole: dict[str, Any], nothing: str) -> None:
    for path in places(whole):
        changed = json.loads(json.dumps(whole))
        part = changed
        for key in path[:-1]:
            part = part[key]
        if nothing == "null":
            part[path[-1]] = None
        else:
            del part[path[-1]]
        (folder / name).write_text(json.dumps(changed))
        assert "</html>" in page(read_facts(folder)), path


def test_answers_are_put_side_by_side_by_their_id_and_those_that_changed_come_first(folder: Path) -> None:
    def write(when: str, ids: list[int], right: set[int]) -> None:
        rows = [
            {
                "id": f"i{i}",
                "prompt": f"question {i}.",
                "completion": f"{when} {i}.",
                "scores": {"accuracy": i in right},
            }
            for i in ids
        ]
        text = "".join(json.dumps(row | {"scores": {"accuracy": float(row["id"] == "i7")}}) + "\n" for row in rows)
        (folder / "items" / f"blimp.{when}.jsonl").write_text(text if right else text.replace("1.0", "0.0"))

    write("before", list(range(9)), set())
    write("after", list(reversed(range(9))), {7})
    found = re.findall(r"<h3>question (\d)\.</h3>(.*?)<h3>|$", page(read_facts(folder)), re.DOTALL)
    assert found[0][0] == "7" and "before 7." in found[0][1] and "after 7." in found[0][1]


def test_a_torn_answer_is_said_and_a_file_from_elsewhere_is_not_shown(folder: Path) -> None:
    file = folder / "items" / "blimp.after.jsonl"
    file.write_text(file.read_text() + '{"id": "2", "pro')
    assert "blimp.after.jsonl:2 cannot be read" in page(read_facts(folder))
    (folder.parent / "private.jsonl").write_text('{"id": "1", "prompt": "secret", "completion": "secret"}\n')
    text = json.dumps(RESULT).replace("items/blimp.after.jsonl", "../private.jsonl")
    (folder / "result.json").write_text(text)
    assert "secret" not in page(read_facts(folder))


def test_what_no_page_may_hold_is_replaced(folder: Path) -> None:
    odd = "a\x00b\x1b[31mc\ud800d\u202ee"
    (folder / "result.json").write_text(json.dumps(RESULT | {"sample": {"prompt": "p", "before": odd, "after": odd}}))
    text = page(read_facts(folder))
    text.encode("utf-8")
    assert "a\ufffdb\ufffd[31mc\ufffdd\ufffde" in text


def test_headings_go_down_one_by_one_and_every_head_of_a_table_has_a_scope(folder: Path) -> None:
    tags = Tags(page(read_facts(folder))).tags
    levels = [int(tag[1]) for tag, _ in tags if tag in ("h1", "h2", "h3", "h4")]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert {given.get("scope") for tag, given in tags if tag == "th"} == {"col", "row"}
    assert all(given["role"] == "img" and given["aria-label"] for tag, given in tags if tag == "svg")


def luminance(colour: str) -> float:
    """As WCAG 2 has it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return sum(weight * part for weight, part in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_text_can_be_read_on_its_ground_by_day_and_by_night(folder: Path) -> None:
    schemes = re.findall(r":root \{(.*?)\}", page(read_facts(folder)), re.DOTALL)
    assert len(schemes) == 2
    for scheme in schemes:
        colours = dict(re.findall(r"--([\w]+): (#[0-9a-f]{6})", scheme))
        for text in ("text", "soft", "good", "bad", "s0"):
            for ground in ("back", "box"):
                dark, light = sorted((luminance(colours[text]), luminance(colours[ground])))
                assert (light + 0.05) / (dark + 0.05) >= 4.5, (text, ground)
        for one, two in combinations(("s0", "s1", "s2", "s3"), 2):
            assert colours[one] != colours[two]


def test_a_run_that_did_not_end_says_why_and_how_far_it_came(folder: Path) -> None:
    ended = {key: value for key, value in RESULT.items() if key not in ("after", "tasks", "gates")}
    stopped = {"status": "interrupted", "exit_code": 130, "error": "SIGINT: step 160 was saved"}
    (folder / "result.json").write_text(json.dumps(ended | stopped | {"last_evaluation": {"eval_loss": 2.25}}))
    text = page(read_facts(folder))
    assert "interrupted: exit code 130" in text and "SIGINT: step 160 was saved" in text
    assert "2.5 → 2.25" in text and ">last<" in text and ">after<" not in text.partition(">Answers<")[0]


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
    assert 'aria-label="Loss, steps 1 to 3: training from 2 to 1"' in chart and "nan" not in chart
    assert "<title>step 1: 2</title>" in chart and "<title>step 3: 1</title>" in chart
    bars = str(whiskers("scores", [Interval("a", "x", 0.5, 0.25, 0.75), Interval("b", "x", 0.5, float("nan"), 1)]))
    assert 'aria-label="scores: a x 0.50 [0.25, 0.75]"' in bars and "nan" not in bars
    assert not lines("Loss", {"training": []}) and not whiskers("scores", [])


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.41, 0.43), (1e-5, 2e-4), (-3, 1200), (5, 5)])
def test_ticks_are_round_and_within(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 1 <= len(found) <= 8 and all(low - 1e-12 <= tick <= high + 1e-12 for tick in found)
    if low < high:
        assert len(found) >= 3
        labels = [tick_label(tick, found[1] - found[0]) for tick in found]
        assert len(set(labels)) == len(labels), "neighbours can be told apart"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ((0.05, 0.008881, 0.2361), "0.05 [0.01, 0.24]"),
        ((0.7123, 0.70211, 0.7224), "0.712 [0.702, 0.722]"),
        ((1530.2, 1210.0, 1890.9), "1,530 [1,210, 1,891]"),
        ((1.0, 1.0, 1.0), "1.0000 [1.0000, 1.0000]"),
    ],
)
def test_an_interval_has_the_decimals_that_its_width_is_worth(given: tuple[float, float, float], said: str) -> None:
    assert ranged(*given) == said


def test_the_values_that_can_be_read_hold_the_first_the_last_and_the_spikes() -> None:
    points = [(float(i), 2.0) for i in range(10_000)]
    points[7_777], points[1_234] = (7_777.0, 99.0), (1_234.0, -5.0)
    found = sampled(points)
    assert len(found) <= charts.SAMPLES and found == sorted(found)
    assert {points[0], points[-1], points[7_777], points[1_234]} <= set(found)


def test_a_spike_of_a_long_run_is_drawn_to_the_top() -> None:
    points = [(float(i), 2.0) for i in range(10_000)]
    points[7_777] = (7_777.0, 99.0)
    path, means = re.findall(r'<polyline [^>]*points="([^"]*)"', str(lines("Loss", {"training": points})))
    assert len(means.split()) == charts.TREND
    drawn = [tuple(map(float, point.split(","))) for point in path.split()]
    x, y = min(drawn, key=lambda point: point[1])
    assert y == charts.TOP and abs(x - (charts.LEFT + 0.7777 * (charts.WIDTH - charts.RIGHT - charts.LEFT))) < 1


def write_run(folder: Path, values: dict[str, float], prompt: str, hashed: str, rate: float) -> None:
    (folder / "items").mkdir(parents=True)
    changed = json.loads(json.dumps(RESULT))
    changed["tasks"]["after"]["blimp"]["configuration"]["prompt"] = prompt
    (folder / "result.json").write_text(json.dumps(changed))
    manifest = MANIFEST | {"data": {"train": PART | {"sha256": hashed}}, "contract": {"train.learning_rate": rate}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    recipe = f"model: m/x\ndata: rows.jsonl\noutput_dir: {folder}\ntrain: {{learning_rate: {rate}}}\n"
    (folder / "recipe.yaml").write_text(recipe)
    rows = [json.dumps({"id": key, "scores": {"accuracy": value}}) + "\n" for key, value in values.items()]
    (folder / "items" / "blimp.after.jsonl").write_text("".join(rows))


def test_two_runs_are_compared_item_by_item_and_what_differs_is_listed_once(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    ids = [f"i{number}" for number in range(20)]
    write_run(one, dict.fromkeys([*ids, "only here"], 1.0), "x", "aa" * 32, 1e-4)
    write_run(two, dict.fromkeys(reversed(ids), 0.0), "y", "bb" * 32, 2e-4)
    done = CliRunner().invoke(app, ["compare", str(one), str(two), "--html", str(tmp_path / "c.html"), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    test = report["paired"][str(two)]["blimp.accuracy"]
    assert test["value"] == -1 and test["n"] == 20 and test["said"].startswith("worse by 100.0 points")
    (warning,) = report["warnings"]
    assert "asked differently" in warning and warning.endswith(": prompt")
    assert [each["key"] for each in report["recipes"][str(two)]] == [
        "train.learning_rate",
        "manifest.json:data.train.sha256",
    ]
    assert report["figures"]["status"] == ["failed", "failed"] and report["figures"]["eval_loss before"] == [2.5, 2.5]
    text = (tmp_path / "c.html").read_text()
    assert "worse by 100.0 points" in text and "0.0002" in text and "bbbbbbbbbbbb<" in text and "<svg" in text
    table = CliRunner().invoke(app, ["compare", str(one), str(two)]).stdout
    assert "worse by 100.0 points" in table and "train.learning_rate: 0.0001 -> 0.0002" in table


def test_runs_without_answers_or_with_a_torn_manifest_are_compared_as_far_as_they_go(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        write_run(folder, {"i": 1.0}, "x", "aa" * 32, 1e-4)
    (two / "items" / "blimp.after.jsonl").unlink()
    (two / "manifest.json").write_text("{")
    done = CliRunner().invoke(app, ["compare", str(one), str(two), "--json"])
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["paired"] == {str(two): {}} and len(report["scores"]["blimp.accuracy"]) == 2
    assert any("manifest.json cannot be read" in warning for warning in report["warnings"])


def test_one_run_alone_is_not_compared(folder: Path) -> None:
    done = CliRunner().invoke(app, ["compare", str(folder)])
    assert done.exit_code == 2 and "two or more" in done.output


def test_the_command_writes_the_page_into_the_folder(folder: Path) -> None:
    done = CliRunner().invoke(app, ["report", str(folder)])
    assert done.exit_code == 0 and (folder / "report.html").is_file()


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_a_card_holds_the_facts_and_loads_as_the_hub_reads_it(adapter: str) -> None:
    sources = "[org/rows, /home/me/mine.jsonl]"
    text = f"model: org/base\nadapter: {adapter}\ndata: {{train: {sources}}}\noutput_dir: out\n"
    recipe = load_text(text, "r.yaml").recipe.model_dump(mode="json")
    manifest = MANIFEST | {"base_model": {"name": "org/base", "revision": "r1"}}
    card = ModelCard(model_card("mine", recipe, RESULT, manifest, "out/model", chat=True, licence="Apache-2.0"))
    assert card.data.base_model == "org/base" and card.data.datasets == ["org/rows"]
    assert card.data["base_model_relation"] == ("adapter" if adapter == "lora" else "finetune")
    assert card.data.license == "apache-2.0" and "The licence of `org/base` is Apache-2.0." in card.text
    assert card.data.library_name == ("peft" if adapter == "lora" else "transformers")
    (result,) = card.data.eval_results
    assert (result.dataset_name, result.metric_type, result.metric_value) == ("blimp", "accuracy", 0.75)
    assert "| eval_loss (held-out rows) | 2.5 | 1.25 |" in card.text
    assert "| blimp accuracy (n = 40) | 0.50 [0.40, 0.80] | 0.75 [0.40, 0.80] |" in card.text
    assert ("rank 16" in card.text) == (adapter == "lora")
    assert "`mine.jsonl`" in card.text and "/home/me" not in card.text and "(revision `r1`)" in card.text
    assert "of these rows: 1 dropped, 2 with an answer that is cut" in card.text and "torch 2.13.0" in card.text


def test_a_card_invents_neither_a_base_on_the_hub_nor_a_licence() -> None:
    text = "model: smollm2-135m-instruct\ndata: mine.jsonl\noutput_dir: out\n"
    recipe = load_text(text, "r.yaml").recipe.model_dump(mode="json")
    card = ModelCard(model_card("mine", recipe, {"stage": "sft"}, MANIFEST, "out/model", chat=False))
    assert not {"license", "base_model", "base_model_relation", "datasets", "model-index"} & card.data.to_dict().keys()
    assert "Nothing of it was measured." in card.text and "## Results" not in card.text


def test_a_licence_is_what_the_base_says_of_itself(tmp_path: Path) -> None:
    base = Location("mine", str(tmp_path))
    assert licence_of(base) is None and licence_of(Location("org/base", "org/base")) is None
    (tmp_path / "README.md").write_text("# no metadata\n")
    assert licence_of(base) is None
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n# A model\n")
    assert licence_of(base) == "mit"
    (tmp_path / "tunekit.json").write_text('{"name": "built-in", "licence": "Apache-2.0"}')
    assert licence_of(base) == "Apache-2.0"


@pytest.mark.parametrize("adapter", ["lora", "none"])
def test_the_code_of_a_card_runs(tmp_path: Path, adapter: str) -> None:
    rows = [{"prompt": "a", "completion": "b"}] * 3
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = f"model: tiny-random/llama\nadapter: {adapter}\ndata: {tmp_path}/rows.jsonl\noutput_dir: {tmp_path}/out\n"
    sft.run(load_text(text + "train: {max_steps: 1}\n", "r.yaml"))
    card = (tmp_path / "out" / "model" / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
