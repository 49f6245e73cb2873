"""The reference of whole runs: computed once, read again, and never another one's."""

import shutil
from pathlib import Path

import pytest
from preferences import result_of, run, unprove, write_recipe, write_rows
from safetensors.numpy import load_file, save_file

from tunekit.errors import Diverged
from tunekit.models import reference


@pytest.fixture(autouse=True)
def unproven(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEKIT_CACHE", str(tmp_path / "cache"))
    unprove(monkeypatch)


def reference_lines(messages: list[str]) -> list[str]:
    return [line for line in messages if line.startswith("reference: ")]


def test_a_second_run_reads_the_reference_that_the_first_computed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "tunekit")
    recipe, after = write_recipe(tmp_path, "dpo"), []
    for i, words in enumerate((" s", "from the cache")):
        caplog.clear()
        after.append(run(recipe, "dpo", f"output_dir={tmp_path}/{i}", "objective.beta=0.3")["after"])
        lines = reference_lines(caplog.messages)
        assert len(lines) == 2 and all(line.endswith(words) for line in lines)
    assert after[0] == after[1]
    caplog.clear()
    run(recipe, "dpo", f"output_dir={tmp_path}/ipo", "objective=ipo", "train.learning_rate=0.002")
    lines = reference_lines(caplog.messages)
    assert len(lines) == 2 and all(line.endswith("from the cache") for line in lines)
    caplog.clear()
    for loss in ("simpo", "orpo", "cpo"):
        run(recipe, "dpo", f"output_dir={tmp_path}/{loss}", f"objective={loss}")
    assert not reference_lines(caplog.messages)


def test_a_reference_that_is_damaged_is_computed_again_and_one_that_is_wrong_stops_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = write_recipe(tmp_path, "dpo")
    run(recipe, "dpo")
    files = sorted((tmp_path / "cache" / "reference").iterdir())
    whole = [file.read_bytes() for file in files]
    for file, content in zip(files, whole, strict=True):
        file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    run(recipe, "dpo", f"output_dir={tmp_path}/again")
    assert [file.read_bytes() for file in files] == whole
    assert sum("is damaged: the reference is computed again" in line for line in caplog.messages) == 2

    for file in files:
        values = load_file(file)[reference.NAME] + 1
        save_file({reference.NAME: values}, file, metadata={"sha256": reference._digest(values)})
    with pytest.raises(Diverged, match=r"(?s)step 0: policy and reference differ by .*nats a token.*reference/"):
        run(recipe, "dpo", f"output_dir={tmp_path}/wrong")
    result = result_of(tmp_path / "wrong")
    assert (result["status"], result["exit_code"]) == ("failed", 10) and not (tmp_path / "wrong" / "model").exists()
    shutil.rmtree(tmp_path / "cache" / "reference")
    run(recipe, "dpo", f"output_dir={tmp_path}/wrong")


def test_a_reference_of_answers_that_were_cut_elsewhere_is_not_taken(tmp_path: Path) -> None:
    """No row is longer than 70 tokens, but the prompt of one with the answer of another, from which kl comes, is."""
    recipe = write_recipe(tmp_path, "kto")
    sizes = ((60, 5), (5, 60))
    rows = [{"prompt": "q" * sizes[i % 2][0], "completion": "a" * sizes[i % 2][1], "label": i < 6} for i in range(12)]
    write_rows(tmp_path / "train.jsonl", rows)
    write_rows(tmp_path / "eval.jsonl", rows[4:8])
    for limit in (2048, 70):
        result = run(recipe, "kto", f"data.max_length={limit}", f"output_dir={tmp_path}/{limit}")
        assert result["before"]["eval_kl"] == pytest.approx(0, abs=1e-3)
