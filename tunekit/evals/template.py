"""The texts of a task: Jinja templates and expressions over the columns of a row, in a sandbox, none undefined."""

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, Template
from jinja2.sandbox import ImmutableSandboxedEnvironment

_JINJA = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)
_JINJA.filters["number"] = lambda value: f"{float(value):g}"


def render(template: str, row: Mapping[str, Any]) -> str:
    return compiled(template).render(dict(row))


def evaluated(expression: str, row: Mapping[str, Any]) -> Any:
    return compiled_expression(expression)(dict(row))


@lru_cache(1000)
def compiled(template: str) -> Template:
    """Raises `jinja2.TemplateSyntaxError` for what is no template."""
    return _JINJA.from_string(template)


@lru_cache(1000)
def compiled_expression(expression: str) -> Callable[..., Any]:
    """Raises `jinja2.TemplateSyntaxError` for what is no expression."""
    return _JINJA.compile_expression(expression, undefined_to_none=False)
