"""The page of a run in a real browser: it fits the screen, and nothing but the file is asked for."""

import html
import json
import re
import shutil
import struct
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tunekit.stages import report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine (apt-get install chromium)")

RAN = "what a model wrote was run"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    rows: list[dict[str, Any]] = [
        {"step": i, "loss": 3 - i / 9999, "grad_norm": 1.0, "lr": 1e-4, "seconds": 0.5, "num_tokens": 400}
        for i in range(10_000)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "result.json").write_text(json.dumps(result()))
    name = "unbroken" * 12
    part = {"rows": 9, "tokens": 123_456_789, "trained": 40, "lengths": {"median": 10, "max": 20}, "sha256": "a" * 64}
    manifest = {"base_model": {"name": name}, "data": {"train": part, "held_out": part}, "versions": {name: name}}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "recipe.yaml").write_text(f"model: {'m' * 500}\n")
    return report.run(str(folder))


def result() -> dict[str, Any]:
    """Long words, wide tables, and what would set the title of the page if it ran."""
    name = "unbroken" * 12
    score = {"value": 0.123456, "low": 0.1, "high": 0.2, "n": 123_456_789, "better": "higher"}
    task = {"task": name, "n": 9, "scores": {name: score}, "groups": {name: {name: score}}}
    change = {name: {name: {"value": 0.1, "low": -0.1, "high": 0.3, "p_value": 0.5}}}
    code = f"<script>document.title = '{RAN}'</script><img src=x onerror=\"document.title = '{RAN}'\">"
    return {
        "stage": "sft",
        "status": "failed",
        "exit_code": 8,
        "error": code + "e" * 500,
        "after": {"eval_loss": 1.0, name: 1.0},
        "sample": {"prompt": "x" * 3000, "before": "word " * 900, "after": "y" * 900, "reference": code},
        "gates": [{"name": name, "condition": "< 1", "passed": False, "reason": code}],
        "tasks": {"before": {name: task}, "after": {name: task}, "change": change},
        "sources": [{"path": f"/data/{name}/{code}", "trained_tokens": 9}],
    }


def browse(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [
        str(CHROMIUM),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        *options,
        page.as_uri(),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


def test_a_run_of_ten_thousand_steps_is_a_small_page(page: Path) -> None:
    assert page.stat().st_size < 3_000_000


def measured(page: Path, folder: Path, width: int, expression: str) -> float:
    """What `expression` of JavaScript is in `page`, in a frame as a window cannot be as narrow as a phone.

    The page allows no script: it is the page around it that looks into it. `opened`: the milliseconds it took.
    """
    look = f"""const started = performance.now(), frame = document.createElement('iframe')
        frame.style = 'border: 0; width: {width}px; height: 900px'
        frame.onload = () => {{
            const opened = performance.now() - started, page = frame.contentDocument
            for (const each of page.querySelectorAll('details')) each.open = true
            document.title = {expression}
        }}
        frame.srcdoc = document.querySelector('textarea').value
        document.body.append(frame)"""
    wrapper = folder / "wrapper.html"
    text = f"<title></title><body><textarea>{html.escape(page.read_text())}</textarea><script>{look}</script>"
    wrapper.write_text(text, encoding="utf-8")
    return float(title(browse(wrapper, "--window-size=1600,1000", "--dump-dom").stdout))


def title(dom: str) -> str:
    return dom.partition("<title>")[2].partition("</title>")[0]


@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_is_no_wider_than_the_screen_with_everything_opened(page: Path, tmp_path: Path, width: int) -> None:
    assert measured(page, tmp_path, width, "page.documentElement.scrollWidth") == width
    # A table that is too wide is to be scrolled, not cut off: this one is.
    assert measured(page, tmp_path, 390, "[...page.querySelectorAll('.wide')].filter(e => e.scrollWidth > 390).length")


def test_the_page_opens_in_a_second(page: Path, tmp_path: Path) -> None:
    assert min(measured(page, tmp_path, 1400, "opened") for _ in range(3)) < 1000


def test_nothing_in_the_answers_or_names_of_a_run_is_run(page: Path, tmp_path: Path) -> None:
    """Also where nothing forbids it: it is text."""
    text = page.read_text(encoding="utf-8").replace("Content-Security-Policy", "x")
    copy = tmp_path / "copy.html"
    copy.write_text(text, encoding="utf-8")
    assert title(browse(copy, "--dump-dom").stdout) == page.parent.name
    code = f"<script>document.title = '{RAN}'</script>"
    copy.write_text(text.replace("<header>", code + "<header>"), encoding="utf-8")
    assert title(browse(copy, "--dump-dom").stdout) == RAN, "it would be seen"


def asked_for(page: Path, folder: Path) -> list[str]:
    """The addresses on the network that the browser asked for, without those that it asks for by itself."""
    browse(page, f"--log-net-log={folder / 'net.json'}", f"--user-data-dir={folder / 'profile'}", "--dump-dom")
    events = json.loads((folder / "net.json").read_text())["events"]
    asked = {event["params"]["url"] for event in events if "url" in event.get("params", {})}
    return [url for url in asked if url.startswith("http") and not re.match(r"https?://[\w.-]*(google|gvt1)", url)]


def test_nothing_but_the_file_is_asked_for(page: Path, tmp_path: Path) -> None:
    assert asked_for(page, tmp_path) == []
    planted = page.read_text(encoding="utf-8").replace("<header>", '<header><img src="http://127.0.0.1:9/x.png">')
    copy = tmp_path / "planted.html"
    copy.write_text(planted, encoding="utf-8")
    assert asked_for(copy, tmp_path) == [], "the policy of the page refuses what were to get into it"
    copy.write_text(planted.replace("Content-Security-Policy", "x"), encoding="utf-8")
    assert asked_for(copy, tmp_path) == ["http://127.0.0.1:9/x.png"], "it would be seen"


def test_a_screenshot_has_the_size_of_the_screen(page: Path, tmp_path: Path) -> None:
    file = tmp_path / "shot.png"
    browse(page, "--window-size=1400,2000", f"--screenshot={file}")
    assert struct.unpack(">II", file.read_bytes()[16:24]) == (1400, 2000)
