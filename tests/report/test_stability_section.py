"""The section on stability: rates seen in gates, and its table and figure with and without what was measured."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import quickstart
from selssm_jax.config import Experiment
from selssm_jax.layers.bounds import Ball, Bounds
from selssm_jax.layers.selective import SelectiveSSM
from selssm_jax.reporting import certificates
from selssm_jax.reporting.document import Picture


def stated(A):
    return Bounds(A=jnp.asarray(A), gate_min=jnp.zeros(len(A)), gate_max=jnp.ones(len(A)))


def test_the_rate_seen_is_that_of_the_product():
    rng = np.random.default_rng(0)
    gates, a = rng.uniform(0, 1, (50, 3)), np.array([0.9, 0.5, -0.2], np.float32)
    product = np.prod(1 - gates * (1 - a), axis=0)
    expected = np.abs(product).max() ** (1 / 50)
    assert certificates._observe_rate(stated(a), gates) == pytest.approx(expected)
    assert certificates._observe_rate(stated(np.diag(a)), gates) == pytest.approx(expected)
    assert certificates._observe_rate(stated(np.zeros(3, np.float32)), np.ones((4, 3))) == 0
    assert certificates._observe_rate(Bounds(unknown="nothing"), gates) is None


@pytest.mark.parametrize("measured", [False, True])
def test_a_block_without_a_rate_is_named_and_not_drawn(measured, tmp_path):
    statement = {"status": "not established", "reason": "Nothing is known."}
    names = ("state_dependent", "stationary_law", "printed_condition")
    free = dict.fromkeys(names, statement) | {"step": {"rate": None, "constant": None}, "observed_rate": 0.9, "horizon": None}
    certain = {name: {"status": "holds", "reason": "Proved."} for name in names} | {
        "step": {"rate": 0.9, "constant": 2.0},
        "observed_rate": 0.8,
        "horizon": 73.0,
    }
    memory = {"memory": {"blocks": {name: {"horizon": 7, "retention": {"lags": [0, 1, 8], "lower": [1.0, 0.5, 0.0]}} for name in ("block_0", "block_1")}}}
    results = {"stability": {"block_0": free, "block_1": certain}} | (memory if measured else {})
    *blocks, picture = certificates.stability(results, tmp_path)
    assert isinstance(picture, Picture) and (tmp_path / "stability.png").stat().st_size > 10_000
    table = "\n".join(block.markdown() for block in blocks)
    assert "| block 0 | not established | – | 0.9000 | – |" in table and "| block 1 | holds | 0.9000 |" in table
    assert not any(isinstance(block, Picture) for block in certificates.stability({"stability": {"block_0": free}}, tmp_path))


def block(rate, horizon, reason, status="holds"):
    verdict = {"status": status, "reason": reason}
    names = ("state_dependent", "stationary_law", "printed_condition")
    return dict.fromkeys(names, verdict) | {"step": {"rate": rate, "constant": 1.0 if rate else None}, "observed_rate": 0.9, "horizon": horizon}


def test_a_rate_that_is_as_good_as_one_is_said_to_be_of_no_use(tmp_path):
    found = {"block_0": block(1 - 1.58e-9, 4_371_469_541, "Proved."), "block_1": block(0.9, 66, "Proved.")}
    text = "\n".join(part.markdown() for part in certificates.stability({"stability": found}, tmp_path))
    assert "| block 0 | holds, at no useful rate | 1 - 1.6e-09 | 0.9000 | over 138,152 |" in text and "4,371,469,541" not in text
    assert "| block 1 | holds | 0.9000 | 0.9000 | 66 |" in text


@pytest.mark.parametrize(("rate", "horizon"), [(float("nan"), None), (1.0, None), (float("nan"), float("nan")), (0.5, None)])
def test_rates_that_are_no_numbers_are_drawn_nowhere_and_stop_nothing(rate, horizon, tmp_path):
    blocks = certificates.stability({"stability": {"block_0": block(rate, horizon, "Proved.")}}, tmp_path)
    assert not any(isinstance(part, Picture) for part in blocks) and "no useful rate" in "".join(part.markdown() for part in blocks)


def test_the_same_sentence_is_said_once():
    same = "The gates do not read the state. Every step shrinks differences by {}."
    found = {f"block_{k}": block(0.9, 66, same.format(rate)) for k, rate in enumerate((0.990469, 0.992784, 0.990469))} | {
        "block_3": block(None, None, "Unknown.")
    }
    assert certificates._reasons(found) == [
        "block 0, block 1, block 2: The gates do not read the state. Every step shrinks differences by 0.990469, 0.992784.",
        "block 3: Unknown.",
    ]


def test_weights_that_are_not_numbers_have_no_certificate():
    broken = Bounds(A=jnp.full(3, jnp.nan), gate_min=jnp.zeros(3), gate_max=jnp.ones(3))
    assert certificates._certify_block(broken).contraction.status == "not established"


def test_the_quickstart_is_certain_to_forget_within_a_thousand_steps():
    """Of any weights: gates of at least the floor, and components that start as slow as they do."""
    experiment = Experiment.from_config_dict(quickstart.get_config())
    layer = SelectiveSSM(experiment.model.d_model, experiment.model.d_state, gate_floor=experiment.model.gate_floor)
    params = layer.init(jax.random.key(0), jnp.zeros((1, 2, experiment.model.d_model)))["params"]
    found = certificates._certify_block(
        layer.apply({"params": params}, Ball(jnp.ones(experiment.model.d_model), float(experiment.model.d_model) ** 0.5), method="bounds")
    )
    assert found.contraction.status == "holds" and found.horizon() < 1000
