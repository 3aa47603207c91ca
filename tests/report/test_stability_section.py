"""The section on stability: its table and figure with and without what was measured."""

import pytest

from selssm_jax.report import stability_section
from selssm_jax.report.document import Picture


@pytest.mark.parametrize("measured", [False, True])
def test_a_block_without_a_rate_is_named_and_not_drawn(measured, tmp_path):
    statement = {"status": "not established", "reason": "Nothing is known."}
    names = ("state_dependent", "stationary_law", "printed_condition")
    free = dict.fromkeys(names, statement) | {
        "step": {"rate": None, "constant": None},
        "observed_rate": 0.9,
        "horizon": None,
    }
    certain = {name: {"status": "holds", "reason": "Proved."} for name in names} | {
        "step": {"rate": 0.9, "constant": 2.0},
        "observed_rate": 0.8,
        "horizon": 73.0,
    }
    memory = {
        "memory": {
            "blocks": {
                name: {"horizon": 7, "retention": {"lags": [0, 1, 8], "lower": [1.0, 0.5, 0.0]}}
                for name in ("block_0", "block_1")
            }
        }
    }
    results = {"stability": {"block_0": free, "block_1": certain}} | (memory if measured else {})
    *blocks, picture = stability_section.describe_stability(results, tmp_path)
    assert isinstance(picture, Picture) and (tmp_path / "stability.png").stat().st_size > 10_000
    table = "\n".join(block.markdown() for block in blocks)
    assert "| block 0 | not established | – | 0.9000 | – |" in table and "| block 1 | holds | 0.9000 |" in table
    assert not any(
        isinstance(block, Picture)
        for block in stability_section.describe_stability({"stability": {"block_0": free}}, tmp_path)
    )


def block(rate, horizon, reason, status="holds"):
    verdict = {"status": status, "reason": reason}
    names = ("state_dependent", "stationary_law", "printed_condition")
    return dict.fromkeys(names, verdict) | {
        "step": {"rate": rate, "constant": 1.0 if rate else None},
        "observed_rate": 0.9,
        "horizon": horizon,
    }


def test_a_rate_that_is_as_good_as_one_is_said_to_be_of_no_use(tmp_path):
    found = {"block_0": block(1 - 1.58e-9, 4_371_469_541, "Proved."), "block_1": block(0.9, 66, "Proved.")}
    text = "\n".join(part.markdown() for part in stability_section.describe_stability({"stability": found}, tmp_path))
    assert (
        "| block 0 | holds, at no useful rate | 1 - 1.6e-09 | 0.9000 | over 138,152 |" in text
        and "4,371,469,541" not in text
    )
    assert "| block 1 | holds | 0.9000 | 0.9000 | 66 |" in text


@pytest.mark.parametrize(
    ("rate", "horizon"), [(float("nan"), None), (1.0, None), (float("nan"), float("nan")), (0.5, None)]
)
def test_rates_that_are_no_numbers_are_drawn_nowhere_and_stop_nothing(rate, horizon, tmp_path):
    blocks = stability_section.describe_stability({"stability": {"block_0": block(rate, horizon, "Proved.")}}, tmp_path)
    assert not any(isinstance(part, Picture) for part in blocks) and "no useful rate" in "".join(
        part.markdown() for part in blocks
    )


def test_the_same_sentence_is_said_once():
    same = "The gates do not read the state. Every step shrinks differences by {}."
    found = {
        f"block_{k}": block(0.9, 66, same.format(rate)) for k, rate in enumerate((0.990469, 0.992784, 0.990469))
    } | {"block_3": block(None, None, "Unknown.")}
    assert stability_section._reasons(found) == [
        "block 0, block 1, block 2: The gates do not read the state. Every step shrinks differences by 0.990469, "
        "0.992784.",
        "block 3: Unknown.",
    ]
