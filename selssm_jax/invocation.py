"""How this process was called, so that a message names a command that its reader can run."""

import pathlib
import shlex
import sys
from collections.abc import Iterable

from absl import flags

INSTALLED = "selssm-"  # what the names of installed commands begin with


def again(argv: Iterable[str]) -> str:
    """Returns the line that calls this process once more."""
    program, *arguments = argv
    name = pathlib.Path(program).name
    return shlex.join([*([name] if name.startswith(INSTALLED) else ["python", program]), *arguments])


def command(name: str, *arguments: str) -> str:
    """Returns a line that calls `train` or `eval` as this process was called: `python eval.py ...` in a clone,
    `selssm-eval ...` where it is installed. With arguments, it registers what this process did by --extend.
    """
    installed = pathlib.Path(sys.argv[0]).name.startswith(INSTALLED)
    extended = [f"--extend={place}" for place in _list_extensions()] if arguments else []
    return shlex.join([*([INSTALLED + name] if installed else ["python", f"{name}.py"]), *arguments, *extended])


def _list_extensions() -> list[str]:
    """The values of --extend, in a process that is one of the commands."""
    return list(flags.FLAGS["extend"].value or ()) if "extend" in flags.FLAGS and flags.FLAGS.is_parsed() else []
