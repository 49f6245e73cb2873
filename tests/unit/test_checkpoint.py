"""Checkpoints: written whole or not at all, verified before use, rotated, and read back bit for bit."""

import errno
import logging
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tunekit.errors import RecipeError, StorageError
from tunekit.train import checkpoint
from tunekit.train.rng import rng_state, set_rng_state

CONTRACT = {"train.seed": 42, "model.name_or_path": "tiny"}
FILES = ("tensors.safetensors", "state.json", "manifest.json")


def state(step: int) -> dict[str, Any]:
    tensor = torch.full((3, 2), float(step))
    return {"parameters": {"a.weight": tensor, "b": tensor.bfloat16()}, "run": {"step": step, "best": None}}


def save(folder: Path, *steps: int) -> Path:
    for step in steps:
        checkpoint.save(folder, step, state(step), CONTRACT)
    return folder / f"step-{steps[-1]}"


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def flip(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 0x01]) + data[place + 1 :]


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "half": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "first byte flipped": lambda file: file.write_bytes(flip(file.read_bytes(), 0)),
    "middle byte flipped": lambda file: file.write_bytes(flip(file.read_bytes(), file.stat().st_size // 2)),
    "last byte flipped": lambda file: file.write_bytes(flip(file.read_bytes(), file.stat().st_size - 1)),
    "a byte more": lambda file: file.write_bytes(file.read_bytes() + b" "),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
}


def harmless(damage: str, file: str) -> bool:
    """White space after the manifest's closing brace changes nothing that it says."""
    return file == "manifest.json" and damage == "a byte more"


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, file: str, damage: str
) -> None:
    newest = save(tmp_path, 3, 10)
    DAMAGE[damage](newest / file)
    with caplog.at_level(logging.INFO, logger="tunekit"):
        found = checkpoint.newest(tmp_path)
    assert found is not None
    if harmless(damage, file):
        assert found == newest
        return
    assert found.name == "step-3"
    assert "damaged checkpoint passed over" in caplog.text and "step-10" in caplog.text
    assert checkpoint.load(found)["run"]["step"] == 3
    with pytest.raises(StorageError, match="step-10"):
        checkpoint.load(newest)


@pytest.mark.parametrize("file", FILES)
def test_no_single_flipped_bit_goes_unseen(tmp_path: Path, file: str) -> None:
    """Whatever `verify` lets pass says and holds what was saved."""
    path = save(tmp_path, 1)
    manifest = checkpoint.verify(path)
    whole = (path / file).read_bytes()
    places = range(len(whole)) if file == "manifest.json" else range(0, len(whole), 7)
    for place in places:
        for bit in (0x01, 0x20):
            (path / file).write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
            try:
                found = checkpoint.verify(path)
            except StorageError:
                continue
            assert file == "manifest.json" and found == manifest
            assert checkpoint.load(path)["run"]["step"] == 1


@pytest.mark.parametrize(
    "content", ["{}", "[]", "null", '{"files": {}}', '{"files": 3, "contract": {}}', "{", "\udcff"]
)
def test_a_manifest_that_is_none_is_damage(tmp_path: Path, content: str) -> None:
    path = save(tmp_path, 1)
    (path / "manifest.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(StorageError, match="step-1"):
        checkpoint.verify(path)


def test_none_whole_is_an_error_and_none_at_all_is_not(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "never made") is None
    assert checkpoint.newest(tmp_path) is None
    save(tmp_path, 1, 2)
    for step in (1, 2):
        (tmp_path / f"step-{step}" / "state.json").unlink()
    with pytest.raises(StorageError, match="none of 2 checkpoints is whole") as caught:
        checkpoint.newest(tmp_path)
    assert caught.value.exit_code == 4


def test_the_newest_is_the_highest_step_whatever_the_clock_says(tmp_path: Path) -> None:
    save(tmp_path, 9, 10)
    os.utime(tmp_path / "step-9", (2e9, 2e9))
    (tmp_path / "step-11x").mkdir()
    assert checkpoint.newest(tmp_path) == tmp_path / "step-10"


def test_leftovers_of_a_killed_save_are_swept_and_never_taken_for_a_checkpoint(tmp_path: Path) -> None:
    save(tmp_path, 1)
    (tmp_path / f"{checkpoint.STAGING}step-2-abc").mkdir()
    (tmp_path / f"{checkpoint.STAGING}step-2-abc" / "tensors.safetensors").write_bytes(b"half")
    assert checkpoint.newest(tmp_path) == tmp_path / "step-1"
    checkpoint.sweep(tmp_path)
    assert names(tmp_path) == {"step-1"}
    checkpoint.sweep(tmp_path / "never made")


@pytest.mark.parametrize(
    ("limit", "best", "kept"), [(1, None, {4}), (2, 1, {1, 3, 4}), (2, 4, {3, 4}), (9, 2, {1, 2, 3, 4})]
)
def test_rotation_keeps_the_newest_and_the_best(tmp_path: Path, limit: int, best: int | None, kept: set[int]) -> None:
    save(tmp_path, 1, 2, 3, 4)
    checkpoint.rotate(tmp_path, step=4, total_limit=limit, best_step=best)
    assert names(tmp_path) == {f"step-{step}" for step in kept}


def test_rotation_does_not_count_checkpoints_that_are_yet_to_be_reached_again(tmp_path: Path) -> None:
    """A run resumed before a damaged checkpoint, which must not push out the good ones it was passed over for."""
    save(tmp_path, 2, 3, 8)
    (tmp_path / "step-8" / "state.json").unlink()
    save(tmp_path, 4)
    checkpoint.rotate(tmp_path, step=4, total_limit=1, best_step=None)
    assert checkpoint.newest(tmp_path) == tmp_path / "step-4"


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), KeyboardInterrupt()], ids=str)
def test_a_save_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = save(tmp_path, 1)
    before = {file: (path / file).read_bytes() for file in FILES}

    def fail(descriptor: int) -> None:
        raise error

    monkeypatch.setattr(os, "fsync", fail)
    expected = StorageError if isinstance(error, OSError) else type(error)
    for step in (1, 2):
        with pytest.raises(expected, match="No space left" if isinstance(error, OSError) else None):
            checkpoint.save(tmp_path, step, state(7), CONTRACT)
    assert names(tmp_path) == {"step-1"}
    assert {file: (path / file).read_bytes() for file in FILES} == before


def test_a_folder_that_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written"):
        checkpoint.save(tmp_path / "file" / "checkpoints", 1, state(1), CONTRACT)


def test_a_step_saved_again_replaces_the_old_one(tmp_path: Path) -> None:
    save(tmp_path, 1)
    checkpoint.save(tmp_path, 1, state(5), CONTRACT)
    assert checkpoint.load(tmp_path / "step-1")["run"]["step"] == 5
    assert names(tmp_path) == {"step-1"}


def test_files_can_be_read_by_others(tmp_path: Path) -> None:
    path = save(tmp_path, 1)
    assert {oct((path / file).stat().st_mode & 0o777) for file in FILES} == {"0o644"}


SCALARS = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text()
TREES = st.recursive(
    SCALARS,
    lambda tree: (
        st.lists(tree, max_size=3)
        | st.tuples(tree, tree)
        | st.dictionaries(st.integers(0, 5) | st.sampled_from(["tensor", "pairs", "list", "a/b"]), tree, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tree=TREES)
def test_every_tree_of_numbers_and_strings_comes_back(tmp_path: Path, tree: Any) -> None:
    checkpoint.save(tmp_path, 1, tree, {})
    found = checkpoint.load(tmp_path / "step-1")
    assert found == tree
    assert repr(found) == repr(tree)  # 1 and 1.0 and True are equal, and not the same


def test_tensors_come_back_in_value_dtype_and_shape(tmp_path: Path) -> None:
    shared = torch.randn(4, 4)
    tensors = {
        "scalar": torch.tensor(3.5),
        "empty": torch.empty(0, 3),
        "transposed": shared.T,
        "the same": shared,
        "the whole of it": shared,
        "view inside it": shared[1],
        0: {"step": torch.tensor(7.0), "codes": torch.arange(256, dtype=torch.uint8)},
        "half": torch.tensor([1e-7, float("inf"), float("nan")], dtype=torch.bfloat16),
    }
    checkpoint.save(tmp_path, 1, tensors, {})
    found = checkpoint.load(tmp_path / "step-1")
    assert found.keys() == tensors.keys()
    for name in tensors.keys() - {0}:
        torch.testing.assert_close(found[name], tensors[name], rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(found[0], tensors[0], rtol=0, atol=0)


def draws() -> tuple[Any, ...]:
    return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random(), random.gauss(0, 1), np.random.randn()


def test_every_random_generator_goes_on_where_it_was(tmp_path: Path) -> None:
    random.gauss(0, 1), np.random.randn()  # each keeps the second of a pair for the next call
    checkpoint.save(tmp_path, 1, rng_state(), {})
    expected = draws()
    draws()
    set_rng_state(checkpoint.load(tmp_path / "step-1"))
    assert draws() == expected


def test_a_broken_contract_is_named_key_by_key(tmp_path: Path) -> None:
    saved = checkpoint.verify(save(tmp_path, 1))["contract"]
    checkpoint.check_contract(saved, dict(CONTRACT), tmp_path)
    with pytest.raises(RecipeError) as caught:
        checkpoint.check_contract(saved, {"train.seed": 43, "adapter.r": 8}, tmp_path)
    message = str(caught.value)
    for part in (
        "train.seed: 42 then, 43 now",
        "adapter.r: None then, 8 now",
        "model.name_or_path: 'tiny' then, None now",
    ):
        assert part in message
    assert caught.value.exit_code == 2
