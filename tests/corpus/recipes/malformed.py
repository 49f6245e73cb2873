"""Recipes that must be refused, as data: each with the words that its message must contain.

`BASE` is a good recipe; most cases are it with one thing wrong, so that what is said can only be about that.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

BASE = "model: m\nadapter: lora\ndata: d.jsonl\noutput_dir: out/x\n"
FULL = "model: m\ndata: d.jsonl\noutput_dir: out/x\n"  # without an adapter
NO_COLON = 'a line without ": " between key and value'


class Case(NamedTuple):
    """text: of the file r.yaml;  words: in the message;  overrides: behind the file;  files: others beside it"""

    text: str | bytes
    words: tuple[str, ...]
    overrides: tuple[str, ...] = ()
    files: Mapping[str, str] = MappingProxyType({})


def data(*lines: str) -> str:
    """A recipe with these keys below `data`."""
    return "model: m\noutput_dir: out/x\ndata:\n" + "".join(f"  {line}\n" for line in lines)


def sources(*items: str, more: str = "") -> str:
    """A recipe with these sources of rows."""
    return data("train:", *(f"  - {item}" for item in items)) + more


# What YAML itself does not allow, or what we do not take of it.
YAML: dict[str, Case] = {
    "nothing": Case("", ("r.yaml: is empty", "model, data and output_dir")),
    "white space": Case("   \n\n  \n", ("is empty",)),
    "only a comment": Case("# model: m\n", ("is empty",)),
    "only a marker": Case("---\n---\n", ("second document",)),
    "an end marker": Case("...\n", (":1:1", "but found '<document end>'")),
    "null": Case("null\n", (":1:1", "is empty")),
    "tilde": Case("~", (":1:1", "is empty")),
    "a word": Case("recipe\n", (":1:1", "does not hold keys with values")),
    "a number": Case("3\n", (":1:1", "does not hold keys with values")),
    "a list": Case("- model: m\n- data: d\n", (":1:1", "does not hold keys with values")),
    "a flow list": Case("[model, m]\n", (":1:1", "does not hold keys with values")),
    "a key without a colon": Case("model m\ndata: d\n", (":1:1", NO_COLON, "    1 | model m", "Write key: value")),
    "a colon without a space": Case("model:m\ndata: d\n", (":1:1", NO_COLON, "with a space")),
    "an equals sign": Case("model = m\ndata: d\n", (":1:1", NO_COLON)),
    "a colon without a space in a section": Case(BASE + "train:\n  seed:1\n  max_steps: 3\n", (":6:3", NO_COLON)),
    "a section without a colon": Case("model: m\ntrain\ndata: d\n", (":2:1", "a key without a colon behind it")),
    "a section without a colon at the end": Case(BASE + "train\n", (":5:1", "a key without a colon behind it")),
    "a section without a colon above its keys": Case(
        BASE + "train\n  seed: 1\n", (":5:1", "without a colon behind it")
    ),
    "a JSON file cut off": Case('{"model": "m", "data": ', (":1:24", "what begins here has no end")),
    "a JSON file with a comment": Case('{"model": "m" // base\n}', (":1:15", "expected ',' or '}'")),
    "TOML": Case('model = "m"\n[train]\nseed = 1\n', (":1:1", "does not hold keys with values")),
    "a Python dict": Case("{'model': 'm', 'data': None, 'output_dir': True}\n", ("output_dir: true, must be text",)),
    "a tab before a key": Case("model: m\ntrain:\n\tseed: 1\n", (":3:1", "a tab", "replace the tab", "→seed: 1")),
    "a tab after spaces": Case("model: m\ntrain:\n  \tseed: 1\n", (":3:", "tab")),
    "a tab before the first key": Case("\tmodel: m\n", (":1:1", "a tab")),
    "indentation of a top key": Case("model: m\n data: d\n", (":2:2", "indented by 1", "by 0", "Align the keys")),
    "more indentation than before": Case(
        BASE + "train:\n  seed: 1\n\n   logging_steps: 3\n", (":8:4", "indented by 3", "by 2 and has its value")
    ),
    "more indentation than before below a comment": Case(
        BASE + "train:\n  seed: 1\n  # why\n   logging_steps: 3\n", (":8:4", "the indentation of this line")
    ),
    "less indentation than before": Case(
        FULL + "train:\n   seed: 1\n  logging_steps: 2\n",
        (":6:3", "the indentation of this line is that of none above"),
    ),
    "an open bracket": Case(BASE + "report_to: [wandb\n", (":5:12", "what begins here has no end")),
    "an open brace": Case(BASE + "train: {seed: 1\n", (":5:8", "what begins here has no end")),
    "a bracket too many": Case(BASE + "report_to: [wandb]]\n", (":5:19", "but found ']'")),
    "an open quote": Case(BASE + "run_name: 'it's\n", (":5:15", "not valid YAML")),
    "an open double quote": Case(BASE + 'run_name: "x\n', (":5:11", "what begins here has no end")),
    "an unknown escape": Case(BASE + 'run_name: "a\\qb"\n', (":5:14", "unknown escape character 'q'")),
    "a colon in a value": Case(BASE + "run_name: first: second\n", (":5:16", "Put a value that holds")),
    "a section on the line of its name": Case(BASE + "train: seed: 1\n", (":5:12", '": " in a value')),
    "an at sign": Case(BASE + "run_name: @home\n", (":5:11", "cannot begin with @", "Put the value in quotes")),
    "a backtick": Case(BASE + "run_name: `x`\n", (":5:11", "cannot begin with `", "Put the value in quotes")),
    "a percent sign": Case("model: %x\n", (":1:8", "cannot begin with %", "Put the value in quotes")),
    "a question mark": Case(BASE + "run_name: ? x\n", (":5:11", "cannot begin with -, ?", "Put the value in quotes")),
    "a dash": Case(BASE + "run_name: - x\n", (":5:11", "cannot begin with -, ?", "Put the value in quotes")),
    "a bar": Case(BASE + "run_name: | x\n", (":5:13", "cannot begin with -, ?", "Put the value in quotes")),
    "a colon in braces": Case(BASE + "train: {optim: a: b}\n", (":5:17", '": " in a value', "Put a value that holds")),
    "an open bracket above": Case(
        "model: m\ndata: [a, b\noutput_dir: o\n", (":2:7", "begins here has no end", "Close it")
    ),
    "text behind quotes": Case(
        BASE + "run_name: 'a'b\n", (":5:14", "text behind the end of a value", "all of the value")
    ),
    "a star alone": Case("data: *\n", (":1:7", "cannot begin with * or &", "Put the value in quotes")),
    "a pattern": Case("model: m\noutput_dir: o\ndata: *.jsonl\n", (":3:7", "data: *.jsonl begins with *", "in quotes")),
    "a pattern in a list": Case(sources("**/*.jsonl"), (":5:7", "data.train.0: **/*.jsonl begins with *", "in quotes")),
    "two commas in braces": Case("{model: m, data: d,, output_dir: o}", (":1:20", "but found ','")),
    "a key twice": Case(BASE + "model: x\n", (":5:1", "model: is given twice, first in line 1")),
    "a section twice": Case(BASE + "train: {seed: 1}\ntrain: {max_steps: 2}\n", (":6:1", "first in line 5")),
    "a section twice with a slip in the second": Case(
        BASE + "train: {seed: 1, max_steps: x}\ntrain: {sede: 2, seed: 3}\n",
        (
            ':5:29: train.max_steps: "x"',
            ":6:1: train: is given twice",
            ":6:9: train.sede: unknown key",
            ":6:18: train.seed: is",
        ),
    ),
    "a key twice in a section": Case(BASE + "save:\n  steps: 5\n  steps: 6\n", (":7:3", "save.steps: is given twice")),
    "a key twice in a source": Case(sources("{path: a, path: b}"), (":5:17", "data.train.0.path: is given twice")),
    "a column twice": Case(sources("{path: a, columns: {q: a, q: b}}"), ("columns.q: is given twice",)),
    "a tag of Python": Case("model: !!python/object/apply:os.system [id]\n", (":1:8", "a tag (!!python/object/apply")),
    "a tag of a type": Case(BASE + "train: {seed: !!int '3'}\n", (":5:15", "train.seed: a tag (!!int)")),
    "a tag of text": Case(BASE + "run_name: !!str no\n", ("run_name: a tag (!!str)", "write the plain value")),
    "a tag for the environment": Case(BASE + "output_dir: !ENV ${HOME}\n", ("a tag (!ENV)",)),
    "a binary tag": Case(BASE + "run_name: !!binary aGk=\n", ("a tag (!!binary)",)),
    "an anchor": Case("model: &m m\ndata: d\noutput_dir: o\n", (":1:8", "an anchor (&m)", "extends: FILE")),
    "an alias": Case(BASE + "run_name: *a\n", (":5:11", "an alias (*a)", "extends: FILE")),
    "an alias to a section": Case(BASE + "train: &t {seed: 1}\nsave: *t\n", ("an anchor (&t)", "an alias (*t)")),
    "a merge key": Case(BASE + "train:\n  <<: {seed: 1}\n", (":6:3", "a merge key is not accepted", "extends: FILE")),
    "a merge key with an alias": Case(BASE + "<<: *base\n", (":5:1", "a merge key is not accepted")),
    "a directive": Case("%YAML 1.1\n---\n" + BASE, (":2:1", "a directive")),
    "a directive for tags": Case("%TAG !e! tag:e,2000:\n---\n" + BASE, ("a directive",)),
    "two recipes": Case(BASE + "---\n" + BASE, (":5:1", "a second document")),
    "a list as a key": Case("? [model]\n: m\n", (":1:3", "a key must be one word")),
    "a mapping as a key": Case("? {a: b}\n: m\n", (":1:3", "a key must be one word")),
    "a line feed in a key": Case('"mo\\ndel": m\n', (":1:1", "a key must be one word")),
    "a no-break space in a key": Case(BASE + "train:\n  seed\u00a0: 1\n", (":6:3", "a key must be one word")),
    "a zero-width space in a key": Case(BASE + "tra\u200bin: {}\n", (":5:1", "a key must be one word")),
    "a byte order mark inside": Case("model: m\n\ufeffdata: d\n", (":2:1", "a key must be one word")),
    "a bell": Case(BASE + "run_name: a\x07b\n", (":5:12", "U+0007")),
    "an escape sequence": Case(BASE + "run_name: \x1b[31mred\n", (":5:11", "U+001B", "\ufffd[31mred")),
    "a zero byte": Case("model: m\x00\n", (":1:9", "U+0000")),
    "half a character": Case(BASE + 'run_name: "\\ud83d"\n', (":5:11", "half a character")),
    "latin-1": Case(
        "model: m\nrun_name: né\n".encode("latin-1"), (":2:12", "is not UTF-8 text", "Save the recipe as UTF-8")
    ),
    "UTF-16": Case(BASE.encode("utf-16"), (":1:1", "is not UTF-8 text, but UTF-16")),
    "UTF-32": Case(BASE.encode("utf-32"), (":1:1", "is not UTF-8 text, but UTF-32")),
    "a picture": Case(b"\x89PNG\r\n\x1a\n" + bytes(range(256)), (":1:1", "is not UTF-8 text")),
    "10 MB": Case(BASE + "# " + "x" * 10_000_000, ("is larger than 256 KiB", "name the data by its path")),
    "10 MB in one value": Case("model: " + "m" * 10_000_000, ("is larger than 256 KiB",)),
    "depth 10k in brackets": Case("model: " + "[" * 10_000, ("nested more than 32 levels deep",)),
    "depth 10k in braces": Case("{a: " * 10_000, ("nested more than 32 levels deep",)),
    "depth 10k in dashes": Case("- " * 10_000, ("nested more than 32 levels deep",)),
    "too many values": Case(BASE + "eval: {metrics: [" + "x," * 20_000 + "]}", ("more than 10,000 values",)),
    "an alias bomb": Case(
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)),
        ("an alias (*a)", "an anchor (&b)"),
    ),
    "a bomb of merge keys": Case(BASE + "<<: [*a, *a, *a, *a]\n" * 50, ("a merge key", "is given twice")),
}

# Keys that must be there, and what was left to do.
MISSING: dict[str, Case] = {
    "no model": Case("data: d\noutput_dir: o\n", ("model: is missing. The model to start from",)),
    "no data": Case("model: m\noutput_dir: o\n", ("data: is missing",)),
    "no output": Case("model: m\ndata: d\n", ("output_dir: is missing",)),
    "nothing but one key": Case(
        "train: {seed: 1}\n", ("model: is missing", "data: is missing", "output_dir: is missing")
    ),
    "no name of the model": Case(
        "model: {dtype: auto}\ndata: d\noutput_dir: o\n", (":1:8", "model.name_or_path: is missing")
    ),
    "no rows": Case("model: m\ndata: {max_length: 5}\noutput_dir: o\n", (":2:7", "data.train: is missing")),
    "no path of a source": Case(sources("{split: test}"), (":5:7", "data.train.0.path: is missing")),
    "no path of the second": Case(sources("a", "{name: x}"), (":6:7", "data.train.1.path: is missing")),
    "a model that is to do": Case("model: TODO\ndata: d\noutput_dir: o\n", (":1:8", "still to be filled in", "Hub id")),
    "a remark what is to do": Case(
        BASE.replace("out/x", '"TODO: a folder of your own"'),
        (":4:13", "is still to be filled in: a folder of your own"),
    ),
    "an unknown key that is to do": Case(BASE + "zzz: TODO\n", (":5:1: zzz: unknown key",)),
    "a number that is to do": Case(BASE + "train: {max_steps: TODO}\n", ("max_steps: is still to be filled in",)),
}

# (key, value in YAML, words): what a single key does not take.
VALUES: list[tuple[str, str, str]] = [
    *(
        (key, value, "must be a whole number")
        for key in ("train.seed", "save.steps", "adapter.r")
        for value in ("x", "1.5")
    ),
    *((key, "1.0", "must be a whole number") for key in ("train.seed", "data.shuffle_buffer", "eval.max_new_tokens")),
    *((key, "1e3", "must be a whole number") for key in ("train.max_steps", "data.max_length")),
    *((key, "'3'", "(without quotes)") for key in ("train.seed", "train.max_steps", "save.total_limit", "adapter.r")),
    *((key, "true", "must be a whole number") for key in ("train.seed", "eval.steps", "train.logging_steps")),
    *((key, "[1]", "a list, must be") for key in ("train.seed", "train.learning_rate", "run_name", "resume")),
    *((key, "{a: 1}", "a section, must be") for key in ("train.seed", "run_name", "data.packing", "data.max_length")),
    *((key, "", "is empty, must be") for key in ("train.seed", "output_dir", "data.packing", "eval.metrics", "resume")),
    *(
        (key, "0", "greater than or equal to 1")
        for key in ("train.max_steps", "save.steps", "save.total_limit", "adapter.r")
    ),
    *((key, "0", "greater than or equal to 1") for key in ("data.max_length", "eval.steps", "train.logging_steps")),
    *((key, "-1", "greater than") for key in ("train.per_device_train_batch_size", "train.max_steps", "train.seed")),
    *((key, "x", "a number") for key in ("train.learning_rate", "train.weight_decay", "adapter.dropout")),
    *((key, "'1e-4'", "a number") for key in ("train.learning_rate", "train.max_grad_norm")),
    *((key, "1e-4x", "a number") for key in ("train.learning_rate", "train.warmup_ratio")),
    *((key, "'1,000'", "a number") for key in ("train.learning_rate", "train.num_train_epochs")),
    *((key, "1_000", "a number") for key in ("train.learning_rate", "train.num_train_epochs")),
    *((key, "5%", "a number") for key in ("train.warmup_ratio", "data.eval_split")),
    *((key, ".nan", "a finite number") for key in ("train.learning_rate", "train.weight_decay", "adapter.dropout")),
    *((key, ".inf", "a finite number") for key in ("train.learning_rate", "train.num_train_epochs")),
    *((key, "0", "greater than 0") for key in ("train.learning_rate", "train.max_grad_norm", "train.num_train_epochs")),
    *(
        (key, "-0.1", "greater than or equal to 0")
        for key in ("train.weight_decay", "adapter.dropout", "train.warmup_ratio")
    ),
    *((key, "1", "less than 1") for key in ("adapter.dropout", "train.warmup_ratio")),
    *((key, "yes", "true or false") for key in ("data.packing", "data.streaming", "adapter.use_dora")),
    *((key, "on", "true or false") for key in ("train.activation_checkpointing", "adapter.use_rslora")),
    *((key, "1", "true or false") for key in ("data.packing", "eval.load_best_model_at_end")),
    *((key, "'true'", "true or false") for key in ("data.packing", "data.streaming")),
    *((key, "2024", "(put it in quotes)") for key in ("run_name", "output_dir", "data.system", "model.revision")),
    *((key, "1e-4", "(put it in quotes)") for key in ("run_name", "data.system")),
    ("train.optim", "adamw_tourch", "did you mean adamw_torch?"),
    ("eval.metrics", "[exact_mach]", "did you mean exact_match?"),
    *((key, "true", "(put it in quotes)") for key in ("run_name", "data.chat_template")),
    *((key, "99999999999", "less than or equal to 2147483647") for key in ("data.max_length", "train.warmup_steps")),
    *((key, "99999999999", "at most 2147483647") for key in ("data.eval_split", "data.max_rejected")),
    *(
        (key, "1e300", "less than or equal to")
        for key in ("train.learning_rate", "train.max_grad_norm", "adapter.alpha")
    ),
    *((key, "1e300", "less than or equal to") for key in ("train.num_train_epochs", "train.weight_decay")),
    ("data.train", "[{path: a, weight: 1e300}]", "data.train.0.weight: 1e+300, must be less than or equal to"),
    *((key, "$HOME/x", "environment variables are not expanded") for key in ("output_dir", "model", "resume")),
    *((key, "'${DATA}/x'", "let the shell expand it") for key in ("data", "data.chat_template", "data.eval")),
    (
        "data.train",
        "[{path: o/a, data_files: $D}]",
        'data_files: "$D", must be a path without $: environment variables are not expanded; write it out, or let the '
        "shell expand it on the command line\n",
    ),
    ("data.train", "[{path: o/a, data_files: [x, $D]}]", 'data.train.0.data_files.1: "$D", must be a path without $'),
    ("output_dir", "~nobody-of-this-name/x", "there is no user of this name"),
    ("resume", "checkpoint", "'auto' or 'never', or the path of a checkpoint, such as out/x/checkpoints/step-N"),
    ("resume", '"auto\\n"', "'auto' or 'never'"),
    *((key, "{a: b}", "a section, must be text or a list") for key in ("adapter.target_modules",)),
    ("adapter.init_lora_weights", "{a: b}", "adapter.init_lora_weights: a section, must be true or false or"),
    *((key, "{a: b}", f"{key}: a section, must be a number") for key in ("data.eval_split", "data.max_rejected")),
    ("data.train", "[{path: o/a, data_files: {a: b}}]", "data.train.0.data_files: a section, must be text or a list"),
    ("data", "[a, b]", "data: a list, must be a section (keys and values); write train: [...] below data"),
    ("train", "seed 3", 'train: "seed 3", must be a section (keys and values); write seed: 3'),
    ("data.train", "{path: a}", "data.train: a section, must be a list; write - before its first key"),
    ("data.eval_split", "10%", "must be a number or a whole number; write 0.1"),
    ("train.warmup_ratio", "2.5 %", "must be a number; write 0.025"),
    ("train.seed", f"'{'9' * 500}'", "99999..., must be a whole number\n"),
    ("resume", "true", "resume: true, must be text; did you mean auto?"),
    ("report_to", "none", "leave report_to out for no tracker"),
    ("model.quantization", "4", "did you mean 4bit?"),
    ("model.quantization", "nf4", "did you mean 4bit?"),
    ("model.quantization", "int8", "did you mean 8bit?"),
    ("model.quantization", "true", "write 4bit or 8bit"),
    ("adapter", "dora", "write type: lora with use_dora: true"),
    ("adapter", "qlora", "write lora, and quantization: 4bit below model"),
    *((key, "''", "some text") for key in ("run_name", "output_dir", "model.name_or_path", "resume")),
    *((key, "exact_match", "a list") for key in ("eval.metrics", "adapter.modules_to_save")),
    *(
        (key, "[]", "at least one item")
        for key in ("data.train", "adapter.target_parameters", "adapter.modules_to_save")
    ),
    *((key, "[3]", "(put it in quotes)") for key in ("adapter.modules_to_save", "adapter.target_modules")),
    *((key, "3", "a section") for key in ("model", "data", "train", "eval", "save")),
    *((key, "[a]", "a section") for key in ("model", "adapter", "data")),
    ("train", "fast", "a section"),
    ("train", "", "give it a key below, or remove the line"),
    ("model", "", "is empty, must be a section"),
    ("train.seed", "4294967296", "less than 4294967296"),
    ("train.seed", "9" * 500, "must be a whole number"),
    ("train.learning_rate", "1e999", "a finite number"),
    ("data.eval_split", "1.0", "a share of rows between 0 and 1"),
    ("data.eval_split", "1.5", "a share of rows between 0 and 1"),
    ("data.eval_split", "-5", "a share of rows between 0 and 1"),
    ("data.eval_split", "x", "a number"),
    ("data.max_rejected", "-1", "a share of rows between 0 and 1"),
    ("data.max_rejected", "", "is empty"),
    ("data.train", "3", "a list"),
    ("data.train", "[3]", "data.train.0: 3, must be a section"),
    ("data.train", "['']", 'data.train.0.path: "", must be some text'),
    ("data.train", "[[a]]", "data.train.0: a list, must be a section"),
    ("data.train", "[{path: 3}]", "data.train.0.path: 3, must be text (put it in quotes)"),
    ("data.train", "[{path: a, weight: 0}]", "data.train.0.weight: 0, must be greater than 0"),
    ("data.train", "[{path: a, weight: x}]", 'data.train.0.weight: "x", must be a number'),
    ("data.train", "[{path: o/a, data_files: []}]", "data.train.0.data_files: an empty list"),
    ("data.train", "[{path: o/a, data_files: [3]}]", "data.train.0.data_files.0: 3, must be text"),
    ("data.train", "[{path: a, columns: q}]", 'data.train.0.columns: "q", must be a section'),
    ("data.train", "[{path: a, columns: [q]}]", "data.train.0.columns: a list, must be a section"),
    ("data.train", "[{path: a, columns: {}}]", "data.train.0.columns: an empty section"),
    ("data.train", "[{path: a, columns: {q: 3}}]", "data.train.0.columns.q: 3, must be text"),
    ("data.train", "[{path: a, columns: {q: ''}}]", "data.train.0.columns.q"),
    ("data.train", "[{path: a, format: chatml}]", "data.train.0.format: \"chatml\", must be 'auto'"),
    ("freeze", "{layers: 3-1}", 'ranges such as "0-19"'),
    ("freeze", "{layers: a-b}", 'ranges such as "0-19"'),
    ("freeze", "{layers: [-1]}", "greater than or equal to 0"),
    ("freeze", "{layers: [0.5]}", "a whole number"),
    ("freeze", "true", "a section"),
    ("report_to", "[wandb, 3]", "report_to.1"),
    ("report_to", "all", "must be 'tensorboard', 'wandb', 'mlflow' or 'trackio'"),
    ("adapter.init_lora_weights", "3", "true or false or 'gaussian'"),
]
# (key, value, the value that was meant)
CHOICES = [
    ("adapter", "lroa", "lora"),
    ("adapter", "nnoe", "none"),
    ("adapter.type", "LoRA", "lora"),
    ("model.dtype", "bfloat", "bfloat16"),
    ("model.dtype", "flaot32", "float32"),
    ("train.lr_scheduler_type", "cosin", "cosine"),
    ("train.lr_scheduler_type", "constnt", "constant"),
    ("train.lr_scheduler_type", "linaer", "linear"),
    ("train.sampling", "radnom", "random"),
    ("train.sampling", "sequentiel", "sequential"),
    ("data.overlong", "truncat", "truncate"),
    ("data.overlong", "eror", "error"),
    ("data.loss_on", "asistant", "assistant"),
    ("data.loss_on", "completions", "completion"),
    ("data.reasoning", "kep", "keep"),
    ("data.system_mode", "replac", "replace"),
    ("data.system_mode", "drp", "drop"),
    ("report_to", "wandbb", "wandb"),
    ("report_to", "tensorbord", "tensorboard"),
    ("adapter.init_lora_weights", "pisa", "pissa"),
    ("adapter", "full", "none"),
    ("model.dtype", "fp32", "float32"),
    ("model.dtype", "bf16", "bfloat16"),
    ("model.dtype", "torch.float32", "float32"),
    ("model.attn_implementation", "fa2", "flash_attention_2"),
    ("model.attn_implementation", "flash_attn", "flash_attention_2"),
    ("model.attn_implementation", "Flash", "flash_attention_2"),
    ("train.optim", "adam", "adamw_torch"),
    ("train.optim", "AdamW", "adamw_torch"),
    ("train.lr_scheduler_type", "constant_with_warmup", "constant"),
    ("train.lr_scheduler_type", "cosine_with_restarts", "cosine"),
    ("train.lr_scheduler_type", "cosine_with_min_lr", "cosine"),
    ("train.lr_scheduler_type", "polynomial", "linear"),
    ("resume", "latest", "auto"),
    ("resume", "Auto", "auto"),
    ("resume", "no", "never"),
]
# (line, the key that the message leads to)
UNKNOWN = [
    ("modle: m", "model"),
    ("outptu_dir: o", "output_dir"),
    ("extnds: base.yaml", "extends"),
    ("report: wandb", "report_to"),
    ("rum_name: x", "run_name"),
    ("train: {lerning_rate: 1}", "train.learning_rate"),
    ("train: {Learning_Rate: 1}", "train.learning_rate"),
    ("train: {learning-rate: 1}", "train.learning_rate"),
    ("train: {max_step: 1}", "train.max_steps"),
    ("train: {warmup: 1}", "train.warmup_steps or train.warmup_ratio"),
    ("train: {gradient_acumulation_steps: 1}", "train.gradient_accumulation_steps"),
    ("eval: {step: 1}", "eval.steps"),
    ("eval: {metric: []}", "eval.metrics"),
    ("eval: {early_stoping_patience: 1}", "eval.early_stopping_patience"),
    ("save: {total_limits: 1}", "save.total_limit"),
    ("save: {stpes: 1}", "save.steps"),
    ("freeze: {layer: 0-3}", "freeze.layers"),
    ("freeze: {embedding: true}", "freeze.embeddings"),
    ("adapter: {type: lora, use_dra: true}", "adapter.use_dora"),
]
# (line, where the key belongs)
ELSEWHERE = [
    ("learning_rate: 1e-4", "train.learning_rate"),
    ("seed: 1", "train.seed"),
    ("max_steps: 5", "train.max_steps"),
    ("packing: true", "data.packing"),
    ("max_length: 5", "data.max_length"),
    ("system: x", "data.system"),
    ("streaming: true", "data.streaming"),
    ("columns: {q: a}", "data.train[].columns or data.eval[].columns"),
    ("dtype: auto", "model.dtype"),
    ("target_modules: all-linear", "adapter.target_modules"),
    ("metrics: []", "eval.metrics"),
    ("total_limit: 1", "save.total_limit"),
    ("layers: 0-3", "freeze.layers"),
    ("steps: 5", "eval.steps or save.steps"),
    ("train: {packing: true}", "data.packing"),
    ("train: {output_dir: o}", "output_dir"),
    ("train: {extends: b.yaml}", "extends"),
    ("eval: {eval_split: 0}", "data.eval_split"),
    ("save: {resume: auto}", "resume"),
]
# (name, whose it is, ours)
FOREIGN = [
    ("base_model", "axolotl", "model.name_or_path"),
    ("micro_batch_size", "axolotl", "train.per_device_train_batch_size"),
    ("sequence_len", "axolotl", "data.max_length"),
    ("sample_packing", "axolotl", "data.packing"),
    ("val_set_size", "axolotl", "data.eval_split"),
    ("num_epochs", "axolotl", "train.num_train_epochs"),
    ("field_messages", "axolotl", "data.train[].columns"),
    ("message_property_mappings", "axolotl", "data.train[].columns"),
    ("cutoff_len", "LLaMA-Factory", "data.max_length"),
    ("finetuning_type", "LLaMA-Factory", "adapter.type"),
    ("lora_target", "LLaMA-Factory", "adapter.target_modules"),
    ("template", "LLaMA-Factory", "data.chat_template"),
    ("buffer_size", "LLaMA-Factory", "data.shuffle_buffer"),
    ("mix_strategy", "LLaMA-Factory", "data.train[].weight"),
    ("interleave_probs", "LLaMA-Factory", "data.train[].weight"),
    ("fraction", "TRL", "data.train[].weight"),
    ("dataset_name", "TRL", "data.train"),
    ("assistant_only_loss", "TRL", "data.loss_on"),
    ("use_peft", "TRL", "adapter.type"),
    ("attn_impl", "ms-swift", "model.attn_implementation"),
    ("truncation_strategy", "ms-swift", "data.overlong"),
    ("clip_grad_norm", "torchtune", "train.max_grad_norm"),
    ("column_map", "torchtune", "data.train[].columns"),
    ("prompt_template", "other tools", "data.train[].columns"),
    ("random_state", "unsloth", "train.seed"),
    ("torch_dtype", "older transformers", "model.dtype"),
    ("eval_strategy", "transformers", "eval.steps"),
    ("resume_from_checkpoint", "transformers", "resume"),
    ("precision", "other tools", "model.dtype"),
    ("peft", "other tools", "adapter"),
    ("train_data", "other tools", "data.train"),
    ("eval_data", "other tools", "data.eval"),
    ("defaults", "Hydra", "extends"),
    ("_base_", "OpenMMLab", "extends"),
    ("include", "other tools", "extends"),
    ("context_length", "other tools", "data.max_length"),
    ("block_size", "other tools", "data.max_length"),
    ("grad_accum", "other tools", "train.gradient_accumulation_steps"),
    ("lora_r", "axolotl and TRL", "adapter.r"),
]
# (line, what it says of a name that is another tool's only there)
IN_SECTION = [
    ("eval: {batch_size: 4}", "eval.batch_size: unknown key; what other tools call batch_size is eval.per_device_eval"),
    ("eval: {strategy: steps}", "eval.strategy: unknown key; what other tools call strategy is eval.steps here"),
    ("save: {strategy: steps}", "save.strategy: unknown key; what other tools call strategy is save.steps here"),
    ("train.seed: 1", "train.seed: unknown key; in a file, keys nest: write seed below train"),
    ("train.sede: 1", "train.sede: unknown key; in a file, keys nest: write seed below train"),
    ("model.path: x", "model.path: unknown key; what other tools call path is model.name_or_path here"),
    ("data.block_size: 1", "data.block_size: unknown key; what other tools call block_size is data.max_length here"),
    ("eval.sede: 1", "eval.sede: unknown key; did you mean train.seed?"),
]
# (name, whose it is, what is said of it)
WITHOUT_COUNTERPART = [
    ("qlora", "other tools", "write adapter: lora, and quantization: 4bit below model"),
    ("quantization_method", "LLaMA-Factory", "4bit is NF4 with double quantisation, 8bit is int8"),
    ("deepspeed", "transformers", "the section distributed"),
    ("fsdp", "transformers", "the section distributed"),
    ("num_processes", "other tools", "the section distributed"),
    ("ppo", "other tools", "the stages ppo, grpo and rloo"),
    ("reward_model_type", "LLaMA-Factory", "the stages ppo, grpo and rloo"),
    ("ref_model", "other tools", "the reference is the model that training starts from"),
    ("push_to_hub", "transformers", "nothing is uploaded"),
    ("hub_model_id", "transformers", "nothing is uploaded"),
    ("trust_remote_code", "transformers", "is never run"),
    ("neftune_noise_alpha", "transformers", "does not have this method"),
    ("max_samples", "LLaMA-Factory", 'cut the file, or of a data set of the hub take split: "train[:1000]"'),
    ("overwrite_output_dir", "older transformers", "an output_dir that is not empty is refused; name another"),
    ("wandb_project", "axolotl", "write report_to: wandb, and set WANDB_PROJECT in the environment"),
    ("mlflow_tracking_uri", "axolotl", "write report_to: mlflow, and set MLFLOW_TRACKING_URI in the environment"),
    ("group_by_length", "older transformers", "nothing is padded"),
    ("fp16", "transformers", "model.dtype takes bfloat16 or float32 only"),
    ("fp8", "LLaMA-Factory", "model.dtype takes bfloat16 or float32 only"),
    ("lora_bias", "peft", "does not have this method"),
    ("quantization_config", "transformers", "model.quantization has one form of each"),
    ("bnb_4bit_use_double_quant", "transformers", "model.quantization has one form of each"),
    ("logging_dir", "transformers", "lies in output_dir"),
    ("do_train", "transformers", "the command says what is done"),
    ("dataset_prepared_path", "axolotl", "not for the recipe to say"),
    ("plot_loss", "LLaMA-Factory", "loss.png is always drawn"),
    ("special_tokens", "axolotl", "the tokenizer stays"),
]

DPO = BASE + "stage: dpo\n"
# What does not go with the stage or the loss.
STAGES: dict[str, Case] = {
    "an unknown stage": Case(BASE + "stage: grpo2\n", (":5:8", "must be 'sft', 'reward', 'dpo', 'kto', 'ppo',")),
    "a reward model by its short name": Case(BASE + "stage: rm\n", ("did you mean reward?",)),
    "a stage that is a loss": Case(BASE + "stage: simpo\n", ("write dpo, and objective: the loss",)),
    "another tool's word for the stage": Case(BASE + "rl: dpo\n", ("what axolotl calls rl is stage here",)),
    "a section after a method": Case(BASE + "dpo: {beta: 0.1}\n", ("what other tools call dpo is objective here",)),
    "an unknown loss": Case(BASE + "objective: sigmoyd\n", (":5:12", "must be one of", "did you mean sigmoid?")),
    "another tool's word for a loss": Case(BASE + "objective: {loss: slic}\n", ("did you mean hinge?",)),
    "a method that is two keys": Case(BASE + "objective: rpo\n", ("write sigmoid with sft_weight: 1",)),
    "an unknown loss in a list": Case(BASE + "objective: {loss: [ipo, hing]}\n", (":5:25", "did you mean hinge?")),
    "no loss": Case(BASE + "objective: {loss: []}\n", ("a list with at least one item",)),
    "a key of no loss": Case(BASE + "objective: {bta: 0.1}\n", ("did you mean objective.beta?",)),
    "a beta of zero": Case(DPO + "objective: {beta: 0}\n", (":6:19", "must be above 0 with these losses")),
    "every second label wrong": Case(DPO + "objective: {label_smoothing: 0.5}\n", ("less than 0.5",)),
    "a key of another loss": Case(
        BASE + "objective: {loss: ipo, gamma: 1}\n", ("has no effect with loss ipo, which takes beta", "simpo")
    ),
    "a key of another stage": Case(DPO + "objective: {desirable_weight: 2}\n", ("loss that has it: kto",)),
    "an objective of sft": Case(BASE + "objective: {beta: 0.1}\n", ("has no effect with stage sft",)),
    "a loss of another stage": Case(DPO + "objective: kto\n", ("kto is for stage kto, and this is dpo, which takes",)),
    "losses of two stages": Case(BASE + "objective: {loss: [ipo, kto]}\n", ("kto is for stage kto, and this is dpo",)),
    "losses as a section": Case(BASE + "objective: [ipo, hinge]\n", (":5:12", "write loss: [...] below objective")),
    "two losses of kto": Case(
        BASE + "objective: {loss: [kto, apo_zero_unpaired]}\n", ("stage kto takes one loss, and 2 are given",)
    ),
    "weights of other losses": Case(
        BASE + "objective: {loss: [ipo, hinge], loss_weights: [1.0]}\n", ("has 1 numbers for 2 losses",)
    ),
    "smoothing by nothing": Case(
        BASE + "objective: {loss: exo_pair, label_smoothing: 0}\n", ("must be above 0 with exo_pair",)
    ),
    "smoothing by nothing, as the first loss has it": Case(
        BASE + "objective: {loss: [sigmoid, exo_pair]}\n", ("objective.label_smoothing", "set 0.001")
    ),
    "weights of one loss that is not there": Case(
        DPO + "objective: {loss_weights: [1, 2]}\n", ("has 2 numbers for 1 losses; give one for each",)
    ),
    "a weight of no loss": Case(DPO + "objective: {loss_weights: [0]}\n", (":6:28", "greater than 0")),
    "a stage that is a section": Case(BASE + "stage: {dpo: 1}\n", ("a section, must be 'sft'",)),
    "two names of where an adapter starts": Case(
        BASE.replace("lora", "{type: lora, from: new, start_from: new}"), ("another name of start_from",)
    ),
    "a function without its name": Case(BASE + "objective: my_loss.py\n", ("a function as path/to/file.py:name",)),
    "transport over several batches": Case(
        BASE + "objective: aot\ntrain: {gradient_accumulation_steps: 2}\n", ("compares all pairs of a step",)
    ),
    "transport over a larger batch": Case(
        BASE + "objective: aot\ntrain: {global_batch_size: 16}\n", ("train.global_batch_size", "one batch")
    ),
    "packed pairs": Case(DPO.replace("d.jsonl", "{train: d, packing: true}"), ("is for stage sft, and this is dpo",)),
    "streamed pairs": Case(
        DPO.replace("d.jsonl", "{train: d, streaming: true, max_length: 9}") + "train: {max_steps: 9}\n",
        ("read before training",),
    ),
    "all tokens of a pair": Case(DPO.replace("d.jsonl", "{train: d, loss_on: all}"), ("the answer is trained",)),
    "generated metrics of pairs": Case(DPO + "eval: {metrics: [exact_match]}\n", ("is for stage sft",)),
    "tasks of a reward model": Case(BASE + "stage: reward\neval: {tasks: [blimp]}\n", ("this is a reward model",)),
    "a best model by perplexity": Case(
        DPO + "eval: {metric_for_best_model: perplexity}\n", ("accepted: eval_loss, eval_accuracy, eval_margin",)
    ),
    "two names of a key": Case(
        DPO + "objective: {gamma: 1, simpo_gamma: 1}\n", ("another name of gamma, which is given too",)
    ),
    "an unknown start": Case(
        BASE.replace("lora", "{type: lora, from: scratch}"), ("must be 'new', 'continue' or 'merge_first'",)
    ),
    "a start of no adapter": Case(
        BASE.replace("lora", "{type: none, from: new}"), ("has no effect with adapter none",)
    ),
}

STREAM = "streaming: true"
# Values that do not go together.
CONFLICTS: dict[str, Case] = {
    "quantised weights without an adapter": Case(
        FULL.replace("m\n", "{name_or_path: m, quantization: 4bit}\n", 1),
        (":1:40", "model.quantization: 4bit needs adapter: lora", "(adapter.type), or quantization: none"),
    ),
    "a quantised base, and an adapter made of its weights": Case(
        BASE.replace("adapter: lora", "adapter: {type: lora, init_lora_weights: pissa}"),
        ("adapter.init_lora_weights: pissa takes a part of the base's weights", "model.quantization: 8bit"),
        ("model.quantization=8bit",),
    ),
    "a quantised base, and an adapter merged into it": Case(
        BASE.replace("adapter: lora", "adapter: {type: lora, from: merge_first}"),
        ("merge_first does not go with model.quantization: 4bit", "tunekit merge it"),
        ("model.quantization=4bit",),
    ),
    "a quantised base, and a server that samples from the whole": Case(
        "stage: grpo\n"
        + BASE
        + "rewards: number_match\nrollout: {engine: vllm, base_url: 'http://localhost:8000/v1'}\n",
        ("model.quantization: 4bit does not go with rollout.engine vllm",),
        ("model.quantization=4bit",),
    ),
    "freezing with an adapter": Case(BASE + "freeze: {layers: 0-3}\n", (":5:9", "remove freeze, or set adapter: none")),
    "freezing nothing": Case(FULL + "freeze: {layers: []}\n", ("freezes nothing; give layers",)),
    "an adapter without type": Case(BASE.replace("lora", "{r: 8}"), ("sets r but no type; add type: lora",)),
    "both kinds of warm-up": Case(BASE + "train: {warmup_steps: 1, warmup_ratio: 0.1}\n", ("excludes warmup_steps",)),
    "a batch that does not divide": Case(
        BASE + "train: {global_batch_size: 30, per_device_train_batch_size: 4}\n", ("30 is not a multiple of", "set 32")
    ),
    "two sizes of a batch": Case(
        BASE + "train: {global_batch_size: 32, gradient_accumulation_steps: 2}\n", ("(2 x 8)", "remove one of the two")
    ),
    "two ways to hold out": Case(data("train: a", "eval: b", "eval_split: 0.1"), (":6:15", "excludes data.eval")),
    "stopping early by nothing": Case(
        data("train: a", "eval_split: 0") + "eval: {early_stopping_patience: 2}\n",
        ("needs held-out rows", "data.eval_split: 0"),
    ),
    "a stream without steps": Case(data("train: a", STREAM, "max_length: 9"), (":5:14", "needs train.max_steps")),
    "a stream without a length": Case(data("train: a", STREAM) + "train: {max_steps: 9}\n", ("needs data.max_length",)),
    "a stream with neither": Case(data("train: a", STREAM), ("needs train.max_steps",)),
    "a share of a stream": Case(
        data("train: a", STREAM, "max_length: 9", "eval_split: 0.1") + "train: {max_steps: 9}\n",
        (":7:15", "cannot be a share with streaming; give a number of rows"),
    ),
    "a best model by a metric that is not computed": Case(
        BASE + "eval: {metric_for_best_model: eval_token_f1, metrics: [exact_match]}\n",
        ('"eval_token_f1" is not computed; accepted: eval_loss, eval_perplexity, eval_exact_match',),
    ),
    "metrics on a stream": Case(
        data("train: a", STREAM, "max_length: 9") + "train: {max_steps: 9}\neval: {metrics: [exact_match]}\n",
        ("eval.metrics: needs held-out rows", "data.eval_split: 100"),
    ),
    "steps between evaluations of nothing": Case(
        data("train: a", "eval_split: 0") + "eval: {steps: 2}\n", (":6:15", "eval.steps: needs held-out rows")
    ),
    "steps between evaluations of a stream": Case(
        data("train: a", STREAM, "max_length: 9") + "train: {max_steps: 9}\neval: {steps: 2}\n",
        ("eval.steps: needs held-out rows", "data.eval_split: 100"),
    ),
    "longer answers that nothing asks for": Case(
        BASE + "eval: {max_new_tokens: 64}\n", (":5:24", "has no effect without eval.metrics", "or remove this key")
    ),
    **{
        f"{key} of no adapter": Case(
            FULL + f"adapter: {{type: none, {key}: {value}}}\n",
            (f":4:{25 + len(key)}: adapter.{key}: has no effect with adapter none; set type: lora, or remove it",),
        )
        for key, value in {
            "r": "4",
            "alpha": "33",
            "dropout": "0.1",
            "target_modules": "x",
            "target_parameters": "[x]",
            "use_rslora": "true",
            "use_dora": "true",
            "init_lora_weights": "false",
            "modules_to_save": "[x]",
        }.items()
    },
    "an adapter of a base that is switched off": Case(
        "extends: base.yaml\nadapter: none\n",
        ("base.yaml:4:26: adapter.r: has no effect", "of a base: adapter: null", "on the command line: adapter=none"),
        files={"base.yaml": FULL + "adapter: {type: lora, r: 4}\n"},
    ),
    "a buffer without a stream": Case(data("train: a", "shuffle_buffer: 5"), (":5:19", "add streaming: true")),
    "no system prompt to put in": Case(data("train: a", "system_mode: replace"), ("replace needs data.system",)),
    "a system prompt to leave out": Case(
        data("train: a", "system: x", "system_mode: drop"),
        (":6:16", "drop excludes data.system", "set system_mode: replace"),
    ),
    "packing with other attention": Case(
        "model: {name_or_path: m, attn_implementation: sdpa}\ndata: {train: a, packing: true}\noutput_dir: o\n",
        ("data.packing: needs model.attn_implementation: auto", "not sdpa", "set packing: false"),
    ),
    "one weight of two": Case(
        sources("{path: a, weight: 1}", "b"), (":6:7", "data.train.1: has no weight", "or remove")
    ),
    "two weights of three": Case(
        sources("a", "{path: b, weight: 1}", "{path: c, weight: 2}"), ("data.train.0: has no weight",)
    ),
    "a weight of held-out rows": Case(
        data("train: a", "eval: [{path: b, weight: 1}]"), ("data.eval.0.weight: has no meaning for held-out rows",)
    ),
    "a split of a file": Case(
        sources("{path: a.jsonl, split: test}"), ("split: is for data sets of the hub, and a.jsonl is a file",)
    ),
    "a configuration of a file": Case(sources("{path: d/a.csv, name: en}"), ("name: is for data sets of the hub",)),
    "a revision of a file": Case(sources("{path: a.parquet, revision: main}"), ("revision: is for data sets",)),
    "files of a file": Case(
        sources("{path: a.jsonl.gz, data_files: b}"), ("data_files: chooses files of a folder", "is a file")
    ),
    "files of a pattern": Case(
        sources("{path: 'd/*.jsonl', data_files: b}"), ("is a pattern itself; remove data_files",)
    ),
    "a field of lines": Case(sources("{path: a.jsonl, field: rows}"), ("field: is for a JSON file with one object",)),
    "a field of a table": Case(sources("{path: a.csv, field: rows}"), ("has a row on each line; remove field",)),
    "memory without a name": Case(sources("'memory:'"), ("needs the name of a data set behind memory:",)),
    **{
        f"{key} of memory": Case(sources(f"{{path: 'memory:a', {key}: x}}"), (f"{key}: has no meaning for memory:a",))
        for key in ("name", "split", "revision", "data_files", "field")
    },
    "two names of one key": Case(
        BASE + "train: {activation_checkpointing: true, gradient_checkpointing: true}\n",
        ("another name of activation",),
    ),
}

CHILD = "extends: base.yaml\noutput_dir: o\n"
# Bases, and the place of what is wrong with them.
EXTENDS: dict[str, Case] = {
    "a base that is missing": Case(CHILD, ("r.yaml:1:10: extends: base.yaml: no such file",)),
    "a base near another": Case(CHILD, ("no such file", "Did you mean basic.yaml?"), files={"basic.yaml": BASE}),
    "a base that is a folder": Case("extends: .\n", ("r.yaml:1:10: extends: ", "cannot be read")),
    "the second of two": Case(
        "extends:\n  - a.yaml\n  - b.yaml\n", ("r.yaml:3:5: extends: b.yaml: no such file",), files={"a.yaml": BASE}
    ),
    "a number": Case("extends: 3\n" + BASE, ("r.yaml:1:10: extends: must be the path of a recipe",)),
    "empty": Case("extends:\n" + BASE, ("r.yaml:1:1: extends: must be the path of a recipe",)),
    "an empty name": Case("extends: ['']\n" + BASE, ("r.yaml:1:11: extends: must be the path",)),
    "a name that no file has": Case(
        'extends: "a\\0b"\n' + BASE, ("r.yaml:1:10: extends: 'a\\x00b': is not a file name",)
    ),
    "an escape in a name": Case('extends: "\\e[31m"\n' + BASE, ("extends: \\U0000001B[31m: no such file",)),
    "a section": Case("extends: {a: b}\n" + BASE, ("extends: must be the path",)),
    "itself": Case("extends: r.yaml\n" + BASE, ("r.yaml:1:10: extends: goes round in a circle: r.yaml -> r.yaml",)),
    "a circle of two": Case(
        CHILD, ("base.yaml:1:10: extends: goes round in a circle",), files={"base.yaml": "extends: r.yaml\n"}
    ),
    "a circle of three": Case(
        CHILD,
        ("c.yaml:1:10: extends: goes round", "r.yaml -> base.yaml -> c.yaml -> base.yaml"),
        files={"base.yaml": "extends: c.yaml\n", "c.yaml": "extends: base.yaml\n"},
    ),
    "too many levels": Case(
        "extends: 1.yaml\n",
        ("8.yaml:1:10: extends: is more than 8 levels of bases",),
        files={f"{i}.yaml": f"extends: {i + 1}.yaml\n" for i in range(1, 12)},
    ),
    "too many files": Case(
        f"extends: [{'a.yaml, ' * 40}]\n", ("extends: is more than 16 files",), files={"a.yaml": BASE}
    ),
    "a base that is empty": Case(CHILD, ("base.yaml: is empty",), files={"base.yaml": "# nothing\n"}),
    "a base that is a list": Case(CHILD, ("base.yaml:1:1: does not hold keys",), files={"base.yaml": "[a]\n"}),
    "a base that is no YAML": Case(
        CHILD, ("base.yaml:2:", "not valid YAML"), files={"base.yaml": "model: m\n data: d\n"}
    ),
    "an unknown key of a base": Case(
        CHILD,
        ("base.yaml:5:9: train.sede: unknown key", "train.seed?"),
        files={"base.yaml": BASE + "train: {sede: 1}\n"},
    ),
    "a wrong value of a base": Case(
        CHILD,
        ('base.yaml:5:15: train.seed: "x", must be a whole number',),
        files={"base.yaml": BASE + "train: {seed: x}\n"},
    ),
    "a key twice in a base": Case(
        CHILD, ("base.yaml:5:1: model: is given twice",), files={"base.yaml": BASE + "model: x\n"}
    ),
    "wrong in both": Case(
        CHILD + "trian: {}\n",
        ("r.yaml:3:1: trian: unknown key", "base.yaml:5:1: evl: unknown key"),
        files={"base.yaml": BASE + "evl: {}\n"},
    ),
    "two files that do not go together": Case(
        CHILD + "train: {warmup_ratio: 0.1}\n",
        ("r.yaml:3:23", "excludes warmup_steps"),
        files={"base.yaml": BASE + "train: {warmup_steps: 1}\n"},
    ),
    "a section in both": Case(
        "extends: base.yaml\nfreeze: {embeddings: false}\n",
        ("r.yaml:2:9: freeze: freezes nothing",),
        files={"base.yaml": FULL + "freeze: {layers: []}\n"},
    ),
    "a reset of what must be there": Case(
        CHILD + "model: null\n", ("r.yaml:3:8: model: is missing",), files={"base.yaml": BASE}
    ),
    "a reset of what no base says": Case(
        CHILD + "train: {seed: null}\n", ("r.yaml:3:15: train.seed: is empty",), files={"base.yaml": BASE}
    ),
    "no base": Case("extends: []\n" + BASE, ("r.yaml:1:10: extends: must be the path of a recipe",)),
    "a variable": Case(
        "extends: $HOME/base.yaml\n", ('r.yaml:1:10: extends: "$HOME/base.yaml": environment variables',)
    ),
    "still something missing": Case(CHILD, ("data: is missing",), files={"base.yaml": "model: m\n"}),
    "twice": Case(
        "extends: base.yaml\nextends: base.yaml\n", ("r.yaml:2:1: extends: is given twice",), files={"base.yaml": BASE}
    ),
}

# (override, words): behind a good recipe
OVERRIDES = [
    ("trian.seed=1", "trian: unknown key; did you mean train?"),
    ("train.sede=1", "train.sede: unknown key; did you mean train.seed?"),
    ("seed=1", "seed: unknown key here; it belongs at train.seed"),
    ("micro_batch_size=1", "axolotl"),
    ("train.seed=x", 'train.seed: "x", must be a whole number'),
    ("train.seed", "is not of the form key=value, section.key=value or ~section.key"),
    ("--train.seed=1", "--train: unknown key; did you mean train?"),
    ("train..seed=1", "is not of the form"),
    (".=1", "is not of the form"),
    ("=", "is not of the form"),
    ("", "is not of the form"),
    ("train.seed.x=1", "train.seed: a section, must be a whole number"),
    ("adapter.type.x=1", "adapter.type is a single value, without keys of its own"),
    ("data.train.0.path.x.y=1", "data.train.0.path is a single value, without keys of its own"),
    ("output_dir=$HOME/x", "environment variables are not expanded"),
    ("output_dir.x=1", "output_dir is a single value, without keys of its own"),
    ("data.train.5.path=x", "data.train is a list of 1; name an item from 0, or 1 to add one"),
    ("data.train.x=1", "data.train is a list of 1"),
    ("report_to=[wandb", "not valid YAML"),
    ("run_name='x", "not valid YAML"),
    ("train={seed: 1, seed: 2}", "is given twice"),
    ("train=!!map {a: 1}", "must be a section"),
    ("run_name=[&a x]", "an anchor (&a)"),
    ("~", "is not of the form"),
    ("~=", "is not of the form"),
    ("~train.seed=1", "is not of the form"),
    ("~train.seed", "train.seed is not set, so there is nothing to drop"),
    ("~train.sede", "train.sede: unknown key; did you mean train.seed?"),
    ("~nothing", "nothing: unknown key"),
    ("~model", "model: is missing"),
    ("~data.train", "data.train: is missing"),
    ("~data.train.0", "at least one item"),
    ("~data.train.1", "data.train.1 is not set"),
    ("~data.train.0.columns.q", "data.train.0.columns.q is not set, so there is nothing to drop"),
    ("~output_dir.x", "output_dir.x"),
    ("extends=x.yaml", "extends is for recipe files"),
    ("~extends", "extends is for recipe files"),
]


def one_key(key: str, value: str) -> str:
    """The good recipe with one key set in a file, in the section that it belongs to."""
    base = FULL if key.startswith("freeze") else BASE
    section, _, name = key.rpartition(".")
    lines = {
        "model": "model: m",
        "adapter": "adapter: lora",
        "data": "data: d.jsonl",
        "output_dir": "output_dir: out/x",
    }
    long = {"model": "name_or_path: m", "adapter": "type: lora", "data": "train: d.jsonl"}
    text = f"{section}: {{{name}: {value}}}" if section else f"{key}: {value}"
    if section in long and not long[section].startswith(name):
        text = f"{section}: {{{long[section]}, {name}: {value}}}"
    old = lines.get(section or key)
    return base.replace(old, text) if old and old in base else base + text + "\n"


def _all() -> dict[str, Case]:
    cases: dict[str, Case] = {}
    families = {"yaml": YAML, "missing": MISSING, "conflict": CONFLICTS, "stage": STAGES, "extends": EXTENDS}
    for family, listed in families.items():
        cases |= {f"{family}: {name}": case for name, case in listed.items()}
    for key, value, words in VALUES:
        cases[f"value: {key}: {value[:60]}"] = Case(one_key(key, value), (key, words))
    for key, value, meant in CHOICES:
        cases[f"choice: {key}: {value}"] = Case(one_key(key, value), (f'"{value}", must be', f"did you mean {meant}?"))
    for line, meant in UNKNOWN:
        cases[f"unknown: {line}"] = Case(FULL + line + "\n", (":4:", f"unknown key; did you mean {meant}?"))
    for line, owner in ELSEWHERE:
        cases[f"elsewhere: {line}"] = Case(FULL + line + "\n", (":4:", f"unknown key here; it belongs at {owner}\n"))
    for name, tool, ours in FOREIGN:
        call = "call" if tool in ("other tools", "axolotl and TRL") else "calls"
        words = (":5:1", f"what {tool} {call} {name} is {ours} here")
        cases[f"foreign: {name}"] = Case(BASE + f"{name}: 1\n", words)
    for line, said in IN_SECTION:
        cases[f"in section: {line}"] = Case(BASE + f"{line}\n", (":5:", said))
    for name, tool, said in WITHOUT_COUNTERPART:
        cases[f"none: {name}"] = Case(BASE + f"{name}: 1\n", (":5:1", f"{name} is a key of {tool}; ", said))
    for index, (text, words) in enumerate(OVERRIDES):
        cases[f"override {index}: {text!r}"] = Case(BASE, ("override", words), overrides=(text,))
    cases["in section: model.name"] = Case(
        FULL.replace("m\n", "{name: m}\n", 1), (":1:9", "is model.name_or_path here")
    )
    cases["in section: model.path"] = Case(
        FULL.replace("m\n", "{path: m}\n", 1), (":1:9", "is model.name_or_path here")
    )
    cases["item: type"] = Case(sources("{path: a, type: x}"), ("what axolotl calls type is data.train[].format here",))
    for section in ("path", "weight", "columns", "format"):
        typo = section[:-1]
        cases[f"item: {typo}"] = Case(
            sources("a", f"{{path: b, {typo}: x}}"),
            (":6:", f"data.train.1.{typo}: unknown key; did you mean data.train.1.{section}?"),
        )
    return cases


CASES = _all()
