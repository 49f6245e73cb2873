"""Values that go together although they look as if they did not, and what follows from them.

That wrong combinations are refused, with the fix, is in tests/corpus/recipes/malformed.py.
"""

from pathlib import Path

import pytest

from tunekit.recipe.load import Resolved, load
from tunekit.recipe.show import dump

HEAD = "model: m\noutput_dir: o\n"
STREAM = HEAD + "data: {train: a, streaming: true, max_length: 9}\ntrain: {max_steps: 5}\n"


def resolve(folder: Path, text: str, *overrides: str) -> Resolved:
    (folder / "r.yaml").write_text(text)
    return load(folder / "r.yaml", overrides)


@pytest.mark.parametrize(
    "text",
    [
        HEAD + "data: {train: [{path: a, weight: 1}]}\n",
        HEAD + "data: {train: [{path: a, weight: 0.3}, {path: b, weight: 2}], eval: [c]}\n",
        STREAM,
        STREAM + "save: {steps: 1}\n",
        STREAM.replace("max_length: 9", "max_length: 9, shuffle_buffer: 5"),
        STREAM.replace("max_length: 9", "max_length: 9, eval_split: 100"),
        STREAM.replace("max_length: 9", "max_length: 9, eval: b") + "eval: {metrics: [exact_match]}\n",
        STREAM.replace("max_steps: 5", "max_steps: 5, sampling: sequential"),
        HEAD + "data: {train: a, shuffle_buffer: 10000}\n",
        HEAD + "data: {train: a, system: x, system_mode: replace}\n",
        HEAD + 'data: {train: a, system: "", system_mode: replace}\n',
        HEAD + "data: {train: a, system_mode: drop}\n",
        HEAD + "data: {train: a, packing: true}\n",
        HEAD.replace("model: m", "model: {name_or_path: m, attn_implementation: sdpa}") + "data: a\n",
        HEAD + "data: {train: [{path: a.json, field: rows}, {path: b.json.gz, field: rows}]}\n",
        HEAD + "data: {train: [{path: o/a, name: n, split: s, revision: r, data_files: x.jsonl}]}\n",
        HEAD + "data: {train: [{path: folder, data_files: ['*.jsonl']}, {path: 'd/*.jsonl'}]}\n",
        HEAD + "data: {train: [{path: 'memory:a', format: text, columns: {text: t}, weight: 1}]}\n",
    ],
)
def test_what_goes_together_loads_and_loads_again_when_printed(tmp_path: Path, text: str) -> None:
    recipe = resolve(tmp_path, text).recipe
    assert resolve(tmp_path, dump(recipe)).recipe == recipe


def test_a_stream_holds_nothing_out_unless_it_is_told_to(tmp_path: Path) -> None:
    resolved = resolve(tmp_path, STREAM)
    assert resolved.recipe.data.eval_split == 0 and resolved.origins["data.eval_split"] == "derived"
    assert resolve(tmp_path, STREAM, "data.eval_split=7").recipe.data.eval_split == 7
    whole = resolve(tmp_path, STREAM, "data.streaming=false")
    assert whole.recipe.data.eval_split is None and whole.origins["data.eval_split"] == "default"
