"""Code by its unit tests."""

import re

from tunekit.errors import DataError
from tunekit.evals.extract import EXTRACT
from tunekit.evals.metrics.metric import Answered, item_metric
from tunekit.evals.sandbox import run_code


@item_metric("pass_at_1")
def pass_at_1(answered: Answered) -> float:
    """1 where the code passes the tests of its row, run with limits (see sandbox.py).

    Rows as in MBPP (Austin et al. 2021, arXiv:2108.07732: `test_list`, `test_setup_code`) or as in HumanEval (Chen et
    al. 2021, arXiv:2107.03374: `test`, `entry_point`, and `prompt`, which the answer continues or writes anew). A task
    that extracts nothing has its code read from the first fence. Raises `DataError` for rows that are neither.
    """
    row, code = answered.row, answered.prediction
    if code.strip() == answered.completion.strip():
        code = EXTRACT["code"](answered.completion)
    if "entry_point" in row and "test" in row:
        code = _whole(code, str(row.get("prompt") or ""), str(row["entry_point"]))
        tests = f"{row['test']}\ncheck({row['entry_point']})"
    elif "test_list" in row:
        tests = "\n".join([row.get("test_setup_code") or "", *row["test_list"]])
    else:
        raise DataError(
            f"pass_at_1: a row has neither test_list nor test and entry_point, only {', '.join(row) or 'nothing'}",
            "Name the columns of the data so, as MBPP and HumanEval do.",
        )
    return float(run_code(f"{code}\n\n{tests}\n").ok)


def _whole(code: str, prompt: str, name: str) -> str:
    """The function with what its prompt has before it, such as imports."""
    definition = re.compile(rf"^(?:async )?def {re.escape(name)}\b", re.MULTILINE)
    if not definition.search(code):
        return prompt + code
    before = definition.search(prompt)
    return f"{prompt[: before.start()]}\n{code}" if before else code
