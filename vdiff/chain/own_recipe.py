"""What the recipe that travels in a model folder says of drawing with the model."""

from dataclasses import replace
from pathlib import Path

from vdiff.choices import Precision
from vdiff.config import Section, free_to_change
from vdiff.model_folder.card import MANIFEST, ModelCard
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import SampleSection
from vdiff.samplers.advised import sampler_for
from vdiff.samplers.sampler import Sampler


class DrawingPart(Section):
    """What a recipe says of drawing."""

    precision: Precision = free_to_change("auto")
    """Arithmetic of the network."""
    sample: SampleSection = free_to_change(SampleSection())
    """How images are drawn."""


def drawing_part(card: ModelCard, folder: Path) -> DrawingPart:
    """What the recipe in a model folder says of drawing;
    its other sections may need packages that are not here.

    Errors: UsageError.
    """
    if not card.recipe:
        return DrawingPart()
    text = recipe_text.parse(card.recipe, str(folder / MANIFEST))
    own: dict[str | int, object] = {
        name: text.data[name] for name in DrawingPart.model_fields if name in text.data
    }
    return recipe_text.validate(DrawingPart, replace(text, data=own))


def sampler_of(card: ModelCard, folder: Path) -> Sampler:
    """The sampler that draws with a model where nobody asks for another one:
    that of the recipe in its folder, or where it names none the one that the model is meant for.

    Errors: UsageError; ModelFileError for a sampler that is not to be had here.
    """
    named = drawing_part(card, folder).sample.named_sampler
    return sampler_for(named, card.sampler, card.name, is_solvable=card.is_solvable).build()
