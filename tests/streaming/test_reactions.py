"""What follows a change: each reaction beside a stream without one, at an alarm that is set by hand."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selssm_jax.config import Model, Task
from selssm_jax.model import SequenceModel
from selssm_jax.streaming import Reaction, Stream

SGD, ADAM = optax.sgd(0.01), optax.adam(0.01)
ROWS = np.random.default_rng(0).normal(size=(40, 1)).astype(np.float32)
MODEL = SequenceModel(
    Model(
        task=Task("forecasting", channels=1, horizon=1),
        **{"pattern": ("selective",), "d_model": 4, "d_state": 4, "mlp_ratio": 0.0, "normalize": False},
    )
)


@dataclasses.dataclass(frozen=True)
class Alarm:
    """A detector that says a rise at the truth of one number, and nothing else."""

    at: int = 5

    def start(self):
        return jnp.zeros((), jnp.int32)

    def update(self, state, value):
        return state + 1, (state + 1 == self.at).astype(jnp.int32)


def make(optimizer=SGD, **reaction):
    params = jax.jit(MODEL.init)(jax.random.key(0), jnp.zeros((1, 1, 1)))["params"]
    return Stream(MODEL, params, optimizer, detector=Alarm(), reaction=Reaction(**reaction))


def follow(stream, steps):
    """Answers and learns so many truths, and returns the last lesson; no answer waits then."""
    for now, after in itertools.pairwise(ROWS[: steps + 1]):
        stream.predict(now)
        lesson = stream.learn(after[None])
    return lesson


def assert_close(ours, truth):
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7), ours, truth)


@pytest.mark.exhaustive
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_share_of_the_memory_stays_and_of_its_traces(share):
    plain, reacting = make(), make(memory=share)
    for stream in (plain, reacting):
        assert follow(stream, 5).change == 1
    for name in ("front", "behind"):
        whole, less = (getattr(stream.state.leader, name)["blocks"][0]["mixer"] for stream in (plain, reacting))
        assert np.abs(whole).max() > 0
        assert_close(less, share * whole)
    assert_close(reacting.state.leader.memory, jax.tree.map(lambda trace: share * trace, plain.state.leader.memory))
    assert_close(reacting.params, plain.params)


@pytest.mark.exhaustive
def test_steps_are_longer_after_a_change_and_fall_back():
    plain, reacting = make(), make(rate=4.0, rate_steps=10)
    for stream in (plain, reacting):
        assert follow(stream, 5).boost == 1
    before = plain.params
    lessons = [follow_on(stream) for stream in (plain, reacting)]
    assert lessons[1].boost == 4 and lessons[0].boost == 1
    steps = (jax.tree.map(jnp.subtract, stream.params, before) for stream in (plain, reacting))
    once, four_times = steps
    jax.tree.map(lambda step, long: np.testing.assert_allclose(long, 4 * step, atol=2e-6), once, four_times)
    assert follow_on(reacting).boost == pytest.approx(1 + 3 * np.exp(-1 / 10), rel=1e-5)


def follow_on(stream):
    stream.predict(ROWS[20])
    return stream.learn(ROWS[21:22])


@pytest.mark.exhaustive
def test_the_optimizer_forgets_its_moments():
    reacting = make(ADAM, reset_optimizer=True)
    follow(reacting, 4)
    assert int(optax.tree.get(reacting.state.leader.opt_state, "count")) == 4
    follow(reacting, 1)
    assert int(optax.tree.get(reacting.state.leader.opt_state, "count")) == 0


@pytest.mark.exhaustive
@pytest.mark.parametrize("spoilt", [True, False])
def test_a_fresh_learner_goes_on_where_it_is_better(spoilt):
    stream = make(optax.sgd(0.0), fork=8)
    fresh = stream.params
    head = fresh["head"] | {"out": fresh["head"]["out"] | {"bias": fresh["head"]["out"]["bias"] + 9}}
    worse = fresh | {"head": head}
    leader = stream.state.leader._replace(params=worse if spoilt else fresh)
    stream.state = stream.state._replace(leader=leader, origin=fresh if spoilt else worse)
    follow(stream, 5)
    assert int(stream.state.trial.left) == 8
    replaced = [bool(follow_on(stream).replaced) for _ in range(10)]
    assert replaced == [spoilt and step == 7 for step in range(10)]
    assert int(stream.state.trial.left) == 0
    assert_close(stream.params, fresh)


@pytest.mark.exhaustive
def test_a_fresh_learner_goes_on_where_the_leader_says_no_numbers():
    stream = make(fork=8)
    follow(stream, 5)
    params = jax.tree.map(lambda leaf: leaf * jnp.nan, stream.params)
    stream.state = stream.state._replace(leader=stream.state.leader._replace(params=params))
    replaced = [bool(follow_on(stream).replaced) for _ in range(8)]
    assert replaced == [step == 7 for step in range(8)]
    assert np.isfinite(follow_on(stream).score) and np.isfinite(stream.predict([1.0])).all()


@pytest.mark.parametrize("options", [{"rate": 0.0}, {"rate_steps": 0}, {"memory": 1.5}, {"fork": -1}])
def test_values_out_of_range_are_refused(options):
    with pytest.raises(ValueError, match="out of range: use"):
        Reaction(**options)
