"""`InputError`: a mistake that the user can mend, and how a command reports it."""

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator

UNFINISHED = 75  # the exit code of a run that was asked to stop and is saved: EX_TEMPFAIL of sysexits.h, "try again"
LOST = 69  # of a process of a cluster that another one left: EX_UNAVAILABLE of sysexits.h
INTERRUPTED = 130  # of a command that Ctrl-C ended


class InputError(ValueError):
    """Bad input found before work starts: the message names the thing, what was found, what was expected and the
    fix.
    """


class ArgumentError(InputError):
    """Bad input in an argument, whose name begins the message; a command says it of the flag that gives the argument.

    Args:
      argument: its name. reason: what follows the name, from "=" on where the value is told. flag: its name where it is
        another than the argument's.
    """

    def __init__(self, argument: str, reason: str, flag: str = "") -> None:
        super().__init__(f"{argument}{reason}")
        self.of_flag = f"--{flag or argument}{reason}"


class LostProcess(RuntimeError):
    """Another process of this cluster is gone, or no longer answers: the same command goes on where all were saved."""


class Diverged(InputError):
    """A loss or a gradient that is not finite."""


def suggest(found: str, known: Iterable[str]) -> str:
    """Returns "did you mean 'x'? known: x, y, z" for a name that is not among the known ones."""
    known = sorted(known)
    near = difflib.get_close_matches(found, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}known: {', '.join(known)}"


def out_of_memory(error: BaseException) -> bool:
    """Returns whether memory is what an error is about: Python's own, or JAX's, which says so by a code on a GPU and in
    words on a CPU.
    """
    return isinstance(error, MemoryError) or any(
        sign in str(error).lower() for sign in ("resource_exhausted", "out of memory", "bad_alloc")
    )


def first_line(error: BaseException) -> str:
    """Returns the beginning of what an error says, for a message of one line; its name where it says nothing."""
    reason = f"{error.args[0]!r} is missing" if isinstance(error, KeyError) and error.args else str(error)
    return (reason or type(error).__name__).splitlines()[0][:200]


@contextlib.contextmanager
def as_input_error(place: str) -> Iterator[None]:
    """Says what is wrong with a setting, a model or a file as all mistakes in a command are said, `place` before it."""
    try:
        yield
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"{place}{error}") from error


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Turns an `InputError`, or that there is no memory left, into one message on standard error and exit code 2, and a
    `LostProcess` into one and exit code 69, without a traceback.
    """
    try:
        yield
    except InputError as error:
        print(f"error: {error.of_flag if isinstance(error, ArgumentError) else error}", file=sys.stderr)
        sys.exit(2)
    except LostProcess as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(LOST)
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        advice = "lower data.batch_size, data.eval_batch_size or data.length, or use a machine with more"
        print(
            f"error: there is not enough memory ({str(error).splitlines()[0] if str(error) else 'MemoryError'}): "
            f"{advice}",
            file=sys.stderr,
        )
        sys.exit(2)
