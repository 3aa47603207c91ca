"""Claim: p-values of independent laws are uniform, and intervals of 95 % cover known information.

  python benchmarks/inference.py

Tests: laws without dependence, of 200 to 300 rows, 39 rearrangements each; p-values are spread evenly over the step of
1/40 that each stands for, which makes exact ones uniform, and compared with the uniform law by Kolmogorov and Smirnov.
The last law is one whose condition does not hold: z nearly determines x, and local permutations are not valid.
Intervals: laws of known information, by the stated error and by the jackknife; rows of series in consecutive blocks.
"""

import argparse
import json
import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from statistics import fmean, median
from typing import Any

import measure
import numpy as np
from scipy.signal import lfilter
from scipy.stats import kstest

from selssm_jax.information import conditional, estimators, inference, transfer

REARRANGED, LEVEL = 39, 0.95
RUNS = {"tests": 100, "intervals": 60}
Rows = tuple[np.ndarray, ...]
Draw = Callable[[np.random.Generator], Rows]
Estimator = Callable[..., Any]
linear_transfer = partial(transfer.entropy, estimator=conditional.gaussian)


def _series(rng: np.random.Generator, pole: float, steps: int) -> np.ndarray:
    return lfilter([1.0], [1.0, -pole], rng.normal(size=steps + 200))[200:]


def _pair(rng: np.random.Generator) -> Rows:
    return tuple(rng.exponential(size=(2, 200)) ** 2)


def _common_cause(rng: np.random.Generator, noise: float = 1.0) -> Rows:
    z, a, b = rng.normal(size=(3, 200))
    return z + noise * a, z + noise * b, z


def _two_bent_causes(rng: np.random.Generator) -> Rows:
    z = rng.normal(size=(300, 2))
    return z[:, 0] + rng.normal(size=300), z[:, 0] * z[:, 1] + rng.normal(size=300), z


def _labelled_cause(rng: np.random.Generator) -> Rows:
    z = rng.integers(0, 5, 200)
    return z + rng.normal(size=200), z**2 + rng.normal(size=200), z


def _slow(rng: np.random.Generator) -> Rows:
    return _series(rng, 0.9, 300), _series(rng, 0.9, 300)


def _target_drives(rng: np.random.Generator) -> Rows:
    y = _series(rng, 0.6, 300)
    return transfer.embed_past(lfilter([0.0, 0.8], [1.0, -0.5], y) + rng.normal(size=300), y)


PERMUTE = partial(inference.permutation_test, permutations=REARRANGED)
SHIFT = partial(inference.shift_test, shifts=REARRANGED)
LOCALLY = partial(inference.local_permutation_test, permutations=REARRANGED)
TESTS: dict[str, tuple[Callable[..., inference.Significance], Estimator, Draw]] = {
    "permutations: gaussian, heavy tails": (PERMUTE, estimators.gaussian, _pair),
    "permutations: ksg, heavy tails": (PERMUTE, estimators.ksg, _pair),
    "shifts: gaussian transfer, poles of .9": (SHIFT, linear_transfer, _slow),
    "shifts: ksg transfer, poles of .9": (SHIFT, transfer.entropy, _slow),
    "local permutations: gaussian, common cause": (LOCALLY, conditional.gaussian, _common_cause),
    "local permutations: ksg, common cause": (LOCALLY, conditional.ksg, _common_cause),
    "local permutations: ksg, two bent causes": (LOCALLY, conditional.ksg, _two_bent_causes),
    "local permutations: ksg, a label as cause": (LOCALLY, conditional.ksg, _labelled_cause),
    "local permutations: gaussian, target drives source": (LOCALLY, conditional.gaussian, _target_drives),
    "local permutations: ksg, target drives source": (LOCALLY, conditional.ksg, _target_drives),
}
OUTSIDE = {
    "local permutations: gaussian, z tells x to a hundredth": (
        LOCALLY,
        conditional.gaussian,
        partial(_common_cause, noise=0.01),
    )
}


def _correlated(rng: np.random.Generator, r: float = 0.6) -> Rows:
    x, e = rng.normal(size=(2, 500))
    return x, r * x + math.sqrt(1 - r * r) * e


def _collider(rng: np.random.Generator) -> Rows:
    x, y, e = rng.normal(size=(3, 500))
    return x, y, x + y + 0.7 * e


def _parity(rng: np.random.Generator) -> Rows:
    x, y = rng.integers(0, 2, (2, 500))
    return x, y, x ^ y ^ (rng.random(500) < 0.1)


DRIVEN = np.array([[[0.8, 0.0], [0.5, 0.8]]])


def _driven(rng: np.random.Generator) -> Rows:
    source = _series(rng, 0.8, 1000)
    return transfer.embed_past(source, lfilter([1.0], [1.0, -0.8], 0.5 * np.roll(source, 1) + rng.normal(size=1000)))


def _both_slow(rng: np.random.Generator) -> Rows:
    x = _series(rng, 0.9, 1000)
    return x, x + _series(rng, 0.9, 1000)


def _determinants(*groups: float) -> float:
    """1/2 log of the quotient of the first two variances or determinants by the last two."""
    return 0.5 * math.log(groups[0] * groups[1] / (groups[2] * groups[3]))


CORRELATION = -0.5 * math.log(1 - 0.6**2)
COLLIDER = _determinants(1.49, 1.49, 2.49, 0.49)
PARITY = math.log(2) + 0.1 * math.log(0.1) + 0.9 * math.log(0.9)
TRANSFER = transfer.of_autoregression(DRIVEN, np.eye(2), source=[0], target=[1], lags=1)
INTERVALS: dict[str, tuple[Estimator, Draw, float, bool]] = {
    "correlation .6: gaussian": (estimators.gaussian, _correlated, CORRELATION, False),
    "correlation .6: ksg": (estimators.ksg, _correlated, CORRELATION, False),
    "independent: gaussian": (estimators.gaussian, partial(_correlated, r=0.0), 0.0, False),
    "independent: ksg": (estimators.ksg, partial(_correlated, r=0.0), 0.0, False),
    "collider: gaussian": (conditional.gaussian, _collider, COLLIDER, False),
    "collider: ksg": (conditional.ksg, _collider, COLLIDER, False),
    "parity of bits: counts": (conditional.discrete, _parity, PARITY, False),
    "transfer entropy: gaussian": (conditional.gaussian, _driven, TRANSFER, True),
    "transfer entropy: ksg": (conditional.ksg, _driven, TRANSFER, True),
    "rows of slow series: gaussian": (estimators.gaussian, _both_slow, 0.5 * math.log(2), True),
}


def measure_test(name: str, runs: int) -> dict[str, Any]:
    """P-values of draws of a law without dependence."""
    test, estimator, draw = (TESTS | OUTSIDE)[name]
    p, steps = [], []
    for seed in range(runs):
        rng = np.random.default_rng(seed)
        p.append(test(estimator, *draw(rng), seed=seed).p_value)
        steps.append(rng.random() / (REARRANGED + 1))
    uniform = kstest(np.array(p) - steps, "uniform").pvalue
    shares = {f"p <= {level}": fmean(value <= level + 1e-9 for value in p) for level in (0.05, 0.1, 0.25)}
    return {"law": name, "runs": runs, "KS p": float(uniform), **shares}


def measure_coverage(name: str, runs: int) -> Iterator[dict[str, Any]]:
    """How often intervals hold the known information, and how wide they are."""
    estimator, draw, truth, serial = INTERVALS[name]
    made = []
    for seed in range(runs):
        rows = draw(np.random.default_rng(seed))
        jackknife = inference.jackknife_interval(estimator, *rows, level=LEVEL, serial=serial)
        made.append((inference.confidence_interval(jackknife.estimate, level=LEVEL), jackknife))
    errors = [jackknife.estimate.nats - truth for _, jackknife in made]
    for method, intervals in zip(("stated", "jackknife"), zip(*made, strict=True), strict=True):
        yield {
            "law": name,
            "truth": truth,
            "interval": method,
            "rows in the order of time": serial,
            "runs": runs,
            "covered": fmean(interval.lower <= truth <= interval.upper for interval in intervals),
            "median width": median(interval.upper - interval.lower for interval in intervals),
            "bias": fmean(errors),
            "deviation": float(np.std(errors)),
        }


def benchmark(runs: dict[str, int] = RUNS) -> dict[str, Any]:
    """All laws."""
    tests: list[dict[str, Any]] = []
    intervals: list[dict[str, Any]] = []
    for name in TESTS | OUTSIDE:
        tests.append(measure_test(name, runs["tests"]))
        print(tests[-1], flush=True)
    for name in INTERVALS:
        intervals.extend(measure_coverage(name, runs["intervals"]))
        print(*intervals[-2:], sep="\n", flush=True)
    return {
        "dtype": "float64 and float32",
        "ratios": summarise(tests, intervals),
        "tests": tests,
        "intervals": intervals,
    }


def summarise(tests: list[dict[str, Any]], intervals: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """What the rows say, beside targets that leave room for the chance of so many runs."""
    inside = [row for row in tests if row["law"] in TESTS]
    outside = [row["p <= 0.05"] for row in tests if row["law"] in OUTSIDE]
    by = {
        method: [row["covered"] for row in intervals if row["interval"] == method] for method in ("stated", "jackknife")
    }
    return {
        "smallest KS p of ten laws": {"ours": min(row["KS p"] for row in inside), "at_least": 0.01},
        "largest share of p <= .05": {"ours": max(row["p <= 0.05"] for row in inside), "at_most": 0.12},
        "share of p <= .05 where z tells x, outside of the condition": {"ours": max(outside)},
        "least coverage of jackknife intervals of 95 %": {"ours": min(by["jackknife"]), "at_least": 0.88},
        "least coverage of stated intervals of 95 %, slow series among them": {"ours": min(by["stated"])},
    }


def main() -> None:
    """Measures and writes the record."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    origin = measure.describe_origin(__doc__, "python benchmarks/inference.py")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        result = benchmark()
    (measure.RECORDS / "inference.json").write_text(json.dumps(origin | result, indent=1) + "\n")
    print(json.dumps(result["ratios"], indent=1))


if __name__ == "__main__":
    main()
