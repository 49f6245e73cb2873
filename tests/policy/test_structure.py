"""Rules about the source that a review would otherwise have to remember."""

import ast
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from tunekit.recipe.load import load
from tunekit.recipe.schema import Recipe, Section
from tunekit.stages import dpo, grpo, kto, ppo, reward, rloo, sft
from tunekit.stages.assemble import make_policy
from tunekit.stages.base import find_base
from tunekit.stages.read import read_rows
from tunekit.train.engine import Engine

PACKAGE = Path(__file__).parents[2] / "tunekit"
FILES = sorted(PACKAGE.rglob("*.py"))
# A part imports its own layer and those below it.
LAYERS = [
    {"errors", "files", "offline", "recipe"},
    {"ops", "data"},
    {"models", "objectives"},
    {"evals"},
    {"rollout", "train"},
    {"report"},
    {"stages", "launch"},
    {"cli"},
]
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
DOORS = {
    "accelerate": {"train/engine.py"},
    "peft": {"models/adapter_roles.py", "models/adapters.py", "models/lora.py"},
    "datasets": {"data/sources/hub.py", "evals/metrics/hub.py"},
    "evaluate": {"evals/metrics/hub.py"},
    "lm_eval": {"evals/harness.py"},
    "bitsandbytes": {"models/quantised.py", "train/optim.py"},
    "ray": {"launch/ray_train.py"},
    "pyarrow": {"data/sources/parquet.py", "data/store.py"},
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
    outputs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        for _ in range(3)  # the best of them: the caches of a busy machine are cold
    ]
    assert "HEAVY []" in outputs[0]
    for verb in (
        "sft",
        "reward",
        "dpo",
        "kto",
        "ppo",
        "grpo",
        "rloo",
        "run",
        "launch",
        "plan",
        "preview",
        "check",
        "show",
        "init",
        "schema",
        "convert",
        "diff",
        "chat",
        "generate",
        "merge",
        "eval",
        "gate",
        "report",
        "compare",
    ):
        assert verb in outputs[0]
    assert min(float(output.rpartition("SECONDS")[2]) for output in outputs) < 0.3


def fields(model: type[BaseModel], section: str = "Recipe") -> set[str]:
    """`Section.key` of every key of a recipe."""
    names: set[str] = set()
    for name, field in model.model_fields.items():
        inner = sections(field.annotation)
        names.add(f"{section}.{name}")
        names.update(*(fields(part, part.__name__) for part in inner))
    return names


def sections(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in getattr(annotation, "__args__", ()) for section in sections(part)]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """The keys that code outside the recipe package reads, one by one or as a section that is handed on."""
    seen: set[str] = set()
    attribute, dump = Section.__getattribute__, Section.model_dump

    def outside(module: str) -> bool:
        return module.startswith("tunekit.") and not module.startswith("tunekit.recipe")

    def reading(self: Section, name: str) -> Any:
        if outside(sys._getframe(1).f_globals["__name__"]):
            seen.add(f"{type(self).__name__}.{name}")
        return attribute(self, name)

    def dumping(self: Section, **options: Any) -> dict[str, Any]:
        values = dump(self, **options)
        if outside(sys._getframe(1).f_globals["__name__"]) and not isinstance(
            self, Recipe
        ):  # that one is only recorded
            seen.update(f"{type(self).__name__}.{name}" for name in values)
        return values

    monkeypatch.setattr(Section, "__getattribute__", reading)
    monkeypatch.setattr(Section, "model_dump", dumping)
    return seen


def test_a_run_reads_every_key_of_its_recipe(tmp_path: Path, read: set[str]) -> None:
    rows = [{"prompt": "a", "completion": "b"}] * 3
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = tmp_path / "recipe.yaml"
    file.write_text(
        f"model: tiny-random/llama\ndata: {tmp_path}/rows.jsonl\noutput_dir: {tmp_path}/out\n"
        "train: {max_steps: 1}\ngate: {eval_loss: < 99}\n"
        "eval: {metrics: [exact_match], max_new_tokens: 1, load_best_model_at_end: true,"
        " tasks: [blimp], task_limit: 2}\n"
    )
    sft.run(load(file, ("adapter=lora",)))
    sft.run(load(file, ("adapter=lora", "distributed=fsdp2", f"output_dir={tmp_path}/divided")))
    frozen = load(file, ("freeze.layers=[0]",)).recipe
    base = find_base(frozen)
    streamed = load(file, ("data.streaming=true", "data.max_length=99", "data.eval=null", "data.eval_split=1"))
    read_rows(streamed.recipe, base)
    make_policy(frozen, base, read_rows(frozen, base), Engine())
    (tmp_path / "own.py").write_text("def f(text): return len(set(text))\n")
    asked = (f"rewards=[{tmp_path}/own.py:f]", "eval={}", "gate=null", "adapter=lora", "rollout.max_new_tokens=4")
    for stage, loss in ((ppo, "ppo"), (grpo, "dapo"), (rloo, "rloo")):
        stage.run(load(file, (*asked, f"objective={loss}", f"output_dir={tmp_path}/{loss}")), allow_code=True)
    for stage, loss in ((dpo, "simpo"), (dpo, "discopop"), (kto, "kto"), (reward, "bradley_terry")):
        stage.STAGE.objective(load(file, (f"objective={loss}", "eval={}")).recipe, False)
    elsewhere = {"Train.global_batch_size"}  # into gradient_accumulation_steps, when the recipe is loaded
    elsewhere |= {"Distributed.nodes", "Distributed.max_restarts"}  # where processes are started
    elsewhere |= {"Rollout.base_url", "Rollout.served_model"}  # where a server is asked
    assert fields(Recipe) - elsewhere <= read


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
        if file == PACKAGE / "evals" / "sandbox.py":  # that is what it is for, in a process with limits
            continue
        code = "\n".join(line for line in file.read_text().splitlines() if "No pickle" not in line)
        assert not re.search(rf"(?<![.\w]){pattern}", code), file
    for file in FILES:
        assert "trust_remote_code=True" not in file.read_text()
