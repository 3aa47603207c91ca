"""Files that describe experiments: a recipe that came with the package is found by its name, and what is wrong with a
file is said before it is used.
"""

import os
import pathlib
import re
import runpy

import ml_collections

from selssm_jax.config import renames
from selssm_jax.errors import InputError, suggest
from selssm_jax.paths import check_regular


def find_recipe(name: str) -> str:
    """Returns the path of a config file: the file of that name, else the recipe of that name among those that came with
    the package.
    """
    if os.path.lexists(name):
        return name
    place = pathlib.PurePath(name.removeprefix("configs/").removesuffix(".py") + ".py")
    path = _recipes() / place
    return str(path) if ".." not in place.parts and not place.is_absolute() and path.is_file() else name


def _recipes() -> pathlib.Path:
    """The folder of the recipes: in the package where it is installed, else the clone's."""
    package = pathlib.Path(__file__).parents[1]
    return package / "recipes" if (package / "recipes").exists() else package.parent / "configs"


def load(path: str) -> ml_collections.ConfigDict:
    """Returns what get_config() of a config file returns. Raises InputError where there is no such file or function, or
    it fails.
    """
    try:
        check_regular(path)
    except FileNotFoundError as error:
        near = [str(file) for file in pathlib.Path("configs").glob("*.py")] or [
            file.stem for file in _recipes().glob("*.py")
        ]
        raise InputError(f"there is no config file {path}: {suggest(path, near)}") from error
    except (OSError, ValueError) as error:
        raise InputError(
            f"the config file {path!r} cannot be read ({getattr(error, 'strerror', None) or error}): name an existing "
            "file"
        ) from error
    try:
        config = runpy.run_path(path)["get_config"]()
    except Exception as error:  # whatever someone's own file may do
        raise InputError(f"the config file {path} cannot be loaded: {_explain(error)}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise InputError(
            f"get_config() of {path} returned {config!r}: end it with return Experiment(...).to_config_dict()"
        )
    return config


def _explain(error: Exception) -> str:
    """What is wrong, in words: that a key has another name now, if Python says that a group has none of the old one."""
    if error.args == ("get_config",):
        return "there is no function get_config in it"
    asked = re.match(r"(\w+)\.__init__\(\) got an unexpected keyword argument '(\w+)'", str(error))
    return (asked and renames.explain(f"{asked[1].lower()}.{asked[2]}")) or f"{type(error).__name__}: {error}"
