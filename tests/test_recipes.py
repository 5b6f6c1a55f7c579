"""The recipes that ship with vdiff: each of them loads, plans,
and describes a network that can be built.
"""

import pytest
import torch

from vdiff.chain.plan import plan
from vdiff.diffusion.condition import of_seeds
from vdiff.recipe import text as recipe_text
from vdiff.recipe.recipe import Recipe

SHIPPED = recipe_text.shipped()


def load(name: str) -> Recipe:
    return recipe_text.validate(Recipe, recipe_text.find(name))


def test_the_recipes_of_the_first_release_are_there() -> None:
    assert {"digits", "celeba_u", "cifar10"} <= SHIPPED.keys()


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_loads_and_is_called_as_its_file(name: str) -> None:
    assert load(name).name == name


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_begins_with_what_it_is(name: str) -> None:
    first, _, _ = SHIPPED[name].read_text(encoding="utf-8").partition("\n")
    assert first.startswith("# ")
    assert first.endswith(".")


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_plans_a_chain_from_its_base_to_its_last_student(name: str) -> None:
    recipe = load(name)
    stages = plan(recipe)
    assert stages[0].num_steps == recipe.distill.start_steps
    assert stages[-1].num_steps == recipe.distill.end_steps
    assert len({stage.name for stage in stages}) == len(stages)
    assert recipe.distill.start_steps <= recipe.diffusion.schedule.grid


@pytest.mark.parametrize("name", SHIPPED)
def test_the_network_of_a_recipe_takes_its_pictures(name: str) -> None:
    recipe = load(name)
    with torch.device("meta"):
        network = recipe.network.build(recipe.data.size, recipe.data.channels).eval()
        z = torch.zeros(1, recipe.data.channels, recipe.data.size, recipe.data.size)
        condition = of_seeds([0], recipe.network.told_classes)
        assert network(z, torch.zeros(1), condition).shape == z.shape


@pytest.mark.parametrize("name", SHIPPED)
def test_a_recipe_states_each_stage_of_its_life_in_the_order_of_a_batch(name: str) -> None:
    written = list(recipe_text.find(name).data)
    assert written == [key for key in Recipe.model_fields if key in written]


def test_celeba_is_the_network_and_the_chain_of_diffusion_distiller() -> None:
    recipe = load("celeba_u")
    config = recipe.network.configure(256, 3)
    assert config.block_out_channels == (112, 224, 224, 448, 448)
    assert [
        index for index, kind in enumerate(config.down_block_types) if kind.startswith("Attn")
    ] == [3, 4]
    assert config.attention_head_dim == 448 // 4
    assert recipe.distill.steps() == (1024, 512, 256, 128, 64, 32, 16, 8)
