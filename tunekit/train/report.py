"""What a run tells: a progress bar or lines for people, `metrics.jsonl` always, a loss curve at the end."""

import json
import logging
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from tunekit.train.folder import replace_text

log = logging.getLogger("tunekit")


SHOWN = ("loss", "reward", "kl", "length")


class MetricsFile:
    """`metrics.jsonl`: one JSON object a line, each with its `step`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends a row; a full disk costs the row, not the run."""
        try:
            with self.path.open("a") as handle:
                handle.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            log.warning("%s: step %d was not written: %s", self.path, step, error.strerror)

    def drop_after(self, step: int) -> None:
        """Forgets what a killed run wrote beyond the checkpoint it is resumed from, so that each step stands once."""
        kept = [row for row in read_metrics(self.path) if row["step"] <= step]
        replace_text(self.path, "".join(json.dumps(row) + "\n" for row in kept))


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of a `metrics.jsonl`; a last line cut short by a kill is left out."""
    rows = []
    # Not splitlines: JSON may have characters in its texts at which Python ends a line.
    for line in path.read_text(encoding="utf-8").split("\n") if path.exists() else []:
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return rows


class ProgressLine:
    """Tokens a second, loss and time left: a bar on a terminal, else a line every `logging_steps`."""

    def __init__(self, total: int, done: int, logging_steps: int, shown: bool = True) -> None:
        self.logging_steps = logging_steps
        self.total = total
        self.tokens = 0
        self.seconds = 0.0
        self.steps = 0
        self.shown: dict[str, float] = {}
        columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[text]}"))
        console = Console(stderr=True)
        self.bar = Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), console=console)
        self.bar.disable = not (console.is_terminal and shown)
        self.task = self.bar.add_task("", total=total, completed=done, text="")

    def __enter__(self) -> "ProgressLine":
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def advance(self, step: int, values: dict[str, float], num_tokens: int, seconds: float) -> None:
        """`num_tokens` in `seconds` of the step just done; of its `values` those in `SHOWN`, or when they last came."""
        self.tokens += num_tokens
        self.seconds += seconds
        self.steps += 1
        self.shown |= {name: values[name] for name in SHOWN if name in values}
        said = "  ".join(f"{name} {value:.4f}" for name, value in self.shown.items())
        text = f"{said}  {self.tokens / self.seconds:,.0f} tokens/s"
        self.bar.update(self.task, completed=step, text=text)
        if self.bar.disable and (step % self.logging_steps == 0 or step == self.total):
            left = self.seconds / self.steps * (self.total - step)
            log.info("step %d/%d  %s  ETA %d:%02d", step, self.total, text, left // 60, left % 60)


def plot_curve(rows: list[dict[str, Any]], folder: Path, value: str) -> None:
    """Draws `value`, in training and held out, over steps from the rows of a `metrics.jsonl`: `value.png`."""
    from matplotlib.figure import Figure  # half a second to import: only at the end of a run

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    for key, label, style in ((value, "training", "-"), (f"eval_{value}", "held out", "o-")):
        points = [(row["step"], row[key]) for row in rows if key in row]
        if points:
            axes.plot(*zip(*points, strict=True), style, label=label)
    axes.set(xlabel="optimizer step", ylabel="loss (nats a trained token)" if value == "loss" else value)
    axes.legend()
    figure.savefig(folder / f"{value}.png", dpi=120)
