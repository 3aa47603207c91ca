"""Claim: on sixty laws of known information, fifteen of them independent, the stated errors of `estimators.estimate`
cover the truth.

  python benchmarks/coverage.py

Continuous, discrete and mixed laws, with ties, fill values, heavy tails, units from 1e-20 to 1e25, places at 1e8, from
1 to 8 columns in all and from 500 to 5,000 samples; one draw each, seeded by its number. A law is covered within three
errors where |estimate - truth| <= 3 stderr. Coverage bought by wide errors is no coverage: the median of the stated
errors stands beside it.
"""

import argparse
import json
import math
import time
import warnings
from collections.abc import Callable
from statistics import fmean, median
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
from scipy.special import ndtr

from selssm_jax.information import estimators, samplers

Pair = tuple[np.ndarray, np.ndarray]
# samples, and a draw of x, y and the truth
Law = tuple[int, Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray, float]]]
FILL = 9.96921e36  # netCDF's
ERRORS = 3.0
ALLOWED = 0.05  # nats that an independent pair may show beyond its errors


def _sampled(
    sampler: Callable[..., samplers.Sample], n: int, *arguments: Any, x: Any = None, y: Any = None, **settings: Any
) -> Law:
    """One of the package's samplers, with maps in NumPy's float64 of either side."""

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
        sample = sampler(jax.random.key(int(rng.integers(2**31))), n, *arguments, **settings)
        sides = (np.asarray(side, np.float64) for side in (sample.x, sample.y))
        left, right = (side if by is None else by(side) for side, by in zip(sides, (x, y), strict=True))
        return left, right, float(sample.information)

    return n, draw


def _normal(n: int, r: float, **maps: Any) -> Law:
    return _sampled(samplers.multinormal, n, samplers.dense_covariance(1, 1, r), 1, **maps)


def _independent(
    n: int, x: Callable[[np.random.Generator, int], np.ndarray], y: Callable[[np.random.Generator, int], np.ndarray]
) -> Law:
    return n, lambda rng: (x(rng, n), y(rng, n), 0.0)


def _channel(n: int, law: np.ndarray, channel: np.ndarray, x: Any = None, y: Any = None) -> Law:
    return _sampled(samplers.discrete_channel, n, law / law.sum(), channel / channel.sum(1, keepdims=True), x=x, y=y)


def _erased(n: int, r: float, shares: tuple[float, float], fill: float) -> Law:
    """A normal pair whose sides are missing now and then, each on its own: (1 - p)(1 - q) times as much is left."""

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
        x, y, information = _normal(n, r)[1](rng)
        gone = rng.random((2, n, 1)) < np.array(shares)[:, None, None]
        return np.where(gone[0], fill, x), np.where(gone[1], fill, y), information * (1 - shares[0]) * (1 - shares[1])

    return n, draw


def _missing_together(n: int, r: float, share: float) -> Law:
    """That both are missing tells h(p); what is left tells the rest."""

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
        x, y, information = _normal(n, r)[1](rng)
        gone = rng.random((n, 1)) < share
        entropy = -share * math.log(share) - (1 - share) * math.log(1 - share)
        return np.where(gone, FILL, x), np.where(gone, FILL, y), entropy + (1 - share) * information

    return n, draw


def _rounded(n: int, r: float, width: float, *, both: bool) -> Law:
    """A normal pair with y, or both, rounded to multiples of the width: sums over cells, the other side by fine
    quadrature.
    """
    edges = width * (np.arange(-int(9 / width), int(9 / width) + 1) + 0.5)
    inner = np.linspace(-9, 9, 18_001)
    weight = np.exp(-0.5 * inner**2)
    weight /= weight.sum()
    given = np.diff(ndtr((edges[None] - r * inner[:, None]) / math.sqrt(1 - r * r)), axis=1)
    if both:
        cell = np.searchsorted(edges, inner)
        joint = np.stack([weight[cell == k] @ given[cell == k] for k in range(len(edges) + 1)])
    else:
        joint = weight[:, None] * given
    outer = joint.sum(1, keepdims=True) * joint.sum(0)[None]
    truth = float(np.sum(joint[joint > 0] * np.log(joint[joint > 0] / outer[joint > 0])))

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
        x, y, _ = _normal(n, r)[1](rng)
        return (np.round(x / width) * width if both else x), np.round(y / width) * width, truth

    return n, draw


def _labelled(n: int, centres: np.ndarray) -> Law:
    """One of several labels, equally likely, and a normal number about the label's centre: the entropy of the mixture
    by quadrature.
    """
    grid = np.linspace(centres.min() - 9, centres.max() + 9, 40_001)
    p = np.exp(-0.5 * (grid[None] - centres[:, None]) ** 2).mean(0) / math.sqrt(2 * math.pi)
    truth = float(
        -np.sum(p * np.log(np.maximum(p, 1e-300))) * (grid[1] - grid[0]) - 0.5 * math.log(2 * math.pi * math.e)
    )

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
        label = rng.integers(0, len(centres), n)
        return label, centres[label] + rng.normal(size=n), truth

    return n, draw


def _flipped(n: int, r: float) -> Law:
    """y = s (r x + w) with a coin s: no correlation; the truth by quadrature."""
    grid = np.linspace(-8, 8, 1601)
    x, y = np.meshgrid(grid, grid, indexing="ij")
    density = lambda z, v: np.exp(-0.5 * z**2 / v) / math.sqrt(2 * math.pi * v)  # noqa: E731
    given = 0.5 * (density(y - r * x, 1 - r * r) + density(y + r * x, 1 - r * r))
    truth = float(
        np.sum(density(x, 1) * given * np.log(np.maximum(given, 1e-300) / density(y, 1))) * (grid[1] - grid[0]) ** 2
    )

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
        x, w = rng.normal(size=(2, n))
        return x, rng.choice([-1.0, 1.0], n) * (r * x + math.sqrt(1 - r * r) * w), truth

    return n, draw


def _sum_of(n: int, columns: int, noise: float) -> Law:
    """y = the mean-square-one sum of the columns of x, plus noise."""

    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
        x = rng.normal(size=(n, columns))
        return x, x.sum(1) / columns**0.5 + noise * rng.normal(size=n), 0.5 * math.log(1 + noise**-2)

    return n, draw


def _one_fill(n: int, fill: float) -> Law:
    def draw(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, float]:
        x, y = rng.normal(size=(2, n))
        x[7] = y[7] = fill
        return x, y, 0.0

    return n, draw


def _relabelled(labels: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda z: np.random.default_rng(labels).permutation(labels)[z.astype(int)]


def _outlier(z: np.ndarray) -> np.ndarray:
    z = z.copy()
    z[3] = 1e10
    return z


CONTINUOUS: dict[str, Law] = {
    "normal .3": _normal(1000, 0.3),
    "normal .8": _normal(500, 0.8),
    "normal .95": _normal(2000, 0.95),
    "normal .99 in units of 1e-20": _normal(1000, 0.99, x=lambda x: 1e-20 * x, y=lambda y: 1e-20 * y),
    "normal .6 at 1e8": _normal(2000, 0.6, x=lambda x: 1e8 + x, y=lambda y: 1e8 - y),
    "normal .6 in units of 1e20": _normal(500, 0.6, x=lambda x: 1e20 * x),
    "normal .7 and one outlier of 1e10": _normal(1000, 0.7, x=_outlier),
    "lognormal .7 in units of 1e25": _normal(1000, 0.7, x=lambda x: 1e25 * np.exp(3 * x)),
    "half-cubed and wiggly normal .9": _normal(500, 0.9, x=samplers.half_cube, y=samplers.wiggly),
    "normal .85 with a sign of chance": _flipped(2000, 0.85),
    "Student 1.5, 1 + 1": _sampled(samplers.student, 2000, np.eye(2), 1, 1.5),
    "Student 3 of correlation .5, 1 + 1": _sampled(
        samplers.student, 1000, samplers.dense_covariance(1, 1, 0.5), 1, 3.0
    ),
    "uniform noise .4": _sampled(samplers.additive_uniform, 1000, 0.4),
    "uniform noise .15": _sampled(samplers.additive_uniform, 2000, 0.15),
    "bimodal .85": _sampled(samplers.bimodal, 1000, 0.85),
    "Swiss roll of .7": _normal(2000, 0.7, x=lambda x: np.asarray(samplers.swissroll(ndtr(x)))),
    "dense .5, 2 + 2": _sampled(samplers.multinormal, 1000, samplers.dense_covariance(2, 2, 0.5), 2),
    "dense .4, 3 + 3": _sampled(samplers.multinormal, 2000, samplers.dense_covariance(3, 3, 0.4), 3),
    "sparse, 5 + 5": _sampled(samplers.multinormal, 2000, samplers.sparse_covariance(5, 5, 2, 1.4), 5),
    "dense .3, 5 + 5": _sampled(samplers.multinormal, 5000, samplers.dense_covariance(5, 5, 0.3), 5),
    "sparse in units of 1e-20 to 1e20, 3 + 3": _sampled(
        samplers.multinormal, 2000, samplers.sparse_covariance(3, 3, 2, 1.2), 3, x=lambda x: x * [1e-20, 1.0, 1e20]
    ),
    "Student 3, 2 + 2": _sampled(samplers.student, 2000, np.eye(4), 2, 3.0),
    "Student 2.5, 3 + 3": _sampled(samplers.student, 5000, np.eye(6), 3, 2.5),
    "Student 4, 5 + 5": _sampled(samplers.student, 2000, np.eye(10), 5, 4.0),
    "asinh of Student 1, 2 + 2": _sampled(samplers.student, 2000, np.eye(4), 2, 1.0, x=np.arcsinh, y=np.arcsinh),
    "spiral of a sparse normal, 3 + 3": _sampled(
        samplers.multinormal,
        5000,
        samplers.sparse_covariance(3, 3, 2, 1.3),
        3,
        x=lambda x: np.asarray(samplers.spiral(jnp.asarray(x), speed=0.25)),
    ),
    "state and inputs of a linear layer, 6 + 2": _sampled(
        samplers.linear_gaussian_channel, 2000, steps=6, dim_state=2, dim_input=1
    ),
    "a sum and noise, 5 + 1": _sum_of(1000, 5, 0.7),
    "a sum and noise, 2 + 1": _sum_of(2000, 2, 0.4),
}
DISCRETE: dict[str, Law] = {
    "binary channel": _channel(500, np.ones(2), np.array([[0.9, 0.1], [0.1, 0.9]])),
    "four noisy symbols": _channel(1000, np.arange(1.0, 5.0), 0.5 * np.eye(4) + 0.125),
    "ten symbols, channel of chance": _channel(
        2000, np.ones(10), np.random.default_rng(0).exponential(size=(10, 10)) ** 2
    ),
    "fifty labels, channel of chance": _channel(
        2000, np.ones(50), np.random.default_rng(1).exponential(size=(50, 50)) ** 4, y=_relabelled(50)
    ),
    "ten floats and themselves": _channel(500, np.ones(10), np.eye(10), x=lambda x: x / 7, y=lambda y: y / 7),
    "thirty labels of Zipf's law, renamed": _channel(1000, 1 / np.arange(1.0, 31.0), np.eye(30), y=_relabelled(30)),
    "three floats and four": _channel(
        500, np.ones(3), np.array([[5.0, 1, 1, 1], [1, 5, 1, 1], [1, 1, 1, 5]]), x=lambda x: x / 3 - 0.1
    ),
    "normal .8, both rounded to .05": _rounded(5000, 0.8, 0.05, both=True),
}
MIXED: dict[str, Law] = {
    "a coin and a number": _labelled(1000, np.array([-1.0, 1.0])),
    "five labels out of order and a number": _labelled(2000, np.array([4.0, -1.0, 0.5, -3.0, 2.0])),
    "normal .9 and .9 rounded to 1": _rounded(2000, 0.9, 1.0, both=False),
    "normal .7, y rounded to .1": _rounded(2000, 0.7, 0.1, both=False),
    "normal .9, zero in 30 % of x": _erased(2000, 0.9, (0.3, 0.0), 0.0),
    "normal .9, missing in 10 % and 20 %": _erased(2000, 0.9, (0.1, 0.2), -9999.0),
    "normal .8, missing together in 10 %": _missing_together(2000, 0.8, 0.1),
    "normal .8, one fill value of x in a hundred": _erased(1000, 0.8, (0.01, 0.0), FILL),
}


def _gaussian(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.normal(size=n)


def _whole(low: int, high: int) -> Callable[[np.random.Generator, int], np.ndarray]:
    return lambda rng, n: rng.integers(low, high, n)


INDEPENDENT: dict[str, Law] = {
    "two normals": _independent(500, _gaussian, _gaussian),
    "normals, 5 + 5": _independent(2000, *(lambda rng, n: rng.normal(size=(n, 5)),) * 2),
    "two of Cauchy's": _independent(1000, *(lambda rng, n: rng.standard_cauchy(n),) * 2),
    "one common fill of 1e10": _one_fill(2000, 1e10),
    "one common fill of netCDF": _one_fill(2000, FILL),
    "pixels of 256 values, 2,000": _independent(2000, *(_whole(0, 256),) * 2),
    "pixels of 256 values, 5,000": _independent(5000, *(_whole(0, 256),) * 2),
    "row numbers and a permutation": _independent(1000, lambda rng, n: np.arange(n), lambda rng, n: rng.permutation(n)),
    "times in nanoseconds": _independent(1000, *(_whole(1_700_000_000_000_000_000, 1_700_000_000_000_000_999),) * 2),
    "coins": _independent(500, *(_whole(0, 2),) * 2),
    "twenty labels each": _independent(500, *(_whole(0, 20),) * 2),
    "ten floats and a normal": _independent(1000, lambda rng, n: rng.integers(0, 10, n) / 3, _gaussian),
    "units of 1e-20 and of 1e20": _independent(
        500, lambda rng, n: 1e-20 * rng.normal(size=n), lambda rng, n: 1e20 * rng.normal(size=n)
    ),
    "normals rounded to .1": _independent(1000, *(lambda rng, n: rng.normal(size=n).round(1),) * 2),
    "zeros in 95 %, else exponential": _independent(
        2000, *(lambda rng, n: np.where(rng.random(n) < 0.95, 0.0, rng.exponential(size=n)),) * 2
    ),
}
KINDS = {"continuous": CONTINUOUS, "discrete": DISCRETE, "mixed": MIXED, "independent": INDEPENDENT}


def benchmark() -> dict[str, Any]:
    """Every law once."""
    laws = [(kind, name, law) for kind, laws in KINDS.items() for name, law in laws.items()]
    rows = [_row(seed, *law) for seed, law in enumerate(laws)]
    return {"dtype": "float64", "ratios": _ratios(rows), "rows": rows}


def _row(seed: int, kind: str, name: str, law: Law) -> dict[str, Any]:
    n, draw = law
    x, y, truth = draw(np.random.default_rng(seed))
    start = time.process_time()
    found = estimators.estimate(x, y)
    row = {
        "law": name,
        "kind": kind,
        "N": n,
        "seed": seed,
        "true": truth,
        "val": found.nats,
        "stderr": found.stderr,
        "direction": found.direction,
    }
    row |= {"method": found.method, "cpu_sec": round(time.process_time() - start, 1)}
    print(
        f"{name:45s} N={n} {found.nats:+.3f} - {truth:.3f} = {found.nats - truth:+.3f} +- {found.stderr:.3f}  "
        f"{row['cpu_sec']} s {found.method}",
        flush=True,
    )
    return row


def _ratios(rows: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    errors = [(abs(row["val"] - row["true"]), row["stderr"]) for row in rows]
    alone = [(abs(row["val"]), row["stderr"]) for row in rows if row["kind"] == "independent"]
    return {
        f"laws within three stated errors, of {len(rows)}": {
            "ours": sum(error <= ERRORS * stderr for error, stderr in errors),
            "at_least": 55,
        },
        f"laws within two stated errors, of {len(rows)}": {
            "ours": sum(error <= 2 * stderr for error, stderr in errors),
            "at_least": 53,
        },
        "largest independent pair beyond three stated errors, nats": {
            "ours": max(nats - ERRORS * stderr for nats, stderr in alone),
            "at_most": ALLOWED,
        },
        "median stated error, nats": {"ours": median(stderr for _, stderr in errors), "at_most": 0.05},
        "mean absolute error, nats": {"ours": fmean(error for error, _ in errors), "at_most": 0.05},
        "longest estimate, CPU s": {"ours": max(row["cpu_sec"] for row in rows), "at_most": 30},
    }


def main() -> None:
    """Measures and writes the record."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    origin = measure.describe_origin(__doc__, "python benchmarks/coverage.py")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = benchmark()
    (measure.RECORDS / "coverage.json").write_text(json.dumps(origin | found, indent=1) + "\n")
    print(json.dumps(found["ratios"], indent=1))


if __name__ == "__main__":
    main()
