"""Transfer entropy: exact values against the joint covariance by impulse responses, closed cases, rows of series, and
what is refused.
"""

import inspect
import math

import numpy as np
import pytest

from selssm_jax.information import conditional, transfer

F = np.array([[[0.5, 0.3], [0.2, 0.4]]])
GROUPS = {"source": [0], "target": [1]}


def random_process(seed: int) -> tuple[np.ndarray, np.ndarray, dict[str, list[int]]]:
    """A stable autoregression of up to four components and order three, with correlated noise."""
    rng = np.random.default_rng(seed)
    m, p = int(rng.integers(2, 5)), int(rng.integers(1, 4))
    coefficients = rng.normal(size=(p, m, m))
    radius = np.abs(np.linalg.eigvals(companion(coefficients))).max()
    coefficients *= (0.75 / radius) ** np.arange(1, p + 1)[:, None, None]
    root, (source, target, *others) = rng.normal(size=(m, m)), rng.permutation(m).tolist()
    return coefficients, root @ root.T + 0.1 * np.eye(m), {"source": [source], "target": [target], "given": others[:1]}


def companion(coefficients: np.ndarray) -> np.ndarray:
    p, m, _ = coefficients.shape
    return np.concatenate([coefficients.transpose(1, 0, 2).reshape(m, p * m), np.eye((p - 1) * m, p * m)])


def by_joint_covariance(responses: np.ndarray, noise: np.ndarray, lags: int, source, target, given=()) -> float:
    """From y_t = sum_k R_k e_{t-k} alone: covariances as sums of products, then determinants."""
    m = responses.shape[1]
    lagged = [
        np.einsum("kij,jl,kml->im", responses[back:], noise, responses[: len(responses) - back])
        for back in range(lags + 1)
    ]
    # block (i, j): of y_{t-i} and y_{t-j}
    joint = np.block([[lagged[j - i] if j >= i else lagged[i - j].T for j in range(lags + 1)] for i in range(lags + 1)])
    rows = lambda group, steps: [m * back + row for back in steps for row in group]  # noqa: E731
    past = range(1, lags + 1)
    x, y, z = rows(source, past), rows(target, [0]), rows(target, past) + rows(given, past)
    log_det = lambda seen: np.linalg.slogdet(joint[np.ix_(seen, seen)])[1]  # noqa: E731
    return (log_det(x + z) + log_det(y + z) - log_det(z) - log_det(x + y + z)) / 2


def impulse_responses(A: np.ndarray, B: np.ndarray, C: np.ndarray, steps: int = 400) -> np.ndarray:
    responses, state = [], B
    for _ in range(steps):
        responses.append(C @ state)
        state = A @ state
    return np.stack(responses)


@pytest.mark.parametrize("seed", range(8))
def test_an_autoregression_is_that_of_its_joint_covariance(seed):
    coefficients, noise, groups = random_process(seed)
    p, m, _ = coefficients.shape
    responses = impulse_responses(companion(coefficients), np.eye(p * m, m), np.eye(m, p * m))
    exact = lambda lags: transfer.of_autoregression(coefficients, noise, **groups, lags=lags)  # noqa: E731
    for lags in (1, 3):
        assert exact(lags) == pytest.approx(by_joint_covariance(responses, noise, lags, **groups), abs=1e-9)
    # the whole past, once a longer one adds nothing
    long = [by_joint_covariance(responses, noise, lags, **groups) for lags in (45, 60)]
    assert abs(long[1] - long[0]) < 1e-9
    assert exact(None) == pytest.approx(long[1], abs=1e-9)


def test_a_state_space_is_that_of_its_joint_covariance():
    """Three hidden components, of which two mixtures are seen through noise, and one alone."""
    rng = np.random.default_rng(1)
    A = rng.normal(size=(3, 3))
    A *= 0.7 / np.abs(np.linalg.eigvals(A)).max()
    C, R = rng.normal(size=(3, 3)), np.diag([0.3, 0.1, 0.2])
    responses = impulse_responses(A, np.eye(3), C, 200)
    driven = np.concatenate([responses, np.zeros_like(responses)], axis=2)
    driven[0, :, 3:] = np.eye(3)  # observation noise is an input that is felt once
    noise = np.zeros((6, 6))
    noise[:3, :3], noise[3:, 3:] = np.diag([1.0, 0.5, 2.0]), R
    groups = {"source": [0], "target": [1], "given": [2]}
    exact = lambda lags: transfer.of_state_space(A, C, noise[:3, :3], R, **groups, lags=lags)  # noqa: E731
    for lags, seen in ((2, 2), (None, 40)):
        assert exact(lags) == pytest.approx(by_joint_covariance(driven, noise, seen, **groups), abs=1e-9)


@pytest.mark.parametrize("b", [0.0, 1e-4, 1.0, 30.0])
def test_white_input_is_told_apart_from_noise(b):
    """y_t = a y_{t-1} + b x_{t-1} + e_t, x white: 1/2 log(1 + b^2), whatever a, for one lag and for all."""
    driven = np.array([[[0.0, 0.0], [b, 0.9]]])
    for lags in (None, 1, 4):
        exact = transfer.of_autoregression(driven, np.eye(2), **GROUPS, lags=lags)
        assert exact == pytest.approx(0.5 * math.log1p(b * b), abs=1e-14 * (100 + b * b))  # covariances grow as b^2
        back = transfer.of_autoregression(driven, np.eye(2), source=[1], target=[0], lags=lags)
        assert back == pytest.approx(0, abs=1e-12)


def test_units_do_not_matter():
    units = np.diag([1e15, 1e-15])
    scaled = units @ F[0] @ np.linalg.inv(units)
    for lags in (None, 2):
        exact = [
            transfer.of_autoregression(coefficients, noise, **GROUPS, lags=lags)
            for coefficients, noise in ((F, np.eye(2)), (scaled[None], units**2))
        ]
        assert exact[1] == pytest.approx(exact[0], abs=1e-12)


def test_a_common_driver_is_transfer_only_where_it_is_not_given():
    """z drives x at once and y a step later: x tells y's next value, and beside z nothing."""
    coefficients = np.zeros((2, 3, 3))
    coefficients[0, 0, 2] = coefficients[1, 1, 2] = 1.0
    assert transfer.of_autoregression(coefficients, np.eye(3), **GROUPS) > 0.1
    assert transfer.of_autoregression(coefficients, np.eye(3), **GROUPS, given=[2]) == pytest.approx(0, abs=1e-12)


def test_a_slow_process_is_exact_too():
    """Poles at 0.9999: closed form of a white input again, the source seen through noise of its own."""
    exact = transfer.of_autoregression(np.array([[[0.9999, 0.0], [0.1, 0.9999]]]), np.eye(2), **GROUPS)
    again = transfer.of_state_space(
        np.array([[0.9999, 0.0], [0.1, 0.9999]]), np.eye(2), np.eye(2), np.zeros((2, 2)), **GROUPS
    )
    assert exact == pytest.approx(again, abs=1e-9) and 0 < exact < 1


def test_rows_are_the_past_of_each_newest_first():
    source, target, given = np.arange(6), 10 + np.arange(6), 20 + np.arange(6)
    x, y, z = transfer.embed_past(source, target, given, lags=2)
    np.testing.assert_array_equal(x, [[1, 0], [2, 1], [3, 2], [4, 3]])
    np.testing.assert_array_equal(y, [[12], [13], [14], [15]])
    np.testing.assert_array_equal(z, [[11, 10, 21, 20], [12, 11, 22, 21], [13, 12, 23, 22], [14, 13, 24, 23]])
    assert x.dtype == source.dtype  # labels stay labels


def test_an_estimate_says_what_its_error_leaves_out():
    rng = np.random.default_rng(0)
    source, noise = rng.normal(size=(2, 2000))
    target = np.roll(source, 1) + noise
    estimate = transfer.entropy(source, target, estimator=conditional.gaussian)
    assert abs(estimate.nats - 0.5 * math.log(2)) < 3 * estimate.stderr
    assert estimate.method.startswith("transfer entropy, 1 lag: Gaussian") and "take" in estimate.notes[-1]
    assert abs(transfer.entropy(target, source, estimator=conditional.gaussian).nats) < 0.01


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lags": 0}, "lags=0, expected at least 1"),
        ({"lags": 1.5}, "lags=1.5"),
        ({"lags": 49}, "50 steps of a series with lags=49, expected at least 51"),
        ({"lags": 60}, "50 steps of a series with lags=60"),
        ({"source": np.zeros(49)}, "series have different numbers of steps"),
        ({"given": np.zeros(49)}, "series have different numbers of steps"),
        ({"source": np.full(50, np.nan)}, "source holds nan"),
        ({"source": np.zeros((50, 2, 1))}, "source has shape"),
        ({"target": np.zeros(0)}, "target has shape"),
        ({"target": 1j * np.ones(50)}, "target has dtype complex"),
        ({"target": np.array(["a"] * 50)}, "target has dtype"),
        ({"target": np.ma.masked_equal(np.arange(50), 3)}, "target has masked values"),
    ],
)
def test_bad_series_are_named(change, message):
    series = {"source": np.zeros(50), "target": np.zeros(50)} | change
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(transfer.embed_past)(**series)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"coefficients": np.eye(2)}, r"coefficients have shape \(2, 2\)"),
        ({"coefficients": 1j * F}, "coefficients has dtype complex"),
        ({"coefficients": np.full((1, 2, 2), np.nan)}, "A holds nan"),
        ({"coefficients": 2 * F}, "spectral radius 1.4.*no stationary law"),
        ({"coefficients": np.eye(2)[None]}, "spectral radius 1, "),
        ({"noise_cov": np.eye(3)}, r"noise_cov has shape \(3, 3\), expected \(2, 2\)"),
        ({"noise_cov": -np.eye(2)}, "expected variances"),
        ({"noise_cov": np.ones((2, 2))}, "singular.*follows from the others"),
        ({"source": [1]}, "each in one of them, once"),
        ({"source": [2]}, "whole numbers from 0 to 1"),
        ({"target": []}, "target has no rows"),
        ({"lags": 0}, "lags=0"),
    ],
)
def test_bad_processes_are_named(change, message):
    given = {"coefficients": F, "noise_cov": np.eye(2), **GROUPS} | change
    with pytest.raises(ValueError, match=message):
        inspect.unwrap(transfer.of_autoregression)(**given)


def test_a_series_differenced_too_often_is_refused_and_its_lags_are_not():
    """y_t = h_t - h_{t-1} of white h: its errors fall as 1/t to those of h, and no stationary filter gets there."""
    A, C = np.array([[0.0, 0, 0], [1, 0, 0], [0, 0, 0.5]]), np.array([[1.0, -1, 0], [0, 0, 1]])
    law = A, C, np.diag([1.0, 0.0, 1.0]), np.zeros((2, 2))
    with pytest.raises(ValueError, match="zero at the unit circle"):
        transfer.of_state_space(*law, source=[1], target=[0])
    assert transfer.of_state_space(*law, source=[1], target=[0], lags=5) == pytest.approx(0, abs=1e-12)


def test_noise_free_outputs_of_lags_are_infinitely_informed():
    law = np.zeros((2, 2)), np.eye(2), np.eye(2), np.zeros((2, 2))
    copied = np.array([[0.0, 0.0], [1.0, 0.0]]), *law[1:2], np.diag([1.0, 0.0]), law[3]
    assert transfer.of_state_space(*copied, **GROUPS, lags=1) == math.inf
    with pytest.raises(ValueError, match="singular"):
        transfer.of_state_space(*copied, **GROUPS)


def test_a_series_too_slow_for_its_covariance_is_refused_and_its_whole_past_is_not():
    """A sum of a sum, with poles of .999: 1e-12 of the variance is new in a step."""
    A = np.array([[0.999, 0, 0], [1, 0.999, 0], [0, 0, 0.0]])
    law = A, np.eye(3)[1:], np.diag([1.0, 1e-3, 1.0]), np.zeros((2, 2))
    groups = {"source": [1], "target": [0]}
    assert transfer.of_state_space(*law, **groups) == pytest.approx(0, abs=1e-9)
    with pytest.raises(ValueError, match="output 0 is so slow"):
        transfer.of_state_space(*law, **groups, lags=2)
