"""What becomes of data in whole runs: rejected rows, mixtures, streams, rows from Python, the saved template."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tunekit.errors import DataError, StorageError
from tunekit.models import export
from tunekit.recipe.load import load
from tunekit.stages import artefact, sft

CHATS = [
    {"messages": [{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": f"Hello {i}"}]}
    for i in range(20)
]


def recipe(folder: Path, data: str, **files: list[Any]) -> Path:
    for name, rows in files.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = folder / "recipe.yaml"
    text = f"model: tiny-random/llama\nadapter: lora\ndata: {data}\noutput_dir: {folder}/out\n"
    file.write_text(text.replace("DIR", str(folder)) + "train: {max_steps: 2}\n")
    return file


def run(file: Path, *overrides: str, **options: Any) -> dict[str, Any]:
    return sft.run(load(file, overrides), **options)


@pytest.fixture
def unproven(monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof of the artefact costs a process of ten seconds a run."""
    monkeypatch.setattr(artefact, "write_artefact", lambda *arguments: 0.0)


def test_rejected_rows_end_the_run_or_are_left_out_and_kept_to_look_at(tmp_path: Path, unproven: None) -> None:
    rows = [*CHATS, {"messages": "nonsense"}]
    file = recipe(tmp_path, "{train: DIR/rows.jsonl}", rows=rows)
    with pytest.raises(DataError, match=r"1 of 21 rows cannot be used:\n.*rows\.jsonl:21: messages must be a list"):
        run(file)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["exit_code"] == 3 and result["status"] == "failed"
    run(file, "data.max_rejected=1")
    (line,) = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["row"] == rows[-1] and json.loads(line)["source"].endswith("rows.jsonl:21")
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["data"]["rejected"] == 1


def test_a_mixture_reports_the_shares_that_came_true(tmp_path: Path, unproven: None) -> None:
    data = "{train: [{path: DIR/a.jsonl, weight: 3}, {path: DIR/b.jsonl, weight: 1}], eval_split: 0}"
    result = run(recipe(tmp_path, data, a=CHATS[:5], b=CHATS[5:]), "train.max_steps=30")
    counts = {Path(source["path"]).name: source["trained_tokens"] for source in result["sources"]}
    assert sum(counts.values()) == result["trained_tokens"]
    assert counts["a.jsonl"] / result["trained_tokens"] == pytest.approx(0.75, abs=0.02)


def test_a_stream_trains_and_keeps_its_rejected_rows_once(tmp_path: Path, unproven: None) -> None:
    data = (
        "{train: DIR/rows.jsonl, streaming: true, max_length: 200, shuffle_buffer: 4, eval_split: 2, max_rejected: 1}"
    )
    file = recipe(tmp_path, data, rows=[*CHATS[:9], {"messages": []}, *CHATS[9:]])
    result = run(file, "train.max_steps=12", "save.steps=3")
    assert result["streamed"] == {"rows": 18, "rejected": 1, "overlong": 0, "answers_cut": 0}
    assert result["steps"] == 12 and result["after"]["eval_loss"] > 0
    run(file, "train.max_steps=12", "save.steps=3", "resume=auto")
    (line,) = (tmp_path / "out" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)["source"].endswith("rows.jsonl:10")


def test_rows_from_python_train_as_those_of_a_file(tmp_path: Path, unproven: None) -> None:
    of_file = run(recipe(tmp_path, "DIR/rows.jsonl", rows=CHATS))
    in_memory = run(recipe(tmp_path, "memory:mine"), f"output_dir={tmp_path}/memory", datasets={"mine": CHATS})
    assert in_memory["after"] == of_file["after"]


def test_a_saved_tokenizer_that_renders_otherwise_is_no_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save = export.save_artefact

    def with_another_template(*arguments: Any) -> None:
        save(*arguments)
        template = arguments[3] / "chat_template.jinja"
        template.write_text(template.read_text().replace("<|im_end|>", "<|im_end|>!"))

    monkeypatch.setattr(export, "save_artefact", with_another_template)
    with pytest.raises(
        StorageError, match=r"(?s)rows\.jsonl:\d+: the saved tokenizer renders it differently.*trained:.*"
    ):
        run(recipe(tmp_path, "DIR/rows.jsonl", rows=CHATS))
    assert not (tmp_path / "out" / "model").exists()


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3, "the rows are pairs, and this command takes conv"),
        ([{"prompt": "a"}] * 3, "the rows are prompts"),
    ],
)
def test_rows_of_another_kind_are_told(tmp_path: Path, rows: list[Any], words: str) -> None:
    with pytest.raises(DataError, match=words):
        run(recipe(tmp_path, "DIR/rows.jsonl", rows=rows))
    data = "{train: DIR/rows.jsonl, streaming: true, max_length: 99, shuffle_buffer: 3}"
    with pytest.raises(DataError, match=words):
        run(recipe(tmp_path, data, rows=rows), f"output_dir={tmp_path}/other")


STREAMED = """
import resource, sys
from tunekit.data.rendering import Rendering
from tunekit.data.sources import find
from tunekit.data.stream import StreamLoader, StreamSettings
from tunekit.data.tokenise import Reading
from tunekit.models.tiny_random import tokenizer
count = int(sys.argv[2])
settings = StreamSettings(num_steps=count // 8, batch_size=8, micro_batches=1, max_length=999, seed=0, buffer=100)
loader = StreamLoader([Reading(find(sys.argv[1]))], tokenizer(), Rendering(), settings)
rows = sum(len(batch) for step in loader.steps(0) for batch in step.micro_batches)
print(rows, loader.counts.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def test_memory_of_a_stream_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """Peak memory of training on 2,000 and on 16,000 rows of 500 characters, each in a process of its own."""
    peaks = []
    for count in (2_000, 16_000):
        file = tmp_path / f"{count}.jsonl"
        file.write_text("".join(json.dumps({"text": f"{i} " + "x" * 500}) + "\n" for i in range(count)))
        command = [sys.executable, "-c", STREAMED, str(file), str(count)]
        output = subprocess.run(command, capture_output=True, text=True, check=True)
        given, read, peak = map(int, output.stdout.split())
        assert given == read == count
        peaks.append(peak)
    assert peaks[1] < 1.05 * peaks[0], peaks
