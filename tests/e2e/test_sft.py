"""`tunekit sft` in a process of its own, as a user or a CI pipeline runs it, on a tiny random model."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from commands import tunekit
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
DATA = ROOT / "examples" / "data" / "chat.jsonl"


def recipe(folder: Path, **lines: str) -> Path:
    keys = {
        "model": "tiny-random/llama",
        "adapter": "{type: lora, dropout: 0.1}",
        "data": str(DATA),
        "train": "{max_steps: 8, per_device_train_batch_size: 4, learning_rate: 0.01}",
        "save": "{steps: 2}",
        "output_dir": str(folder / "out"),
        **lines,
    }
    path = folder / "recipe.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in keys.items()))
    return path


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "tunekit", *map(str, arguments)]


def in_a_process(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), capture_output=True, text=True, check=False, timeout=180)


def result_of(folder: Path) -> dict:
    return json.loads((folder / "out" / "result.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that went through without interruption; tests only read it."""
    folder = tmp_path_factory.mktemp("finished")
    process = in_a_process("sft", recipe(folder, report_to="tensorboard"), "--json")
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == result_of(folder), "--json prints result.json and nothing else"
    return folder


def test_a_run_leaves_what_it_promises(finished: Path) -> None:
    out, result = finished / "out", result_of(finished)
    assert result["status"] == "done" and result["exit_code"] == 0 and result["steps"] == 8
    assert result["after"]["eval_loss"] < result["before"]["eval_loss"]
    assert result["reload_difference"] == 0
    assert all(Path(path).exists() for path in result["paths"].values())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == list(range(1, 9))
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["versions"]["torch"] and len(manifest["data"]["train"]["sha256"]) == 64
    assert list(out.rglob("events.out.tfevents*")), "report_to: tensorboard"
    assert oct((out / "model" / "adapter_model.safetensors").stat().st_mode)[-3:] == "644"


def test_the_artefact_loads_with_plain_peft_and_knows_its_terminator(finished: Path) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoTokenizer

    folder = finished / "out" / "model"
    model = AutoPeftModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.chat_template and any("lora" in name for name, _ in model.named_parameters())
    generation = json.loads((folder / "generation_config.json").read_text())
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in generation["eos_token_id"]


def test_chat_answers_from_a_run_folder(finished: Path) -> None:
    process = tunekit("chat", finished / "out", "--prompt", "Hello", "--max-new-tokens", 5, "--json")
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout)["prompt"] == "Hello"


def test_a_full_output_dir_is_refused_and_left_alone(finished: Path) -> None:
    before = (finished / "out" / "result.json").read_text()
    process = tunekit("sft", finished / "recipe.yaml")
    assert process.returncode == 2 and "resume=auto" in process.stderr
    assert (finished / "out" / "result.json").read_text() == before


def start(path: Path) -> subprocess.Popen[str]:
    """Starts a run that is slow enough to be hit, and waits for its third step."""
    process = subprocess.Popen(
        command("sft", path, "train.max_steps=400", "save.steps=2", "train.logging_steps=1"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith("step 3/"):
            return process
    raise AssertionError("the run ended before its third step")


@pytest.mark.parametrize(
    ("number", "code", "status"), [(signal.SIGTERM, 75, "preempted"), (signal.SIGINT, 130, "interrupted")]
)
def test_a_signal_finishes_the_step_and_saves(tmp_path: Path, number: int, code: int, status: str) -> None:
    process = start(recipe(tmp_path))
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == code and "resume=auto" in stderr
    result = result_of(tmp_path)
    assert (result["status"], result["exit_code"]) == (status, code)
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert (tmp_path / "out" / "checkpoints" / f"step-{rows[-1]['step']}").is_dir(), "the last step is saved"


def test_kill_and_resume_equals_the_uninterrupted_run(tmp_path: Path, finished: Path) -> None:
    path = recipe(tmp_path)
    process = subprocess.Popen(command("sft", path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "out" / "checkpoints" / "step-2").exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    resumed = in_a_process("sft", path, "resume=auto")
    assert resumed.returncode == 0 and "resuming from" in resumed.stderr
    ours = load_file(tmp_path / "out" / "model" / "adapter_model.safetensors")
    theirs = load_file(finished / "out" / "model" / "adapter_model.safetensors")
    assert all((ours[name] == theirs[name]).all() for name in theirs) and ours.keys() == theirs.keys()
    losses = [
        [(row["step"], row["loss"]) for row in map(json.loads, (f / "out" / "metrics.jsonl").open()) if "loss" in row]
        for f in (tmp_path, finished)
    ]
    assert losses[0] == losses[1]


def test_another_recipe_may_not_resume(finished: Path) -> None:
    process = tunekit("sft", finished / "recipe.yaml", "resume=auto", "train.learning_rate=0.5")
    assert process.returncode == 2 and "train.learning_rate: 0.01 then, 0.5 now" in process.stderr


@pytest.mark.parametrize(
    ("lines", "override", "code", "words"),
    [
        ({"adaptor": "lora"}, "train.seed=1", 2, "did you mean adapter"),
        ({}, "train.lerning_rate=1", 2, "learning_rate"),
        ({}, "train.optim=adamw", 2, "adamw_torch"),
        ({}, "eval.metric_for_best_model=eval_bleu", 2, "eval_perplexity"),
        ({}, "adapter.target_modules=nothing_like_it", 2, "q_proj"),
        ({}, "model=/no/such/folder", 2, "/no/such/folder"),
        ({}, "model=no-such/model", 7, "no-such/model"),
        ({}, "data=missing.jsonl", 3, "missing.jsonl"),
        ({}, "data=empty.jsonl", 3, "empty.jsonl"),
        ({}, "data=broken.jsonl", 3, "broken.jsonl:2"),
        ({}, "data.max_length=20", 3, "data.overlong"),
    ],
)
def test_mistakes_are_told_not_thrown(
    tmp_path: Path, lines: dict[str, str], override: str, code: int, words: str
) -> None:
    (tmp_path / "empty.jsonl").write_text("")
    (tmp_path / "broken.jsonl").write_text('{"text": "good"}\n{"text": \n')
    path = recipe(tmp_path, **lines)
    process = tunekit("sft", path, override, folder=tmp_path)
    assert process.returncode == code, process.stderr
    assert words in process.stderr and "Traceback" not in process.stderr
    assert not (tmp_path / "out" / "model").exists()
    if (tmp_path / "out").exists():
        result = result_of(tmp_path)
        assert result["status"] == "failed" and result["exit_code"] == code and words in result["error"]


def test_a_failed_start_does_not_block_the_next(tmp_path: Path) -> None:
    path = recipe(tmp_path)
    assert tunekit("sft", path, "data=missing.jsonl").returncode == 3
    assert tunekit("sft", path, "train.max_steps=1").returncode == 0
