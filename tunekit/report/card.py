"""The model card: README.md of an artefact after the hub's conventions, filled from the facts of its run alone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from tunekit import __version__
from tunekit.evals.gates import is_number
from tunekit.models.load import Location, passport_of
from tunekit.recipe.losses import ONLINE
from tunekit.report.charts import shown
from tunekit.report.scores import interval

NOT_ON_HUB = (".", "/", "~", "memory:", "tiny-random/")
LOST = (("dropped", "dropped"), ("truncated", "truncated"), ("answers_cut", "with an answer that is cut"))
LIBRARIES = ("torch", "transformers", "peft")
USE_ADAPTER = """from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")"""
USE_MODEL = """from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{folder}")
tokenizer = AutoTokenizer.from_pretrained("{folder}")"""
USE_REWARD = """from transformers import pipeline

reward = pipeline("text-classification", "{folder}")
text = {text}
print(reward(text)[0]["score"])"""
REWARD_CHAT = """reward.tokenizer.apply_chat_template(
    [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello, how can I help?"}], tokenize=False
)"""
REWARD_TEXT = '"Hello!"'
CHAT = """
messages = [{"role": "user", "content": "Hello!"}]
inputs = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")"""
TEXT = """
inputs = tokenizer("Hello!", return_tensors="pt")"""
ANSWER = """
print(tokenizer.decode(model.generate(**inputs, max_new_tokens=64)[0, inputs["input_ids"].shape[1]:]))"""


def model_card(
    name: str,
    recipe: Mapping[str, Any],
    result: Mapping[str, Any],
    manifest: Mapping[str, Any],
    folder: str,
    chat: bool,
    licence: str | None = None,
) -> str:
    """`recipe` as plain values, `result` and `manifest` as in the run's files; nothing is said that is not in them.

    `licence`: that of the base model as an SPDX name, where it is known.
    """
    base = manifest["base_model"]["name"]
    reward = recipe["stage"] == "reward"
    adapter = recipe["adapter"]["type"] != "none" and not reward  # which is merged into a reward model
    made = "A reward model from" if reward else "A LoRA adapter for" if adapter else "A fine-tuned copy of"
    scores = _scores(result)
    data = _metadata(name, recipe, result, base, scores, licence)
    use = (USE_ADAPTER if adapter else USE_MODEL).format(folder=folder) + (CHAT if chat else TEXT) + ANSWER
    use = f"```sh\ntunekit chat {folder}\n```\n\n```python\n{use}\n```"
    if reward:
        use = f"```python\n{USE_REWARD.format(folder=folder, text=REWARD_CHAT if chat else REWARD_TEXT)}\n```"
    parts = [
        f"---\n{data.to_yaml()}\n---\n",
        f"# {name}\n",
        f"{made} `{base}`{_revision(manifest)}, made with tunekit {__version__}.\n",
        "## Training\n",
        _training(recipe, result, (manifest.get("data") or {}).get("train") or {}),
        *(["## Results\n", _results(result, scores)] if scores or result.get("after") else []),
        f"## Use\n\n{use}\n",
        "## Limits\n",
        _limits(base, licence, measured=bool(scores or result.get("after"))),
        *(["## Versions\n", versions] if (versions := _versions(manifest)) else []),
    ]
    return "\n".join(parts)


def licence_of(base: Location) -> str | None:
    """What a model on this machine says of its licence: a built-in one where it is from, any other in its card."""
    if licence := passport_of(base).get("licence"):
        return str(licence)
    card = Path(base.path) / "README.md"
    found = ModelCard.load(card, ignore_metadata_errors=True).data.get("license") if card.is_file() else None
    return found if isinstance(found, str) else None


def _metadata(
    name: str,
    recipe: Mapping[str, Any],
    result: Mapping[str, Any],
    base: str,
    scores: list[tuple[str, str, Mapping[str, Any]]],
    licence: str | None,
) -> ModelCardData:
    adapter = recipe["adapter"]["type"] != "none" and recipe["stage"] != "reward"
    data = ModelCardData(
        base_model=base if _on_hub(base) else None,
        license=None if licence is None else licence.lower(),  # the hub writes them so
        library_name="peft" if adapter else "transformers",
        pipeline_tag="text-classification" if recipe["stage"] == "reward" else "text-generation",
        tags=["tunekit", str(result.get("stage", "sft")), *(["lora"] if adapter else [])],
        datasets=[source["path"] for source in recipe["data"]["train"] if _on_hub(source["path"])] or None,
        model_name=name,
        eval_results=[
            EvalResult("text-generation", task.partition(".")[0], task.partition(".")[0], metric, score["value"])
            for task, metric, score in scores
            if is_number(score.get("value"))
        ]
        or None,
    )
    if _on_hub(base):
        data["base_model_relation"] = "adapter" if adapter else "finetune"
    return data


def _on_hub(name: str) -> bool:
    """Whether a name can be one of the hub: `owner/name`, which is neither a path here nor made by tunekit."""
    return name.count("/") == 1 and not name.startswith(NOT_ON_HUB) and not Path(name).exists()


def _revision(manifest: Mapping[str, Any]) -> str:
    revision = manifest["base_model"].get("revision")
    return f" (revision `{revision}`)" if revision else ""


def _training(recipe: Mapping[str, Any], result: Mapping[str, Any], rows: Mapping[str, Any]) -> str:
    train = recipe["train"]
    sources = ", ".join(f"`{_published(source['path'])}`" for source in recipe["data"]["train"])
    lines = [f"- data: {sources}"]
    if rows:
        lines.append(f"- rows: {rows['rows']:,}; tokens: {rows['tokens']:,}, of which {rows['trained']:,} trained")
        lost = [f"{rows[key]:,} {label}" for key, label in LOST if rows.get(key)]
        lines += [f"- of these rows: {', '.join(lost)}"] if lost else []
    lines += [
        f"- steps: {result.get('steps', 0):,}, {_step(recipe)}",
        f"- tokens: {result['tokens']:,}, of which {result['trained_tokens']:,} trained"
        if result.get("tokens")
        else "",
        f"- learning rate: {train['learning_rate']:g}, {train['lr_scheduler_type']}; optimizer: {train['optim']}; "
        f"seed: {train['seed']}",
    ]
    if recipe["adapter"]["type"] != "none":
        adapter = recipe["adapter"]
        lines.append(f"- adapter: {adapter['type']}, rank {adapter['r']}, alpha {adapter['alpha']:g}")
    return "\n".join(line for line in lines if line) + "\n"


def _step(recipe: Mapping[str, Any]) -> str:
    """What a step is made of."""
    train, rollout = recipe["train"], recipe["rollout"]
    if recipe["stage"] not in ONLINE:
        size, count = train["per_device_train_batch_size"], train["gradient_accumulation_steps"]
        return f"{size} examples in a batch, {count} batches in a step"
    rewards = [_published(each["model"] or each["function"]) for each in recipe["rewards"]]
    return (
        f"on {rollout['num_generations']} answers of the policy to each of {rollout['num_prompts']} prompts at a time, "
        f"rewarded by {', '.join(rewards)}"
    )


def _published(path: str) -> str:
    """Of a file its name alone: where it lay on the machine of the run is nobody's business."""
    return path if _on_hub(path) else Path(path).name


def _scores(result: Mapping[str, Any]) -> list[tuple[str, str, Mapping[str, Any]]]:
    after = (result.get("tasks") or {}).get("after") or {}
    return [(task, metric, score) for task, each in after.items() for metric, score in each["scores"].items()]


def _results(result: Mapping[str, Any], scores: list[tuple[str, str, Mapping[str, Any]]]) -> str:
    lines = ["| figure | before | after |", "|---|---|---|"]
    before = result.get("before") or {}
    for name, value in (result.get("after") or {}).items():
        if "." not in name and is_number(value):
            lines.append(
                f"| {name} (held-out rows) | {shown(before[name]) if name in before else ''} | {shown(value)} |"
            )
    tasks = (result.get("tasks") or {}).get("before") or {}
    for task, metric, score in scores:
        old = tasks.get(task, {}).get("scores", {}).get(metric)
        lines.append(f"| {task} {metric} (n = {score['n']:,}) | {interval(old)} | {interval(score)} |")
    return "\n".join(lines) + ("\n\nIn brackets: 95 % intervals.\n" if scores else "\n")


def _limits(base: str, licence: str | None, measured: bool) -> str:
    said = "It was measured on nothing but what stands above." if measured else "Nothing of it was measured."
    known = (
        f"The licence of `{base}` is {licence}. That" if licence else "Neither the licence of its base model nor that"
    )
    return (
        f"{said} It has the limits of its base model and of the data it was trained on. "
        f"{known} of the data is {'not ' if licence else ''}known to the program that wrote this card.\n"
    )


def _versions(manifest: Mapping[str, Any]) -> str:
    versions = manifest.get("versions") or {}
    said = ", ".join(f"{name} {versions[name]}" for name in LIBRARIES if name in versions)
    return f"{said}\n" if said else ""
