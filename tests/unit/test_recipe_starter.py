"""The starter recipe loads as it is and with any of its offers taken, and says of a key what the schema says."""

import itertools
import json
import re

import pytest

from tunekit.data.formats import convert
from tunekit.data.rows import Conversation, Preference, Prompt, Unpaired
from tunekit.errors import RecipeError
from tunekit.recipe.derive import LEARNING_RATE
from tunekit.recipe.hints import SECTIONS
from tunekit.recipe.load import load_text
from tunekit.recipe.losses import DEFAULT, keys_of
from tunekit.recipe.starter import STARTERS, starter

OFFER = re.compile(r"^( *)#(\w)", re.M)


@pytest.mark.parametrize("stage", STARTERS)
def test_a_starter_loads_and_so_does_each_offer_and_all_of_them(stage: str) -> None:
    text = starter(stage)
    recipe = load_text(text, "r.yaml").recipe
    offers = list(OFFER.finditer(text))
    assert len(offers) > 15
    for offer in offers:
        taken = text[: offer.start()] + offer[1] + offer[2] + text[offer.end() :]
        assert load_text(taken, "r.yaml").recipe == recipe, "an offer stands at its default"
    assert load_text(OFFER.sub(r"\1\2", text), "r.yaml").recipe == recipe


def test_what_is_said_about_a_key_is_what_the_schema_says() -> None:
    text = starter()
    remarks = re.sub(r"\n *#  ", " ", text)
    shown = re.findall(r"^ *#?(\w+): \S", text, re.M)
    fields = {name: field for model in SECTIONS.values() for name, field in model.model_fields.items()}
    assert set(shown) > {"name_or_path", "type", "train", "learning_rate", "output_dir", "max_length", "overlong"}
    for name in shown:
        assert fields[name].description and any(
            " ".join(model.model_fields[name].description.split()) in remarks
            for model in SECTIONS.values()
            if name in model.model_fields
        )


def test_the_values_are_those_that_a_short_recipe_resolves_to() -> None:
    assert f"learning_rate: {LEARNING_RATE['sft']['lora']}" in starter()
    short = "model: smollm2-135m-instruct\nadapter: lora\ndata: data.jsonl\noutput_dir: out/sft\n"
    assert load_text(starter(), "r").recipe == load_text(short, "r").recipe


@pytest.mark.parametrize("name", ["org/model-1.5", "a: b", "no", "3", "-x", "it's", 'say "hi"', "模型", "# x", "a\nb"])
def test_any_name_of_a_model_or_of_data_is_taken_as_text(name: str) -> None:
    recipe = load_text(starter("sft", name, name), "r.yaml").recipe
    assert recipe.model.name_or_path == recipe.data.train[0].path == name


THERE_ARE = "This version has: sft, reward, dpo, kto, ppo, grpo, rloo."


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("stf", "m", "d"), f"--stage stf: no such stage; did you mean sft?\n{THERE_ARE}"),
        (("pop", "m", "d"), f"--stage pop: no such stage; did you mean ppo?\n{THERE_ARE}"),
        (("sft", "", "d"), "--model is empty"),
        (("sft", "m", ""), "--data is empty"),
    ],
)
def test_what_cannot_be_made_is_said(arguments: tuple[str, str, str], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        starter(*arguments)
    assert str(caught.value) == message


@pytest.mark.parametrize("stage", STARTERS)
def test_no_line_of_a_remark_is_wide(stage: str) -> None:
    assert max(map(len, starter(stage).splitlines())) <= 105


KINDS = {"sft": Conversation, "dpo": Preference, "reward": Preference, "kto": Unpaired}
KINDS |= dict.fromkeys(("ppo", "grpo", "rloo"), Prompt)


@pytest.mark.parametrize("stage", STARTERS)
def test_the_row_that_is_shown_is_one_that_the_stage_trains_on(stage: str) -> None:
    (shown,) = re.findall(r"#  A row: (\{.*\})", starter(stage))
    texts = itertools.count()
    row = json.loads(re.sub(r"\.\.\.", lambda _: f"text {next(texts)}", shown))
    (item,) = convert([(row, "data.jsonl:1")])
    assert isinstance(item, KINDS[stage])


@pytest.mark.parametrize("stage", STARTERS)
def test_a_starter_says_its_stage_and_is_one_for_its_command_only(stage: str) -> None:
    text = starter(stage)
    assert text.startswith(f"#  A recipe for tunekit {stage}. ") and f"output_dir: out/{stage}\n" in text
    assert load_text(text, "r.yaml", stage).recipe.stage == stage
    for other in STARTERS:
        if "sft" not in (stage, other) and other != stage:
            with pytest.raises(RecipeError, match=f"this recipe is for tunekit {stage}"):
                load_text(text, "r.yaml", other)
    keys = {key.removeprefix("#").partition(".")[2] for key in STARTERS[stage].keys if "objective." in key}
    assert keys <= {"loss", *keys_of(DEFAULT[stage])} and bool(keys) == (stage != "sft")
