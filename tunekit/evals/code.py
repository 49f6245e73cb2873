"""Functions from a user's own Python files, which run only where the command line allows it."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunekit.errors import RecipeError


def load_function(path: Path, name: str, where: str) -> Callable[..., Any]:
    """The function `name` of the file at `path`. Raises `RecipeError`, beginning with `where`, if it is not there."""
    spec = importlib.util.spec_from_file_location(f"tunekit_{path.stem}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise RecipeError(f"{where}: {path}: no such Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's own file does wrong
        line = f":{error.lineno}" if isinstance(error, SyntaxError) else ""
        raise RecipeError(f"{where}: {path}{line}: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise RecipeError(f"{where}: {path} has no function {name}")
    made: Callable[..., Any] = function
    return made
