"""How long and how fast a network is trained: the settings that training and distilling share."""

from collections.abc import Callable
from math import cos, pi
from typing import Literal

from vdiff.choices import Weighting
from vdiff.config import Section, free_to_change, shapes_weights

Decay = Literal["constant", "linear", "cosine"]


class FitSection(Section):
    """One training: its length, its batches, its optimizer."""

    updates: int = shapes_weights(ge=1)
    """Optimizer updates."""
    batch_size: int = shapes_weights(64, ge=1)
    """Pictures per update, over all processes together."""
    micro_batch: int | None = free_to_change(None, ge=1)
    """Pictures that go through the network at once in a process, to save memory;
    null takes as many as fit.
    """
    checkpoint_activations: bool = free_to_change(False)
    """Whether blocks compute anew for the gradient what they computed before:
    far less memory, about a third slower.
    """
    learning_rate: float = shapes_weights(2e-4, gt=0)
    """Step size of Adam at its highest."""
    warmup_updates: int = shapes_weights(0, ge=0)
    """Updates in which the learning rate rises from 0."""
    decay: Decay = shapes_weights("constant")
    """How the learning rate goes on after that: it stays, or falls to 0 at the last update."""
    adam_betas: tuple[float, float] = shapes_weights((0.9, 0.999))
    """Decay of Adam's averages of the gradient and of its square, per update."""
    weight_decay: float = shapes_weights(0.0, ge=0)
    """Decoupled weight decay (AdamW), as a share of the learning rate."""
    clip_norm: float | None = shapes_weights(1.0, gt=0)
    """Largest norm of the gradient over all weights; null leaves it free."""
    ema: float | None = shapes_weights(None, gt=0, lt=1)
    """Decay per update of the running average of the weights that is saved for sampling;
    null saves the weights.
    """
    dropout: bool = shapes_weights(True)
    """Whether the network's dropout acts; a student is better taught without."""
    weighting: Weighting = shapes_weights("snr_plus_one")
    """How much an error counts at each noise level."""
    rollbacks: int = free_to_change(0, ge=0, le=30)
    """How often a training that diverges goes back to its last save and on at
    half the learning rate.
    """
    log_every: int = free_to_change(50, ge=1)
    """Updates per line of log.jsonl."""
    save_every: int = free_to_change(1000, ge=1)
    """Updates between two savepoints."""
    preview_every: int | None = free_to_change(None, ge=1)
    """Updates between two preview pictures from fixed noise; null draws one at the end only."""

    def rate(self, update: int) -> float:
        """Learning rate of the update with this 0-based number."""
        if update < self.warmup_updates:
            return self.learning_rate * (update + 1) / self.warmup_updates
        progress = (update - self.warmup_updates) / max(self.updates - self.warmup_updates, 1)
        return self.learning_rate * _FALL[self.decay](progress)


_FALL: dict[str, Callable[[float], float]] = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1 - progress,
    "cosine": lambda progress: (1 + cos(pi * progress)) / 2,
}
