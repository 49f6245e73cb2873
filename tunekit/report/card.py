"""The model card: README.md of an artefact after the hub's conventions, filled from the facts of its run alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from tunekit import __version__
from tunekit.report.charts import shown

NOT_ON_HUB = (".", "/", "~", "memory:", "tiny-random/")
USE_ADAPTER = """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")"""
USE_MODEL = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")"""
ANSWER = """
messages = [{{"role": "user", "content": "Hello!"}}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1]:]))"""


def model_card(
    name: str,
    recipe: Mapping[str, Any],
    result: Mapping[str, Any],
    manifest: Mapping[str, Any],
    folder: str,
    chat: bool,
) -> str:
    """`recipe` as plain values, `result` and `manifest` as in the run's files; nothing is said that is not in them."""
    base = manifest["base_model"]["name"]
    adapter = recipe["adapter"]["type"] != "none"
    scores = _scores(result)
    data = ModelCardData(
        base_model=base if _on_hub(base) else None,
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-generation",
        tags=["tunekit", str(result.get("stage", "sft")), *(["lora"] if adapter else [])],
        datasets=[source["path"] for source in recipe["data"]["train"] if _on_hub(source["path"])] or None,
        model_name=name,
        eval_results=[
            EvalResult("text-generation", task.partition(".")[0], task.partition(".")[0], metric, score["value"])
            for task, metric, score in scores
            if score["value"] is not None
        ]
        or None,
    )
    use = (USE_ADAPTER if adapter else USE_MODEL).format(folder=folder) + (ANSWER.format() if chat else "")
    rows = (manifest.get("data") or {}).get("train") or {}
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {name}\n",
        f"{'A LoRA adapter for' if adapter else 'A fine-tuned copy of'} `{base}`, made with tunekit {__version__}.\n",
        "## Training\n",
        _training(recipe, result, rows),
        *(["## Results\n", _results(result, scores)] if scores or result.get("after") else []),
        f"## Use\n\n```sh\ntunekit chat {folder}\n```\n\n```python\n{use}\n```\n",
        "## Limits\n",
        "It was measured on nothing but what stands above. It has the licence and the limits of its base model and of "
        "the data it was trained on; neither is known to the program that wrote this card.\n",
    ]
    return "\n".join(parts)


def _on_hub(name: str) -> bool:
    """Whether a name can be one of the hub: `owner/name`, which is neither a path here nor made by tunekit."""
    return name.count("/") == 1 and not name.startswith(NOT_ON_HUB) and not Path(name).exists()


def _training(recipe: Mapping[str, Any], result: Mapping[str, Any], rows: Mapping[str, Any]) -> str:
    train = recipe["train"]
    paths = ", ".join("`" + source["path"] + "`" for source in recipe["data"]["train"])
    lines = [f"- data: {paths}"]
    if rows:
        lines.append(f"- rows: {rows['rows']:,}; tokens: {rows['tokens']:,}, of which {rows['trained']:,} trained")
    lines += [
        f"- steps: {result.get('steps', 0):,}, {train['per_device_train_batch_size']} examples in a batch, "
        f"{train['gradient_accumulation_steps']} batches in a step",
        f"- learning rate: {train['learning_rate']:g}, {train['lr_scheduler_type']}; optimizer: {train['optim']}; "
        f"seed: {train['seed']}",
    ]
    if recipe["adapter"]["type"] != "none":
        adapter = recipe["adapter"]
        lines.append(f"- adapter: {adapter['type']}, rank {adapter['r']}, alpha {adapter['alpha']:g}")
    return "\n".join(lines) + "\n"


def _scores(result: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    after = (result.get("tasks") or {}).get("after") or {}
    return [(task, metric, score) for task, each in after.items() for metric, score in each["scores"].items()]


def _results(result: Mapping[str, Any], scores: list[tuple[str, str, Mapping[str, Any]]]) -> str:
    lines = ["| figure | before | after |", "|---|---|---|"]
    before = result.get("before") or {}
    for name, value in (result.get("after") or {}).items():
        if "." not in name and isinstance(value, int | float):
            lines.append(
                f"| {name} (held-out rows) | {shown(before[name]) if name in before else ''} | {shown(value)} |"
            )
    tasks = (result.get("tasks") or {}).get("before") or {}
    for task, metric, score in scores:
        old = tasks.get(task, {}).get("scores", {}).get(metric)
        cells = ["" if each is None else _interval(each) for each in (old, score)]
        lines.append(f"| {task} {metric} (n = {score['n']}) | {cells[0]} | {cells[1]} |")
    return "\n".join(lines) + ("\n\nIn brackets: 95 % intervals.\n" if scores else "\n")


def _interval(score: Mapping[str, Any]) -> str:
    if score["value"] is None or score.get("low") is None:
        return "" if score["value"] is None else shown(score["value"])
    return f"{shown(score['value'])} [{shown(score['low'])}, {shown(score['high'])}]"
