"""What answers are rewarded for: functions of one answer, reward models, classifiers, and their weighted sum."""

from tunekit.rollout.rewards.score import Problem, Scores, judged, score, weighed
from tunekit.rollout.rewards.sources import Source, check_prompts, make_rewards

__all__ = ["Problem", "Scores", "Source", "check_prompts", "judged", "make_rewards", "score", "weighed"]
