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


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    rows: list[dict[str, Any]] = [
        {"step": i, "loss": 3 - i / 9999, "grad_norm": 1.0, "lr": 1e-4, "seconds": 0.5, "num_tokens": 400}
        for i in range(10_000)
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    long = {"prompt": "x" * 3000, "before": "word " * 900, "after": "y" * 900, "reference": "z"}
    result = {"stage": "sft", "status": "done", "exit_code": 0, "after": {"eval_loss": 1.0}, "sample": long}
    (folder / "result.json").write_text(json.dumps(result))
    return report.run(str(folder))


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


@pytest.mark.parametrize("width", [390, 1400])
def test_the_page_is_no_wider_than_the_screen(page: Path, tmp_path: Path, width: int) -> None:
    """In a frame, as a window cannot be as narrow as a phone."""
    frame = f'<iframe width="{width}" height="900" style="border: 0" srcdoc="{html.escape(page.read_text())}"></iframe>'
    measure = "onload = () => { document.title = frames[0].document.documentElement.scrollWidth }"
    wrapper = tmp_path / "wrapper.html"
    wrapper.write_text(f"<title></title>{frame}<script>{measure}</script>", encoding="utf-8")
    dom = browse(wrapper, "--window-size=1600,1000", "--dump-dom").stdout
    assert int(dom.partition("<title>")[2].partition("</title>")[0]) == width


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
