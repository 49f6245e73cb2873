"""The section of a recipe that says which rows are read, and which of their tokens are trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tunekit.recipe.types import Count, PathText, Positive, RowsOrShare, Section, Text


class Source(Section):
    path: PathText = Field(
        description="A file (JSONL, JSON, CSV, TSV, parquet; .gz too), a folder, a pattern, a data set of the hub, "
        "or memory:NAME from Python."
    )
    name: Text | None = Field(default=None, description="Configuration of a hub data set.")
    split: Text | None = Field(default=None, description="Split of a hub data set; null: train.")
    revision: Text | None = Field(default=None, description="Commit, tag or branch of the hub repository.")
    data_files: PathText | Annotated[list[PathText], Field(min_length=1)] | None = Field(
        default=None, description="Files to read inside a folder or hub repository."
    )
    field: Text | None = Field(default=None, description="Key of a JSON file under which its list of rows lies.")
    format: Literal[
        "auto",
        "messages",
        "prompt_completion",
        "preference",
        "unpaired",
        "hh_rlhf",
        "alpaca",
        "sharegpt",
        "prompt",
        "text",
    ] = Field(default="auto", description="How the rows are written; auto: detected from the columns, and said.")
    columns: Annotated[dict[Text, Text], Field(min_length=1)] | None = Field(
        default=None,
        description='Our key: a column of the rows (prompt: question), or a text with columns in braces ("{a} {b}").',
    )
    weight: Positive | None = Field(
        default=None,
        description="Share of the trained tokens, relative to the weights of the other sources; for all of data.train "
        "or none.",
    )


class Data(Section):
    train: Annotated[list[Source], Field(min_length=1)] = Field(description="Where the training rows come from.")
    eval: Annotated[list[Source], Field(min_length=1)] | None = Field(
        default=None, description="Where the held-out rows come from."
    )
    eval_split: RowsOrShare | None = Field(
        default=None,
        description="Training rows to hold out: a share, a number, 0: none; null: 10 %, at most 100. Excludes eval. "
        "With streaming only a number, taken from the start of the stream, and null is 0.",
    )
    max_length: Count | None = Field(
        default=None, description="Most tokens in a row; null: the model's context length."
    )
    overlong: Literal["error", "drop", "truncate"] = Field(
        default="error",
        description="Rows over max_length: error ends the run where they are over 1 % of all, else drops them.",
    )
    max_rejected: RowsOrShare = Field(
        default=0,
        description="Malformed rows to accept, a number or a share: they are left out and go to rejected.jsonl.",
    )
    packing: bool = Field(
        default=False,
        description="Fill each row of a batch with whole, isolated examples up to max_length (null: the longest row).",
    )
    streaming: bool = Field(
        default=False,
        description="Read and tokenise while training, in constant memory, instead of before it. Needs max_length and "
        "train.max_steps.",
    )
    shuffle_buffer: Count = Field(
        default=10_000,
        description="Rows that streaming reads and packs at a time, and shuffles unless train.sampling is sequential.",
    )
    loss_on: Literal["assistant", "last", "completion", "all"] = Field(
        default="assistant",
        description="Which tokens are trained: all assistant turns, the last one, the completion, or all.",
    )
    reasoning: Literal["keep", "template", "drop"] = Field(
        default="keep",
        description="Reasoning traces: keep trains each as the model writes it, a turn that the template rewrites "
        "later in a row of its own; template trains what one rendering has; drop takes them out.",
    )
    chat_template: PathText | None = Field(
        default=None, description="A Jinja file used, and saved, instead of the tokenizer's own template."
    )
    system: str | None = Field(default=None, description="System prompt, see system_mode.")
    system_mode: Literal["keep", "replace", "drop"] = Field(
        default="keep",
        description="keep: rows keep theirs, others get data.system; replace: all get it; drop: none has one.",
    )
