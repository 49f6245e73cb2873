"""Streaming: the pieces are the text, whole characters at a time, whatever breaks it off."""

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.decoders import Metaspace
from tokenizers.models import WordLevel
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from tunekit.data import pairs
from tunekit.data.rows import Prompt
from tunekit.data.template import ChatTemplate
from tunekit.errors import RecipeError
from tunekit.models.generate import _Pieces, all_prompt_ids, complete, prompt_ids, stream
from tunekit.models.serve import load_for_inference

Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@pytest.fixture(scope="module")
def loaded() -> Loaded:
    return load_for_inference("tiny-random/llama")


def test_a_streamed_answer_is_what_generate_gives(loaded: Loaded) -> None:
    model, tokenizer = loaded
    ids = prompt_ids(tokenizer, Prompt(({"role": "user", "content": "hi"},), "here"))
    pieces: list[str] = []
    answer = stream(model, tokenizer, ids, pieces.append, max_new_tokens=40)
    expected = model.generate(torch.tensor([ids]), max_new_tokens=40, do_sample=False)[0, len(ids) :]
    assert answer.text == tokenizer.decode(expected, skip_special_tokens=True).strip()
    assert "".join(pieces) == answer.text
    assert len(pieces) > 5
    assert answer.num_tokens == len(expected) == 40
    assert not answer.ended and not answer.interrupted
    asked = Prompt(({"role": "user", "content": "hi"},), "here")
    batch = complete(model, tokenizer, [asked], max_new_tokens=40, batch_size=1)
    assert list(batch) == [(0, answer.text, False)]


def test_prompts_together_have_the_ids_that_each_has_alone_from_one_template(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = [Prompt(({"role": "user", "content": f"hi {i}"},) if i % 2 else f"hi {i}", "here") for i in range(6)]
    alone = [prompt_ids(loaded[1], prompt) for prompt in asked]
    made: list[ChatTemplate] = []
    monkeypatch.setattr(pairs, "ChatTemplate", lambda *given: made.append(ChatTemplate(*given)) or made[-1])
    assert all_prompt_ids(loaded[1], asked) == alone and len(made) == 1
    assert len(list(complete(*loaded, asked, max_new_tokens=1, batch_size=4))) == 6 and len(made) == 2


@pytest.mark.parametrize("seed", range(5))
def test_sampled_pieces_are_the_text_too(loaded: Loaded, seed: int) -> None:
    torch.manual_seed(seed)
    pieces: list[str] = []
    answer = stream(*loaded, [72, 105], pieces.append, max_new_tokens=100, temperature=1.5)
    assert "".join(pieces) == answer.text


def test_an_answer_that_the_model_ends_says_so_and_has_no_end_mark(loaded: Loaded) -> None:
    model, tokenizer = loaded
    first = int(model.generate(torch.tensor([[72, 105]]), max_new_tokens=1, do_sample=False)[0, -1])
    ends, model.generation_config.eos_token_id = model.generation_config.eos_token_id, [first]
    try:
        answer = stream(model, tokenizer, [72, 105], lambda piece: None, max_new_tokens=20)
    finally:
        model.generation_config.eos_token_id = ends
    assert answer.ended and answer.num_tokens == 1


def test_a_model_without_an_end_token_goes_on_to_the_limit(loaded: Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaded[0].generation_config, "eos_token_id", None)
    assert not stream(*loaded, [72, 105], lambda piece: None, max_new_tokens=3).ended
    completed = complete(*loaded, [Prompt("Hi", "here")], max_new_tokens=3, batch_size=1)
    assert [ended for _, _, ended in completed] == [False]


def test_ctrl_c_keeps_what_was_said(loaded: Loaded) -> None:
    whole = stream(*loaded, [72, 105], lambda piece: None, max_new_tokens=40).text
    pieces: list[str] = []

    def write(piece: str) -> None:
        pieces.append(piece)
        if len(pieces) == 5:
            raise KeyboardInterrupt

    answer = stream(*loaded, [72, 105], write, max_new_tokens=40)
    assert answer.interrupted and not answer.ended
    assert 0 < len(answer.text) < len(whole) and whole.startswith(answer.text)


def test_characters_of_several_tokens_come_whole_and_white_space_only_inside(loaded: Loaded) -> None:
    tokenizer = loaded[1]
    pieces: list[str] = []
    streamer = _Pieces(tokenizer, pieces.append)
    streamer.put(torch.tensor([[1, 2, 3]]))  # the prompt
    for token in tokenizer("\n  é 世界\n\n🙂 end \n")["input_ids"]:
        streamer.put(torch.tensor([token]))
    streamer.end()
    assert pieces == ["é", " 世", "界", "\n\n🙂", " e", "n", "d"]


def test_spaces_that_a_tokenizer_drops_at_the_beginning_of_a_text_are_streamed() -> None:
    words = Tokenizer(WordLevel({"\u2581one": 0, "\u2581two": 1}, unk_token="\u2581one"))
    words.decoder = Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words)
    assert tokenizer.decode([1]) == "two"
    pieces: list[str] = []
    streamer = _Pieces(tokenizer, pieces.append)
    for token in (0, 0, 1, 1):
        streamer.put(torch.tensor([token]))
    assert pieces == ["one", " two", " two"]


def test_a_template_that_refuses_or_is_absent_is_an_error_for_people() -> None:
    tokenizer = load_for_inference("tiny-random/llama")[1]
    tokenizer.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(
        RecipeError, match=r"the chat template refuses the messages .system.: System role not supported"
    ):
        prompt_ids(tokenizer, Prompt(({"role": "system", "content": "x"},), "here"))
    tokenizer.chat_template = None
    with pytest.raises(RecipeError, match=r"no chat template(.|\n)*tunekit generate MODEL --raw"):
        prompt_ids(tokenizer, Prompt(({"role": "user", "content": "x"},), "here"))
