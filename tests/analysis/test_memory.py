"""What a report says of memory: known truths on untrained models, every kind of task, and the command."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest

from runs import command
from selssm_jax.analysis import memory, memory_by_component, memory_by_lag, memory_of_past
from selssm_jax.analysis.memory import measure
from selssm_jax.analysis.state_samples import Block, Recording, record, rows_read
from selssm_jax.config import FEWEST, Data, Measure
from selssm_jax.information import retention
from selssm_jax.report import memory_section
from selssm_jax.runs import open_run
from selssm_jax.training.checkpoint import Workdir
from small_runs import WORDS, built, report_on

QUICK = Measure(samples=120, positions=3, longest_lag=4, decoder_steps=20, decoder_width=8)
CHANNEL = Data(
    source="linear_gaussian", length=24, horizon=4, noise=0.1, batch_size=50, eval_batch_size=250, eval_examples=2000
)
LINEAR = {
    "pattern": ("selective",),
    "d_state": 3,
    "selective__gate": "constant",
    "norm": "none",
    "conv": 0,
    "normalize": False,
    "selective__process_noise": 0.3,
}


def as_run(tmp_path, config, settings, **options):
    """An opened run whose parameters are as drawn, without going through files that training writes."""
    small, dataset, _, params = built(config, **options)
    small = dataclasses.replace(small, measure=settings)
    workdir = Workdir(str(tmp_path / "run"), small)
    workdir.describe(dataset.metadata())
    workdir.save_best(1, params, {})
    workdir.close()
    return open_run(tmp_path / "run")


@pytest.fixture(scope="module")
def channel(tmp_path_factory):
    """What is measured of a linear model on the linear-Gaussian channel, 2,000 sequences of 24 steps."""
    settings = Measure(samples=2000, positions=2, longest_lag=8, decoder_steps=150, decoder_width=32)
    return measure(as_run(tmp_path_factory.mktemp("channel"), CHANNEL, settings, **LINEAR), "test")


def test_on_the_channel_bounds_agree_with_the_exact_value(channel):
    moments = channel["blocks"]["block_0"]["information"]
    assert [one["moment"] for one in moments] == channel["moments"] == [8, 23]
    for one in moments:
        assert one["resolved"] and one["lower"] - 3 * one["stderr"] <= one["exact"] <= one["upper"] + 3 * one["stderr"]
        assert one["upper"] - one["lower"] < 0.15 and one["exact"] > 1
        # the law is Gaussian: nothing is lost
        assert abs(one["gaussian_upper"] - one["exact"]) < 3 * one["gaussian_upper_stderr"]


def test_on_the_channel_decoders_stay_under_what_the_state_holds(channel):
    block, exact = channel["blocks"]["block_0"], channel["blocks"]["block_0"]["information"][-1]["exact"]
    kept = block["retention"]
    assert kept["direction"] == "lower" and kept["lags"][0] == 0 and kept["entropy"] is None and kept["fano"] is None
    assert 0.1 < max(kept["lower"]) < exact
    assert block["verdict"]["status"] in ("inconclusive", "consistent") and block["verdict"]["slack"] > 0
    assert block["by_gate"] is None  # gates that do not move
    assert np.asarray(block["by_component"]["bits"]).shape == (3, len(block["by_component"]["lags"]))


def test_on_the_channel_the_point_lies_under_the_bottleneck_curve(channel):
    point = channel["blocks"]["block_0"]["future"]
    assert 0 < point["future"] <= point["bound"] + 3 * point["stderr"]
    assert 0 < point["efficiency"] <= 1.1


def test_all_is_in_json_and_in_the_page(channel, tmp_path):
    blocks = memory_section.describe_memory({"memory": json.loads(json.dumps(channel)), "split": "test"}, tmp_path)
    words = str(blocks)
    assert (
        "Information about all of the past" in words
        and "exact (bits)" in words
        and "Under the bottleneck curve" in words
    )
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "retention.png",
        "past.png",
        "components.png",
        "bottleneck.png",
    }


@pytest.fixture(scope="module")
def copying(tmp_path_factory):
    """A small copying task, gates that read the input, state noise; untrained."""
    config = Data(
        source="selective_copying", vocab=4, tokens=3, length=12, batch_size=4, eval_batch_size=60, eval_examples=120
    )
    return measure(as_run(tmp_path_factory.mktemp("copying"), config, QUICK, selective__process_noise=0.5), "test")


def test_answers_are_bounded_by_what_there_is_to_know(copying):
    answers = copying["answers"]
    assert answers["answers"] == 3 and answers["entropy"] == pytest.approx(6, rel=1e-6)
    assert answers["moment"] == max(copying["moments"]) == 11  # the step before the first answer
    for name in ("model", "decoder"):
        assert answers[name]["bits"] <= 3 * answers[name]["stderr"] + 0.3  # an untrained model knows nothing of them
    assert 0 <= answers["fano"] <= 1 - 1 / 4


def test_tokens_have_entropies_fano_bounds_and_gates(copying):
    for block in copying["blocks"].values():
        kept = block["retention"]
        assert len(kept["entropy"]) == len(kept["fano"]) == len(kept["lags"])
        assert all(low <= entropy + 1e-6 for low, entropy in zip(kept["lower"], kept["entropy"], strict=True))
        assert all(bound <= error + 0.1 for bound, error in zip(kept["fano"], kept["error"], strict=True))
        assert len(block["by_gate"]["bits"]) == 10 and block["by_gate"]["gate"] == sorted(block["by_gate"]["gate"])
        assert block["future"] is None


@pytest.mark.parametrize("source", ["text", "csv", "npz"])
def test_models_without_noise_are_decoded_too(source, files, tmp_path):
    if source == "npz":
        signals = np.random.default_rng(0).normal(size=(200, 20, 1)).astype(np.float32)
        np.savez(tmp_path / "many.npz", signal=signals, label=(signals.mean(axis=(1, 2)) > 0).astype(int))
        files = files | {"npz": dataclasses.replace(files["npz"], file=str(tmp_path / "many.npz"))}
    found = measure(as_run(tmp_path, dataclasses.replace(files[source], eval_batch_size=20), QUICK), "train")
    for block in found["blocks"].values():
        assert source == "text" or (
            block["information"] == [] and block["verdict"] is None and block["retention"]["fano"] is None
        )
        assert np.isfinite(block["retention"]["lower"]).all()
        assert block["future"] is None
    words = str(memory_section.describe_memory({"memory": found, "split": "train"}, tmp_path))
    assert ("curve of the bottleneck needs" in words) == (source == "csv")  # of so few windows
    assert found["overlapping"] == (source == "csv") == ("windows of one series" in words)
    assert ("infinitely much of a continuous input" in words and "no compression was applied" in words) == (
        source != "text"
    )
    json.dumps(found)
    if source == "text":  # tokens are finitely many: 16 of an alphabet of V hold 16 log2 V bits, noise or not
        most = 16 * np.log2(len(set(WORDS)))
        assert [block["information"][-1] for block in found["blocks"].values()] == 2 * [
            {"moment": 15, "capacity": pytest.approx(most)}
        ]
        assert f"hold at most {most:.2f} bits" in words and "no contradiction" in words


def test_gates_that_read_the_state_are_bounded_from_above(files, tmp_path):
    found = measure(
        as_run(tmp_path, files["text"], QUICK, selective__gate_state="elementwise", selective__process_noise=0.5),
        "train",
    )
    for one in found["blocks"]["block_0"]["information"]:
        assert one["given"] == "the state before it and the input" and one["exact"] is None
        assert one["upper"] > 0


def test_bounds_given_what_was_dropped_say_so_and_show_no_contradiction(files, tmp_path):
    """They are of the inputs and of what was dropped, of which a state may tell more than the inputs hold."""
    noise = {"selective__process_noise": 1e-3, "selective__drive_dropout": 0.5}
    found = measure(as_run(tmp_path, files["text"], QUICK, **noise), "train")
    for block in found["blocks"].values():
        assert all(one["given"] == "the inputs of the block and what was dropped" for one in block["information"])
        assert block["verdict"]["status"] != "violated"


def test_nats_beside_samples_are_no_part_of_their_law(files, tmp_path):
    found = measure(as_run(tmp_path, files["csv"], QUICK, pattern=("kalman",), kalman__sampled=True), "train")
    (block,) = found["blocks"].values()
    assert all("nats that a filter carries" in one["skipped"] for one in block["information"])
    assert block["verdict"] is None
    words = str(memory_section.describe_memory({"memory": found, "split": "train"}, tmp_path))
    assert "All of the past was not measured: nats that a filter carries" in words


def test_a_gate_that_never_opens_is_said(files, tmp_path):
    """hard_sigmoid gates shut for good leave components without noise, and so without a density."""
    run = as_run(tmp_path, files["text"], QUICK, selective__gate="hard_sigmoid", selective__process_noise=0.5)
    shut = jax.tree.map(lambda leaf: leaf, run.params)
    bias = shut["block_0"]["mixer"]["G"]["bias"]
    shut["block_0"]["mixer"]["G"]["bias"] = bias.at[0].set(-100.0)
    found = measure(dataclasses.replace(run, params=shut), "train")
    assert all("never open" in one["skipped"] for one in found["blocks"]["block_0"]["information"])
    assert (
        "capacity" in found["blocks"]["block_0"]["information"][0]
        and "no contradiction" in found["blocks"]["block_0"]["verdict"]["reason"]
    )
    # of block 1
    assert "Information about all of the past" in str(
        memory_section.describe_memory({"memory": found, "split": "test"}, tmp_path)
    )


def test_stretches_of_a_series_are_held_out_whole():
    """Windows of one series at the same place of it are in the same group, and groups follow its time."""
    starts, moments = np.repeat(np.arange(0, 500, 5.0), 2), np.array([8, 63])
    seen = Recording(np.zeros((200, 64, 1)), moments, np.ones((200, 2), bool), starts, {}, None, None)
    rows, index = np.nonzero(seen.live)
    groups, place = memory_by_lag.group_moments(seen, rows, moments[index]), starts[rows] + moments[index]
    assert len(np.unique(groups)) == memory_by_lag.STRETCHES
    assert (np.diff(groups[np.argsort(place, kind="stable")]) >= 0).all()
    assert all(len(np.unique(groups[place == at])) == 1 for at in np.unique(place))


def test_fewer_sequences_than_asked_are_all_read(files):
    _, dataset, model, params = built(files["npz"])
    found = record(model, params, dataset.evaluate("test", 4), samples=10_000, moments=(5,))
    assert len(found.frames) == sum(
        int(np.sum(np.asarray(batch["weights"]).reshape(4, -1).max(1) > 0)) for batch in dataset.evaluate("test", 4)
    )


def test_the_command_measures_and_prints(untrained, capsys):
    run = untrained("text")
    assert command("eval.py", f"--workdir={run}", "--measure", "--split=train") == 0
    page = (run / "report-train" / "index.html").read_text()
    assert "What the memory holds" in page and "Retention by lag" in page
    saved = json.loads((run / "report-train" / "results.json").read_text())
    assert saved["memory"]["unit"] == "bits" and set(saved["memory"]["blocks"]) == {"block_0", "block_1"}
    printed = capsys.readouterr()
    assert "report:" in printed.out and "measuring" in printed.err


def test_too_few_sequences_are_refused_before_work_starts(untrained, capsys):
    run = untrained("csv")
    assert command("eval.py", f"--workdir={run}", "--measure") == 2
    assert re.search(
        r"--measure needs at least 100 sequences, and the test split has \d+: use another --split",
        capsys.readouterr().err,
    )
    assert not (run / "report").exists()


def of_past(frames, known, moments):
    """A recording of states that hold the last `known` inputs exactly, one component each."""
    states = np.stack(
        [
            [row[[moment - lag if moment >= lag else 0 for lag in range(known)]] for moment in moments]
            for row in frames.astype(np.float32)
        ]
    )
    block = Block(states, None, None)
    return Recording(
        frames, np.asarray(moments), np.ones((len(frames), len(moments)), bool), None, {"block_0": block}, None, None
    ), block


PROBED = Measure(samples=400, positions=2, longest_lag=3, decoder_steps=150, decoder_width=16)


def test_the_horizon_is_looked_for_beyond_the_longest_lag_of_the_first_round():
    frames = np.random.default_rng(0).integers(0, 2, (400, 24))
    found = memory_by_lag.measure_retention(*of_past(frames, 11, [16, 23]), PROBED)  # the inputs of 0 to 10 steps ago
    tried = found["retention"]["lags"]
    assert tried[:4] == [0, 1, 2, 3] and tried == sorted(set(tried))
    assert found["horizon"] == max(lag for lag in tried if lag < 11) > 3
    assert memory_section.describe_horizon(found) == f"{found['horizon']} (not {min(lag for lag in tried if lag > 10)})"


def test_a_horizon_at_the_beginning_of_the_sequences_is_at_least_so_long():
    frames = np.random.default_rng(0).normal(size=(400, 10, 1)).astype(np.float32)
    states = frames[:, ::-1, 0][:, None]  # all inputs, after the last
    block = Block(states, None, None)
    found = memory_by_lag.measure_retention(
        Recording(frames, np.array([9]), np.ones((400, 1), bool), None, {}, None, None), block, PROBED
    )
    assert found["horizon"] == 9 and memory_section.describe_horizon(found) == "at least 9"


def test_the_guard_counts_the_sequences_that_are_read(untrained, capsys):
    """A text cut into as many streams as the guard needs is not what is read: 316 tokens in 4 streams are 5 windows of
    16 each, the last too short.
    """
    workdir = untrained("text")
    run = open_run(workdir)
    count = memory.count_sequences(run.experiment, run.dataset, "test")
    assert len(memory.draw_samples(run, "test").frames) == count < FEWEST
    assert command("eval.py", f"--workdir={workdir}", "--measure") == 2
    assert re.search(rf"the test split has {count}: use another", capsys.readouterr().err)


def test_signals_that_end_before_the_first_moment_are_not_counted(files):
    _, dataset, model, _ = built(files["npz"])
    batch = next(iter(dataset.evaluate("test", 3)))
    batch = batch | {"valid": np.arange(batch["valid"].shape[1])[None] < np.array([[40], [5], [6]])}
    assert rows_read(model.config, batch, [5, 9])[0].tolist() == [0, 2]


def test_the_exact_value_is_the_ceiling_even_where_an_estimated_bound_stands_below_it():
    moment = {
        "moment": 3,
        "exact": 4.9,
        "upper": 4.95,
        "stderr": 0.04,
        "gaussian_upper": 4.8,
        "gaussian_upper_stderr": 0.2,
    }
    assert (
        memory_of_past.ceiling([moment]).nats * memory_of_past.BITS == pytest.approx(4.9)
        and memory_of_past.ceiling([moment]).stderr == 0
    )
    closest = memory_of_past.ceiling([moment | {"exact": None}])  # 4.95 + 2 x 0.04 < 4.8 + 2 x 0.2
    assert closest.nats * memory_of_past.BITS == pytest.approx(4.95)


def test_what_a_label_can_hold_makes_data_processing_say_consistent():
    """A state that provably knows 5 bits knows more than any decoder of a symbol of 16 can say; of values there is no
    such bound.
    """
    retained = {"lags": [0, 1], "lower": [3.0, 1.0], "stderr": [0.01, 0.01], "symbols": 16}
    information = [{"moment": 3, "lower": 5.0, "upper": 6.0, "stderr": 0.02, "given": memory_of_past.INPUTS}]
    ceiling = memory_of_past.ceiling(information)
    assert memory._verdict(ceiling, retained, information)["status"] == "consistent"
    more = [information[0] | {"given": "the state before it and the input"}]  # of which a state may know more
    assert memory._verdict(ceiling, retained, more)["status"] == "inconclusive"
    assert memory._verdict(ceiling, retained | {"symbols": None}, information)["status"] == "inconclusive"
    assert memory._verdict(ceiling, retained | {"lower": [7.0, 1.0]}, information)["status"] == "violated"


@pytest.mark.parametrize("tokens", [True, False])
def test_a_map_of_components_that_is_bias_alone_is_withheld(tokens):
    rng = np.random.default_rng(1)
    states, groups = rng.normal(size=(240, 5)), np.repeat(np.arange(120), 2)
    asked = rng.integers(0, 60, (240, 3)) if tokens else rng.normal(size=(240, 3))
    apart = memory_by_component.by_lag(states, asked, groups, [0, 1, 2], tokens=tokens)
    assert apart["bits"] is None and "120 independent parts" in apart["withheld"]
    asked[:, 1] = np.argsort(np.argsort(states[:, 3])) // 4 if tokens else states[:, 3]
    together = memory_by_component.by_lag(states, asked, groups, [0, 1, 2], tokens=tokens)
    bits = np.asarray(together["bits"])
    assert together["withheld"] is None and np.unravel_index(bits.argmax(), bits.shape) == (3, 1)
    assert abs(np.delete(bits, 3, axis=0)).max() < bits[3, 1] / 2


def test_errors_by_gate_count_sequences_and_not_steps():
    """Ten copies of each sequence tell no more than one."""
    values, groups = np.random.default_rng(0).normal(size=(50, 1)), np.arange(50)
    once = retention.error_of_mean(values, groups)
    np.testing.assert_allclose(retention.error_of_mean(np.repeat(values, 10, axis=0), np.repeat(groups, 10)), once)


def test_without_the_flag_nothing_is_measured(untrained):
    assert "memory" not in report_on(untrained("text"), split="validation").values
