"""Rows that cannot be used: how many are accepted, what is said of them, and the file that keeps them."""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

from tunekit.data.rows import Rejected
from tunekit.data.store import Store
from tunekit.errors import DataError

log = logging.getLogger("tunekit")

SHOWN = 5


def check_rejected(stores: Sequence[Store], max_rejected: float, file: Path | None = None) -> int:
    """How many rows were rejected; they are written to `file`. Raises `DataError` where they are more than accepted.

    `max_rejected` is a number of rows (int), or a share of all (float).
    """
    count, num_rows = (sum(store.report[key] for store in stores) for key in ("rejected", "rows"))
    rejected = [each for store in stores if store.report["rejected"] for each in _first(store)]
    if file is not None:
        file.unlink(missing_ok=True)  # that of a run before
    if count and file is not None:
        with file.open("w", encoding="utf-8") as out:
            for store in stores:
                out.writelines(json.dumps(asdict(each), default=str) + "\n" for each in store.rejected())
    limit = max_rejected if isinstance(max_rejected, int) else int(max_rejected * (count + num_rows))
    if count > limit:
        raise DataError(*rejections(rejected, count, count + num_rows, max_rejected))
    if count:
        where = f", see {file}" if file is not None else ""
        log.warning("%s of %s rows were rejected%s; the first: %s: %s", f"{count:,}", f"{count + num_rows:,}", where,
                    rejected[0].source, rejected[0].reason)  # fmt: skip
    return count


def _first(store: Store) -> list[Rejected]:
    return [each for each, _ in zip(store.rejected(), range(SHOWN + 1), strict=False)]


def rejections(first: Sequence[Rejected], count: int, num_rows: int, max_rejected: float) -> tuple[str, str]:
    """Message and fix for rejected rows, of which `first` are some."""
    shown = "\n".join(f"  {each.source}: {each.reason}" for each in first[:SHOWN])
    more = f"\n  ... and {count - SHOWN:,} more" if count > SHOWN else ""
    fixes = dict.fromkeys(each.fix for each in first[:SHOWN] if each.fix)
    accepted = f" (data.max_rejected: {max_rejected})" if max_rejected else ""
    rule = "Correct these rows, or accept them: data.max_rejected is a number or a share of rows to leave out."
    return f"{count:,} of {num_rows:,} rows cannot be used{accepted}:\n{shown}{more}", "\n".join([*fixes, rule])


def into_file(file: Path | None) -> Callable[[Rejected], None]:
    """Appends rejected rows to `file` (None: to none), each place once: a resumed stream reads its block again."""
    written = set(_places(file)) if file is not None and file.exists() else set()

    def reject(row: Rejected) -> None:
        if row.source in written:
            return
        written.add(row.source)
        if len(written) <= SHOWN:
            log.warning("rejected: %s: %s", row.source, row.reason)
        if file is not None:
            with file.open("a", encoding="utf-8") as out:
                out.write(json.dumps(asdict(row), default=str) + "\n")

    return reject


def _places(file: Path) -> list[str]:
    """The places of the rows in `file`; a last line that a killed run left torn is cut off."""
    whole, _, torn = file.read_bytes().rpartition(b"\n")
    if torn:
        file.write_bytes(whole + b"\n" if whole else b"")
    return [json.loads(line)["source"] for line in whole.splitlines()]
