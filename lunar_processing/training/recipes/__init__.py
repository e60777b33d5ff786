"""Recipes: what is trained for which task, on what, with which losses. A new family is a new entry.

recipe = RECIPES["rocks"]
task = recipe.task(Lesson(recipe, network, sampler, validation, rate=1e-3))
"""

from __future__ import annotations

from lunar_processing.errors import ParameterError
from lunar_processing.training.recipes import anomalies, cyclegan, enhance, rocks, scbgan, surface, vae
from lunar_processing.training.recipes.recipe import Lesson, Recipe

_ALL = (
    *(rocks.RECIPE, rocks.ORBITAL, enhance.RECIPE, cyclegan.RECIPE, anomalies.RECIPE),
    *(*vae.RECIPES, *surface.RECIPES, *scbgan.RECIPES),
)
RECIPES: dict[str, Recipe] = {recipe.name: recipe for recipe in _ALL}

__all__ = ["RECIPES", "Lesson", "Recipe", "recipe_named"]


def recipe_named(name: str) -> Recipe:
    """A recipe by its name."""
    if name not in RECIPES:
        raise ParameterError(f"There is no recipe {name!r}.", f"choose {', '.join(RECIPES)}.")
    return RECIPES[name]
