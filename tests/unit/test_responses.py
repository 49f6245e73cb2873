"""What rewards look at: the text of an answer, and the conversation as a reward model was trained to read it."""

from typing import Any

import numpy as np
import pytest
from tiny import conversations

from tunekit.data.pairs import render_pairs
from tunekit.data.rows import Pair, Preference, Prompt
from tunekit.data.template import after_the_end
from tunekit.models.generate import prompt_ids
from tunekit.models.load import load_tokenizer, locate
from tunekit.rollout.collect import Asked, response
from tunekit.rollout.samples import Completion

# ChatML with a line feed behind each turn, as SmolLM2 and Qwen have it, and Llama's form without one.
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tokenizer(template: str) -> Any:
    made = load_tokenizer(locate("tiny-random/llama"))
    made.chat_template = template
    return made


@pytest.mark.parametrize("template", [CHATML, CHATML.replace("<|im_end|>\\n{% endfor", "<|im_end|>{% endfor")])
def test_an_answer_that_ended_reads_as_the_rows_of_a_reward_model_do(template: str) -> None:
    made = tokenizer(template)
    ends = {made.convert_tokens_to_ids("<|im_end|>")}
    tail = after_the_end(made, ends)
    for row in conversations()[:20]:
        *given, last = row.messages
        (pair,) = render_pairs(
            [Preference(tuple(given), (last,), ({"role": "assistant", "content": "no"},), row.source)], made
        )
        assert isinstance(pair, Pair)
        prompt = Prompt(tuple(given), row.source)
        asked = Asked(prompt, np.array(prompt_ids(made, prompt), np.int32))
        ids = np.array(pair.chosen.ids[pair.chosen.trained], np.int32)
        assert int(ids[-1]) in ends
        read = response(made, asked, Completion(ids, None, True), tail)
        assert made(read.rendered, add_special_tokens=False)["input_ids"] == pair.chosen.ids.tolist()
        assert read.text == last["content"] and read.num_tokens == len(ids)
        cut = response(made, asked, Completion(ids[:-1], None, False), tail)
        assert cut.rendered + "<|im_end|>" + tail == read.rendered


def test_raw_text_has_nothing_behind_it() -> None:
    made = tokenizer(CHATML)
    asked = Asked(Prompt("Once", "a.jsonl:1"), np.array(made("Once")["input_ids"], np.int32))
    ids = np.array(made(" upon")["input_ids"][-5:], np.int32)
    assert response(made, asked, Completion(ids, None, True), "\n").rendered.endswith(" upon")
    made.chat_template = None
    assert after_the_end(made, {1}) == ""
