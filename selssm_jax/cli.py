"""The command lines: flags, a config file, overrides of its keys, and what is said when one is wrong."""

import contextlib
import importlib
import os
import pathlib
import runpy
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, TextIO

from absl import app, flags
from ml_collections import ConfigDict

from selssm_jax import allocator, invocation, lookout
from selssm_jax.config import find_recipe, load
from selssm_jax.config.fields import explain_unknown
from selssm_jax.errors import INTERRUPTED, UNFINISHED, InputError, LostProcess, report_errors
from selssm_jax.paths import check_folder, check_new_file, check_regular

if TYPE_CHECKING:
    from selssm_jax.config import Experiment
    from selssm_jax.runs import Run


def run(main: Callable[[list[str]], None], module: str) -> None:
    """Runs the `main` of a command's module as its flags say; it ends the process."""
    allocator.keep_pages()
    app.run(main, flags_parser=parser(module))


@contextlib.contextmanager
def command() -> Iterator[None]:
    """What every command does about a user's mistake, about Ctrl-C, and where nobody reads its output any more: it ends
    in one line, or goes on.
    """
    try:
        with _lasting_streams(), report_errors(), _awaiting_verdict():
            try:
                yield
            except KeyboardInterrupt:
                print("interrupted", file=sys.stderr)
                sys.exit(INTERRUPTED)
    except BaseException as error:
        _leave_cluster(error)
        raise


@contextlib.contextmanager
def _lasting_streams() -> Iterator[None]:
    lasting = Lasting(sys.stdout), Lasting(sys.stderr)
    with contextlib.redirect_stdout(lasting[0]), contextlib.redirect_stderr(lasting[1]):
        yield


@contextlib.contextmanager
def _awaiting_verdict() -> Iterator[None]:
    """Where another process was lost, JAX ends this one as soon as it knows which that was, and `lookout` says it."""
    try:
        yield
    except LostProcess:
        time.sleep(LONGEST_SILENCE)
        raise


def settle(experiment: "Experiment", base: "Experiment", workdir: str, *, sweep: bool) -> "Experiment":
    """Returns what is to be trained in a folder: with the model of the run that it starts from, if it does.

    Args:
      experiment: as the command line asks for it. base: its config before anything was overridden.

    Raises:
      InputError: for a start that is none, and a key of what is begun that nothing reads.
    """
    if experiment.training.start:
        from selssm_jax.training import starting

        experiment, base = starting.take_over(experiment, base, workdir)
    # a run that goes on may be of a version that read other keys
    if not (pathlib.Path(workdir) / "config.json").exists():
        experiment.refuse_unread(base, sweep=sweep)
    return experiment


def join(workdir: str) -> bool:
    """Joins this process to its cluster, if the flags name one or its launcher is known; returns whether it is the
    first, which alone writes on standard output and reports.

    Raises:
      InputError: as `cluster.join` says.
    """
    from selssm_jax.training import cluster

    def watch() -> None:
        sys.stdout, sys.stderr = map(Lasting, lookout.watch(workdir, invocation.again(sys.argv)))

    cluster.join(COORDINATOR.value, PROCESSES.value, PROCESS.value, before=watch)
    if not cluster.is_joined() or cluster.is_first():
        return True
    sys.stdout = Lasting(os.fdopen(os.open(os.devnull, os.O_WRONLY), "w"))
    return False


def _leave_cluster(error: BaseException) -> None:
    """Ends a process of a cluster that failed, at once: else it would wait for the others, and they for it."""
    cluster = sys.modules.get("selssm_jax.training.cluster")
    code = error.code if isinstance(error, SystemExit) else 1
    if cluster is None or not cluster.is_joined() or code in (None, 0, UNFINISHED):
        return
    if not isinstance(error, SystemExit):
        traceback.print_exception(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else 1)


class Lasting:
    """A stream that may lose its reader, a pipe or a terminal: what is written after that goes nowhere, and is no
    error.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes at once."""
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError:
            self._close()
        return len(text)

    def flush(self) -> None:
        """Writes what was held back."""
        try:
            self._stream.flush()
        except OSError:
            self._close()

    def _close(self) -> None:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


COORDINATOR = flags.DEFINE_string("coordinator", "", "of several processes: HOST:PORT of process 0, as all reach it")
PROCESSES = flags.DEFINE_integer("processes", None, "how many there are; Slurm, Open MPI and others say it themselves")
PROCESS = flags.DEFINE_integer("process", None, "the number of this one, from 0")
LONGEST_SILENCE = 25  # seconds until JAX knows which process of a cluster was lost, at most
Pieces = Iterable[str]  # of what a command prints
VALUES: dict[type, tuple[flags.ArgumentParser[Any], str]] = {
    bool: (flags.BooleanParser(), "True or False"),
    int: (flags.IntegerParser(), "a whole number, for example 3"),
    float: (flags.FloatParser(), "a number, for example 0.001"),
}
MOVED = {"table": "in a clone, write python -m experiments.paper --configs FOLDER"}  # flags of earlier versions


def parser(module: str) -> Callable[[list[str]], list[str]]:
    """Returns what parses the flags that a module of a command defines; a mistake is one message and exit code 2,
    --help is that module's text and flags.

    The config file and the names of overridden keys are checked first: the flags' own messages about them help little.
    """

    def parse(argv: list[str]) -> list[str]:
        app.define_help_flags()
        if {"-h", "-help", "--help"} & set(argv):
            print(_help(module))
            sys.exit(0)
        with report_errors():
            for _, extension in _find_flag(argv, "extend"):
                extend(extension)
            if "config" in flags.FLAGS:
                argv = _with_config(argv)
            return _flags(argv)

    return parse


def import_tensorboard() -> None:
    """Imports tensorboardX without PyTorch, which it needs for nothing that is written here, and which takes it seconds
    where it is installed.
    """
    if "torch" in sys.modules:
        return
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        importlib.import_module("tensorboardX")
    finally:
        del sys.modules["torch"]


def extend(extension: str) -> None:
    """Runs a file of one's own that registers own parts, or imports a module that does. Raises InputError where that
    fails.
    """
    try:
        if extension.endswith(".py"):
            check_regular(extension)
            runpy.run_path(extension, run_name=pathlib.Path(extension).stem)
        else:
            importlib.import_module(extension)
    except Exception as error:  # whatever someone's own file may do
        raise InputError(
            f"--extend={extension} cannot be run ({type(error).__name__}: {error}): name a .py file or an installed "
            "module"
        ) from error


def report_run(run: "Run", *, measure: bool, explain: bool = False) -> str:
    """Analyses a run, writes its report, and returns its scores and where the report is, as lines for a terminal."""
    from selssm_jax import analysis, report

    report.check_writable(run.report_folder)
    if measure:
        notify("measuring what the states hold: about a minute for each block")
    results = analysis.analyse(run, measure=measure, explain=explain)
    page = report.render(results, run.report_folder)
    return report.summarise(results, page)


def report_compression(run: "Run") -> str:
    """Compresses a run, analyses what that cost, writes the report into the compressed run, and returns the outcome as
    lines for a terminal.
    """
    from selssm_jax import analysis, report, runs

    with runs.compress_run(run, notify) as compressed:
        results = analysis.analyse_compression(compressed)
        report.render_compression(results, compressed.report_folder)
    return report.summarise_compression(results, run.compressed_folder)


def export_run(workdir: str, folder: str) -> Pieces:
    """Writes a run's model into a new folder, and returns a sentence that says so."""
    from selssm_jax import interop, predict

    interop.export.export_model(predict.load(workdir), folder)
    return [f"wrote {folder}: load.py in it shows how to run it"]


def stream_rows(workdir: str, name: str, override: Iterable[str]) -> Pieces:
    """Yields a line for each row of a table, and writes the report of the stream at its end. A stream that a signal
    ended exits as training does.
    """
    from selssm_jax import analysis, report, runs, stream_files

    stream = stream_files.OpenStream(runs.open_run(workdir, override=override, examples=False))
    report.check_writable(stream.folder.report.parent)
    yield from (f"{line}\n" for line in stream.follow(name))
    results = analysis.analyse_stream(stream)
    report.render_stream(results, stream.folder.report)
    notify(report.summarise_stream(results, stream.folder.report))
    if stream.stopped:
        sys.exit(UNFINISHED)


def check_places(workdir: str, output: str, *, predicts: bool) -> None:
    """Raises InputError, before JAX is imported, for a --workdir that is no folder, and an --output that is there
    already, cannot be written, or is of nothing that is predicted.
    """
    check_folder(workdir)
    if output and not predicts:
        raise InputError(f"--output={output} is of predictions alone: add --predict=FILE")
    if output:
        check_new_file(output, "output")


def read_flags(*asked: "flags.FlagHolder[Any]") -> dict[str, Any]:
    """Returns the values of flags by their names."""
    return {flag.name: flag.value for flag in asked}


def notify(message: str) -> None:
    """Says something on standard error, where it is in nobody's way."""
    print(message, file=sys.stderr, flush=True)


def separate(lines: Iterable[str]) -> Pieces:
    """Yields lines as pieces: a line end stands between two of them."""
    for number, line in enumerate(lines):
        yield f"\n{line}" if number else line


def show(pieces: Pieces) -> None:
    """Prints each piece as soon as it is there, and ends the last line."""
    piece = ""
    for piece in pieces:
        print(piece, end="", flush=True)
    print(end="" if piece.endswith("\n") else "\n")


def _help(module: str) -> str:
    text = sys.modules[module].__doc__ or ""
    for name in ("train", "eval"):
        text = text.replace(f"python {name}.py", invocation.command(name))
    return f"{text}\nflags:\n{flags.FLAGS.module_help(module)}\n{flags.FLAGS.module_help(__name__)}"


def _with_config(argv: list[str]) -> list[str]:
    """The arguments with the config file's path in the place of a recipe's name, once file and keys are checked."""
    place, name = _config_argument(argv)
    path = find_recipe(name)
    config = load(path)
    for argument in argv:
        if argument.startswith("--config."):
            name, given, text = argument.removeprefix("--").partition("=")
            value = _find_value(name.split(".")[1:], config)
            if given:
                _check_value(name, value, text)
    return [*argv[:place], f"--config={path}", *argv[place + (1 if "=" in argv[place] else 2) :]]


def _flags(argv: list[str]) -> list[str]:
    try:
        rest = flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        fix = MOVED.get(error.flagname, f"see {invocation.again(argv[:1])} --help")
        raise InputError(f"{error}; {fix}") from error
    except (flags.Error, TypeError, ValueError) as error:
        raise InputError(f"{error}; see {invocation.again(argv[:1])} --help") from error
    if len(rest) > 1:
        raise InputError(f"{rest[1]!r} is no flag: write --name=value; see {invocation.again(argv[:1])} --help")
    verbosity = flags.FLAGS["verbosity"]
    # absl's default tells of every file that a checkpoint is made of; errors are raised anyway
    if verbosity.using_default_value:
        verbosity.value, verbosity.using_default_value = -3, False
    return rest


def _find_flag(argv: list[str], flag: str) -> Iterator[tuple[int, str]]:
    """Where a flag stands, and its value, before the flags are parsed."""
    for place, (argument, following) in enumerate(zip(argv, [*argv[1:], ""], strict=True)):
        name, _, value = argument.partition("=")
        if name in (f"--{flag}", f"-{flag}") and (value or following):
            yield place, value or following


def _config_argument(argv: list[str]) -> tuple[int, str]:
    """Where --config stands and what it names."""
    for place, name in _find_flag(argv, "config"):
        return place, name
    raise InputError(
        f"--config is missing: name the experiment, for example {invocation.command('train', '--config', 'quickstart')}"
    )


def _check_value(name: str, value: Any, text: str) -> None:
    """Raises InputError where text is no value of the type that a key has."""
    parser, kind = VALUES.get(type(value), (None, ""))
    try:
        if parser:
            parser.parse(text)
    except ValueError as error:
        raise InputError(f"{name}={text!r} is not {kind}") from error


def _find_value(path: list[str], config: Any) -> Any:
    """The value of a key before it is overridden. Raises InputError for a key that there is not, and for a group."""
    node, place = config, "config"
    for key in path:
        if not isinstance(node, ConfigDict):
            raise InputError(f"{place} is a value, and has no key {key!r} in it")
        if key not in node:
            raise InputError(explain_unknown(place, key, node))
        node, place = node[key], f"{place}.{key}"
    if isinstance(node, ConfigDict):
        raise InputError(
            f"{place} is a group of keys: set one of them, for example --{place}.{next(iter(node), 'KEY')}=..."
        )
    return node
