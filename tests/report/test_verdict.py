"""The verdict: one paragraph in words that follow from the results, and never from anything else."""

import copy
import re

import pytest

from selssm_jax.report.verdict import verdict, verdict_on_compression


def held(rate, horizon):
    return {"step": {"rate": rate, "constant": 1.0}, "horizon": horizon}


RESULTS = {
    "primary": "mse",
    "split": "test",
    "seen": None,
    "metrics": {"mse": 0.615},
    "baselines": {"ridge": {"mse": 0.7}, "repeat last": {"mse": 0.5}, "optimal": {"mse": 0.1}},
    "stability": {"block_0": held(0.9, 66), "block_1": held(0.99, 688)},
    "config": {
        "model": {
            "pattern": ["selective"] * 2,
            "selective": {"update": "retain", "gate_floor": 0.03, "gate_state": "none", "certified": False},
        }
    },
    "costs": {"state_bytes": 1536},
    "training_seconds": 95.2,
    "seconds": 12.0,
    "command": "python eval.py --workdir=runs/x",
}
RETENTION = {"lags": [0, 1, 4], "lower": [1.5, 0.5, 0.0], "stderr": [0.01, 0.01, 0.01]}
MEMORY = {
    "blocks": {
        "block_0": {"horizon": 1, "retention": RETENTION},
        "block_1": {"horizon": None, "retention": RETENTION | {"lower": [0.1, 0, 0]}},
    },
    "answers": None,
}


def changed(**values):
    return copy.deepcopy(RESULTS) | values


def test_a_run_in_one_paragraph():
    assert verdict(RESULTS) == (
        "mse 0.6150 on the test split, 23 % worse than repeating the last value (0.5000), the best simple baseline. "
        "What it remembers was not measured: add --measure. It certainly forgets: two states of a block that read the "
        "same inputs meet, to a thousandth, within 688 steps. State of one sequence: 1.50 KiB; trained in 95 s, this "
        "report in 12 s. Command: python eval.py --workdir=runs/x"
    )


@pytest.mark.parametrize(
    ("primary", "score", "baselines", "words"),
    [
        ("mse", 0.25, {"repeat last": {"mse": 0.5, "mae": 1.0}}, "50 % better than repeating the last value (0.5000)"),
        (
            "accuracy",
            0.981,
            {"majority class": {"accuracy": 0.1}},
            "accuracy 98.10 % on the test split, 88.10 points better than always naming",
        ),
        ("accuracy", 0.1, {"majority class": {"accuracy": 0.1}}, "just as good as"),
        (
            "nats",
            1.0,
            {"unigram entropy": {"nats": 3.0}, "bigram entropy": {"nats": 2.0}},
            "50 % better than the frequencies of pairs of tokens",
        ),
        ("mse", 1.0, {"zero": {"mse": 0.0}}, "worse than forecasting 0"),
        ("mse", 1.0, {"repeat last": {"mse": None}}, "no simple baseline"),
        ("mse", None, {"repeat last": {"mse": 1.0}}, "not a finite number"),
        ("mse", 1.0, {"a rival of one's own": {"mse": 1.001}}, "better than a rival of one's own"),
    ],
)
def test_the_score_is_held_against_the_best_simple_baseline(primary, score, baselines, words):
    assert words in verdict(changed(primary=primary, metrics={primary: score}, baselines=baselines))


@pytest.mark.parametrize(
    ("seen", "words"), [("trained", "data that it was trained on"), ("chosen", "by which its parameters were chosen")]
)
def test_a_score_on_data_that_the_run_has_seen_says_so(seen, words):
    assert verdict(changed(seen=seen)).startswith(f"mse 0.6150 on the test split, {words}, 23 % worse than")


def test_the_median_of_quantiles_stands_beside_forecasts_without_any():
    metrics, baselines = {"pinball": 0.2, "mae": 0.5, "mse": 9.0}, {"ridge": {"mse": 0.7, "mae": 0.4}}
    said = verdict(changed(primary="pinball", metrics=metrics, baselines=baselines))
    assert "pinball 0.2000 on the test split; mae 0.5000, 25 % worse than ridge regression (0.4000), the best" in said


def test_what_is_remembered_is_in_bits_and_steps():
    words = verdict(changed(memory=MEMORY))
    assert (
        "at least 1.50 ± 0.01 bits of the input 0 steps ago (block 0), and something of inputs 1 (not 4) steps back."
        in words
    )
    asked = MEMORY | {"answers": {"entropy": 64.0, "model": {"bits": 63.42}, "decoder": {"bits": 28.5}}}
    assert "of the 64.00 bits asked for at least 63.42" in verdict(changed(memory=asked))
    nothing = {
        "blocks": {"block_0": {"horizon": None, "retention": RETENTION | {"lower": [0.01, -0.2, 0.0]}}},
        "answers": None,
    }
    assert "remembers nothing that decoders find" in verdict(changed(memory=nothing))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"gate_floor": 0.0}, r"\(block 1\): gates may shut.* model\.selective\.gate_floor=0\.03\."),
        (
            {"gate_floor": 0.0, "gate_state": "dense"},
            r"model\.selective\.gate_floor=0\.03 and model\.selective\.certified=True",
        ),
        ({"gate_floor": 0.1, "gate_state": "dense"}, r"train with model\.selective\.certified=True\."),
        ({"gate_floor": 0.1, "certified": True}, r"raise model\.selective\.gate_floor=0\.1"),
        ({"pattern": ["selective", "attention"]}, r"of attention no useful rate"),
        ({"pattern": ["selective", "none", "attention"]}, r"of attention no useful rate"),
        (
            {"pattern": ["kalman", "kalman"], "kalman": {"sampled": True}},
            r"with model\.kalman\.sampled=False it is certified",
        ),
    ],
)
def test_where_nothing_is_certain_it_says_what_to_set(model, words):
    usual = RESULTS["config"]["model"]
    config = {"model": usual | (model if "pattern" in model else {"selective": usual["selective"] | model})}
    claims = {
        (None, None): "It is not certain to forget",
        (1 - 1e-9, 4e9): "It is certain to forget, but at no useful rate",
    }
    for (rate, horizon), claim in claims.items():
        told = verdict(changed(config=config, stability={"block_0": held(0.9, 66), "block_1": held(rate, horizon)}))
        assert re.search(words, told) and claim in told


PACKED = {
    "metric": "nats",
    "split": "test",
    "scope": "all",
    "sequences": 32,
    "reference": {"bytes": 2304, "test": {"nats": 1.274}},
    "compressed": {"bytes": 130, "table_bytes": 5000, "pays_from": 3, "factor": 8.049, "test": {"nats": 1.281}},
    "carried_bytes": {"before": 2400, "after": 226},
    "seconds": 61.3,
    "resumed": False,
    "command": "python eval.py --workdir=runs/x --compress",
}


def test_a_compression_in_one_paragraph():
    assert verdict_on_compression(PACKED) == (
        "Memory of one sequence: 2,304 bytes to 130 and a table of 5,000 for all sequences. nats 1.281 on the test "
        "split, 1 % worse than the run before (1.274). It pays from 3 sequences carried at once on: 8.0 times fewer "
        "bytes for 32 of them, 0.4491 times for one. Compressed in 61 s. Command: python eval.py --workdir=runs/x "
        "--compress"
    )


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compressed": {"pays_from": None}}, "It never pays: no number of sequences takes fewer bytes than before."),
        (
            {"compressed": {"pays_from": 1}, "sequences": 1},
            "It pays for any number of sequences: 8.0 times fewer bytes for 1 of them.",
        ),
        (
            {"scope": "mixers"},
            "States of the mixers of one sequence: 2,304 bytes to 130 and a table of 5,000 for all sequences; all that "
            "is carried: 2,400 bytes to",
        ),
        (
            {"compressed": {"test": {"nats": float("nan")}}},
            "The nats on the test split is not a finite number: the compressed run is of no use.",
        ),
        ({"compressed": {"test": {"nats": 1.274}}}, "just as good as the run before"),
        (
            {
                "metric": "accuracy",
                "reference": {"test": {"accuracy": 0.98}},
                "compressed": {"test": {"accuracy": 0.97}},
            },
            "accuracy 97.00 % on the test split, 1.000 points worse than the run before (98.00 %)",
        ),
        ({"resumed": True}, "Compressed in 61 s, counted since it was resumed."),
    ],
)
def test_a_compression_is_said_in_the_terms_of_its_task(changes, words):
    told = {name: {**PACKED[name], **value} if isinstance(value, dict) else value for name, value in changes.items()}
    assert words in verdict_on_compression(PACKED | told)
