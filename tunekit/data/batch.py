"""Batches: rows laid out for one forward pass, flat (segments side by side, no padding) or padded.

Everything above the attention sees log-probabilities of the trained tokens only, answer by answer, so nothing else
knows the layout.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tunekit.data.rows import Example, Labelled, Pair, Sampled, Tokens

# What of a sampled answer stands beside each of its tokens.
BESIDE = ("old", "reference", "advantages", "values", "returns")


@dataclass(frozen=True, slots=True)
class Batch:
    """Token ids, and which of their positions predict what. An answer is a row, or one of the two of a pair.

    input_ids:  `(1, T)` flat, or `(B, L)` padded
    predictors: `(N,)` positions in the flattened `input_ids` whose hidden state predicts a trained token
    targets:    `(N,)` the trained tokens, answer by answer
    counts:     `(A,)` trained tokens of each answer
    ends:       `(A,)` position of the last token of each answer that is not the padding token
    weight:     trained tokens of plain rows, rows of pairs and labelled answers, of sampled ones as they say: what the
                summed loss of this batch is divided by, once, over the whole step
    reference:  `(A,)` log-probability of each answer under the reference, in nats; None where it was not asked
    labels:     `(A,)` whether each labelled answer is wanted;  margins: `(P,)` of pairs
    sampled:    of sampled answers what stands beside each token, `(N,)`, of the names `BESIDE` those that there are
    mismatched: the prompts of labelled answers with answers to other prompts, from which the KL divergence is estimated
    segments, prompts: lengths of the segments in a flat row, and of the prompt that each shares (models/attention.py)
    attention_mask: `(B, L)` of a padded batch; None in a flat row
    """

    input_ids: Tensor
    predictors: Tensor
    targets: Tensor
    counts: Tensor
    ends: Tensor
    weight: int
    reference: Tensor | None = None
    labels: Tensor | None = None
    margins: Tensor | None = None
    sampled: dict[str, Tensor] = field(default_factory=dict)
    mismatched: "Batch | None" = None
    segments: tuple[int, ...] | None = None
    prompts: tuple[int, ...] | None = None
    attention_mask: Tensor | None = None

    @property
    def num_tokens(self) -> int:
        """Tokens that are not padding; a prompt that is shared counts once."""
        return self.input_ids.numel() if self.attention_mask is None else int(self.attention_mask.sum())

    def to(self, device: torch.device) -> "Batch":
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        moved: dict[str, Any] = {name: v.to(device) for name, v in values.items() if isinstance(v, Tensor | Batch)}
        moved["sampled"] = {name: value.to(device) for name, value in self.sampled.items()}
        return replace(self, **moved)


def flat_batch(rows: Sequence[Example], pad_id: int, *, share_prompts: bool = True) -> Batch:
    """The rows one after another in a single row of tokens; with `share_prompts` a prompt that several have only once.

    These are the two of a pair, and the sampled answers of one group that stand side by side. The first token of a row
    is never a target.
    """
    pieces: list[NDArray[np.int32]] = []
    segments: list[int] = []
    prompts: list[int] = []
    places: list[NDArray[np.int64]] = []  # of each answer: where in the flat row its tokens are
    at = start = 0
    before: Example | None = None
    for row in rows:
        shared = row.prompt_length if isinstance(row, Pair | Sampled) and share_prompts else 0
        joins = isinstance(row, Sampled) and isinstance(before, Sampled) and before.group == row.group
        before = row
        start = start if joins and shared else at
        for number, answer in enumerate(row.answers):
            prompt = shared if number or joins else 0
            own = len(answer.ids) - prompt
            places.append(np.concatenate([np.arange(start, start + prompt), np.arange(at, at + own)]))
            pieces.append(answer.ids[prompt:])
            segments.append(own)
            prompts.append(prompt)
            at += own
    ids = torch.from_numpy(np.concatenate(pieces).astype(np.int64))
    others = _mismatched(rows)
    return replace(
        _batch(ids[None], rows, places, pad_id),
        segments=tuple(segments),
        prompts=tuple(prompts),
        mismatched=flat_batch(others, pad_id) if others else None,
    )


def padded_batch(rows: Sequence[Example], pad_id: int) -> Batch:
    """The answers under each other, padded on the right to the longest; padding is masked by position, never by id."""
    answers = [answer for row in rows for answer in row.answers]
    longest = max(len(answer.ids) for answer in answers)
    ids = torch.full((len(answers), longest), pad_id)
    mask = torch.zeros(len(answers), longest, dtype=torch.bool)
    for i, answer in enumerate(answers):
        ids[i, : len(answer.ids)] = torch.from_numpy(answer.ids.astype(np.int64))
        mask[i, : len(answer.ids)] = True
    places = [np.arange(len(answer.ids)) + i * longest for i, answer in enumerate(answers)]
    others = _mismatched(rows)
    return replace(
        _batch(ids, rows, places, pad_id),
        attention_mask=mask,
        mismatched=padded_batch(others, pad_id) if others else None,
    )


def _mismatched(rows: Sequence[Example]) -> list[Labelled]:
    return [row.mismatched for row in rows if isinstance(row, Labelled) and row.mismatched is not None]


def _batch(ids: Tensor, rows: Sequence[Example], places: Sequence[NDArray[np.int64]], pad_id: int) -> Batch:
    answers = [answer for row in rows for answer in row.answers]
    trained = [np.flatnonzero(answer.trained) for answer in answers]
    counts = np.array([len(each) for each in trained])
    given = [row for row in rows if not isinstance(row, Tokens)]
    known = [row.reference for row in given if isinstance(row, Pair | Labelled) and row.reference is not None]
    sampled = [row for row in rows if isinstance(row, Sampled)]
    labels = [row.label for row in rows if isinstance(row, Labelled)]
    margins = [row.margin for row in rows if isinstance(row, Pair)]
    return Batch(
        ids,
        predictors=torch.from_numpy(np.concatenate([p[t - 1] for p, t in zip(places, trained, strict=True)])),
        targets=torch.from_numpy(np.concatenate([a.ids[t] for a, t in zip(answers, trained, strict=True)])).long(),
        counts=torch.from_numpy(counts),
        ends=torch.tensor([p[_last(a, pad_id)] for p, a in zip(places, answers, strict=True)]),
        weight=sum(row.weight for row in sampled) or len(given) or int(counts.sum()),
        reference=torch.tensor([value for pair in known for value in pair]) if known else None,
        labels=torch.tensor(labels) if labels else None,
        margins=torch.tensor(margins) if margins else None,
        sampled=_beside(sampled),
    )


def _beside(rows: Sequence[Sampled]) -> dict[str, Tensor]:
    """Those of `BESIDE` that the rows have, all of them or none, as `(N,)`."""
    columns = {name: [value for row in rows if (value := getattr(row, name)) is not None] for name in BESIDE}
    return {name: torch.from_numpy(np.concatenate(column)) for name, column in columns.items() if column}


def _last(answer: Tokens, pad_id: int) -> int:
    """The last token that is not the padding token, which is where sequence classification of transformers reads."""
    real = np.flatnonzero(answer.ids != pad_id)
    return int(real[-1]) if len(real) else len(answer.ids) - 1
