"""How this process was called, so that a message names a command that its reader can run."""

import pathlib
import shlex
import sys
from collections.abc import Iterable

INSTALLED = "selssm-"  # what the names of installed commands begin with


def again(argv: Iterable[str]) -> str:
    """Returns the line that calls this process once more."""
    program, *arguments = argv
    name = pathlib.Path(program).name
    return shlex.join([*([name] if name.startswith(INSTALLED) else ["python", program]), *arguments])


def command(name: str, *arguments: str) -> str:
    """Returns a line that calls `train` or `eval` as this process was called: `python eval.py ...` in a clone,
    `selssm-eval ...` where it is installed.
    """
    installed = pathlib.Path(sys.argv[0]).name.startswith(INSTALLED)
    return shlex.join([*([INSTALLED + name] if installed else ["python", f"{name}.py"]), *arguments])
