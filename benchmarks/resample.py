"""Claim: blocks that read a quarter of the steps classify spoken digits as well, for .4 of the operations.

  python benchmarks/resample.py --rounds 2 --data FOLDER    # of the originals of spoken digits and of the text

Rounds are seeds. configs/fsdd.py, whose three blocks read all frames, every fourth (model.resample.rule=static, with
and without the frames between), at most as many at equal steps of cumulated step sizes (equal_time), as many of a whole
signal, and at most as many boundaries, with a ratio loss of 0.03; accuracy on the test split, and the floating-point
operations of the forward pass by XLA's cost analysis, which counts the body of a loop once. Then what step sizes have
to do with information: a Mamba-2 and a Kalman model of two blocks, trained on characters; over the steps of the test
split, Spearman's correlation of the step sizes (mean over heads) with the surprisal of the character that is read, in
bits by the same model, and with the bits that the Kalman model's gates gain at the step. Intervals are of 95 %, by a
bootstrap over windows of 128 characters.
"""

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
from ml_collections import ConfigDict
from scipy import stats
from seed_runs import compare, measure_errors, train_seeds

from configs import fsdd, shakespeare
from selssm_jax.analysis import costs
from selssm_jax.observe import observe
from selssm_jax.runs import Run

FOLDER = pathlib.Path(__file__).parent.parent / "runs" / "resample"
RATE, STEPS, TEXT_STEPS = 4, 2500, 500
RULES: dict[str, dict[str, Any]] = {
    "full rate": {},
    "static": {"rule": "static", "rate": RATE},
    "static, nothing gathered": {"rule": "static", "rate": RATE, "window": 1},
    "equal time": {"rule": "equal_time", "rate": RATE, "spare": 0},
    "equal time, whole": {"rule": "equal_time", "rate": RATE, "causal": False},
    "boundary": {"rule": "boundary", "rate": RATE, "spare": 0},
}
GATED = {"step sizes": "mamba2", "gains": "kalman"}
WINDOWS, DRAWS = 64, 1000  # of the text, and of the bootstrap


def benchmark(rounds: int, data: pathlib.Path) -> dict[str, Any]:
    """Digits at full rate and at a quarter of it, and step sizes against bits."""
    runs = {rule: train_digits(rule, rounds, FOLDER, data) for rule in RULES}
    errors = {rule: measure_errors(opened, "test") for rule, opened in runs.items()}
    flops = {rule: count_operations(opened[0]) for rule, opened in runs.items()}
    apart = {rule: compare(errors[rule], errors["full rate"]) for rule in RULES if rule != "full rate"}
    ratios: dict[str, dict[str, Any]] = {}
    for rule, difference in apart.items():
        ratios[f"{rule}: points of accuracy below full rate"] = {"ours": 100 * difference["mean"], "at_most": 1.0}
        ratios[f"{rule}: operations over those at full rate"] = {
            "ours": flops[rule] / flops["full rate"],
            "at_most": 0.4,
        }
    return {
        "dtype": "float32",
        "seeds": rounds,
        "rate": RATE,
        "steps": {"digits": STEPS, "text": TEXT_STEPS},
        "ratios": ratios,
        "error on the test split": {rule: found["error"] for rule, found in errors.items()},
        "error less that at full rate": apart,
        "operations of a forward pass of 8 signals": flops,
        "Spearman's correlation of step sizes with bits": correlate_text(FOLDER, data),
    }


def train_digits(rule: str, seeds: int, folder: pathlib.Path, data: pathlib.Path, **changes: Any) -> list[Run]:
    """Runs of the recipe whose blocks read the steps that a rule chooses, one a seed."""
    config = fsdd.get_config()
    config.model.resample.update(RULES[rule])
    ratio = 0.03 if RULES[rule].get("rule") == "boundary" else 0.0
    set_training(config, data, {"steps": STEPS, "resample_ratio": ratio} | changes)
    return train_seeds(config, folder / rule.replace(", ", "_").replace(" ", "_"), seeds, "test")


def set_training(config: ConfigDict, data: pathlib.Path, changes: dict[str, Any]) -> None:
    """Shorter training on one device, from originals in a folder."""
    config.data.local_dir = str(data or "")
    config.training.update({"devices": 1} | changes)
    config.training.eval_every = config.training.checkpoint_every = config.training.steps
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, config.training.steps // 10)


def count_operations(run: Run, rows: int = 8) -> float:
    """Floating-point operations of reading whole signals, by XLA."""
    steps = run.model.config.task.length
    signals, valid = jnp.zeros((rows, steps, run.model.config.task.channels)), jnp.ones((rows, steps), bool)

    def answer(params: Any, signals: jax.Array) -> jax.Array:
        return run.model.apply({"params": params}, signals, valid=valid)[0]

    return float(costs.cost(answer, run.params, signals).flops or 0.0)


def correlate_text(folder: pathlib.Path, data: pathlib.Path, **changes: Any) -> dict[str, Any]:
    """Of each block of a Mamba-2 model, the correlations of its step sizes with surprisal and with bits gained."""
    runs = {name: train_text(kind, folder, data, **changes) for name, kind in GATED.items()}
    windows = [np.asarray(batch["inputs"]) for batch in runs["gains"].dataset.evaluate("test", 16)]
    tokens = np.concatenate(windows)[:WINDOWS]
    sizes, surprisal = read_step_sizes(runs["step sizes"], tokens)
    gains = read_gains(runs["gains"], tokens)
    bits = {"surprisal of the character read": surprisal} | {f"bits gained by {name}": of for name, of in gains.items()}
    return {
        block: {name: correlate(dt[:, 1:], of[:, 1:]) for name, of in bits.items()} for block, dt in sizes.items()
    } | {"bits gained and surprisal": {name: correlate(of[:, 1:], surprisal[:, 1:]) for name, of in gains.items()}}


def train_text(kind: str, folder: pathlib.Path, data: pathlib.Path, **changes: Any) -> Run:
    """A small model of characters with blocks of one kind."""
    config = shakespeare.get_config()
    config.model.update({"pattern": (kind,) * 2, "d_model": 64, "d_state": 16 if kind == "mamba2" else 64, "conv": 0})
    set_training(config, data, {"steps": TEXT_STEPS} | changes)
    return train_seeds(config, folder / kind, 1, "test")[0]


def read_step_sizes(run: Run, tokens: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(dt of each step, mean over heads, by block, bits of surprise of the token of each step but the first), (B, T):
    a gate is 1 - exp(-dt rate).
    """
    outputs, blocks = show(run, tokens)
    sizes = {}
    for name, block in blocks.items():
        rate = jnp.exp(run.params[name]["mixer"]["A_log"])[None, None]
        sizes[name] = np.asarray((-jnp.log1p(-block.gate) / rate).mean(axis=-1))
    logs = np.asarray(jax.nn.log_softmax(outputs))[:, :-1] / np.log(2)
    surprise = -np.take_along_axis(logs, tokens[:, 1:, None], axis=-1)[..., 0]
    return sizes, np.pad(surprise, ((0, 0), (1, 0)))


def read_gains(run: Run, tokens: np.ndarray) -> dict[str, np.ndarray]:
    """Bits that the gates of each block gain at each step, (B, T)."""
    return {name: np.asarray(block.gained.sum(axis=-1)) / np.log(2) for name, block in show(run, tokens)[1].items()}


def show(run: Run, tokens: np.ndarray) -> tuple[jax.Array, dict[str, Any]]:
    """(outputs, what the blocks show) of windows that are each read from an empty memory."""
    batch = {"inputs": tokens, "valid": np.ones(tokens.shape, bool)}
    outputs, _, blocks = jax.jit(lambda params: observe(run.model, params, batch, rngs={}))(run.params)
    return outputs, blocks


def correlate(one: np.ndarray, other: np.ndarray) -> dict[str, float]:
    """Spearman's correlation over all steps of windows (B, T), and its interval by a bootstrap over windows."""
    ranks = np.stack([stats.rankdata(values).reshape(values.shape) for values in (one, other)])
    centred = ranks - ranks.mean(axis=(1, 2), keepdims=True)
    sums = np.stack([(centred[i] * centred[j]).sum(axis=1) for i, j in ((0, 1), (0, 0), (1, 1))])
    draws = np.random.default_rng(0).integers(0, len(one), (DRAWS, len(one)))
    drawn = sums[:, draws].sum(axis=2)
    low, high = np.quantile(drawn[0] / np.sqrt(drawn[1] * drawn[2]), (0.025, 0.975))
    cross, *squares = sums.sum(axis=1)
    return {"rho": float(cross / np.sqrt(np.prod(squares))), "low": float(low), "high": float(high)}


if __name__ == "__main__":
    measure.run(
        "resample", __doc__, benchmark, rounds=2, folders={"data": "the originals of spoken digits and of text"}
    )
