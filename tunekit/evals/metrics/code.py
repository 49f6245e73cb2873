"""Code by its unit tests."""

from tunekit.evals.metrics.metric import Answered, item_metric
from tunekit.evals.sandbox import run_code


@item_metric("pass_at_1")
def pass_at_1(answered: Answered) -> float:
    """1 where the code passes the tests of its row, run with limits (see sandbox.py).

    Rows as in MBPP (Austin et al. 2021, arXiv:2108.07732: `test_list`, `test_setup_code`) or as in HumanEval (Chen et
    al. 2021, arXiv:2107.03374: `test`, `entry_point`, and `prompt`, which the answer continues).
    """
    row, code = answered.row, answered.prediction
    if "entry_point" in row:
        if f"def {row['entry_point']}" not in code:
            code = f"{row['prompt']}{code}"
        tests = f"{row['test']}\ncheck({row['entry_point']})"
    else:
        tests = "\n".join([row.get("test_setup_code") or "", *row["test_list"]])
    return float(run_code(f"{code}\n\n{tests}\n").ok)
