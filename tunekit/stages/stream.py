"""Rows that are read while training runs, for `data.streaming: true`."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tunekit.data.prepare import all_rows, check_overlong, check_rejected
from tunekit.data.rows import Rejected
from tunekit.data.stream import StreamLoader, StreamSettings
from tunekit.data.tokenise import first_rows
from tunekit.stages.rows import SERVED, Question, Rows, check_kind, facts_of, held_out_prompts, prepared, shares_of

log = logging.getLogger("tunekit")

SHOWN = 5
EXAMPLES = 2  # rows on which the model's layouts are tried


def stream_rows(asked: Question, kind: str | None) -> Rows:
    data, settings, tokenizer = asked.recipe.data, asked.recipe.train, asked.base.tokenizer
    count = data.eval_split or 0
    assert isinstance(count, int) and settings.max_steps is not None  # the rules of the recipe say so
    held_out = None
    if readings := asked.held_out or asked.train[: min(count, 1)]:
        stores = [first_rows(each, count or None, tokenizer, asked.rendering) for each in readings]
        check_rejected(stores, data.max_rejected, asked.rejected)
        rows = all_rows(stores, asked.max_length)
        check_kind("eval" if asked.held_out else "train", rows.source(0), rows.kind, kind)
        check_overlong(rows, data.overlong)
        held_out = prepared(rows, "held-out", data.overlong)
    loader = StreamLoader(
        asked.train,
        tokenizer,
        asked.rendering,
        StreamSettings(
            num_steps=settings.max_steps,
            batch_size=settings.per_device_train_batch_size,
            accumulation=settings.gradient_accumulation_steps,
            max_length=asked.max_length,
            seed=settings.seed,
            buffer=data.shuffle_buffer,
            overlong=data.overlong,
            max_rejected=data.max_rejected,
            sampling=settings.sampling,
            packing=data.packing,
            shares=shares_of(asked.recipe),
            rank=asked.rank,
            world_size=asked.world_size,
        ),
        held_out=count,
        reject=_into_file(asked.rejected),
    )
    check_kind("train", loader.first[0].source, loader.kind, kind)
    content = [[each.source.fingerprint() for each in asked.train], asdict(asked.rendering), count]
    return Rows(
        loader=loader,
        train=None,
        held_out=held_out,
        prompts=held_out_prompts(asked, held_out),
        examples=loader.first[:EXAMPLES],
        conversations=loader.conversations[:SERVED],
        terminators=loader.terminators,
        fingerprint=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        facts=facts_of(None, held_out),
    )


def _into_file(file: Path | None) -> Callable[[Rejected], None]:
    """Appends rejected rows to `file`, each place once: a resumed run reads its block again."""
    written = set[str]()
    if file is not None and file.exists():
        written = {json.loads(line)["source"] for line in file.read_text(encoding="utf-8").splitlines()}

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
