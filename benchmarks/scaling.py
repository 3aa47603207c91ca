"""Claim: at equal parameters a selective model is trained on long sequences in at most 0.6 times the memory of an LSTM
or a GRU.

  python benchmarks/scaling.py --rounds 2    # with the package installed
  python benchmarks/scaling.py --rounds 0    # measures "pieces" anew, and leaves the rest of the record as it is

Language models of three blocks, 128 wide, one sequence, T from 1,024 to 65,536: the mixers at the sizes of mixers.py,
and the hidden width of the MLP that makes 400,000 parameters, within 1 %. Attention sees the whole sequence. Bytes are
the compiler's, of one step of training as training compiles it and of one call without gradients, and nothing runs for
them. Both are timed at the lengths in `timed`, in rounds in which all models take turns, where less than
`timed_up_to_bytes` are needed: medians; null: not timed. Recurrent states do not grow: of those that carry a cache, it
is the bytes after T steps. A crossover is the shortest length from which on attention needs more, null where it is at
none of them. "pieces" holds the bytes of a training step that reads the sequence whole and of one that reads it in
pieces of `PIECE` steps (training.piece), where the model can: null where it cannot.
"""

import dataclasses
import json
from collections.abc import Callable
from functools import cache, partial
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import measure
import mixers

from selssm_jax.analysis import costs
from selssm_jax.config import Experiment, Model, Task, Training
from selssm_jax.config.fields import build
from selssm_jax.model import SequenceModel
from selssm_jax.training import optimizer, parallel, pieces, step

LENGTHS = tuple(2**power for power in range(10, 17))
TIMED = {"training": (1_024, 4_096, 16_384), "forward": (1_024, 4_096, 16_384, 65_536)}
CROSSED = ("state_bytes", "training_peak_bytes", "forward_peak_bytes", "training_seconds", "forward_seconds")
LARGEST = 6_000_000_000  # bytes of a call that is run
PARAMETERS, WIDTH, BLOCKS = 400_000, 128, 3
LEAST, RATIO = 4_096, 0.6  # of the claim
PIECE, CUT = 1_024, ("selective", "lstm", "gru", "attention")  # steps of a piece, and the models that are compared so
MODELS: dict[str, dict[str, Any]] = {
    "selective": mixers.SIZES["selective"],
    "selective_state": mixers.SIZES["selective"] | {"selective": {"gate_state": "elementwise"}},
    **{kind: mixers.SIZES[kind] for kind in ("mamba", "s5", "lstm", "gru", "rnn", "attention", "tcn")},
}
MIXER = {"selective_state": "selective"}  # where it is not the model's name
# Buffers are laid out before machine code is written. JAX takes numbers of options, though its types have none.
QUICK: dict[str, Any] = {"xla_backend_optimization_level": 0}
Arrays = dict[str, Any]


def benchmark(
    rounds: int, models: tuple[str, ...] = tuple(MODELS), lengths: tuple[int, ...] = LENGTHS
) -> dict[str, Any]:
    """Bytes and seconds of every model by length, where attention needs more, and what is claimed."""
    cut = compare_pieces(tuple(name for name in CUT if name in models), [n for n in lengths if n >= LEAST])
    if not rounds:
        here = {"command": "python benchmarks/scaling.py --rounds 0", "machine": measure.machine()}
        return json.loads((measure.RECORDS / "scaling.json").read_text()) | {"pieces": here | cut}
    found = {
        name: {
            "parameters": mixers.parameters(sized(name)),
            "state_bytes": [state_bytes(name, length) for length in lengths],
        }
        for name in models
    }
    calls: measure.Calls = {}
    for what, times in TIMED.items():
        for name in models:
            found[name][f"{what}_peak_bytes"] = [
                prepared(what, name, length, calls, run=length in times) for length in lengths
            ]
    seconds = {key: round(median(values), 4) for key, values in measure.in_turn(calls, rounds).items()}
    for what in TIMED:
        for name in models:
            found[name][f"{what}_seconds"] = [seconds.get((what, name, length)) for length in lengths]
    again: dict[str, int] = {
        name: peak(training(name, LEAST, remat=True)[0]) for name in ("selective", "lstm", "gru") if name in models
    }
    return {
        "dtype": "float32",
        "model": {
            "blocks": BLOCKS,
            "d_model": WIDTH,
            "vocab": mixers.VOCAB,
            "batch": 1,
            "parameters": PARAMETERS,
            "sizes": sizes(models),
        },
        "timed": TIMED,
        "timed_up_to_bytes": LARGEST,
        "ratios": claimed(found, again, lengths),
        "lengths": lengths,
        "models": found,
        "remat": {"length": LEAST, "training_peak_bytes": again},
        "pieces": cut,
        "crossovers": {what: {name: overtaken(found, what, name, lengths) for name in models} for what in CROSSED}
        if "attention" in models
        else {},
    }


@cache
def sized(name: str, length: int = LENGTHS[0], *, remat: bool = False) -> Model:
    """The model of so many parameters; attention sees `length` steps."""
    kind = MIXER.get(name, name)
    attention = {"attention": {"heads": 4, "window": length}}
    base = build(
        Model, {"pattern": (kind,) * BLOCKS, "d_model": WIDTH, "remat": remat} | MODELS[name] | attention, "model"
    )
    base = base.of_task(Task("language", vocab=mixers.VOCAB))
    without, one = (mixers.parameters(dataclasses.replace(base, mlp_ratio=width / WIDTH)) for width in (8, 9))
    return dataclasses.replace(base, mlp_ratio=round(8 + (PARAMETERS - without) / (one - without)) / WIDTH)


def sizes(models: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """What each model is made of."""
    return {name: MODELS[name] | {"mlp_hidden": round(sized(name).mlp_ratio * WIDTH)} for name in models}


def state_bytes(name: str, length: int) -> int:
    """What is carried after so many steps."""
    return costs.state_bytes_at(SequenceModel(sized(name, length)), drawn(name).params, length)


def prepared(what: str, name: str, length: int, calls: measure.Calls, *, run: bool) -> int:
    """Peak bytes of one call; one that is to `run`, and is not too large, goes among `calls`."""
    lowered, start = (training if what == "training" else forward)(name, length)
    needed = peak(lowered)
    if run and needed < LARGEST:
        calls[what, name, length] = start(lowered.compile()), ()
    return needed


def compare_pieces(models: tuple[str, ...], lengths: list[int]) -> dict[str, Any]:
    """Bytes of a training step by length, of the whole and in pieces."""
    found: dict[str, Any] = {}
    for name in models:
        sizes = {"whole": 0} | ({} if pieces.why_whole(sized(name, lengths[-1]), lengths[-1]) else {"pieces": PIECE})
        steps = {
            form: [memory(training(name, length, piece=size)[0]) for length in lengths] for form, size in sizes.items()
        }
        found[name] = {
            form: {key: [one[key] for one in steps[form]] for key in ("peak_bytes", "temporary_bytes")}
            if form in steps
            else None
            for form in ("whole", "pieces")
        }
    return {"piece": PIECE, "lengths": lengths, "models": found}


def peak(lowered: jax.stages.Lowered) -> int:
    """Bytes that a program holds at most."""
    return memory(lowered)["peak_bytes"]


def memory(lowered: jax.stages.Lowered) -> dict[str, int]:
    """Bytes that a program holds at most, and those of its temporaries alone: as `costs.cost`, of what is lowered
    already.
    """
    options = QUICK if jax.default_backend() == "cpu" else {}
    found = measure.analyse_memory(lowered.compile(compiler_options=options))
    held = found.argument_size_in_bytes + found.output_size_in_bytes + found.temp_size_in_bytes
    return {"peak_bytes": held - found.alias_size_in_bytes, "temporary_bytes": found.temp_size_in_bytes}


Lowered = tuple[jax.stages.Lowered, Callable[[jax.stages.Compiled], Callable[[], Any]]]


def training(name: str, length: int, *, remat: bool = False, piece: int = 0) -> Lowered:
    """One step of training, lowered, and what makes of its program a call that trains on."""
    experiment = Experiment(name="scaling", model=sized(name, length, remat=remat), training=Training(piece=piece))
    one = partial(
        step.train_step,
        model=SequenceModel(experiment.model),
        optimizer=optimizer.build(experiment),
        experiment=experiment,
    )

    def start(program: jax.stages.Compiled) -> Callable[[], Any]:
        carried = [jax.tree.map(jnp.copy, drawn(name))]

        def call() -> Any:
            carried[0], sums = program(carried[0], batch(length))  # the old state is used up
            return carried[0], sums

        return call

    alone = parallel.data_parallel(one, jax.local_devices()[:1], remat=remat)
    assert isinstance(alone, jax.stages.Wrapped)  # on one device it is what jit makes
    return alone.lower(drawn(name), batch(length)), start


def forward(name: str, length: int) -> Lowered:
    """The logits of all steps, lowered, and what makes of its program a call."""
    model, given = SequenceModel(sized(name, length)), (drawn(name).params, batch(length)["inputs"])
    lowered = jax.jit(lambda params, tokens: model.apply({"params": params}, tokens)[0]).lower(*given)
    return lowered, lambda program: partial(program, *given)


@cache
def drawn(name: str) -> step.TrainState:
    """The state before the first step; parameters know no length."""
    experiment = Experiment(name="scaling", model=sized(name))
    return step.initial(experiment, SequenceModel(experiment.model), optimizer.build(experiment), batch(2))


@cache
def batch(length: int) -> Arrays:
    """One sequence, as a training step reads it."""
    tokens = jax.random.randint(jax.random.key(1), (1, length + 1), 0, mixers.VOCAB, jnp.int32)
    ones = jnp.ones((1, length))
    return {"inputs": tokens[:, :-1], "targets": tokens[:, 1:], "weights": ones, "valid": ones > 0}


def claimed(found: Arrays, again: dict[str, int], lengths: tuple[int, ...]) -> dict[str, dict[str, float]]:
    """The selective model's peaks over those of its rivals, from the least length that is spoken of on, and with
    recomputed blocks.
    """
    ratios = {}
    for rival in (name for name in ("lstm", "gru") if name in found and "selective" in found):
        for at in (index for index, length in enumerate(lengths) if length >= LEAST):
            ours, theirs = (found[name]["training_peak_bytes"][at] for name in ("selective", rival))
            ratios[f"training peak at {lengths[at]}, selective over {rival}"] = {
                "found": round(ours / theirs, 3),
                "at_most": RATIO,
            }
        ratios[f"training peak at {LEAST} with remat, selective over {rival}"] = {
            "found": round(again["selective"] / again[rival], 3),
            "at_most": RATIO,
        }
    return ratios


def overtaken(found: Arrays, what: str, name: str, lengths: tuple[int, ...]) -> int | None:
    """The shortest length from which on attention needs more than this model, of those at which both are known."""
    rows = zip(lengths, found[name][what], found["attention"][what], strict=True)
    known = [(length, theirs > ours) for length, ours, theirs in rows if ours is not None and theirs is not None]
    shorter = [index for index, (_, more) in enumerate(known) if not more]
    first = shorter[-1] + 1 if shorter else 0
    return known[first][0] if first < len(known) else None


if __name__ == "__main__":
    measure.run("scaling", __doc__, benchmark, rounds=2)
