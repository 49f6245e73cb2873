"""The report of a run: what the data and the model say is shown as written."""

from tunekit.stages.present import training_report

USER_TEXT = "[/INST] [bold]x[/bold] :warning:"


def test_text_of_prompts_and_answers_is_not_taken_for_markup() -> None:
    result = {
        "stage": "sft",
        "before": {},
        "after": {"eval_loss": 1.0},
        "sample": {name: f"{name} {USER_TEXT}" for name in ("prompt", "before", "after", "reference")},
        "steps": 1,
        "tokens": 2,
        "trained_tokens": 1,
        "tokens_per_second": None,
        "sources": [{"path": "a.jsonl", "trained_tokens": 3}],
        "seconds": 1.0,
        "reload_difference": 0.0,
        "paths": {"model": f"out/{USER_TEXT}", "loss_curve": "loss.png"},
    }
    report = training_report(result)
    assert f"prompt: prompt {USER_TEXT}" in report and f"model: out/{USER_TEXT}" in report
    assert report.count("[/INST]") == 5 and report.count(":warning:") == 5
