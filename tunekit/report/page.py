"""The facts of a run as one page of HTML."""

import json
from collections.abc import Mapping
from typing import Any

from tunekit.evals.gates import is_number
from tunekit.report.charts import shown
from tunekit.report.facts import Facts, is_finite
from tunekit.report.parts import Folded, Part, html
from tunekit.report.scores import answers, scores

# What each row of a step has whatever is trained; other keys are metrics of the objective or of held-out rows.
OF_STEP = {"step", "loss", "grad_norm", "lr", "epoch", "seconds", "tokens", "num_tokens", "trained_tokens", "weight"}
PROGRESS = ("loss", "grad_norm", "lr", "num_tokens", "seconds")  # rows of metrics.jsonl that are of a step

SETTINGS = {
    "learning rate": "train.learning_rate",
    "schedule": "train.lr_scheduler_type",
    "optimizer": "train.optim",
    "examples in a batch": "train.per_device_train_batch_size",
    "batches in a step": "train.gradient_accumulation_steps",
    "longest row": "data.max_length",
    "seed": "train.seed",
}


def page(facts: Facts) -> str:
    """The whole report of a run."""
    sections = [
        _gates(facts),
        _reward_model(facts),
        scores(facts),
        answers(facts),
        *_training(facts),
        _data(facts),
        _provenance(facts),
    ]
    return html(
        title=facts.name,
        subtitle=" · ".join(_subtitle(facts)),
        failure=_failure(facts),
        missing=facts.missing,
        figures=_figures(facts),
        sections=sections,
    )


def _subtitle(facts: Facts) -> list[str]:
    """What was trained on what."""
    adapter = (facts.manifest.get("contract") or {}).get("adapter.type")
    words = [str(facts.result.get("stage", "run")), str(facts.model.get("name", "")), "LoRA" * (adapter == "lora")]
    return [each for each in [*words, *(path.rpartition("/")[2] for path, *_ in _sources(facts))] if each]


def _failure(facts: Facts) -> dict[str, str] | None:
    code = facts.result.get("exit_code")
    if code in (0, None):
        return None
    return {
        "title": f"{facts.result.get('status', 'failed')}: exit code {code}",
        "text": str(facts.result.get("error", "")),
    }


def _figures(facts: Facts) -> list[tuple[str, str]]:
    """What is looked at first."""
    result = facts.result
    found = [("status", str(result.get("status", "unknown")))]
    losses = [values.get("eval_loss") for values in facts.held_out]
    if said := [shown(loss) for loss in losses if loss is not None and is_number(loss)]:
        found.append(("held-out loss", " → ".join(said)))
    for key, label in (("steps", "steps"), ("tokens", "tokens"), ("trained_tokens", "trained tokens")):
        if result.get(key):
            found.append((label, _count(result[key])))
    if result.get("tokens_per_second"):
        found.append(("tokens a second", _count(round(result["tokens_per_second"]))))
    resumed = (result.get("train_seconds") or 0) > (result.get("seconds") or 0)
    for key, label in (("train_seconds", "in training"), ("seconds", "since it was resumed" if resumed else "in all")):
        if result.get(key):
            found.append((label, duration(result[key])))
    return found


def duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{seconds:.3g} s"


def _count(value: Any) -> str:
    """Empty for what is no number."""
    return f"{value:,}" if is_number(value) else ""


def _gates(facts: Facts) -> Part:
    part = Part("Gates")
    rows = [
        (
            f"{each.get('name')} {each.get('condition')}",
            {"text": "passed" if each.get("passed") else "failed", "good": bool(each.get("passed"))},
            each.get("reason", ""),
        )
        for each in facts.result.get("gates") or []
    ]
    part.add_table(("gate", "verdict", "figure"), rows)
    return part


def _reward_model(facts: Facts) -> Part:
    """What a reward model gets right of held-out pairs, also by the length of the answers."""
    part, found = Part("Reward model"), facts.result.get("reward") or {}
    accuracy = [each for key in ("value", "low", "high") if is_number(each := (found.get("accuracy") or {}).get(key))]
    rows = [("accuracy", f"{shown(accuracy[0])} [{', '.join(map(shown, accuracy[1:]))}]")] if accuracy else []
    labels = {"margin": "margin", "ece": "calibration error", "length_correlation": "correlation with length"}
    rows += [(label, shown(found[key])) for key, label in labels.items() if is_number(found.get(key))]
    for name, each in (found.get("accuracy_by_length") or {}).items():
        if is_number(each.get("accuracy")):
            rows.append(
                (f"accuracy, {name.replace('_', ' ')}", f"{shown(each['accuracy'])} of {each['pairs']:,} pairs")
            )
    part.add_table(("figure of held-out pairs", "value"), rows)
    return part


def _training(facts: Facts) -> list[Part]:
    """What was trained and how, the curves, and what happened on the way."""
    set_up = Part("Model and training" if facts.manifest.get("contract") else "Model")
    curves, events = Part("Curves"), Part("Events")
    set_up.add_table(("setting", "value"), _settings(facts))
    curves.add_curves("Loss", {"training": facts.series("loss"), "held out": facts.series("eval_loss")})
    curves.add_curves("Gradient norm", {"norm": facts.series("grad_norm")})
    curves.add_curves("Learning rate", {"rate": facts.series("lr")})
    speed = [
        (row["step"], row["num_tokens"] / row["seconds"])
        for row in facts.metrics
        if is_finite(row.get("num_tokens")) and is_finite(row.get("seconds")) and row["seconds"] > 0
    ]
    curves.add_curves("Tokens a second", {"speed": speed})
    for key in dict.fromkeys(key.removeprefix("eval_") for row in facts.metrics for key in row):
        if key not in OF_STEP:
            title = key.replace("_", " ")
            lines = {"training": facts.series(key), "held out": facts.series(f"eval_{key}")}
            curves.add_curves(title[0].upper() + title[1:], {name: line for name, line in lines.items() if line})
    events.add_table(("step", "event"), _events(facts))
    return [curves, set_up, events]


def _settings(facts: Facts) -> list[tuple[str, str]]:
    """The settings that decide a run, from its contract."""
    given: Mapping[str, Any] = facts.manifest.get("contract") or {}
    model = facts.model
    rows = [("model", str(model.get("name", "")))]
    rows += [("revision", str(model["revision"]))] if model.get("revision") else []
    rows += [("sha256 of its weights", str(model["sha256"])[:12])] if model.get("sha256") else []
    rows += [("adapter", _adapter(given))] if given else []
    weights = facts.result.get("weights") or {}
    trained, whole = weights.get("trained"), weights.get("all")
    if is_number(trained) and is_number(whole) and whole:
        rows.append(("trained weights", f"{trained:,} of {whole:,} ({trained / whole:.2%})"))
    for label, key in SETTINGS.items():
        if (value := given.get(key)) is not None:
            rows.append((label, f"{value:g}" if isinstance(value, float) else _listed(value)))
    return rows if rows[0][1] else []


def _adapter(given: Mapping[str, Any]) -> str:
    if given.get("adapter.type") != "lora":
        return "none: the model's own weights are trained"
    words = [("rank", given.get("adapter.r")), ("alpha", given.get("adapter.alpha"))]
    scale = [f"{name} {value:g}" for name, value in words if is_number(value)]
    modules = given.get("adapter.target_modules")
    return ", ".join(["LoRA", *scale, *([f"on {_listed(modules)}"] if modules else [])])


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _events(facts: Facts) -> list[tuple[str, str]]:
    """What can be told of the way: what the run said, values that are no numbers, checkpoints, and its end."""
    result = facts.result
    found = [(each.get("step"), str(each.get("text", ""))) for each in result.get("events") or []]
    bad = [
        (row["step"], key)
        for row in facts.metrics
        for key in PROGRESS
        if is_number(row.get(key)) and not is_finite(row[key])
    ]
    found += [(step, f"{key} was no finite number") for step, key in bad[:10]]
    found += [(step, "checkpoint, still in the folder") for step in facts.checkpoints]
    if result.get("best_step") is not None:
        found.append((result["best_step"], "the best evaluation"))
    if "steps" in result:
        found.append((result["steps"], f"the end: {result.get('status', 'unknown')}"))
    found.sort(key=lambda each: each[0] if is_number(each[0]) else -1)
    return [(_count(step), text) for step, text in found]


def _data(facts: Facts) -> Part:
    data, result, part = facts.manifest.get("data") or {}, facts.result, Part("Data")
    part.add_table(("source", "tokens trained on", "share"), _sources(facts))
    head = (
        "",
        "rows",
        "tokens",
        "trained tokens",
        "median",
        "longest",
        "over-long",
        "dropped",
        "answers cut",
        "sha256",
    )
    part.add_table(
        head,
        [
            row
            for name, label in (("train", "training"), ("held_out", "held out"))
            if (row := _rows(label, data.get(name)))
        ],
    )
    if streamed := result.get("streamed"):
        names = [str(name).replace("_", " ") for name in streamed]
        part.add_table(("", *names), [("streamed", *map(_count, streamed.values()))])
    overlap = data.get("overlap") or {}
    counts = [
        *((data.get("rejected"), "rejected rows"), (overlap.get("duplicates"), "copies")),
        (overlap.get("exact"), "held-out rows that are training rows"),
        (overlap.get("ngram"), "held-out rows much like training rows"),
    ]
    if said := ", ".join(f"{count:,} {label}" for count, label in counts if is_number(count)):
        part.notes.append(said)
    examples = [(name, ", ".join(places)) for name, places in (overlap.get("examples") or {}).items() if places]
    part.add_table(("overlap", "such as"), examples)
    return part


def _sources(facts: Facts) -> list[tuple[str, str, str]]:
    sources = [each for each in facts.result.get("sources") or [] if each.get("path")]
    total = sum(each.get("trained_tokens") or 0 for each in sources) or 1
    return [
        (str(each["path"]), _count(each.get("trained_tokens")), f"{(each.get('trained_tokens') or 0) / total:.1%}")
        for each in sources
    ]


def _rows(label: str, found: Mapping[str, Any] | None) -> tuple[str, ...] | None:
    if not found:
        return None
    lengths, trained, tokens = found.get("lengths") or {}, found.get("trained"), found.get("tokens")
    share = f" ({trained / tokens:.0%})" if is_number(trained) and is_number(tokens) and tokens else ""
    counts = (
        lengths.get("median"),
        lengths.get("max"),
        *(found.get(key) for key in ("overlong", "dropped", "answers_cut")),
    )
    hashed = str(found.get("sha256") or "")[:12]
    return (label, _count(found.get("rows")), _count(tokens), _count(trained) + share, *map(_count, counts), hashed)


def _provenance(facts: Facts) -> Part:
    part, manifest = Part("Provenance"), facts.manifest
    rows = [(name, str(version)) for name, version in (manifest.get("versions") or {}).items()]
    rows += [(name, str(manifest[name])) for name in ("python", "platform") if manifest.get(name)]
    if git := manifest.get("git"):
        rows.append(("git", str(git.get("commit", ""))[:12] + (" (with changes)" if git.get("dirty") else "")))
    part.add_table(("software", "version"), rows)
    if facts.recipe:
        part.folded.append(Folded("recipe.yaml", text=facts.recipe))
    if manifest:
        part.folded.append(Folded("manifest.json", text=json.dumps(manifest, indent=1, ensure_ascii=False)))
    return part
