"""Hankel singular values: of systems where they are known, of the Hankel matrix itself, and as bounds of truncation."""

import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.compression.hankel import gramians, hankel_singular_values
from selssm_jax.information.bottleneck import autoregressive_autocovariance
from selssm_jax.information.lyapunov import solve_lyapunov


def test_hankel_singular_values_of_known_systems():
    one = hankel_singular_values(np.array([0.5]), np.array([[2.0]]), np.array([[3.0]]))
    np.testing.assert_allclose(one.values, [6 / (1 - 0.25)])
    np.testing.assert_allclose(one.error_bound, [2 * one.values[0], 0])
    delay = hankel_singular_values(np.eye(4, k=-1), np.eye(4)[:, :1], np.eye(4)[3:])
    np.testing.assert_allclose(delay.values, np.ones(4))  # a pure delay gives all of it back: all singular values 1
    a = 0.6 * np.exp(0.8j)
    complex_, real = (
        hankel_singular_values(np.array([a]), np.array([[1.0]]), np.array([[1.0]])),
        hankel_singular_values(np.array([[a.real, -a.imag], [a.imag, a.real]]), np.eye(2), np.eye(2)),
    )
    np.testing.assert_allclose(real.values, np.repeat(complex_.values, 2))


def random_system(seed, n=5):
    rng = np.random.default_rng(seed)
    A = rng.standard_normal((n, n))
    return 0.8 * A / abs(np.linalg.eigvals(A)).max(), rng.standard_normal((n, 2)), rng.standard_normal((3, n))


def test_hankel_singular_values_are_those_of_the_hankel_matrix_in_any_coordinates():
    for seed in range(5):
        A, B_, C = random_system(seed)
        powers = [C @ np.linalg.matrix_power(A, k) @ B_ for k in range(240)]
        matrix = np.block([[powers[i + j] for j in range(120)] for i in range(120)])
        found = hankel_singular_values(A, B_, C)
        np.testing.assert_allclose(found.values, np.linalg.svd(matrix, compute_uv=False)[:5], rtol=1e-6)
        turn = np.random.default_rng(seed).standard_normal((5, 5)) + 3 * np.eye(5)
        np.testing.assert_allclose(
            hankel_singular_values(turn @ A @ np.linalg.inv(turn), turn @ B_, C @ np.linalg.inv(turn)).values,
            found.values,
            rtol=1e-6,
        )


def test_balanced_truncation_errs_by_no_more_than_the_bound():
    for seed in range(5):
        A, B_, C = random_system(seed)
        found, (past, future) = hankel_singular_values(A, B_, C), gramians(A, B_, C)
        R = np.linalg.cholesky(past)
        values, vectors = np.linalg.eigh(R.T @ future @ R)
        turn = R @ vectors[:, ::-1] * values[::-1] ** -0.25  # the Gramians are then equal and diagonal
        A, B_, C = np.linalg.solve(turn, A @ turn), np.linalg.solve(turn, B_), C @ turn
        for k in range(1, 5):
            errors = [
                np.linalg.norm(
                    C @ np.linalg.solve(z * np.eye(5) - A, B_)
                    - C[:, :k] @ np.linalg.solve(z * np.eye(k) - A[:k, :k], B_[:k]),
                    2,
                )
                for z in np.exp(1j * np.linspace(0, np.pi, 200))
            ]
            assert found.values[k] * 0.999 <= max(errors) <= found.error_bound[k]


@pytest.mark.parametrize("n", [5, 12])
@pytest.mark.parametrize("complex_parts", ["B", "C", "BC", "ABC"])
def test_gramians_solve_their_equations_whichever_parts_are_complex(n, complex_parts):
    """SciPy's solver alone is wrong for real A and complex right sides from n = 10 on (scipy#26177)."""
    rng = np.random.default_rng(n)
    A, B_, C = (
        rng.standard_normal(shape) + 1j * rng.standard_normal(shape) * (name in complex_parts)
        for name, shape in (("A", (n, n)), ("B", (n, 2)), ("C", (2, n)))
    )
    A = A * 0.9 / abs(np.linalg.eigvals(A)).max()
    past, future = gramians(A.real if "A" not in complex_parts else A, B_, C)
    np.testing.assert_allclose(A @ past @ A.conj().T - past, -B_ @ B_.conj().T, atol=1e-11 * abs(past).max())
    np.testing.assert_allclose(A.conj().T @ future @ A - future, -C.conj().T @ C, atol=1e-11 * abs(future).max())


@pytest.mark.parametrize("near", [1e-4, 1e-7])
def test_a_pole_near_minus_one_costs_no_digits_of_the_residual(near):
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((12, 12)))[0]
    A, b = basis @ np.diag([near - 1, *rng.uniform(-0.8, 0.8, 11)]) @ basis.T, rng.standard_normal((12, 1))
    X = solve_lyapunov(A, b @ b.T)
    assert abs(A @ X @ A.T - X + b @ b.T).max() < 1e-14 * abs(X).max()


def test_a_gramian_that_float64_does_not_determine_is_refused():
    """A Jordan block: SciPy returns 1.7e22 with a residual of 1e5. And a pole so near to the circle that 1 - |a|^2 is
    rounding.
    """
    jordan = 0.9 * np.eye(12) + np.eye(12, k=1)
    with pytest.raises(ValueError, match=r"known to a relative error of .* too far from a normal one"):
        gramians(jordan, np.ones((12, 1)), np.ones((1, 12)))
    with pytest.raises(ValueError, match="known to a relative error of"):
        gramians(np.array([0.5, 1 - 1e-13]), np.ones((2, 1)), np.ones((1, 2)))


@pytest.mark.parametrize(("radius", "turn"), [(0.9, 0.5), (0.999, 0.01), (0.9999, 0.01)])
def test_a_nearly_unstable_process_has_the_covariance_that_its_poles_give(radius, turn):
    """Of x_t = c x_{t-1} + d x_{t-2} + e_t: (1 - d) / ((1 + d) ((1 - d)^2 - c^2)) (Box and Jenkins, 3.2.28). Doubling
    in float32 gives NaN for the last.
    """
    coefficients = jnp.asarray([[[2 * radius * np.cos(turn)]], [[-(radius**2)]]], jnp.float32)
    c, d = np.asarray(coefficients, np.float64).ravel()
    found = autoregressive_autocovariance(coefficients, jnp.ones((1, 1)), lags=2).ravel()
    variance = (1 - d) / ((1 + d) * ((1 - d) ** 2 - c**2))
    np.testing.assert_allclose(found, [variance, variance * c / (1 - d)], rtol=1e-5)


def test_gramians_of_float32_systems_are_computed_in_float64():
    a = np.float32([0.9999, 0.5])
    past = gramians(a, np.ones((2, 1), np.float32), np.ones((1, 2), np.float32)).past
    np.testing.assert_allclose(past[0, 0], 1 / (1 - float(a[0]) ** 2), rtol=1e-11)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="B holds numbers that are not finite"):
        gramians(np.full(2, 0.5), np.array([[1.0], [np.nan]]), np.ones((1, 2)))
    with pytest.raises(ValueError, match="a pole of modulus 1, expected all below 1"):
        gramians(np.ones(2), np.ones((2, 1)), np.ones((1, 2)))
    with pytest.raises(ValueError, match="are no system: expected"):
        gramians(np.ones((2, 2)), np.ones((3, 1)), np.ones((1, 2)))
