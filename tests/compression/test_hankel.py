"""Hankel singular values: of systems where they are known, of the Hankel matrix itself, and as bounds of truncation."""

import numpy as np
import pytest

from selssm_jax.compression.hankel import gramians, hankel_singular_values


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
        np.testing.assert_allclose(hankel_singular_values(turn @ A @ np.linalg.inv(turn), turn @ B_, C @ np.linalg.inv(turn)).values, found.values, rtol=1e-6)


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
                np.linalg.norm(C @ np.linalg.solve(z * np.eye(5) - A, B_) - C[:, :k] @ np.linalg.solve(z * np.eye(k) - A[:k, :k], B_[:k]), 2)
                for z in np.exp(1j * np.linspace(0, np.pi, 200))
            ]
            assert found.values[k] * 0.999 <= max(errors) <= found.error_bound[k]


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="a pole of modulus 1, expected all below 1"):
        gramians(np.ones(2), np.ones((2, 1)), np.ones((1, 2)))
    with pytest.raises(ValueError, match="are no system: expected"):
        gramians(np.ones((2, 2)), np.ones((3, 1)), np.ones((1, 2)))
