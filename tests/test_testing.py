"""The public laws: they pass what obeys them, and name the law that another breaks."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np
import pytest

from selssm_jax.information import Estimate, conditional, estimators, neighbours
from selssm_jax.layers import Bidirectional, SelectiveSSM
from selssm_jax.ops import linear_scan
from selssm_jax.testing import check_conditional_estimator, check_estimator, check_mixer


class Average(nn.Module):
    """A mixer of one's own, y_t = h_t = a h_{t-1} + (1 - a) x_t, with what may be wrong of one."""

    d_model: int
    fault: str = ""

    @nn.compact
    def __call__(self, x, state=None, *, reset=None):
        a = nn.sigmoid(self.param("pole", nn.initializers.normal(), (self.d_model,)))
        if self.fault == "knows its length":
            x = x / x.shape[1]
        if self.fault == "reads the batch":
            x = x + x.mean(axis=0, keepdims=True)
        drive = jnp.broadcast_to(1 - a, x.shape) * x
        h, last = linear_scan(
            jnp.broadcast_to(a, x.shape), drive, state, reset=None if self.fault == "has no reset" else reset
        )
        y = jnp.roll(h, -1, axis=1) if self.fault == "sees the future" and x.shape[1] > 1 else h
        return (y if self.fault != "keeps nothing" else x), last

    def initial_state(self, batch, steps=None):
        return jnp.full((batch, self.d_model), 1.0 if self.fault == "begins elsewhere" else 0.0)


def test_an_own_mixer_obeys_the_laws():
    check_mixer(Average(4), d_model=4)
    check_mixer(SelectiveSSM(4, 6), d_model=4)


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        ("knows its length", "of one call and of its pieces"),
        ("reads the batch", "a row beside another one"),
        ("has no reset", "after a reset"),
        ("sees the future", "pieces differ|which is later"),
        ("keeps nothing", "nothing is remembered"),
        ("begins elsewhere", "from initial_state on"),
    ],
)
def test_a_law_that_is_broken_is_named(fault, says):
    with pytest.raises(AssertionError, match=says):
        check_mixer(Average(4, fault), d_model=4)


def test_reading_both_ways_is_no_mixer():
    with pytest.raises(AssertionError, match="pieces"):
        check_mixer(Bidirectional(Average(4), Average(4)), d_model=4)


@pytest.mark.parametrize("estimator", [estimators.gaussian, neighbours.ksg])
def test_estimators_of_the_package_keep_their_promises(estimator):
    check_estimator(estimator)


@pytest.mark.parametrize("estimator", [conditional.gaussian, conditional.ksg])
def test_conditional_estimators_of_the_package_keep_theirs(estimator):
    check_conditional_estimator(estimator)


def test_an_estimator_that_forgets_what_is_given_is_named():
    with pytest.raises(AssertionError, match=r"a sample of 0.000 nats is said to have ~ 0.2"):
        check_conditional_estimator(lambda x, y, z: estimators.gaussian(x, y))
    with pytest.raises(AssertionError, match="NaN are answered"):
        check_conditional_estimator(lambda x, y, z: conditional.gaussian(x, y, np.nan_to_num(z)))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda found, x: found.nats, "expected an information.Estimate"),
        (lambda found, x: dataclasses.replace(found, nats=found.nats + 1), "off by more than three"),
        (lambda found, x: dataclasses.replace(found, nats=2 * found.nats, direction="lower"), "off by more than three"),
        (
            lambda found, x: dataclasses.replace(found, nats=found.nats * min(1.0, float(abs(x).max()))),
            "in units of 1e-20",
        ),
    ],
)
def test_a_promise_that_is_broken_is_named(change, says):
    with pytest.raises(AssertionError, match=says):
        check_estimator(lambda x, y: change(estimators.gaussian(x, y), x))


def test_an_estimator_that_answers_nonsense_is_named():
    def careless(x, y):
        try:
            return estimators.gaussian(x, y)
        except ValueError:
            return Estimate(0.0, 0.1, "estimate", "careless")

    with pytest.raises(AssertionError, match="NaN are answered by"):
        check_estimator(careless)
