"""Trains the model that a config describes, and goes on where a run of the same folder stopped.

  python train.py --config configs/quickstart.py --report --measure --compress
  python train.py --config configs/paper/etth1_96.py --sweep --models lstm,gru     a comparison, tuned, of several seeds

After "pip install" the same command is selssm-train, and a recipe's name stands for its file:
selssm-train --config quickstart. Every key can be overridden by --config.group.key=value (selssm_jax/config/).
Ctrl-C and signals save, with exit code 75: the same command goes on.
"""

import sys
from functools import partial
from typing import Any

from absl import flags
from ml_collections import config_flags

from selssm_jax import cli, config, errors, invocation
from selssm_jax.config import Experiment

CONFIG = config_flags.DEFINE_config_file(
    "config", help_string="the experiment: a file with get_config(), such as configs/quickstart.py, or a recipe's name"
)
WORKDIR = flags.DEFINE_string("workdir", None, "the run's folder; default runs/NAME with the config's name")
REPORT = flags.DEFINE_bool("report", False, "after training, evaluate on the test split and write the report")
MEASURE = flags.DEFINE_bool("measure", False, "a report that also says how many bits of the past the states hold")
COMPRESS = flags.DEFINE_bool("compress", False, "after a report, compress the memory, into WORKDIR-compressed")
SWEEP = flags.DEFINE_bool("sweep", False, "compare models as config.sweep says: one record for each, once tested")
MODELS = flags.DEFINE_list("models", [], "sweep: these models alone; default config.sweep.models")
RECORDS = flags.DEFINE_string("records", None, "sweep: the folder of the records; default WORKDIR/records")
EXTEND = flags.DEFINE_multi_string("extend", [], "a .py file or module of yours that registers own parts; repeatable")


def run() -> None:
    """Runs the command as its flags say."""
    cli.run(_main, __name__)


def _main(_: list[str]) -> None:
    """Trains one run, and reports if asked to; or all runs of a sweep."""
    with cli.command():
        path = config_flags.get_config_filename(flags.FLAGS["config"])
        experiment, base = Experiment.from_config_dict(CONFIG.value), config.load(path)
        workdir = WORKDIR.value or f"runs/{experiment.name}"
        experiment = cli.settle(experiment, Experiment.from_config_dict(base), workdir, sweep=SWEEP.value)
        is_first = cli.join(workdir)
        cli.import_tensorboard()
        if SWEEP.value:
            from selssm_jax.sweep import command

            done = command.run(experiment, workdir, config=path, base=base, models=MODELS.value, records=RECORDS.value)
            sys.exit(0 if done else errors.UNFINISHED)
        from selssm_jax.training import loop  # here, so that a mistake in the command line is said at once

        wanted: dict[str, Any] = {"report": REPORT.value, "measure": MEASURE.value, "compress": COMPRESS.value}
        check, reports = None, any(wanted.values())
        if reports:  # what draws a report is not waited for without one
            from selssm_jax import analysis

            check = partial(analysis.check_ahead, experiment, workdir, **wanted)
        outcome = loop.fit(experiment, workdir, check=check)
        if not outcome.finished:
            print(f"stopped at step {outcome.step} of {experiment.training.steps}, saved; to go on:", end=" ")
            print(invocation.again(sys.argv))
            sys.exit(errors.UNFINISHED)
        scores = ", ".join(f"{name} {value:.4f}" for name, value in outcome.validation.items())
        limit = f" of {experiment.training.steps}, then stopped early (training.patience)" if outcome.early else ""
        print(f"trained {outcome.step} steps{limit}; validation: {scores}")
        if not reports or not is_first:
            print(f"to evaluate: {invocation.command('eval', '--workdir', workdir)}")
            return
        from selssm_jax.runs import open_run

        run = open_run(workdir)
        print(cli.report_run(run, measure=wanted["measure"]), flush=True)
        if wanted["compress"]:
            print(cli.report_compression(run))
