"""Stores made of given token rows, for the tests of what comes after tokenising."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tunekit.data.rows import Rejected, Text, Tokens
from tunekit.data.store import Rendered, Store, stored, write_rows


def token_row(ids: Sequence[int], trained: Sequence[bool | int], source: str = "a.jsonl:1") -> Tokens:
    return Tokens(np.array(ids, np.int32), np.array(trained, bool), source)


def store_of(
    folder: Path,
    rows: Sequence[Sequence[Tokens] | Rejected],
    kind: str = "conversations",
    name: str = "a.jsonl",
    chunk: int = 3,
) -> Store:
    """A store whose row of the data number i became the token rows `rows[i]`, or was rejected."""
    made = [
        row if isinstance(row, Rejected) else Rendered(i, Text("", f"text {i}", f"{name}:{i + 1}"), row)
        for i, row in enumerate(rows)
    ]

    def write(staging: Path) -> dict[str, object]:
        write_rows(staging, [made[i : i + chunk] for i in range(0, len(made), chunk)])
        rejected = sum(isinstance(row, Rejected) for row in rows)
        return {"source": name, "kind": kind, "rows": len(rows) - rejected, "rejected": rejected, "terminators": []}

    return stored(folder, write)[0]
