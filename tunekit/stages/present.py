"""Results as text for people."""

import io
from typing import Any

from rich.console import Console
from rich.table import Table

from tunekit.evals.rewards import sentences

# A model, and data, can hold what a terminal takes for a command; line feed and tab pass.
CONTROL_CHARACTERS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\n\t"}


def training_report(result: dict[str, Any]) -> str:
    """Held-out metrics before and after, one answer side by side, and where things lie."""
    parts: list[Any] = []
    if result["before"] or result["after"]:
        table = Table("held-out", "before", "after")
        for name, after in result["after"].items():
            before = result["before"].get(name)
            table.add_row(name.removeprefix("eval_"), "" if before is None else f"{before:.4f}", f"{after:.4f}")
        parts.append(table)
    if sample := result.get("sample"):
        answers = Table(title=f"prompt: {sample['prompt']}", title_justify="left", show_lines=True)
        for name in ("before", "after", "reference"):
            answers.add_column(name, ratio=1)
        answers.add_row(*(_shortened(sample[name] or "") for name in ("before", "after", "reference")))
        parts.append(answers)
    if len(result["sources"]) > 1:
        total = result["trained_tokens"]
        shares = (f"{source['path']} {source['trained_tokens'] / total:.1%}" for source in result["sources"])
        parts.append(f"shares of the trained tokens: {', '.join(shares)}")
    if reward := result.get("reward"):
        parts.append("reward model on held-out pairs: " + "\n  ".join(sentences(reward)))
    speed = f"{result['tokens_per_second']:,.0f} tokens/s, " if result["tokens_per_second"] else ""
    parts.append(
        f"done: {result['steps']} steps, {result['tokens']:,} tokens ({result['trained_tokens']:,} trained), "
        f"{speed}{result['seconds']:.0f} s in all\n"
        f"model: {result['paths']['model']} (reloaded by a fresh process, "
        f"{'reward' if result['stage'] == 'reward' else 'logit'} difference {result['reload_difference']:.3g})\n"
        + "\n".join(
            f"{name.replace('_', ' ')}: {result['paths'][name]}"
            for name in ("loss_curve", "reward_curve", "samples")
            if name in result["paths"]
        )
    )
    return rendered(parts)


def _shortened(text: str) -> str:
    return text if len(text) <= 400 else text[:400] + " ..."


def rendered(parts: list[Any]) -> str:
    console = Console(file=io.StringIO(), width=100, highlight=False, markup=False, emoji=False)
    for part in parts:
        console.print(part, soft_wrap=isinstance(part, str))
    return console.file.getvalue().rstrip()  # type: ignore[attr-defined]
