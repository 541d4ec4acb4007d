"""What to do: typed recipes, their files and overrides, and the identity of a run.

What a run keeps of its recipe is in `run`.
"""

from adafilter_dist.recipe.find import find_recipe, recipe_names
from adafilter_dist.recipe.load import dump_recipe, load_recipe
from adafilter_dist.recipe.schema import Recipe

__all__ = ["Recipe", "dump_recipe", "find_recipe", "load_recipe", "recipe_names"]
