"""Flags of the commands, and what they say when one is wrong."""

import sys
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from selssm_jax import errors


def config_flag(name: str, help_text: str) -> flags.FlagHolder[Any]:
    """Returns a flag whose value is a config file, with an override `--name.key=value` for every key."""
    holder = config_flags.DEFINE_config_file(name, help_string=help_text, lock_config=True)
    flags.mark_flag_as_required(name)
    return holder


def parse(argv: list[str]) -> list[str]:
    """Parses the command line; a mistake is one message and exit code 2, --help is the module's text and its own flags."""
    app.define_help_flags()
    with errors.reported():
        rest = _parsed(argv)
    logging.set_verbosity(logging.ERROR)  # what the libraries do inside is not what a user asked to read
    return rest


def _parsed(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, SyntaxError, ImportError) as error:
        raise errors.InputError(f"{_plain(error)}\nsee python {sys.argv[0]} --help") from error
    if len(rest) > 1:
        raise errors.InputError(f"{rest[1]!r} is no flag: write --name=value; see python {sys.argv[0]} --help")
    return rest


def _plain(error: Exception) -> str:
    """The message of an error; KeyError quotes its own."""
    text = str(error.args[0]) if error.args else str(error)
    return text.strip().strip('"')
