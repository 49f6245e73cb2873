"""Data sets of the hub, memory-mapped by `datasets`; the only module of the sources that knows it."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunekit.data.sources.source import Item, without_nulls
from tunekit.errors import DataError, MissingEnvironment

log = logging.getLogger("tunekit")


@dataclass(frozen=True)
class Hub:
    """One split of a data set; `dataset` is a `datasets.Dataset`."""

    name: str
    split: str
    dataset: Any

    @property
    def places(self) -> list[str]:
        return [self.name, self.split]

    def rows(self, start: int = 0) -> Iterator[Item]:
        rest = self.dataset.select(range(min(start, len(self.dataset)), len(self.dataset)))
        for number, row in enumerate(rest, start=start):
            yield without_nulls(row), f"{self.name}[{self.split}][{number}]"

    def fingerprint(self) -> str:
        # It stands for the commit, the configuration, the files and the split.
        return hashlib.sha256(self.dataset._fingerprint.encode()).hexdigest()


def find_on_hub(
    path: str, name: str | None, split: str | None, data_files: str | Sequence[str] | None, revision: str | None
) -> Hub:
    """Downloads what the cache does not hold yet. Raises `DataError`, and `MissingEnvironment` without a network."""
    import datasets  # two seconds that a run on local files need not wait

    if data_files is not None and not isinstance(data_files, str):
        data_files = list(data_files)
    try:
        loaded = datasets.load_dataset(path, name, split=split, data_files=data_files, revision=revision)
    except FileNotFoundError as error:
        raise DataError(f"{path}: {error}", f"There is no file or folder {path} in {Path.cwd()} either.") from error
    except OSError as error:
        raise MissingEnvironment(
            f"{path}: no such file or folder in {Path.cwd()}, and the hub cannot be reached: {error}",
            "Give the path of a local file, or fetch the data set once where there is a network; it is cached then.",
        ) from error
    except (ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DataError(f"{path}: {error}", "Correct name, split, data_files or revision under data.") from error
    if split is None:
        split = _choose_split(path, list(loaded))
        loaded = loaded[split]
    if not len(loaded):
        raise DataError(f"{path}: the split {split} is empty")
    return Hub(path, split, loaded)


def _choose_split(path: str, splits: list[str]) -> str:
    if "train" not in splits and len(splits) > 1:
        raise DataError(f"{path}: no split named train; there are {', '.join(splits)}", "Set split under data.")
    split = "train" if "train" in splits else splits[0]
    log.info("%s: split %s (of %s)", path, split, ", ".join(splits))
    return split
