"""Rules about the source that a review would otherwise have to remember."""

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tunekit.recipe.schema import Adapter, Recipe

PACKAGE = Path(__file__).parents[2] / "tunekit"
FILES = sorted(PACKAGE.rglob("*.py"))
# A part imports its own layer and those below it.
LAYERS = [{"errors", "recipe"}, {"ops", "data"}, {"models", "objectives"}, {"train"}, {"stages"}, {"cli"}]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
DOORS = {
    "accelerate": {"train/engine.py"},
    "peft": {"models/adapters.py", "models/lora.py"},
    "datasets": {"data/sources.py", "train/metrics.py"},
    "evaluate": {"train/metrics.py"},
    "bitsandbytes": {"train/optim.py"},
}


def imported(file: Path) -> set[str]:
    """Dotted names of the modules that `file` imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def part_of(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_imports_go_one_way(file: Path) -> None:
    part = part_of(file)
    if part in ("__init__", "__main__"):
        return
    for name in imported(file):
        words = name.split(".")
        if words[0] == "tunekit" and len(words) > 1 and words[1] in LAYER:
            assert LAYER[words[1]] <= LAYER[part], f"{part} must not import {name}"
            if part == "objectives":
                assert words[1] != "models", f"objectives must not import {name}"


@pytest.mark.parametrize("library", DOORS)
def test_each_library_has_one_door(library: str) -> None:
    users = {str(f.relative_to(PACKAGE)) for f in FILES if any(n.split(".")[0] == library for n in imported(f))}
    assert users == DOORS[library]


def test_only_stages_and_cli_read_a_recipe() -> None:
    below = [f for f in FILES if part_of(f) in ("ops", "data", "models", "objectives", "train")]
    assert not [f for f in below if any(name.startswith("tunekit.recipe") for name in imported(f))]


def test_help_is_quick_and_loads_no_heavy_library() -> None:
    code = (
        "import sys, time; start = time.process_time()\n"
        "from tunekit.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'numpy', 'datasets', 'peft'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy), 'SECONDS', time.process_time() - start)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "HEAVY []" in output
    for verb in ("sft", "chat", "generate", "merge", "show", "env"):
        assert verb in output
    assert float(output.rpartition("SECONDS")[2]) < 0.6  # 0.3 s on an idle core; a loaded CI core is slower


def fields(model: type[BaseModel]) -> set[str]:
    names = set(model.model_fields)
    for field in model.model_fields.values():
        for section in sections(field.annotation):
            names |= fields(section)
    return names


def sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in getattr(annotation, "__args__", ()) for section in sections(part)]


def test_every_recipe_field_is_read_outside_the_recipe_package() -> None:
    readers = [f for f in FILES if part_of(f) == "stages" or f.match("models/adapters.py")]
    text = "\n".join(file.read_text() for file in readers)
    # `model_dump(exclude=...)` hands a whole section on; what takes its keys by name is checked by the call itself
    whole = {"adapter": "add_lora(model, **recipe.adapter.model_dump", "source": "sources.read(part.path, **where)"}
    for marker in whole.values():
        assert marker in text
    handed_on = set(fields(Adapter)) | {"name", "split", "data_files", "revision"}
    handed_on.add("global_batch_size")  # derived into gradient_accumulation_steps when the recipe is loaded
    unread = {n for n in fields(Recipe) - handed_on if not re.search(rf"\.{n}\b|[\"']{n}[\"']", text)}
    assert not unread


def test_files_and_functions_stay_small() -> None:
    too_long = [str(f) for f in FILES if len(f.read_text().splitlines()) > 300]
    for file in FILES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.FunctionDef) and node.end_lineno - node.lineno >= 60:  # type: ignore[operator]
                too_long.append(f"{file}:{node.lineno} {node.name}")
    assert not too_long


@pytest.mark.parametrize(
    "pattern", [r"torch\.load\(", r"\byaml\.load\(", r"\beval\(", r"\bexec\(", r"shell=True", r"pickle", r"0\.0\.0\.0"]
)
def test_nothing_runs_code_from_data(pattern: str) -> None:
    for file in FILES:
        code = "\n".join(line for line in file.read_text().splitlines() if "No pickle" not in line)
        assert not re.search(rf"(?<![.\w]){pattern}", code), file
    for file in FILES:
        assert "trust_remote_code=True" not in file.read_text()
