"""Small runs that reports are made of: one that was trained, and others whose parameters are as drawn."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

import runs
from runs import experiment
from selssm_jax import data
from selssm_jax.analysis import Analysis, analyse
from selssm_jax.config import Data, Experiment, Model, Optimizer, Training
from selssm_jax.model import SequenceModel
from selssm_jax.report import render
from selssm_jax.runs import open_run
from selssm_jax.training import loop
from selssm_jax.training.checkpoint import Workdir

SMALL = Model(pattern=("selective", "selective"), d_model=8, d_state=6, conv=3)
WORDS = "the state of a model is what it keeps of the past and a gate says what to keep\n" * 40


def train_smoke(workdir):
    """Trains configs/smoke.py for 12 steps."""
    short = experiment(training__steps=12, training__log_every=2, training__eval_every=4, training__checkpoint_every=6)
    assert loop.fit(short, str(workdir)).finished


def write_files(folder):
    """Writes a text, a table and labelled signals of one's own; returns {source: config.Data}."""
    (folder / "words.txt").write_text(WORDS)
    rows = [f"day {index},{np.sin(index / 4):.4f},{10 + np.cos(index / 3):.4f}" for index in range(200)]
    (folder / "waves.csv").write_text("\n".join(["date,sine,cosine", *rows]) + "\n")
    label = np.arange(30) % 2
    time = np.arange(40) * (1 + label[:, None])
    np.savez(folder / "signals.npz", signal=np.sin(time / 2).astype(np.float32)[..., None], label=label)
    small = {"batch_size": 4, "length": 16, "horizon": 8}
    return {
        "text": Data(source="text", file=str(folder / "words.txt"), **small),
        "csv": Data(source="csv", file=str(folder / "waves.csv"), **small),
        "npz": Data(source="npz", file=str(folder / "signals.npz"), **(small | {"length": 0})),
    }


def built(config, **options):
    """(experiment, dataset, model, parameters as drawn) of a small model on some data."""
    dataset = data.load(config)
    small = Experiment("small", config, runs.model(SMALL, **options), Optimizer(warmup_steps=1), Training(steps=5))
    model = SequenceModel(dataclasses.replace(small.model, task=dataset.task))
    inputs = jnp.asarray(next(iter(dataset.evaluate("test", 2)))["inputs"])
    return small, dataset, model, jax.jit(model.init)(jax.random.key(0), inputs)["params"]


def report_on(workdir, **options) -> Analysis:
    """Opens a run, analyses it, and writes its report where eval.py does."""
    run = open_run(workdir, **options)
    analysis = analyse(run)
    render(analysis, run.report_folder)
    return analysis


def write_untrained(workdir, config, **options):
    """Writes the workdir of a run on some data whose parameters are as drawn, "best" at step 3."""
    small, dataset, _, params = built(config, **options)
    run = Workdir(str(workdir), small)
    run.describe(dataset.metadata())
    run.save_best(3, params, {})
    run.close()
