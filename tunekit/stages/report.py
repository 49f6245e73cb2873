"""`tunekit report`: a run as one page of HTML."""

from pathlib import Path

from tunekit.report.facts import read_facts
from tunekit.report.page import page
from tunekit.train.folder import replace_text


def run(folder: str, output: str | None = None) -> Path:
    """Writes the page of the run in `folder` to `output`, by default `report.html` in it, and returns where it is."""
    facts = read_facts(Path(folder))
    file = Path(folder) / "report.html" if output is None else Path(output)
    replace_text(file, page(facts))
    return file
