"""Loads tokenizers and causal language models: hub ids, local folders, built-in names and our own run folders."""

import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from jinja2 import TemplateSyntaxError
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.chat_template_utils import _compile_jinja_template

from tunekit.errors import MissingEnvironment, RecipeError
from tunekit.files import sha256
from tunekit.models import builtin, quantised
from tunekit.models.attention import SEGMENTS

log = logging.getLogger("tunekit")

PASSPORT = "tunekit.json"  # beside every artefact: what it was made from
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


@dataclass(frozen=True, slots=True)
class Location:
    """Where a model comes from: `name` as the user wrote it, `path` for `from_pretrained`, `revision` on the hub."""

    name: str
    path: str
    revision: str | None = None

    @property
    def folder(self) -> Path:
        return Path(self.path)

    @property
    def is_adapter(self) -> bool:
        return (self.folder / "adapter_config.json").is_file()


def default_device() -> torch.device:
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the processor multiplies it in hardware, else float32."""
    if device.type == "cpu":
        in_hardware = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    elif device.type == "cuda":
        in_hardware = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        in_hardware = False
    return torch.bfloat16 if in_hardware else torch.float32


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The recipe's `model.dtype`; `auto` asks the device."""
    return default_dtype(device) if dtype == "auto" else DTYPES[dtype]


def locate(name: str, revision: str | None = None) -> Location:
    """Finds `name`: a built-in name, a folder of ours (the artefact lies in its `model/`), a local folder, a hub id.

    Raises `RecipeError` for a folder that holds no model.
    """
    built = builtin.resolve(name)
    if built is not None:
        return Location(name, str(built))
    folder = Path(name)
    if not folder.exists():
        if name.startswith((".", "/", "~")):
            raise RecipeError(f"model: {name} does not exist", "Give a hub id, a local folder or a built-in name.")
        return Location(name, name, revision)
    for candidate in (folder / "model", folder):
        if (candidate / "config.json").is_file() or (candidate / "adapter_config.json").is_file():
            return Location(name, str(candidate.resolve()))
    checkpoints = sorted(folder.glob("checkpoints/step-*"))
    if checkpoints:
        raise RecipeError(
            f"model: {name} is a run that is not finished: it has {len(checkpoints)} checkpoints and no model/",
            f"Finish it: tunekit {_stage_of(folder)} {folder / 'recipe.yaml'} resume=auto",
        )
    raise RecipeError(
        f"model: {name} is a folder without config.json or adapter_config.json",
        "A model folder has config.json; a run folder of tunekit has model/ once the run is done.",
    )


def _stage_of(run: Path) -> str:
    """The command that made the folder of a run."""
    try:
        match = re.match(r"stage: (\w+)$", (run / "recipe.yaml").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        match = None
    return match[1] if match else "sft"


def base_of(adapter: Location) -> Location:
    """The base model an adapter was trained on; a built-in one is built again where it is missing.

    The folder that peft recorded comes first, since it is absolute; else the name in our passport. Raises `RecipeError`
    where neither says anything or either is damaged.
    """
    config = _json_object(Path(adapter.path) / "adapter_config.json")
    path, revision = config.get("base_model_name_or_path"), config.get("revision")
    name = path
    if passport := passport_of(adapter):
        recorded = passport.get("base_model")
        if not isinstance(recorded, dict) or not {"name", "revision", "sha256"} <= recorded.keys():
            raise RecipeError(f"model: {adapter.path}/{PASSPORT} is damaged: it does not say which base model it had")
        name, revision = recorded["name"], recorded["revision"]
    if not name:
        raise RecipeError(f"model: {adapter.name}: adapter_config.json does not say which base model it was trained on")
    beside = (
        Path(adapter.path).parent / "base"
    )  # of a run that merged one adapter and trained another; it may have moved
    if path and not Path(path).is_dir() and (beside / "config.json").is_file():
        return Location(str(beside), str(beside.resolve()))
    return Location(name, path) if path and Path(path).is_dir() else locate(name, revision)


def passport_of(location: Location) -> dict[str, Any]:
    """What the artefact at `location` was made from, empty if it does not say. Raises `RecipeError` if damaged."""
    file = Path(location.path) / PASSPORT
    return _json_object(file) if file.is_file() else {}


def _json_object(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from error
    if not isinstance(content, dict):
        raise RecipeError(f"model: {file} is damaged: it is {type(content).__name__} and no JSON object")
    return content


def load_tokenizer(location: Location, chat_template: str | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of `location`; `chat_template` is the path of a Jinja file that replaces its own and is saved.

    Raises `RecipeError` where there is none that can be loaded, or that file cannot be read, is not UTF-8 or not Jinja.
    """
    try:
        tokenizer = from_hub_or_disk(AutoTokenizer, location)
    except (ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RecipeError(
            f"model: {location.name}: its tokenizer cannot be loaded: {reason}",
            "A model folder needs tokenizer.json and tokenizer_config.json; copy them from the model it was made from.",
        ) from error
    if chat_template is not None:
        tokenizer.chat_template = _read_template(chat_template)
    if tokenizer.eos_token is None and tokenizer.sep_token is not None:
        tokenizer.eos_token = tokenizer.sep_token  # by which encoders end a text
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _read_template(path: str) -> str:
    try:
        template = Path(path).read_text(encoding="utf-8")
        _compile_jinja_template(template)  # with the tags that transformers adds to Jinja
    except OSError as error:
        raise RecipeError(f"data.chat_template: {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"data.chat_template: {path} is not UTF-8: {error}") from error
    except TemplateSyntaxError as error:
        raise RecipeError(
            f"data.chat_template: {path}:{error.lineno}: not a Jinja template: {error.message}"
        ) from error
    return template


def load_model(
    location: Location,
    *,
    dtype: torch.dtype | str,
    device: torch.device,
    attn_implementation: str | None = "auto",
    auto_class: Any = AutoModelForCausalLM,
    quantization: str = "none",
    **config: Any,
) -> PreTrainedModel:
    """A causal language model, or one of `auto_class`, in `dtype` ("auto": the one it is stored in) on `device`.

    `quantization` (none, 8bit, 4bit) is of its linear layers, beside a `dtype` that is not "auto". `config` are values
    of its config to change.

    Attention `auto` is ours over segments where the model takes it, None is what transformers would choose. Raises
    `MissingEnvironment` where it cannot be loaded that way, and `RecipeError` where its files are damaged.
    """
    auto = attn_implementation == "auto"
    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, **config}
    if quantization != "none":
        assert isinstance(dtype, torch.dtype)
        new_head = auto_class is not AutoModelForCausalLM
        options |= quantised.options(quantization, dtype, device, has_new_head=new_head)
    try:
        model = from_hub_or_disk(
            auto_class, location, attn_implementation=SEGMENTS if auto else attn_implementation, **options
        )
    except SafetensorError as error:
        raise _damaged(location.path, error) from error
    except (ValueError, KeyError, ImportError) as error:
        if auto:
            kind: dict[str, Any] = {"auto_class": auto_class, "quantization": quantization, **config}
            model = load_model(location, dtype=dtype, device=device, attn_implementation=None, **kind)
            log.info("%s does not take a registered attention function: using its own", location.name)
            return model
        how = f" with model.attn_implementation: {attn_implementation}" if attn_implementation else ""
        raise MissingEnvironment(f"model: {location.name} cannot be loaded{how}: {error}") from error
    if auto_class is AutoModelForCausalLM and "ForSequenceClassification" in str(model.config.architectures):
        raise RecipeError(
            f"model: {location.name} is a reward model or another classifier, which writes no text",
            "Name the language model; a reward model is measured with tunekit eval.",
        )
    if quantization != "none":
        return quantised.same_in_evaluation(model, location.name)  # transformers put it on the device
    return model.to(device)


def load_config(location: Location) -> PretrainedConfig:
    """The model's config. Raises `RecipeError` where it is damaged, or of a type that transformers does not know."""
    try:
        config: PretrainedConfig = from_hub_or_disk(AutoConfig, location)
    except (ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0]
        raise RecipeError(
            f"model: {location.name}: its config.json cannot be used: {reason}",
            f"It may be damaged, or of an architecture newer than transformers {transformers.__version__}.",
        ) from error
    return config


def context_length(location: Location) -> int | None:
    """Tokens the model was made for (`max_position_embeddings`), or None where its config does not say."""
    return getattr(load_config(location).get_text_config(), "max_position_embeddings", None)


def check_weights(location: Location) -> None:
    """Raises `RecipeError` where a local folder has no weights, or a file of them is damaged; only headers are read."""
    folder = Path(location.path)
    files = sorted(folder.glob("*.safetensors"))
    if folder.is_dir() and not files:
        raise RecipeError(f"model: {folder} holds no *.safetensors file", "Copy the weights there, or convert them.")
    for file in files:
        try:
            with safe_open(file, "pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise _damaged(file, error) from error


def _damaged(file: Path | str, error: Exception) -> RecipeError:
    return RecipeError(f"model: {file} is damaged: {error}", "Copy the folder again from where it was made.")


def weights_hash(location: Location) -> str | None:
    """sha256 over the safetensors files of a local folder; None for a hub id, which its commit identifies."""
    files = sorted(Path(location.path).glob("*.safetensors"))
    return sha256(*files) if files else None


def from_hub_or_disk(auto_class: Any, location: Location, **options: Any) -> Any:
    """`auto_class.from_pretrained`, its "not found" errors told to people.

    Raises `RecipeError` for a folder that holds no such model, and `MissingEnvironment` for what is nowhere.
    """
    try:
        return auto_class.from_pretrained(
            location.path, revision=location.revision or "main", trust_remote_code=False, **options
        )
    except OSError as error:
        if Path(location.path).is_dir():
            raise RecipeError(f"model: {location.path} cannot be loaded: {error}") from error
        raise MissingEnvironment(
            f"model: {location.name} is no local folder, no built-in name and cannot be had from the hub: {error}",
            f"Built-in names: {', '.join(builtin.BUILTIN)}, tiny-random/<architecture>. "
            "Without a network, give the path of a downloaded folder.",
        ) from error
