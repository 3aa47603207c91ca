"""Evaluates a run exactly over a whole split and writes a report on it: scores, gates, stability, memory, an example.

python eval.py --workdir runs/quickstart                         RUN/report/index.html, and results.json beside it
python eval.py --workdir runs/shakespeare --file my_text.txt     another text, at the run's vocabulary
python eval.py --workdir runs/quickstart --measure               also: what its memory holds, in bits
python eval.py --workdir runs/quickstart --explain               also: which inputs its answers are owed to
python eval.py --workdir runs/quickstart --compress              a run with a smaller memory beside it, and its cost
python eval.py --workdir runs/shakespeare --generate "ROMEO:"    what the run writes after that, on standard output
python eval.py --workdir runs/etth1 --predict rates.csv          what follows the table, as CSV on standard output
python eval.py --workdir runs/stream_drift --stream -            a row in, a forecast out, and the model learns on

After "pip install" the same command is selssm-eval, in any folder.
"""

from absl import flags

from selssm_jax import cli

WORKDIR = flags.DEFINE_string("workdir", "", "the folder of the run, as given to train.py")
SPLIT = flags.DEFINE_enum("split", None, ["train", "validation", "test", "whole"], "default: test, or whole of --file")
FILE = flags.DEFINE_string("file", "", "a text, CSV or NPZ to evaluate on, at the vocabulary and scaling of the run")
MEASURE = flags.DEFINE_bool("measure", False, "also measure how many bits of the past the states hold; minutes")
EXPLAIN = flags.DEFINE_bool("explain", False, "also say which inputs the answers are owed to, on an interactive page")
COMPRESS = flags.DEFINE_bool("compress", False, "compress the memory, into RUN-compressed with a report; minutes")
OVERRIDE = flags.DEFINE_multi_string("override", [], "a key that evaluation reads, as compress.factor=32; repeatable")
LOCAL_DIR = flags.DEFINE_string("local_dir", "", "a folder with the originals of the data; default: as in training")
GENERATE = flags.DEFINE_multi_string("generate", [], "no report: write on from this text; repeatable")
PREDICT = flags.DEFINE_multi_string("predict", [], "no report: forecast a table, name clips, score a text; repeatable")
STREAM = flags.DEFINE_string(
    "stream", "", "a table whose rows are forecast and learnt from one by one; -: as they come"
)
EXPORT = flags.DEFINE_string("export", "", "no report: write the model into a new folder, to be run with JAX alone")
OUTPUT = flags.DEFINE_string("output", "", "predict: a new file for what is else printed")
TOKENS = flags.DEFINE_integer("tokens", 200, "generate: how many tokens to write")
TEMPERATURE = flags.DEFINE_float("temperature", 1.0, "generate: of the softmax; 0: always the most probable token")
TOP_K = flags.DEFINE_integer("top_k", 0, "generate: draw from so many of the most probable tokens; 0: from all")
TOP_P = flags.DEFINE_float("top_p", 1.0, "generate: draw from the fewest tokens of this probability; 1: from all")
PENALTY = flags.DEFINE_float("repetition_penalty", 1.0, "generate: above 1: tokens that were there are rarer")
ANSWERS = flags.DEFINE_integer("answers", 1, "generate: how many texts to write after each beginning")
SCORES = flags.DEFINE_bool("scores", False, "generate: JSON a line, with the log-probability of every token")
STOP = flags.DEFINE_multi_string("stop", [], "generate: end before this string; may be repeated")
SEED = flags.DEFINE_integer("seed", 0, "generate: another seed writes another text")
EXTEND = flags.DEFINE_multi_string("extend", [], "a .py file or module of yours that registers own parts; repeatable")


def run() -> None:
    """Runs the command as its flags say."""
    cli.run(_main, __name__)


def _main(_: list[str]) -> None:
    """Writes what is asked for and prints the scores and where they are, or the text that the run writes."""
    with cli.command():
        cli.show(_evaluate())


def _evaluate() -> cli.Pieces:
    """Does what the flags ask for; returns what to print, in pieces."""
    cli.check_places(WORKDIR.value, OUTPUT.value, predicts=bool(PREDICT.value))
    if not cli.join(WORKDIR.value):
        return ["process 0 evaluates; this one waits for its end"]
    from selssm_jax import generation, prediction_files, runs

    if GENERATE.value:
        run = runs.open_run(WORKDIR.value, local_dir=LOCAL_DIR.value, examples=False)
        write = generation.write_lines if SCORES.value else generation.write_on
        how = cli.read_flags(TOKENS, TEMPERATURE, TOP_K, TOP_P, PENALTY, ANSWERS, SEED, STOP)
        return write(run.model, run.params, run.dataset, GENERATE.value, **how)
    if PREDICT.value:
        trained = prediction_files.load_calibrated(WORKDIR.value, LOCAL_DIR.value)
        lines = prediction_files.predict_files(trained, PREDICT.value)
        return [prediction_files.save_lines(lines, OUTPUT.value)] if OUTPUT.value else cli.separate(lines)
    if EXPORT.value:
        return cli.export_run(WORKDIR.value, EXPORT.value)
    if STREAM.value:
        return cli.stream_rows(WORKDIR.value, STREAM.value, OVERRIDE.value)
    split = SPLIT.value or "test" * COMPRESS.value
    run = runs.open_run(WORKDIR.value, split=split, file=FILE.value, local_dir=LOCAL_DIR.value, override=OVERRIDE.value)
    return [cli.report_compression(run) if COMPRESS.value else cli.report_run(run, **cli.read_flags(MEASURE, EXPLAIN))]
