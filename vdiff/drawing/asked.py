"""What somebody asks of a model that draws:
refused where it cannot be, doubted where it is hardly meant.
"""

from vdiff.errors import UsageError
from vdiff.model_folder.card import ModelCard, check_steps
from vdiff.samplers.sampler import Sampler


def num_steps(card: ModelCard, asked: int | None, where: str = "") -> int:
    """The sampler steps that were asked for; None for those that the model is meant for.

    where: the option that asks.   Errors: UsageError for more steps than the model knows times.
    """
    found = asked or card.num_steps
    check_steps(card, found, card.name, where)
    return found


def check_sampler(card: ModelCard, sampler: Sampler, where: str = "") -> None:
    """UsageError for a sampler that cannot draw with a model.

    where: the option that names the sampler.
    """
    if sampler.needs_denoiser and not card.is_solvable:
        kind = str(sampler).partition(" ")[0]
        known = "is no denoiser"
        if card.times is not None:
            known = f"knows the {card.times:,} times i / {card.times} only"
        problem = f"the sampler `{kind}` cannot draw with `{card.name}`, which {known}"
        if card.is_distilled:
            problem += ": a student is only defined by its own steps"
        raise UsageError(problem, "take `--sampler ddim`, or the model it was made from", where)


def doubts(card: ModelCard, steps: int, sampler: Sampler) -> list[str]:
    """What draws worse pictures than the model can, a sentence each."""
    found = []
    if card.times is not None and card.times % steps:
        found.append(f"{steps} does not divide {card.times}: the steps are not of equal length")
    if card.is_distilled and card.times is not None and card.sampler is None and sampler.is_noisy:
        found.append(
            f"`{card.name}` was distilled to be sampled without fresh noise; "
            "ddim with eta 0 is what it knows"
        )
    return found
