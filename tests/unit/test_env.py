"""`tunekit env`: the report is JSON, its floors are those of the package's metadata."""

import importlib.metadata
import json
from pathlib import Path

import pytest
import torch

import tunekit
from tunekit.stages import env


@pytest.fixture(scope="module")
def report() -> dict[str, object]:
    return env.report()


def test_the_report_is_json_and_names_what_is_installed(report: dict[str, object]) -> None:
    assert json.loads(json.dumps(report)) == report
    assert report["tunekit"] == tunekit.__version__
    assert report["libraries"]["torch"] == importlib.metadata.version("torch")  # type: ignore[index]
    assert isinstance(getattr(torch, str(report["dtype"])), torch.dtype)


def test_this_installation_meets_its_own_floors(report: dict[str, object]) -> None:
    assert env.check(report) == []


def test_every_needed_library_of_pyproject_is_reported(report: dict[str, object]) -> None:
    pyproject = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    needed = pyproject.split("dependencies = [")[1].split("]")[0].split('"')[1::2]
    assert {line.split(">=")[0] for line in needed} <= set(report["libraries"])  # type: ignore[call-overload]


def test_too_old_and_absent_libraries_are_problems_that_say_what_to_install(report: dict[str, object]) -> None:
    libraries = dict(report["libraries"])  # type: ignore[call-overload]
    problems = env.check({**report, "python": "3.9.2", "libraries": {**libraries, "torch": "2.9.1+cpu", "peft": None}})
    assert len(problems) == 3
    assert "Python is 3.9.2" in problems[0]
    assert any("torch is 2.9.1+cpu" in problem and "torch>=2.10" in problem for problem in problems)
    assert any("peft is not installed" in problem for problem in problems)


def test_local_and_development_builds_above_the_floor_pass(report: dict[str, object]) -> None:
    libraries = dict(report["libraries"])  # type: ignore[call-overload]
    assert env.check({**report, "libraries": {**libraries, "torch": "2.15.0.dev20270101+cu130"}}) == []


def test_a_missing_optional_library_names_its_extra_and_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = importlib.metadata.version

    def without_wandb(name: str) -> str:
        if name == "wandb":
            raise importlib.metadata.PackageNotFoundError(name)
        return installed(name)

    monkeypatch.setattr(importlib.metadata, "version", without_wandb)
    report = env.report()
    assert report["missing_optional"]["wandb"] == "pip install 'tunekit[wandb]'"
    assert "pytest" not in report["libraries"] and "tunekit" not in report["libraries"]
    assert env.check(report) == []
    assert "tunekit[wandb]" in env.render(report)


def test_the_cache_and_the_offline_switches_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEKIT_CACHE", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    lines = env.render(env.report()).splitlines()
    assert any(line.startswith("cache") and str(tmp_path) in line for line in lines)
    assert any("HF_HUB_OFFLINE=1" in line for line in lines)
    assert any(line.startswith("built-in models") and "none yet" in line for line in lines)
