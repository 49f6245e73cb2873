"""From one source of rows to a store of token rows: read, converted, rendered in chunks, kept under a content hash."""

import hashlib
import itertools
import json
import logging
import tempfile
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from tunekit.data import formats
from tunekit.data.encode import check_fast
from tunekit.data.messages import strings
from tunekit.data.notes import note_growth, say_notes
from tunekit.data.pairs import Labelled, Pair, render_pairs, render_prompts, render_unpaired
from tunekit.data.prompts import as_prompt
from tunekit.data.render import render_all
from tunekit.data.rendering import Rendering
from tunekit.data.rows import AnyRow, Conversation, Preference, Prompt, Rejected, Text, Tokens, Unpaired
from tunekit.data.sources import RowSource
from tunekit.data.store import Rendered, Store, stored, write_rows
from tunekit.data.template import possible_terminators
from tunekit.errors import DataError
from tunekit.files import cache_root

log = logging.getLogger("tunekit")

# Rows, and characters in them, that are rendered together: enough that the cost of a call vanishes, and few enough to
# hold in memory.
CHUNK = 1000
CHUNK_TEXT = 4_000_000
EXAMPLES = 8  # conversations that show which tokens end a turn
KINDS: dict[type, str] = {
    Conversation: "conversations",
    Text: "conversations",
    Preference: "pairs",
    Unpaired: "unpaired",
    Prompt: "prompts",
}


@dataclass(frozen=True)
class Reading:
    """What is read and as what: a source, its format, its columns; `part` is its number in the recipe.

    asks: of rows that have answers only what is asked is taken
    """

    source: RowSource
    format: str = "auto"
    columns: Mapping[str, str] | None = None
    part: int = 0
    asks: bool = False

    def rows(self, found: formats.Found, start: int = 0) -> Iterator[AnyRow | Rejected]:
        rows = formats.convert(self.source.rows(start), format=self.format, columns=self.columns, found=found)
        return (row if isinstance(row, Rejected) else as_prompt(row) for row in rows) if self.asks else rows


def with_format(reading: Reading) -> Reading:
    """`reading` with the format that its first rows are in, said aloud."""
    found = formats.Found()
    for _ in reading.rows(found):
        if found.format:
            break
    else:
        return reading
    log.info("%s: format %s (%s)", reading.source.name, found.format, "detected" if found.detected else "given")
    return replace(reading, format=found.format)


def tokenised(reading: Reading, tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> Store:
    """The token rows of `reading`, from the cache where they were made before from the same content.

    Raises `DataError` where no row is of a known format or the rows change while they are read, and `StorageError`
    where the cache cannot be written.
    """
    check_fast(tokenizer)
    key = _key(reading, tokenizer, rendering)

    def write(staging: Path) -> dict[str, Any]:
        report = _write(staging, reading, tokenizer, rendering)
        if _key(reading, tokenizer, rendering) != key:
            raise DataError(f"{reading.source.name}: changed while it was read", "Run again once it is written.")
        return report

    store, cached = stored(cache_root() / "tokens" / key, write)
    _say(reading, store, cached)
    return store


def first_rows(reading: Reading, count: int | None, tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> Store:
    """The first `count` rows of `reading` (None: all), in a folder that goes when the store does."""
    scratch = tempfile.TemporaryDirectory()
    store, _ = stored(
        Path(scratch.name) / "rows", lambda staging: _write(staging, reading, tokenizer, rendering, count)
    )
    weakref.finalize(store, scratch.cleanup)
    return store


def rendered(
    numbered: Iterable[tuple[int, AnyRow | Rejected]],
    tokenizer: PreTrainedTokenizerBase,
    rendering: Rendering,
    notes: Counter[str],
) -> Iterator[list[tuple[int, Rendered | Rejected]]]:
    """Chunks of rows rendered, in order, each with its number; a row without a trained token is rejected."""
    for chunk in _chunks(numbered):
        rows = [row for _, row in chunk if not isinstance(row, Rejected)]
        made = iter(_render(rows, tokenizer, rendering, notes) if rows else [])
        yield [(i, row if isinstance(row, Rejected) else _checked(i, row, next(made), rendering)) for i, row in chunk]


def _chunks(numbered: Iterable[tuple[int, AnyRow | Rejected]]) -> Iterator[list[tuple[int, AnyRow | Rejected]]]:
    chunk: list[tuple[int, AnyRow | Rejected]] = []
    size = 0
    for number, row in numbered:
        chunk.append((number, row))
        size += sum(map(len, strings(vars(row))))
        if len(chunk) == CHUNK or size >= CHUNK_TEXT:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _render(
    rows: Sequence[Any], tokenizer: PreTrainedTokenizerBase, rendering: Rendering, notes: Counter[str]
) -> list[list[Tokens] | Rejected]:
    kind = KINDS[type(rows[0])]
    if kind == "conversations":
        return render_all(rows, tokenizer, rendering, notes)
    made: Sequence[Pair | Labelled | Tokens | Rejected]
    if kind == "pairs":
        made = render_pairs(rows, tokenizer, rendering, notes)
    elif kind == "unpaired":
        made = render_unpaired(rows, tokenizer, rendering, notes)
    else:
        made = render_prompts(rows, tokenizer, rendering)
    return [each if isinstance(each, Rejected) else _token_rows(each) for each in made]


def _token_rows(made: Pair | Labelled | Tokens) -> list[Tokens]:
    if isinstance(made, Pair):
        return [made.chosen, made.rejected]
    return [made.tokens if isinstance(made, Labelled) else made]


def _checked(item: int, row: AnyRow, made: list[Tokens] | Rejected, rendering: Rendering) -> Rendered | Rejected:
    if isinstance(made, Rejected):
        return made
    if not isinstance(row, Prompt) and not any(tokens.trained.any() for tokens in made):
        return Rejected(
            row.source,
            f"no trained token under data.loss_on: {rendering.loss_on}",
            asdict(row),
            'Take the row out, or the "train": false of its answers, or change data.loss_on.',
        )
    return Rendered(item, row, made)


def _write(
    folder: Path,
    reading: Reading,
    tokenizer: PreTrainedTokenizerBase,
    rendering: Rendering,
    count: int | None = None,
) -> dict[str, Any]:
    found, notes, ends = formats.Found(), Counter[str](), set[int]()
    counts: Counter[str] = Counter()
    kinds: set[str] = set()

    def chunks() -> Iterator[list[Rendered | Rejected]]:
        items = itertools.islice(enumerate(reading.rows(found)), count)
        for chunk in rendered(items, tokenizer, rendering, notes):
            good = [each for _, each in chunk if isinstance(each, Rendered)]
            counts.update(rows=len(good), rejected=len(chunk) - len(good), **sizes(good))
            kinds.update(KINDS[type(each.row)] for each in good)
            if rendering.loss_on != "all" or not ends:
                ends.update(terminators(good, tokenizer, rendering))
            yield [each for _, each in chunk]

    write_rows(folder, chunks())
    note_growth(notes, counts["tokens"], counts["longest"])
    return {
        "source": reading.source.name,
        "format": found.format,
        "detected": found.detected,
        "unused": sorted(found.unused),
        "kind": next(iter(kinds), ""),
        "rows": counts["rows"],
        "rejected": counts["rejected"],
        "notes": dict(notes),
        "terminators": sorted(ends),
    }


def sizes(rows: Sequence[Rendered]) -> dict[str, int]:
    """How many tokens came of the rows, and how many those of the longest token row of each have."""
    lengths = [[len(tokens.ids) for tokens in each.tokens] for each in rows]
    return {"tokens": sum(map(sum, lengths)), "longest": sum(map(max, lengths))}


def terminators(rows: Sequence[Rendered], tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> frozenset[int]:
    """The special tokens that end what is trained: the last one of each run of trained tokens.

    Under `loss_on: all` a conversation is one run, which another token may end than its turns (Phi-3): then those that
    end the turns of some of the conversations.
    """
    token_rows = [tokens for each in rows for tokens in each.tokens]
    chats = [each.row for each in rows if isinstance(each.row, Conversation)]
    if rendering.loss_on == "all" and chats:
        made = render_all(chats[:EXAMPLES], tokenizer, replace(rendering, loss_on="assistant"))
        turns = [tokens for each in made if not isinstance(each, Rejected) for tokens in each]
        texts = [tokens for each in rows if not isinstance(each.row, Conversation) for tokens in each.tokens]
        token_rows = [*turns, *texts] if turns else token_rows
    special = list(possible_terminators(tokenizer))
    found: set[int] = set()
    for row in token_rows:
        at = np.flatnonzero(row.trained & np.isin(row.ids, special))
        run = np.cumsum(~row.trained)[at]
        found.update(row.ids[at[np.diff(run, append=-1) != 0]].tolist())
    return frozenset(found)


def _key(reading: Reading, tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> str:
    """sha256 of all that the token rows and what is said of them depend on, our own code included."""
    parts = [
        asked(reading, tokenizer, rendering),
        list(reading.source.places),
        [version(name) for name in ("transformers", "tokenizers", "jinja2")],
        _code_hash(),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def asked(reading: Reading, tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> list[Any]:
    """What decides which tokens come of `reading`, in JSON's types: content, how it is read, tokenizer, template."""
    template = str(tokenizer.chat_template or "")
    day = (rendering.date or date.today().isoformat()) if "strftime_now" in template else None
    return [
        reading.source.fingerprint(),
        reading.format,
        reading.asks,
        sorted((reading.columns or {}).items()),
        asdict(replace(rendering, date=day)),
        tokenizer_hash(tokenizer),
        template,
    ]


def tokenizer_hash(tokenizer: Any) -> str:
    """sha256 of the state and the special tokens of a fast tokenizer."""
    special = json.dumps(tokenizer.special_tokens_map, sort_keys=True, default=str)
    return hashlib.sha256((tokenizer.backend_tokenizer.to_str() + special).encode()).hexdigest()


def _code_hash() -> str:
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parent.rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _say(reading: Reading, store: Store, cached: bool) -> None:
    report = store.report
    how = "detected" if report["detected"] else "given"
    kept = ", tokenised before" if cached else ""
    log.info("%s: %s rows, format %s (%s)%s", reading.source.name, f"{report['rows']:,}", report["format"], how, kept)
    if report["unused"]:
        log.info("%s: keys that are not used: %s", reading.source.name, ", ".join(report["unused"]))
    say_notes(reading.source.name, report["notes"], report["rows"])
