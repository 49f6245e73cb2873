"""The command line: one short command per verb. Heavy imports happen inside the commands, so that --help is instant."""

# Each module registers its verbs; --help lists them in this order.
# isort: off
from tunekit.cli import train, run, launch, plan, data, recipes, models, measure  # noqa: F401

# isort: on
from tunekit.cli.common import app


def main() -> None:
    app()
