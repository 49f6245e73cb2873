"""The text of a recipe file: short, and UTF-8."""

from __future__ import annotations

from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE, BOM_UTF32_BE, BOM_UTF32_LE
from difflib import get_close_matches
from pathlib import Path

from tunekit.errors import RecipeError
from tunekit.recipe.excerpt import excerpt, printable, split_lines, spot_at

MAX_BYTES = 1 << 18
# The marks of UTF-32 begin with those of UTF-16.
MARKS = {BOM_UTF32_LE: "UTF-32", BOM_UTF32_BE: "UTF-32", BOM_UTF16_LE: "UTF-16", BOM_UTF16_BE: "UTF-16"}


def read_text(path: str) -> str:
    """The text of a recipe file. Raises `RecipeError` if there is none, or if it is no short UTF-8 text."""
    name = printable(path)
    try:
        if Path(path).is_fifo():  # to open one waits for somebody to write into it
            raise RecipeError(f"{name}: is a pipe and no file", "Write the recipe into a file.")
        with open(path, "rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        folder = Path(path).parent
        names = sorted(item.name for item in folder.iterdir() if item.is_file()) if folder.is_dir() else []
        close = get_close_matches(Path(path).name, names, 1)
        raise RecipeError(f"{name}: no such file", f"Did you mean {folder / close[0]}?" if close else "") from None
    except OSError as error:
        raise RecipeError(f"{name}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise RecipeError(f"{path!r}: is not a file name: {error}") from None
    if len(raw) > MAX_BYTES:
        limit = f"{MAX_BYTES >> 10} KiB"
        raise RecipeError(
            f"{name}: is larger than {limit}", "A recipe is a few lines of YAML; name the data by its path."
        )
    raw = raw.removeprefix(BOM_UTF8)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        text = raw.decode("utf-8", "replace")
        spot = spot_at(text, len(raw[: error.start].decode()), path)
        found = next((f", but {name}" for mark, name in MARKS.items() if raw.startswith(mark)), "")
        message = f"{spot}: is not UTF-8 text{found}{excerpt(spot, split_lines(text))}"
        raise RecipeError(message, "Save the recipe as UTF-8.") from None
