"""`tunekit check`: each thing that would stop a run later is found in its part, with that part's exit code."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tunekit.cli import app
from tunekit.models import memory
from tunekit.models.load import locate
from tunekit.models.tiny_random import tokenizer
from tunekit.recipe.load import load
from tunekit.stages import check

CHATS = [
    {"messages": [{"role": "user", "content": f"Hi {i}"}, {"role": "assistant", "content": f"Hello {i}"}]}
    for i in range(10)
]
PARTS = ["recipe", "files", "model", "template", "data", "memory", "steps"]
STREAM = ("data.streaming=true", "data.max_length=100", "train.max_steps=3", "data.shuffle_buffer=8")
ONE_MODULE = "adapter={type: lora, target_modules: [model.layers.1.self_attn.q_proj]}"
ONE_LAYER = r"adapter={type: lora, target_modules: 'model\.layers\.1\..*_proj'}"
Write = Callable[..., Path]


@pytest.fixture
def recipe(tmp_path: Path) -> Write:
    def write(rows: list[Any] = CHATS, model: str = "tiny-random/llama", more: str = "") -> Path:
        (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        file = tmp_path / "recipe.yaml"
        file.write_text(f"model: {model}\ndata: {tmp_path}/rows.jsonl\noutput_dir: {tmp_path}/out\n{more}")
        return file

    return write


def run(file: Path, *overrides: str) -> dict[str, Any]:
    return check.run(lambda: load(file, overrides))


def statuses(report: dict[str, Any]) -> dict[str, str]:
    return {part["part"]: part["status"] for part in report["parts"]}


@pytest.mark.parametrize(
    ("model", "overrides"),
    [
        ("tiny-random/llama", ("adapter=lora",)),
        ("tiny-random/qwen3", ("freeze.layers=[1]", "train.optim=adafactor")),
        ("tiny-random/gemma2", ("adapter=lora", "adapter.init_lora_weights=pissa", "adapter.r=64")),
        ("tiny-random/mamba", ("train.per_device_train_batch_size=2",)),
        ("tiny-random/llama", (ONE_LAYER, "data.packing=true")),
        ("tiny-random/llama", (ONE_MODULE,)),
        ("tiny-random/gpt2", STREAM),
    ],
)
def test_a_good_recipe_passes_in_every_part_and_leaves_nothing(
    recipe: Write, tmp_path: Path, model: str, overrides: tuple[str, ...]
) -> None:
    report = run(recipe(model=model), *overrides)
    assert statuses(report) == dict.fromkeys(PARTS, "ok"), report
    assert report["exit_code"] == 0 and sorted(path.name for path in tmp_path.iterdir()) == [
        "recipe.yaml",
        "rows.jsonl",
    ]
    assert "2 optimizer steps of tiny-random/" in report["parts"][-1]["detail"]


@pytest.mark.parametrize(
    ("overrides", "part", "code", "words"),
    [
        (("train.lerning_rate=1",), "recipe", 2, "did you mean train.learning_rate?"),
        (("eval.metrics=[bleurt]",), "recipe", 2, "bleurt"),
        (("data.train.0.path=rows.jsnl",), "files", 3, "rows.jsnl"),
        (("model=nobody/nothing",), "model", 7, "nobody/nothing"),
        (("model=./nowhere",), "model", 2, "./nowhere does not exist"),
        (("data.train.0.format=alpaca",), "data", 3, "10 of 10 rows cannot be used"),
        (("data.max_length=20",), "data", 3, "over data.max_length: 20"),
        (("adapter={type: lora, target_modules: [q_prj]}",), "memory", 2, "q_proj"),
        (("freeze.layers=[7]",), "memory", 2, "layers 0 to 1"),
        (("model.attn_implementation=nonsense",), "steps", 7, "nonsense"),
    ],
)
def test_each_mistake_is_found_in_its_part(
    recipe: Write, overrides: tuple[str, ...], part: str, code: int, words: str
) -> None:
    report = run(recipe(), *overrides)
    assert report["exit_code"] == code and report["status"] == "failed"
    failed = [each for each in report["parts"] if each["status"] == "failed"]
    assert failed[0]["part"] == part and words in failed[0]["detail"], report


def test_parts_that_need_one_that_failed_are_not_reached(recipe: Write) -> None:
    assert statuses(run(recipe(), "data.train.0.path=gone.jsonl")) == {
        **dict.fromkeys(PARTS, "ok"),
        **{"files": "failed", "data": "failed", "steps": "not reached"},
    }
    assert set(statuses(run(recipe(), "x=1")).values()) == {"failed", "not reached"}


def test_a_folder_with_a_finished_run_is_refused(recipe: Write, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("")
    report = run(recipe())
    assert report["exit_code"] == 2 and "is not empty" in report["parts"][0]["detail"]
    assert set(statuses(report).values()) == {"failed", "ok"}, "the rest is still looked at"


def test_rows_that_no_stage_trains_on_are_not_called_good(recipe: Write) -> None:
    report = run(recipe([{"prompt": "a", "chosen": "b", "rejected": "c"}] * 3))
    assert report["exit_code"] == 3 and "the rows are pairs" in json.dumps(report)


def test_a_model_that_does_not_fit_is_exit_5(recipe: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "available", lambda device: 1000)
    report = run(recipe())
    assert report["exit_code"] == 5 and statuses(report)["memory"] == "failed"
    assert "adapter: lora" in next(each["detail"] for each in report["parts"] if each["part"] == "memory")


def test_the_weights_counted_are_those_that_training_counts(recipe: Write, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="tunekit"):
        report = run(recipe(), "adapter=lora", "adapter.r=8")
    counted = next(each["detail"] for each in report["parts"] if each["part"] == "memory").split(" weights")[0]
    assert f"training {counted} weights" in caplog.text, "the tiny model is tiny-random/llama itself"


def test_a_folder_without_tokenizer_or_weights_is_told(recipe: Write, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    report = run(recipe(), f"model={folder}")
    assert report["exit_code"] == 2 and "its tokenizer cannot be loaded" in report["parts"][2]["detail"]
    tokenizer().save_pretrained(folder)
    report = run(recipe(), f"model={folder}")
    assert report["exit_code"] == 2 and "holds no *.safetensors file" in report["parts"][2]["detail"]


def test_damaged_weights_are_told(recipe: Write, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(locate("tiny-random/llama").path, folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    report = run(recipe(), f"model={folder}")
    assert report["exit_code"] == 2 and "model.safetensors is damaged" in report["parts"][2]["detail"]


@pytest.mark.parametrize("config", ["{}", '{"model_type": "lama9"}', "{"])
def test_a_config_that_says_nothing_is_told(recipe: Write, tmp_path: Path, config: str) -> None:
    folder = tmp_path / "model"
    shutil.copytree(locate("tiny-random/llama").path, folder)
    (folder / "config.json").write_text(config)
    report = run(recipe(), f"model={folder}")
    assert report["exit_code"] == 2 and statuses(report)["model"] == "failed"


@pytest.mark.parametrize("place", ["afile", "afile/x", "afile/x/y"])
def test_an_output_dir_that_cannot_be_made_is_exit_4(recipe: Write, tmp_path: Path, place: str) -> None:
    (tmp_path / "afile").write_text("")
    report = run(recipe(), f"output_dir={tmp_path}/{place}")
    assert report["exit_code"] == 4 and "is a file and no folder" in report["parts"][0]["detail"]


def test_large_steps_are_tried_in_part(recipe: Write) -> None:
    rows = [{"messages": [CHATS[0]["messages"][0], {"role": "assistant", "content": "x" * 1500}]}] * 30
    report = run(recipe(rows), "train.per_device_train_batch_size=30", "data.eval_split=0", "train.max_steps=3")
    assert report["exit_code"] == 0 and report["parts"][-1]["seconds"] < 30


def test_the_command_prints_a_line_a_part_or_json(recipe: Write) -> None:
    result = CliRunner().invoke(app, ["check", str(recipe())])
    assert result.exit_code == 0 and [line.split()[0] for line in result.stdout.splitlines()] == PARTS
    result = CliRunner().invoke(app, ["check", str(recipe()), "data.max_length=20", "--json"])
    assert result.exit_code == 3 and json.loads(result.stdout)["exit_code"] == 3
