"""`tunekit run` with real stages: stopped in the middle, gone on, skipped, grown by a stage, asked what it would do."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from preferences import chats, pairs, write_rows
from safetensors.torch import load_file

PIPELINE = """\
output_dir: out
defaults:
  model: {dtype: float32}
  adapter: lora
  train: {per_device_train_batch_size: 1, learning_rate: 0.01, max_steps: 2}
  save: {steps: 1}
stages:
  - name: sft
    model: {name_or_path: tiny-random/llama}
    data: {train: chats.jsonl, eval: held_out.jsonl}
    train: {max_steps: 60}
  - name: dpo
    model: {name_or_path: "${sft}"}
    adapter: {from: continue}
    data: {train: pairs.jsonl, eval: held_out_pairs.jsonl}
"""
REWARD = """\
  - name: reward
    model: {name_or_path: "${sft}"}
    adapter: {from: merge_first}
    data: {train: pairs.jsonl, eval: held_out_pairs.jsonl}
"""


class Run:
    """A pipeline in a folder, run as a user does, over and over."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name, rows in (("chats", chats(10)), ("pairs", pairs(10))):
            write_rows(folder / f"{name}.jsonl", rows[2:])
            write_rows(folder / ("held_out.jsonl" if name == "chats" else "held_out_pairs.jsonl"), rows[:2])
        (folder / "p.yaml").write_text(PIPELINE)

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "tunekit", "run", "p.yaml", "--json", *arguments]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env={**os.environ, "OMP_NUM_THREADS": "1"}, **pipes)

    def __call__(self, *arguments: str) -> dict[str, Any]:
        process = self.start(*arguments)
        output, errors = process.communicate()
        assert process.returncode == 0, errors
        result: dict[str, Any] = json.loads(output)
        return {stage["name"]: stage for stage in result["stages"]}

    def json(self, path: str) -> dict[str, Any]:
        content: dict[str, Any] = json.loads((self.folder / path).read_text())
        return content


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    yield Run(tmp_path_factory.mktemp("pipeline"))


def test_a_pipeline_is_stopped_goes_on_is_skipped_and_grows(run: Run) -> None:
    """One story, since each process of a stage costs seconds."""
    process = run.start()
    checkpoints = run.folder / "out" / "sft" / "checkpoints"
    while not list(checkpoints.glob("step-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate()
    assert process.returncode == 75 and run.json("out/result.json")["failed"] == "sft", errors
    stopped = max(int(path.name.removeprefix("step-")) for path in checkpoints.iterdir())
    assert 0 < stopped < 60

    done = run()
    assert [done[name]["status"] for name in ("sft", "dpo")] == ["ran", "ran"]
    events = run.json("out/sft/result.json")["events"]
    assert any(f"step-{stopped}" in event["text"] for event in events), "it went on where it was"
    assert run.json("out/dpo/model/tunekit.json")["base_model"]["adapter"]["name"] == "out/sft"
    assert done["dpo"]["before"]["eval_loss"] == pytest.approx(0.6931, abs=1e-3), "its reference is what sft left"
    weights = load_file(run.folder / "out/dpo/model/adapter_model.safetensors")

    with (run.folder / "p.yaml").open("a") as file:
        file.write(REWARD)
    grown = run()
    assert [grown[name]["status"] for name in ("sft", "dpo", "reward")] == ["skipped", "skipped", "ran"]
    assert load_file(run.folder / "out/dpo/model/adapter_model.safetensors").keys() == weights.keys()
    assert "eval_accuracy" in grown["reward"]["after"]

    started = time.monotonic()
    skipped = run()
    assert {stage["status"] for stage in skipped.values()} == {"skipped"} and time.monotonic() - started < 10
    assert skipped["dpo"]["after"] == done["dpo"]["after"]

    (run.folder / "chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chats(12)[2:]))
    assert [run("--dry-run")[name]["action"] for name in ("sft", "dpo", "reward")] == ["run"] * 3
