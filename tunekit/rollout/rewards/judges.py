"""Models as rewards: what they are given to read, and what they make of it."""

import json
import logging
from collections.abc import Callable, Sequence
from typing import Protocol

from transformers import PreTrainedTokenizerBase

from tunekit.data.rows import Prompt, Refused
from tunekit.data.template import ChatTemplate
from tunekit.models.reward import Classifier
from tunekit.rollout.samples import Response

log = logging.getLogger("tunekit")

Reading = Callable[[Response], str]
Judging = Callable[[Sequence[Response], Callable[[], None]], list[float | Exception]]


class Model(Protocol):
    """`rewards` of texts that a chat template rendered, in their order."""

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase: ...

    def rewards(self, texts: Sequence[str], poll: Callable[[], None]) -> list[float]: ...


def by_model(model: Model, name: str, policy: PreTrainedTokenizerBase | None) -> Judging:
    """The rewards of a model that reads prompt and answer. `policy`: its tokenizer, None where the model has the same.

    An answer that the template of the model refuses has the refusal in place of a reward.
    """
    reading = _reading(model.tokenizer, name, policy)

    def judging(responses: Sequence[Response], poll: Callable[[], None]) -> list[float | Exception]:
        read = [_read(reading, each) for each in responses]
        rewards = iter(model.rewards([each for each in read if isinstance(each, str)], poll))
        return [next(rewards) if isinstance(each, str) else each for each in read]

    return judging


def by_label(classifier: Classifier, label: str) -> Judging:
    """The probability of a label, of the answer alone. Raises `RecipeError` where there is no such label."""
    column = classifier.column(label)

    def judging(responses: Sequence[Response], poll: Callable[[], None]) -> list[float | Exception]:
        found = classifier.probabilities([each.text for each in responses], poll)
        return [float(value) for value in found[:, column]]

    return judging


def _reading(own: PreTrainedTokenizerBase, name: str, policy: PreTrainedTokenizerBase | None) -> Reading:
    """What the model reads of an answer: the very text of the policy where both tokenizers are alike."""
    same_tokens = policy is None or own.get_vocab() == policy.get_vocab()
    if same_tokens and (policy is None or own.chat_template in (None, policy.chat_template)):
        return lambda response: response.rendered
    if own.chat_template is None:
        log.warning(
            "rewards: model: %s has another tokenizer than the policy and no chat template: it reads conversations as "
            "the policy writes them, with marks that it may not know",
            name,
        )
        return lambda response: _plain(response) or response.rendered
    log.info(
        "rewards: model: %s has %s than the policy: it reads prompt and answer in its own template",
        name,
        "another chat template" if same_tokens else "another tokenizer",
    )
    template = ChatTemplate(own, name)
    return lambda response: _plain(response) or _in_template(template, response)


def _plain(response: Response) -> str | None:
    """Prompt and answer where the prompt is raw text."""
    prompt = response.prompt.prompt
    return prompt + response.text if isinstance(prompt, str) else None


def _in_template(template: ChatTemplate, response: Response) -> str:
    """An answer that was cut off is not ended here either. Raises `Refused` where the template refuses the messages."""
    prompt: Prompt = response.prompt
    messages = [dict(each) for each in prompt.prompt if isinstance(each, dict)]
    tools = json.loads(prompt.tools) if prompt.tools else None
    if not response.ended:
        return template.render_either_form(messages, tools, add_generation_prompt=True)[1] + response.text
    messages.append({"role": "assistant", "content": response.text})
    return template.render_either_form(messages, tools)[1]


def _read(reading: Reading, response: Response) -> str | Exception:
    try:
        return reading(response)
    except Refused as refused:
        return refused
