"""Pipelines: what a file may say, what is wrong with it and where, what runs again and what does not.

The stages here are a short program that leaves a "model" made of what it read; whole runs are in tests/e2e.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from typer.testing import CliRunner, Result

from tunekit.cli import app
from tunekit.errors import RecipeError
from tunekit.recipe.load import load, load_text
from tunekit.recipe.pipeline import load_pipeline
from tunekit.stages import pipeline_child
from tunekit.stages.pipeline_inputs import changes, inputs_of

PIPELINE = """\
output_dir: out
defaults: {train: {seed: 1}}
stages:
  - name: sft
    model: tiny-random/llama
    data: chats.jsonl
  - name: reward
    model: ${sft}
    data: pairs.jsonl
  - name: policy
    stage: dpo
    model: ${sft}
    data: pairs.jsonl
"""

# Leaves a model that depends on its recipe's data and model alone, and notes that it ran. Its first row says what else.
STAGE = """\
import hashlib, json, os, signal, sys, time
from pathlib import Path
from tunekit.recipe.load import load
recipe = load(sys.argv[2]).recipe
folder = Path(recipe.output_dir)
(folder / "checkpoints" / "step-1").mkdir(parents=True, exist_ok=True)
with open("ran.txt", "a") as file:
    print(recipe.stage, recipe.resume, *sys.argv[3:], file=file)
rows = Path(recipe.data.train[0].path).read_bytes()
model = Path(recipe.model.name_or_path) / "model" / "model.safetensors"
code = 0
if b"fail" in rows:
    code = 3
if b"kill" in rows:
    os.kill(os.getpid(), signal.SIGKILL)
if b"wait" in rows and recipe.resume == "never":
    signals = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: signals.append(number))
    Path("waiting").touch()
    while not signals:
        time.sleep(0.01)
    time.sleep(0.2)
    assert len(signals) == 1 and os.getsid(0) == os.getpid(), "what goes to the group of the pipeline comes once"
    code = 130 if signals == [signal.SIGINT] else 75
if code == 0:
    (folder / "model").mkdir(exist_ok=True)
    (folder / "model" / "config.json").write_text("{}")
    weights = hashlib.sha256(rows + (model.read_bytes() if model.is_file() else b""))
    (folder / "model" / "model.safetensors").write_bytes(weights.digest())
result = {"exit_code": code, "before": {"eval_loss": 2.0}, "after": {"eval_loss": 1.5}, "error": "said by the stage"}
(folder / "result.json").write_text(json.dumps(result))
print(json.dumps(result))
sys.exit(code)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(PIPELINE)
    (tmp_path / "chats.jsonl").write_text('{"text": "a"}\n')
    (tmp_path / "pairs.jsonl").write_text('{"text": "b"}\n')
    (tmp_path / "stage.py").write_text(STAGE)
    monkeypatch.setattr(pipeline_child, "COMMAND", (sys.executable, str(tmp_path / "stage.py")))
    return tmp_path


def tunekit(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["run", "p.yaml", *arguments])


def ran(*arguments: str) -> list[str]:
    """The stages that a run starts, in order; it must end well."""
    Path("ran.txt").write_text("")
    result = tunekit(*arguments)
    assert result.exit_code == 0, result.output
    return [line.split()[0] for line in Path("ran.txt").read_text().splitlines()]


def planned(*arguments: str) -> dict[str, tuple[str, str]]:
    result = tunekit("--dry-run", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return {each["name"]: (each["action"], each["reason"]) for each in json.loads(result.stdout)["stages"]}


def replace(old: str, new: str) -> None:
    text = Path("p.yaml").read_text()
    assert old in text
    Path("p.yaml").write_text(text.replace(old, new))


def results() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("out/result.json").read_text())
    return found


def refusal(*overrides: str) -> str:
    with pytest.raises(RecipeError) as caught:
        load_pipeline("p.yaml", overrides)
    return str(caught.value)


def test_a_reference_is_the_folder_of_an_earlier_stage() -> None:
    stages = {stage.name: stage for stage in load_pipeline("p.yaml").stages}
    assert [stages[name].resolved.recipe.stage for name in ("sft", "reward", "policy")] == ["sft", "reward", "dpo"]
    assert stages["policy"].resolved.recipe.model.name_or_path == "out/sft" and stages["policy"].needs == ("sft",)
    assert stages["reward"].resolved.recipe.output_dir == "out/reward" and stages["sft"].needs == ()
    assert stages["sft"].resolved.origins["train.seed"] == "p.yaml:2"


def test_references_stand_in_lists_and_below_a_folder() -> None:
    replace("    data: chats.jsonl\n", "    data: chats.jsonl\n    output_dir: elsewhere\n")
    replace(
        "    data: pairs.jsonl\n  - name: policy",
        '    data: {train: [pairs.jsonl, "${sft}/more.jsonl"]}\n  - name: policy',
    )
    reward = load_pipeline("p.yaml").stages[1]
    assert [source.path for source in reward.resolved.recipe.data.train] == ["pairs.jsonl", "elsewhere/more.jsonl"]


def test_a_folder_that_is_written_out_is_a_reference_too() -> None:
    replace(
        "  - name: policy\n    stage: dpo\n    model: ${sft}", "  - name: policy\n    stage: dpo\n    model: ./out/sft"
    )
    assert load_pipeline("p.yaml").stages[2].needs == ("sft",)


def test_a_dollar_in_what_is_no_path_is_left_alone() -> None:
    replace("    data: chats.jsonl\n", '    data: {train: chats.jsonl, system: "costs ${much}"}\n')
    assert load_pipeline("p.yaml").stages[0].resolved.recipe.data.system == "costs ${much}"


def test_a_stage_stands_on_its_recipe_and_that_on_the_defaults(folder: Path) -> None:
    (folder / "recipes").mkdir()
    (folder / "recipes" / "base.yaml").write_text(
        "model: x\ndata: chats.jsonl\ntrain: {seed: 5, max_steps: 7}\noutput_dir: out/base\n"
    )
    (folder / "recipes" / "p.yaml").write_text(
        "output_dir: out\ndefaults: {train: {seed: 1, weight_decay: 0.5}}\n"
        "stages:\n- {name: a, recipe: base.yaml, train: {max_steps: 9}}\n"
    )
    resolved = load_pipeline("recipes/p.yaml").stages[0].resolved
    train = resolved.recipe.train
    assert (train.weight_decay, train.seed, train.max_steps) == (0.5, 5, 9)
    assert resolved.recipe.output_dir == "out/a", "that of the recipe is for runs of its own"
    assert resolved.origins["train.seed"] == "recipes/base.yaml:3" and resolved.origins["data.train.0.path"].endswith(
        ":2"
    )


def test_overrides_name_the_stage() -> None:
    changed = load_pipeline("p.yaml", ["stages.policy.train.max_steps=3", "~stages.reward.train", "output_dir=o"])
    policy, reward = changed.stages[2].resolved, changed.stages[1].resolved
    assert policy.recipe.train.max_steps == 3 and policy.origins["train.max_steps"] == "override"
    assert reward.recipe.train.seed == 42 and policy.recipe.train.seed == 1
    assert policy.recipe.model.name_or_path == "o/sft"


MISTAKES = {
    "later": ("model: tiny-random/llama", "model: ${policy}", "p.yaml:5:12: model.name_or_path", "comes later"),
    "itself": ("model: tiny-random/llama", "model: ${sft}", "p.yaml:5:12", "the stage itself"),
    "unknown": (
        "  - name: reward\n    model: ${sft}",
        "  - name: reward\n    model: ${stf}",
        "p.yaml:8:12",
        "did you mean sft?",
    ),
    "variable": (
        "model: tiny-random/llama",
        "model: ${HOME}/x",
        "p.yaml:5:12",
        "environment variables are not expanded",
    ),
    "bare": ("  - name: reward\n    model: ${sft}", "  - name: reward\n    model: $sft", "p.yaml:8:12", "write ${sft}"),
    "flow": ("model: tiny-random/llama", "model: {name_or_path: ${a}}", "p.yaml:5:28", 'in quotes: "${name}"'),
    "twice": ("name: policy", "name: sft", "p.yaml:10:11: stages.2.name", "name of an earlier stage"),
    "name": ("name: policy", "name: a.b", "p.yaml:10:11", '"a.b", must be a letter'),
    "no name": ("- name: policy\n    stage: dpo", "- stage: dpo", "p.yaml:10:5: stages.2.name", "is missing"),
    "key": ("{train: {seed: 1}}", "{train: {sed: 1}}", "p.yaml:2:20: train.sed", "did you mean train.seed?"),
    "root": ("defaults:", "default:", "p.yaml:2:1: default", "did you mean defaults?"),
    "needed": ("    data: chats.jsonl\n", "", "p.yaml:4:5: data", "is missing"),
    "extends": ("    stage: dpo", "    stage: dpo\n    extends: x.yaml", "p.yaml:12:5", "recipe: FILE"),
    "recipe": ("    stage: dpo", "    stage: dpo\n    recipe: x.yaml", "p.yaml:12:13: recipe: x.yaml", "no such file"),
    "folders": ("    stage: dpo", "    stage: dpo\n    output_dir: out/sft/x", "p.yaml:12:17", "policy and sft would"),
    "root folder": ("    stage: dpo", "    stage: dpo\n    output_dir: out", "p.yaml:12:17", "policy and the pipeline"),
    "no list": (PIPELINE[PIPELINE.index("  - name: sft") :], "  a: 1\n", "p.yaml:4:3: stages", "must be a list"),
    "no pipeline": (PIPELINE, "model: x\n", "p.yaml:1:1: stages is missing", "tunekit sft"),
    "output_dir": ("output_dir: out", "output_dir: $X", "p.yaml:1:13: output_dir", "must be a path without $"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_named_with_its_place(mistake: str) -> None:
    old, new, place, said = MISTAKES[mistake]
    replace(old, new)
    message = refusal()
    assert place in message and said in message
    assert "\n" in message, "the line is quoted"


def test_mistakes_of_all_stages_are_told_at_once_and_those_of_the_defaults_once() -> None:
    replace("{seed: 1}", "{sed: 1}")
    replace("    stage: dpo", "    stage: dpo\n    train: {max_steps: x}")
    replace("data: chats.jsonl", "data: ${stf}/x")
    message = refusal()
    assert message.count("train.sed") == 1
    assert sorted(places := ["p.yaml:2:20", "p.yaml:6:11", "p.yaml:12:24"], key=message.index) == places


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("stages.polcy.train.seed=1", "no stage is called polcy; did you mean policy?"),
        ("stages.policy.train.sed=1", "override `stages.policy.train.sed=1`: train.sed: unknown key"),
        ("~stages.policy.eval.steps", "override `~stages.policy.eval.steps`: eval.steps is not set"),
        ("stages.policy=1", "is not of the form stages.NAME.key=value"),
        ("train.seed=1", "what is of one stage begins with stages.NAME"),
    ],
)
def test_an_override_that_fits_nothing_is_named_as_it_was_written(text: str, said: str) -> None:
    assert said in refusal(text)


def test_a_pipeline_is_no_recipe_of_one_stage() -> None:
    with pytest.raises(RecipeError, match=r"(?s)p.yaml:3:1: stages: .*tunekit run p.yaml"):
        load("p.yaml")


def test_what_did_not_change_is_not_run_again() -> None:
    assert ran() == ["sft", "reward", "dpo"]
    assert ran() == []
    assert [stage["status"] for stage in results()["stages"]] == ["skipped"] * 3
    assert results()["stages"][0]["after"] == {"eval_loss": 1.5}, "its figures are still told"


def test_changed_data_reruns_a_stage_and_those_that_read_what_it_leaves(folder: Path) -> None:
    ran()
    before = (folder / "out/sft/model/model.safetensors").read_bytes()
    (folder / "chats.jsonl").write_text('{"text": "other"}\n')
    assert planned() == {
        "sft": ("run", "data.train.0.path has another content"),
        "reward": ("run", "reads what sft will leave"),
        "policy": ("run", "reads what sft will leave"),
    }
    assert ran() == ["sft", "reward", "dpo"]
    assert (folder / "out/sft.previous/model/model.safetensors").read_bytes() == before
    (folder / "pairs.jsonl").write_text('{"text": "other"}\n')
    assert ran() == ["reward", "dpo"]


def test_a_changed_recipe_reruns_its_stage_alone() -> None:
    ran()
    assert planned("stages.policy.train.seed=2")["policy"] == ("run", "train.seed 1 -> 2")
    assert ran("stages.policy.train.seed=2") == ["dpo"]


def test_a_stage_that_leaves_the_same_model_spares_those_after_it() -> None:
    ran()
    assert ran("stages.sft.train.seed=2") == ["sft"], "this program takes no seed"


@pytest.mark.parametrize("noise", ["run_name=x", "report_to=[wandb]", "resume=auto", "train.logging_steps=3"])
def test_what_changes_no_result_reruns_nothing(noise: str) -> None:
    ran()
    assert ran(f"stages.sft.{noise}") == []


def test_files_that_moved_are_the_same_data(folder: Path) -> None:
    ran()
    (folder / "chats.jsonl").rename(folder / "moved.jsonl")
    assert ran("stages.sft.data.train.0.path=moved.jsonl") == []


def test_another_model_in_the_same_folder_reruns_what_reads_it(folder: Path) -> None:
    ran()
    (folder / "out/sft/model/model.safetensors").write_bytes(b"other")
    assert planned()["policy"] == ("run", "model.name_or_path has another content")
    assert ran() == ["reward", "dpo"]


def test_another_version_of_tunekit_reruns_all(monkeypatch: pytest.MonkeyPatch) -> None:
    ran()
    monkeypatch.setattr("tunekit.stages.pipeline_inputs.__version__", "99")
    assert ran() == ["sft", "reward", "dpo"]


def test_from_runs_a_stage_and_all_after_it() -> None:
    ran()
    assert ran("--from", "reward") == ["reward", "dpo"]


def test_only_runs_one_stage_whose_inputs_are_there() -> None:
    refused = tunekit("--only", "policy")
    assert refused.exit_code == 2 and "it reads what stage sft leaves" in refused.stderr
    assert ran("--only", "sft") == ["sft"]
    assert ran("--only", "policy") == ["dpo"] and ran("--only", "policy") == ["dpo"]
    assert planned("--only", "policy")["reward"] == ("leave out", "--only policy")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--from", "polcy"), "--from polcy: no such stage; did you mean policy?"),
        (("--only", "x"), "--only x: no such stage"),
        (("--only", "sft", "--from", "sft"), "exclude each other"),
    ],
)
def test_an_option_that_fits_nothing_is_refused(arguments: tuple[str, ...], said: str) -> None:
    result = tunekit(*arguments)
    assert result.exit_code == 2 and said in result.stderr


def test_the_first_red_stage_ends_the_pipeline_with_its_code(folder: Path) -> None:
    (folder / "pairs.jsonl").write_text('{"text": "fail"}\n')
    result = tunekit("--json")
    assert result.exit_code == 3
    found = json.loads(result.stdout)
    assert found == results() and found["failed"] == "reward" and "said by the stage" in found["error"]
    assert [(each["name"], each["status"]) for each in found["stages"]] == [("sft", "ran"), ("reward", "failed")]
    (folder / "pairs.jsonl").write_text('{"text": "good"}\n')
    assert ran() == ["reward", "dpo"]


def test_a_stage_whose_folder_was_removed_runs_again(folder: Path) -> None:
    ran()
    shutil.rmtree(folder / "out/policy")
    assert planned()["policy"] == ("run", "its folder is gone")
    assert ran() == ["dpo"]


def test_a_killed_stage_is_named_and_goes_on_where_it_was(folder: Path) -> None:
    (folder / "chats.jsonl").write_text('{"text": "kill"}\n')
    result = tunekit()
    assert result.exit_code == 1 and "killed by SIGKILL" in results()["error"]
    assert planned()["sft"] == ("continue", "was killed")
    tunekit()
    assert [line.split()[1] for line in (folder / "ran.txt").read_text().splitlines()] == ["never", "auto"]


def test_after_the_pipeline_was_killed_the_stage_goes_on(folder: Path) -> None:
    ran()
    state = json.loads((folder / "out/pipeline.json").read_text())
    state["stages"]["policy"]["status"] = "running"
    (folder / "out/pipeline.json").write_text(json.dumps(state))
    (folder / "out/policy/result.json").unlink()
    assert planned()["policy"][0] == "continue"
    assert ran() == ["dpo"] and "dpo auto" in (folder / "ran.txt").read_text()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_goes_to_the_stage_once_and_its_code_comes_back(folder: Path, number: int, code: int) -> None:
    (folder / "chats.jsonl").write_text('{"text": "wait"}\n')
    program = (
        "import sys\nfrom tunekit.stages import pipeline_child\nfrom tunekit.cli import app\n"
        "pipeline_child.COMMAND = (sys.executable, 'stage.py')\napp(['run', 'p.yaml'])"
    )
    process = subprocess.Popen([sys.executable, "-c", program], start_new_session=True)
    while not (folder / "waiting").exists():
        assert process.poll() is None
        time.sleep(0.01)
    os.killpg(process.pid, number)  # to all of the group, as a terminal does
    assert process.wait() == code and results()["exit_code"] == code and results()["failed"] == "sft"
    assert ran() == ["sft", "reward", "dpo"] and "sft auto" in (folder / "ran.txt").read_text()


def test_an_unfinished_run_does_not_take_the_place_of_a_kept_one(folder: Path) -> None:
    ran()
    first = (folder / "out/sft/model/model.safetensors").read_bytes()
    for text in ("fail 1", "fail 2"):
        (folder / "chats.jsonl").write_text(json.dumps({"text": text}))
        assert tunekit().exit_code == 3
    assert (folder / "out/sft.previous/model/model.safetensors").read_bytes() == first


def test_a_folder_that_is_not_the_pipelines_is_in_the_way(folder: Path) -> None:
    (folder / "out/policy").mkdir(parents=True)
    (folder / "out/policy/thesis.txt").write_text("mine")
    result = tunekit()
    assert result.exit_code == 2 and "stages.policy: out/policy is not empty" in result.stderr
    assert not (folder / "ran.txt").exists() and (folder / "out/policy/thesis.txt").read_text() == "mine"


def test_the_folder_of_another_run_is_not_taken(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out/result.json").write_text("{}")
    assert tunekit().exit_code == 2 and (folder / "out/result.json").read_text() == "{}"


def test_two_runs_do_not_share_a_folder(folder: Path) -> None:
    (folder / "out").mkdir()
    with FileLock(folder / "out/.lock"):
        result = tunekit()
    assert result.exit_code == 2 and "another run is writing to it" in result.stderr
    assert not (folder / "ran.txt").exists()


@pytest.mark.parametrize(
    ("old", "new", "code", "said"),
    [
        ("data: pairs.jsonl", "data: pears.jsonl", 3, "stages.reward: pears.jsonl: no such file"),
        ("model: tiny-random/llama", "model: ./missing", 2, "stages.sft: model.name_or_path: ./missing does not exist"),
        (
            "    stage: dpo",
            "    stage: dpo\n    objective: own.py:loss",
            2,
            "stages.policy.objective.loss.0: own.py:loss is code",
        ),
    ],
)
def test_all_stages_are_checked_before_the_first_one_runs(
    folder: Path, old: str, new: str, code: int, said: str
) -> None:
    replace(old, new)
    result = tunekit()
    assert result.exit_code == code and said in result.stderr
    assert not (folder / "ran.txt").exists() and not (folder / "out").exists()


def test_code_runs_with_leave_and_is_an_input(folder: Path) -> None:
    (folder / "own.py").write_text("def loss(): ...")
    replace("    stage: dpo", "    stage: dpo\n    objective: own.py:loss")
    assert ran("--allow-code", "--offline") == ["sft", "reward", "dpo"]
    first, *_, last = (folder / "ran.txt").read_text().splitlines()
    assert first == "sft never --json --offline" and last == "dpo never --json --allow-code --offline"
    (folder / "own.py").write_text("def loss(): 1")
    assert ran("--allow-code") == ["dpo"]


def test_a_dry_run_writes_nothing_and_loads_no_torch(folder: Path) -> None:
    code = (
        "import sys\nfrom tunekit.cli import app\n"
        "try: app(['run', 'p.yaml', '--dry-run'])\nexcept SystemExit as end: print('EXIT', end.code)\n"
        "print('HEAVY', sorted({'torch', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "EXIT 0" in done.stdout and "HEAVY []" in done.stdout and "has not run yet" in done.stdout
    assert not (folder / "out").exists()


def test_the_table_tells_what_ran_and_what_came_of_it() -> None:
    result = tunekit()
    line = next(line for line in result.stdout.splitlines() if "policy" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")][1::2] == ["ran", "loss 2 -> 1.5"]


def test_the_items_of_a_task_are_read_too(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    (tmp_path / "items.jsonl").write_text('{"q": "1 + 1?", "a": "2"}\n')
    task = tmp_path / "sums.yaml"
    task.write_text(
        "task: sums\nkind: generate\ndata: {path: items.jsonl}\nprompt: '{{ q }}'\nanswer: '{{ a }}'\n"
        "metrics: [exact_match]\n"
    )
    text = f"model: m\ndata: {tmp_path}/rows.jsonl\noutput_dir: o\neval: {{tasks: [{task}]}}\n"
    recipe = load_text(text, "r.yaml").recipe
    before = inputs_of(recipe)
    assert changes(before, inputs_of(recipe)) == ""
    (tmp_path / "items.jsonl").write_text('{"q": "1 + 1?", "a": "3"}\n')
    assert changes(before, inputs_of(recipe)) == "eval.tasks.0 (items) has another content"
    task.unlink()
    with pytest.raises(RecipeError, match="no task has this name"):
        inputs_of(recipe)
