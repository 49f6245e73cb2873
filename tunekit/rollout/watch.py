"""What ends a run of online training, or warns, when its answers go wrong while the reward looks well."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from tunekit.errors import Diverged

LOW_ENTROPY = 0.02  # nats a token: every answer is the same one
SHORT = 0.1  # share of the length at the first rollout
CUT = 0.9  # share of answers that do not end by themselves
REPEATED = 0.5
CLIPPED = 0.5
FEWEST = 8  # answers from whose spread a standard error can be told
STANDARD_ERRORS = 5.0  # below 0 at which a mean that cannot be negative says that something is wrong
LOWER = "lower train.learning_rate, or raise objective.kl_coef (of grpo and rloo: objective.beta)"


@dataclass
class RolloutWatch:
    """kl, entropy, length: bounds that end the run (None: only a warning, or none)

    update_kl: nats a token from the policy of the rollout at which `moved` says that it has moved enough
    sampling: nats a token by which the log-probabilities of sampling and training may differ; None: not looked at
    """

    kl: float | None
    entropy: float | None
    update_kl: float | None
    sampling: float | None
    length: float | None = None
    first_length: float | None = None
    last_update: float = 0.0
    said: set[str] = field(default_factory=set)

    def state_dict(self) -> dict[str, Any]:
        return {"first_length": self.first_length, "said": sorted(self.said)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.first_length, self.said = state["first_length"], set(state["said"])

    def moved(self) -> bool:
        return self.update_kl is not None and self.last_update > self.update_kl

    def look(self, step: int, metrics: dict[str, float]) -> Iterator[str]:
        """What is to be said after this step, each once. Raises `Diverged` with the cause in words."""
        self.last_update = metrics.get("approx_kl", 0.0)
        self._stop(step, metrics)
        if "length" in metrics and self.first_length is None:
            self.first_length = metrics["length"]
        for name, problem in _problems(metrics, self.first_length or 0.0):
            if name not in self.said:
                self.said.add(name)
                yield problem

    def _stop(self, step: int, metrics: dict[str, float]) -> None:
        apart = metrics.get("sampling_difference")
        if apart is not None and self.sampling is not None and not apart <= self.sampling:
            raise Diverged(
                f"step {step}: the log-probabilities of sampling and training differ by {apart:.3g} nats a token "
                f"(bound {self.sampling:g}): the answers are not those of the policy that is trained",
                "A server may hold other weights or cut the distribution (logprobs mode, penalties); else it is a bug.",
            )
        length = metrics.get("length")
        if self.length is not None and length is not None and length < self.length:
            raise Diverged(
                f"step {step}: answers have {length:.1f} tokens (limits.length: {self.length:g}): the reward may be "
                "highest where nothing is said",
                f"Look at samples.jsonl; {LOWER}.",
            )
        entropy = metrics.get("entropy")
        if self.entropy is not None and entropy is not None and entropy < self.entropy:
            raise Diverged(
                f"step {step}: entropy {entropy:.4f} nats a token (limits.entropy: {self.entropy:g}): all answers are "
                "the same, and nothing can be learnt from comparing them",
                f"Set objective.entropy_coef (ppo), raise rollout.temperature, or {LOWER}.",
            )
        if "kl" in metrics:
            self._stop_by_divergence(step, metrics)

    def _stop_by_divergence(self, step: int, metrics: dict[str, float]) -> None:
        kl, error = metrics["kl"], metrics["kl_error"]
        if metrics.get("answers", FEWEST) >= FEWEST and kl < -STANDARD_ERRORS * max(error, 0.01):
            raise Diverged(
                f"step {step}: divergence from the reference {kl:.2f} nats an answer, {-kl / max(error, 0.01):.0f} "
                "standard errors below 0, which no policy has on its own answers: they come from another distribution",
                "Set rollout.top_p: 1 and top_k: 0, and see whether the engine samples from the weights of the policy.",
            )
        if self.kl is not None and not kl <= self.kl:
            raise Diverged(
                f"step {step}: the policy is {kl:.1f} nats an answer from its reference (limits.kl: {self.kl:g}): it "
                "has left what the reward can judge",
                f"Look at samples.jsonl; {LOWER}, or raise limits.kl.",
            )


def _problems(metrics: dict[str, float], first_length: float) -> Iterator[tuple[str, str]]:
    if metrics.get("entropy", 1.0) < LOW_ENTROPY:
        yield "entropy", f"entropy {metrics['entropy']:.4f} nats a token: all answers are nearly the same; {LOWER}"
    length = metrics.get("length", first_length)
    if length < max(SHORT * first_length, 2.0) < first_length:
        yield (
            "length",
            (
                f"answers have shrunk from {first_length:.0f} to {length:.1f} tokens: the reward may be highest where "
                f"nothing is said; look at samples.jsonl, and {LOWER}"
            ),
        )
    if metrics.get("ended", 1.0) < 1 - CUT:
        yield (
            "ended",
            (
                f"{1 - metrics['ended']:.0%} of the answers do not end within rollout.max_new_tokens, and are rewarded "
                "as they are; raise it, or set objective.missing_eos_penalty"
            ),
        )
    if metrics.get("repeated", 0.0) > REPEATED:
        yield "repeated", f"{metrics['repeated']:.0%} of what the answers say repeats itself; {LOWER}"
    if metrics.get("clip_fraction", 0.0) > CLIPPED:
        yield (
            "clip",
            (
                f"the gradient of {metrics['clip_fraction']:.0%} of the tokens is cut: the policy moves too far on one "
                "rollout; lower train.learning_rate or the passes over a rollout, or set limits.update_kl"
            ),
        )
