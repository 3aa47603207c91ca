"""Claim: relevance by MambaLRP finds the steps that decide an answer, and hidden attention fades as memory does.

  python benchmarks/explain.py --rounds 5    # with the package installed; --data FOLDER has the files of data.local_dir

Rounds are seeds. Three parts, of models trained for this by the script:

"known steps": selective copying and induction heads, where the steps that decide are known. What is explained is the
logit of the right answer. AUROC is the mean over the sequences of the test split that are answered rightly, and over
the answers of a sequence, of relevance as it is, with its sign. "hidden_attention" is the size of alpha at the answer,
its mean over blocks; "attention_rollout" the product over blocks of (I + alpha) / 2, its rows scaled to a sum of 1.
Differences are paired by seed, by Student's t.

"areas": area under insertion less that under deletion on trained recipes with fewer steps, of the logit of what the
model says itself (text, signals), or the mean of its forecast's last quarter (series), less "gradient_x_input" on the
same examples.

"lags": Spearman's correlation, over the lags that the measurement chooses, of the hidden attention's profile with the
bits of single inputs that `eval.py --measure` finds in the state of the same block.
"""

import functools
import itertools
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import jax.numpy as jnp
import measure
import numpy as np
from ml_collections import ConfigDict
from scipy import stats
from seed_runs import interval, train_seeds

from configs import etth1, fsdd, induction_heads, selective_copying, shakespeare
from selssm_jax import explain
from selssm_jax.analysis import memory
from selssm_jax.model import SequenceModel
from selssm_jax.runs import Run

MIXERS = ("selective", "mamba")
METHODS = ("lrp", "gradient_x_input", "integrated_gradients", "occlusion")
ATTENTIONS = ("hidden_attention", "attention_rollout")
ASKED = 0.95  # AUROC
RIVALS = ("gradient_x_input", "integrated_gradients", "hidden_attention")
SEQUENCES, ANSWERS = 64, 4  # of a run, explained; of a sequence, evenly spaced
TASKS: dict[str, tuple[Callable[[], ConfigDict], dict[str, Any], int]] = {
    "selective_copying": (selective_copying.get_config, {"length": 48, "tokens": 8, "vocab": 8}, 3000),
    "induction_heads": (induction_heads.get_config, {"length": 48, "vocab": 8}, 3000),
}
RECIPES: dict[str, tuple[Callable[[], ConfigDict], int]] = {
    "shakespeare": (shakespeare.get_config, 400),
    "fsdd": (fsdd.get_config, 400),
    "etth1": (etth1.get_config, 300),
}
EXAMPLES, LONGEST = 32, 128  # of a recipe; tokens of an example
MEASURED = ("shakespeare", "etth1")
FOLDER = pathlib.Path(__file__).parent.parent / "runs" / "explain"


def benchmark(rounds: int, data: pathlib.Path | None = None, folder: pathlib.Path = FOLDER) -> dict[str, Any]:
    """Every part; a run that is in the folder is not trained again."""
    tasks = {
        f"{task}, {mixer}": [find_known_steps(run) for run in train_task(task, mixer, rounds, folder)]
        for task, mixer in itertools.product(TASKS, MIXERS)
    }
    recipes = {name: train_recipe(name, data, folder) for name in RECIPES} if data else {}
    areas = {name: compare_areas(run) for name, run in recipes.items()}
    lags = {name: correlate_lags(recipes[name]) for name in MEASURED if name in recipes}
    return summarise(tasks, areas, lags)


def summarise(tasks: dict[str, Any], areas: dict[str, Any], lags: dict[str, Any]) -> dict[str, Any]:
    """The record: every claim beside its target, and what it is made of."""
    ratios: dict[str, dict[str, Any]] = {}
    for name, seeds in tasks.items():
        mean = {method: float(np.mean([seed["auroc"][method] for seed in seeds])) for method in seeds[0]["auroc"]}
        ratios[f"{name}: AUROC of lrp"] = {"ours": mean["lrp"], "at_least": ASKED}
        for rival in RIVALS:
            ahead = np.array([seed["auroc"]["lrp"] - seed["auroc"][rival] for seed in seeds])
            ratios[f"{name}: p that lrp's AUROC is no better than that of {rival}, paired"] = {
                "ours": float(stats.ttest_1samp(ahead, 0, alternative="greater").pvalue) if len(ahead) > 1 else 1.0,
                "at_most": 0.05,
            }
        ratios[f"{name}: AUROC of the best other method, {max(set(mean) - {'lrp'}, key=mean.__getitem__)}"] = {
            "ours": max(value for method, value in mean.items() if method != "lrp")
        }
    for name, found in areas.items():
        ratios[f"{name}: area difference of lrp less that of gradient_x_input, low end of its interval"] = {
            "ours": found["lrp less gradient_x_input"]["low"],
            "at_least": 0.0,
        }
    for name, found in lags.items():
        best = max(found.values(), key=lambda block: block["spearman"])["spearman"]
        ratios[f"{name}: Spearman's correlation of hidden attention with bits by lag, best block"] = {
            "ours": best,
            "at_least": 0.9,
        }
    return {
        "dtype": "float32",
        "seeds": len(next(iter(tasks.values()))),
        "steps": {name: steps for name, (_, _, steps) in TASKS.items()} | {name: n for name, (_, n) in RECIPES.items()},
        "shapes": {"sequences": SEQUENCES, "answers": ANSWERS, "examples": EXAMPLES, "tokens": LONGEST},
        "ratios": ratios,
        "known steps": tasks,
        "areas": areas,
        "lags": lags,
    }


def train_task(task: str, mixer: str, seeds: int, folder: pathlib.Path) -> list[Run]:
    """Runs of a task at a length where every mixer here learns it, without dropout."""
    get_config, data, steps = TASKS[task]
    config = get_config()
    config.data.update(data | {"batch_size": 32, "eval_examples": 512, "eval_batch_size": 64})
    config.model.update({"pattern": (mixer,) * 2, "d_model": 48, "d_state": 32 if mixer == "selective" else 16})
    config.model.update({"dropout": 0.0})
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, steps // 10)
    config.training.update({"steps": steps, "eval_every": steps, "checkpoint_every": steps, "devices": 1})
    return train_seeds(config, folder / task / mixer, seeds, "test")


def train_recipe(name: str, data: pathlib.Path | None, folder: pathlib.Path) -> Run:
    """The recipe with fewer steps."""
    get_config, steps = RECIPES[name]
    config = get_config()
    config.data.local_dir = str(data)
    config.optimizer.warmup_steps = min(config.optimizer.warmup_steps, steps // 10)
    config.training.update({"steps": steps, "eval_every": steps, "checkpoint_every": steps, "devices": 1})
    return train_seeds(config, folder / name, 1, "test")[0]


def find_known_steps(run: Run) -> dict[str, Any]:
    """Accuracy of a run, and the AUROC of each method on the sequences that it answers rightly."""
    assert isinstance(run.model, SequenceModel)
    batch = next(run.dataset.evaluate("test", SEQUENCES))
    inputs, targets, weights = (np.asarray(batch[name]) for name in ("inputs", "targets", "weights"))
    logits, _ = run.model.apply({"params": run.params}, jnp.asarray(inputs))
    asked = np.flatnonzero(weights[0] > 0)
    right = np.asarray(logits.argmax(-1) == targets)
    attention = attend(run, inputs)
    found: dict[str, list[np.ndarray]] = {method: [] for method in (*METHODS, *ATTENTIONS)}
    for at in asked[:: max(len(asked) // ANSWERS, 1)]:
        relevant = explain.relevant_steps(run.experiment.data, inputs, int(at))
        output = functools.partial(say_right, at=int(at), answers=targets[:, at])
        maps = {
            method: explain.relevance(run.model, run.params, jnp.asarray(inputs), output, method=method)
            for method in METHODS
        } | {name: alpha[:, at] for name, alpha in attention.items()}
        among = np.broadcast_to(np.arange(inputs.shape[1])[None] <= at, inputs.shape)
        for method, R in maps.items():
            found[method].append(explain.auroc(R, relevant, among)[right[:, at]])
    return {
        "seed": run.experiment.training.seed,
        "accuracy": float(right[:, asked].mean()),
        "auroc": {method: float(np.concatenate(values).mean()) for method, values in found.items()},
    }


def say_right(logits: Any, at: int, answers: np.ndarray) -> Any:
    """The logit of the right answer, summed over rows."""
    return jnp.take_along_axis(logits[:, at], answers[:, None], axis=-1).sum()


def attend(run: Run, inputs: np.ndarray) -> dict[str, np.ndarray]:
    """(B, T, T) of hidden attention: the mean over blocks of its size, and its rollout."""
    assert isinstance(run.model, SequenceModel)
    tokens = jnp.asarray(inputs)
    blocks = [
        np.abs(explain.hidden_attention(run.model, run.params, tokens, block=block).alpha)
        for block in range(len(run.model.config.pattern))
    ]
    rollout = np.eye(inputs.shape[1])
    for alpha in blocks:
        share = alpha / np.maximum(alpha.sum(axis=-1, keepdims=True), 1e-30)
        rollout = (share + np.eye(inputs.shape[1])) / 2 @ rollout
    return {"hidden_attention": np.mean(blocks, axis=0), "attention_rollout": rollout}


def compare_areas(run: Run) -> dict[str, Any]:
    """Area differences of methods on examples of the test split, and how far lrp is ahead of each."""
    assert isinstance(run.model, SequenceModel)
    batch = next(run.dataset.evaluate("test", EXAMPLES))
    inputs = jnp.asarray(batch["inputs"])
    inputs = inputs[:, :LONGEST] if run.model.config.task.kind == "language" else inputs
    outputs, _ = run.model.apply({"params": run.params}, inputs)
    score = score_of(run.model.config.task.kind, np.asarray(outputs))
    found = explain.compare_methods(run.model, run.params, inputs, score, methods=METHODS[:3])
    means = {method: found.mean(method)._asdict() for method in found.differences}
    return means | {
        f"lrp less {rival}": interval(found.differences["lrp"] - found.differences[rival])
        for rival in (*METHODS[1:3], "random")
    }


def score_of(task: str, outputs: np.ndarray) -> Callable[[Any], Any]:
    """One number a row: the logit of what the model says itself, or the mean of the last quarter of a forecast."""
    if task == "forecasting":
        return lambda values: values[:, -(values.shape[1] // 4) :].mean(axis=(1, 2))
    said = outputs.reshape(len(outputs), -1, outputs.shape[-1])[:, -1].argmax(-1)[:, None]
    return lambda logits: jnp.take_along_axis(logits.reshape(len(logits), -1, logits.shape[-1])[:, -1], said, axis=-1)[
        :, 0
    ]


def correlate_lags(run: Run) -> dict[str, Any]:
    """By block: bits of single inputs by lag, the profile of hidden attention at these lags, their correlation."""
    measured = memory.measure(run, "test")["blocks"]
    inputs = jnp.asarray(next(run.dataset.evaluate("test", EXAMPLES))["inputs"])
    return dict(_correlate(run, measured, inputs))


def _correlate(run: Run, measured: dict[str, Any], inputs: Any) -> Iterator[tuple[str, Any]]:
    assert isinstance(run.model, SequenceModel)
    for number, (name, block) in enumerate(measured.items()):
        lags, bits = block["retention"]["lags"], block["retention"]["lower"]
        profile = explain.hidden_attention(run.model, run.params, inputs, block=number).profile
        shown = [float(profile[lag]) for lag in lags]
        yield (
            name,
            {"lags": lags, "bits": bits, "profile": shown, "spearman": float(stats.spearmanr(bits, shown).statistic)},
        )


if __name__ == "__main__":
    measure.run(
        "explain",
        __doc__ or "",
        benchmark,
        rounds=5,
        folders={"data": "folder with the files of data.local_dir; without it synthetic tasks alone"},
    )
