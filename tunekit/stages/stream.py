"""Rows that are read while training runs, for `data.streaming: true`."""

import hashlib
import json
import logging

from tunekit.data.examples import Examples
from tunekit.data.prepare import all_rows, check_kind, check_overlong
from tunekit.data.rejected import check_rejected, into_file
from tunekit.data.stream import StreamLoader, StreamSettings
from tunekit.data.tokenise import asked as asked_of
from tunekit.data.tokenise import first_rows
from tunekit.stages.rows import (
    SERVED,
    Question,
    Rows,
    facts_of,
    held_out_prompts,
    micro_batches_of,
    prepared,
    shares_of,
)

log = logging.getLogger("tunekit")


def stream_rows(asked: Question, kind: str | None) -> Rows:
    data, settings, tokenizer = asked.recipe.data, asked.recipe.train, asked.base.tokenizer
    count = data.eval_split or 0
    assert isinstance(count, int) and settings.max_steps is not None  # the rules of the recipe say so
    log.info("data.streaming: copies and what training and held-out rows share are not looked for")
    held_out, reject = None, into_file(asked.rejected)
    if readings := asked.held_out or asked.train[: min(count, 1)]:
        stores = [first_rows(each, count or None, tokenizer, asked.rendering) for each in readings]
        for store in stores:
            for each in store.rejected():
                reject(each)
        check_rejected(stores, data.max_rejected)
        rows = all_rows(stores, asked.max_length)
        check_kind(f"data.{'eval' if asked.held_out else 'train'}: {rows.source(0)}", rows.kind, kind)
        check_overlong(rows, data.overlong, asked.context)
        held_out = prepared(rows, "held-out", data.overlong)
    loader = StreamLoader(
        asked.train,
        tokenizer,
        asked.rendering,
        StreamSettings(
            num_steps=settings.max_steps,
            batch_size=settings.batch_size,
            micro_batches=micro_batches_of(asked.recipe, asked.place),
            max_length=asked.max_length,
            seed=settings.seed,
            buffer=data.shuffle_buffer,
            overlong=data.overlong,
            max_rejected=data.max_rejected,
            sampling=settings.sampling,
            packing=data.packing,
            shares=shares_of(asked.recipe),
            rank=asked.place.rank,
            world_size=asked.place.world_size,
        ),
        held_out=count,
        kind=kind,
        reject=reject,
    )
    content = [count, *(asked_of(each, tokenizer, asked.rendering) for each in asked.train)]
    return Rows(
        loader=loader,
        train=None,
        held_out=held_out,
        train_examples=None,
        held_out_examples=None if held_out is None else Examples(held_out.tokens),
        prompts=held_out_prompts(asked, held_out),
        examples=loader.examples,
        conversations=loader.conversations[:SERVED],
        micro_batches=loader.settings.micro_batches,
        fingerprint=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        facts=facts_of(asked, None, held_out),
    )
