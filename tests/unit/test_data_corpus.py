"""Every malformed file of the corpus: each bad row is rejected at its place with its reason, every other one loads."""

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.corpus.data.cases import CASES, SHAPES, Case
from tunekit.data.formats import convert
from tunekit.data.rows import AnyRow, Rejected
from tunekit.data.sources import find
from tunekit.errors import TunekitError


def test_the_corpus_is_large_and_every_shape_has_its_share() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names) >= 150
    shares = Counter(name.partition(":")[0] for name in names)
    assert all(shares[shape] >= 25 for shape in SHAPES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_malformed_file(case: Case, tmp_path: Path) -> None:
    file = tmp_path / case.file
    file.write_bytes(case.content())
    good: list[AnyRow] = []
    rejected: dict[str, Rejected] = {}
    error = None
    try:
        for row in convert(find(str(file), **case.where).rows()):
            if isinstance(row, Rejected):
                rejected[row.source.removeprefix(str(file))] = row
            else:
                good.append(row)
    except TunekitError as caught:
        error = caught
    if case.error:
        assert error is not None and error.exit_code == case.exit_code
        assert re.search(case.error, str(error), re.IGNORECASE) and str(file) in str(error)
    else:
        assert error is None
    assert rejected.keys() == case.rejected.keys()
    for place, words in case.rejected.items():
        assert re.search(words, rejected[place].reason), rejected[place].reason
    assert len(good) == case.good or (case.good == -1 and good)
    assert len({row.source for row in good}) == len(good)
