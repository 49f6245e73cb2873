"""chat, generate and merge as a user runs them, on a tiny model with an adapter; the oracle is plain peft."""

import contextlib
import fcntl
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM, AutoTokenizer

from tunekit.models import adapters, export
from tunekit.models.load import default_device, default_dtype, load_model, load_tokenizer, locate, weights_hash

TUNEKIT = [sys.executable, "-m", "tunekit"]
LLAMA = "tiny-random/llama"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a finished run leaves, its adapter large enough to change every answer."""
    location = locate(LLAMA)
    torch.manual_seed(0)
    model = load_model(location, dtype=torch.float32, device=torch.device("cpu"), attn_implementation=None)
    adapted = adapters.add_lora(model, r=4, alpha=8, dropout=0.0, target_modules="all-linear", init_lora_weights=False)
    passport = {"base_model": {"name": LLAMA, "revision": None, "sha256": weights_hash(location)}}
    folder = tmp_path_factory.mktemp("out") / "run"
    export.save_artefact(adapted, model, load_tokenizer(location), folder / "model", passport)
    (folder / "recipe.yaml").touch()
    return folder


@pytest.fixture(scope="module")
def oracle(run_folder: Path) -> Any:
    """Greedy answers of peft's own loader to a conversation (or a raw text) of so many tokens."""
    folder, device = run_folder / "model", default_device()
    model = AutoPeftModelForCausalLM.from_pretrained(folder, dtype=default_dtype(device)).to(device).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def answer(prompt: str | list[dict[str, str]], max_new_tokens: int) -> str:
        if not isinstance(prompt, str):
            prompt = tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"].to(device)
        new = model.generate(input_ids=ids, max_new_tokens=max_new_tokens, do_sample=False)[0, ids.shape[1] :]
        return tokenizer.decode(new, skip_special_tokens=True).strip()

    return answer


def tunekit(*arguments: str, given: str = "") -> tuple[int, str, str]:
    # Bytes, since text mode would make line feeds of the carriage returns that a random model says.
    done = subprocess.run([*TUNEKIT, *arguments], input=given.encode(), capture_output=True, check=False, timeout=120)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def test_chat_with_one_prompt_reports_the_answer_as_json(run_folder: Path, oracle: Any) -> None:
    options = ("--prompt", "Hello", "--system", "Be brief.", "--max-new-tokens", "20", "--json")
    code, out, err = tunekit("chat", str(run_folder), *options)
    assert code == 0 and err == ""
    report = json.loads(out)
    assert set(report) == {"prompt", "answer", "tokens", "seconds", "tokens_per_second", "ended"}
    assert report["answer"] == oracle([said("system", "Be brief."), said("user", "Hello")], 20)
    assert report["tokens"] == 20 and report["ended"] is False


def test_the_system_prompt_of_training_is_used_unless_another_is_given(
    run_folder: Path, tmp_path: Path, oracle: Any
) -> None:
    """What `data.system` put before every conversation in training must stand there when the model is used."""
    trained = tmp_path / "run"
    shutil.copytree(run_folder, trained)
    passport = trained / "model" / "tunekit.json"
    passport.write_text(json.dumps({**json.loads(passport.read_text()), "messages": {"system": "Be brief."}}))
    code, out, err = tunekit("chat", str(trained), "--prompt", "Hello", "--max-new-tokens", "8")
    assert code == 0 and "Be brief." in err
    assert out == oracle([said("system", "Be brief."), said("user", "Hello")], 8) + "\n"
    generated = json.loads(tunekit("generate", str(trained), "--prompt", "Hello", "--max-new-tokens", "8", "--json")[1])
    assert generated["completion"] == out.rstrip("\n")
    assert tunekit("chat", str(trained), "--prompt", "Hello", "--system", "Sing.", "--max-new-tokens", "8")[1] != out


def test_piped_lines_are_one_conversation_and_only_answers_are_printed(run_folder: Path, oracle: Any) -> None:
    lines = "Hello\n\n/nonsense\nAgain\n/system Be brief.\nHello\nAgain\n/reset\nHello\n"
    code, out, err = tunekit("chat", str(run_folder), "--max-new-tokens", "8", given=lines)
    first = oracle([said("user", "Hello")], 8)
    second = oracle([said("user", "Hello"), said("assistant", first), said("user", "Again")], 8)
    system = said("system", "Be brief.")
    third = oracle([system, said("user", "Hello")], 8)
    fourth = oracle([system, said("user", "Hello"), said("assistant", third), said("user", "Again")], 8)
    assert code == 0
    assert out == "".join(f"{answer}\n" for answer in (first, second, third, fourth, third))
    assert len({first, second, third, fourth}) == 4  # else the test could not tell turns apart
    assert "/nonsense is no command" in err


class Terminal:
    """A command at a terminal of its own: what is typed, and what appears until a text is there."""

    def __init__(self, *arguments: str) -> None:
        self.master, slave = pty.openpty()

        def take_terminal() -> None:
            os.setsid()
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a shell's background job passes on that it is ignored
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [*TUNEKIT, *arguments],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            preexec_fn=take_terminal,
            env={**os.environ, "TERM": "dumb"},
        )
        os.close(slave)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def until(self, pattern: str) -> str:
        shown, deadline = "", time.monotonic() + 60
        while not re.search(pattern, shown):
            assert time.monotonic() < deadline, f"{pattern!r} did not appear in {shown!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                shown += os.read(self.master, 65536).decode(errors="replace")
        time.sleep(0.2)  # readline shows the prompt a moment before it listens to signals
        return shown

    def leave(self, key: str) -> int:
        deadline = time.monotonic() + 60
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"{key!r} did not end it"
            self.type(key)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=5)
        os.close(self.master)
        return self.process.returncode


def test_a_conversation_at_a_terminal(run_folder: Path) -> None:
    terminal = Terminal("chat", str(run_folder), "--max-new-tokens", "1900", "--temperature", "1", "--seed", "0")
    assert "context of 2,048 tokens" in terminal.until("> $")
    terminal.type("/nonsense\n")
    assert "/nonsense is no command" in terminal.until("> $")
    terminal.type("Tell me a story.\n")
    terminal.until(r"story\.\r\n(.|\n){20}")  # the answer streams
    terminal.type("\x03")
    stopped = re.search(r"\[stopped after (\d+) tokens\]\r\n\r\n> $", terminal.until("> $"))
    assert stopped and int(stopped[1]) < 1900
    terminal.type("/system Be brief.\n")
    assert "begins anew" in terminal.until("> $")
    assert terminal.leave("\x04") == 0


def test_ctrl_c_at_the_prompt_leaves(run_folder: Path) -> None:
    terminal = Terminal("chat", str(run_folder))
    terminal.until("> $")
    assert terminal.leave("\x03") == 130


def test_generate_completes_a_file_in_its_order(run_folder: Path, oracle: Any, tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"id": 0, "prompt": "A rather long question about the sea, the sky and the land?"},
        {"id": 1, "messages": [said("user", "Hi"), said("assistant", "Hello")]},
        {"id": 2, "text": "Once upon a time"},
        {"id": 3, "prompt": "Hi", "completion": "Hello"},
    ]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--input", str(tmp_path / "in.jsonl"), "--max-new-tokens", "10", "--batch-size", "1")
    code, out, err = tunekit("generate", str(run_folder), *options, "--output", str(tmp_path / "out.jsonl"), "--json")
    assert code == 0 and err == ""
    assert json.loads(out)["rows"] == 4
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    prompts = [[said("user", rows[0]["prompt"])], [said("user", "Hi")], "Once upon a time", [said("user", "Hi")]]
    assert [row["completion"] for row in written] == [oracle(prompt, 10) for prompt in prompts]
    assert [row["id"] for row in written] == [0, 1, 2, 3]
    assert [row.get("reference") for row in written] == [None, "Hello", None, "Hello"]
    assert written[1]["messages"] == rows[1]["messages"]


def test_merge_leaves_a_plain_model_of_equal_logits(run_folder: Path) -> None:
    code, out, _ = tunekit("merge", str(run_folder), "--json")
    assert code == 0, out
    report = json.loads(out)
    assert report["model"] == str(run_folder / "merged")
    assert report["dtype"] == "float32" and report["merge_difference"] < 1e-3 and report["reload_difference"] == 0
    merged = AutoModelForCausalLM.from_pretrained(run_folder / "merged").eval()
    tokenizer = AutoTokenizer.from_pretrained(run_folder / "merged")
    unmerged = AutoPeftModelForCausalLM.from_pretrained(run_folder / "model", dtype=torch.float32).eval()
    ids = tokenizer("The sea is", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, unmerged(ids).logits, atol=1e-3, rtol=0)
        assert not torch.allclose(merged(ids).logits, unmerged.get_base_model()(ids * 0).logits, atol=1e-1)
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained(run_folder / "model").chat_template
    assert json.loads((run_folder / "merged" / "tunekit.json").read_text())["base_model"]["name"] == LLAMA
    assert not list(run_folder.glob(".tmp-*"))
