"""Parts that are removed are gone and leave the rest as it was; what says which is what it says it is."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax import data
from selssm_jax.analysis.costs import tree_bytes
from selssm_jax.compression import removal, removal_search
from selssm_jax.compression.progress import open_progress
from selssm_jax.compression.subject import Subject
from selssm_jax.config import Compress, Model
from selssm_jax.errors import InputError
from selssm_jax.explain import attribution
from selssm_jax.interop import huggingface
from selssm_jax.layers.relevance_rules import RULES, explaining
from selssm_jax.model import SequenceModel, residual_name

LANGUAGE = runs.TASKS["language"]
SIZES = {"d_model": 8, "d_state": 4, "mlp_ratio": 1.0, "conv": 2} | runs.HEADS
PATTERNS = [
    ("min_gru", "rnn", "min_gru"),
    ("selective", "local_attention", "mamba"),
    ("lru", "tcn", "mamba2"),
    ("kalman", "rg_lru", "tcn"),
    ("gru", "attention", "min_gru"),
    ("s4d", "kalman_attention", "s5"),
    ("rnn", "lstm", "selective"),
]
EVERY = pytest.mark.parametrize(
    "pattern",
    [PATTERNS[0], *(pytest.param(pattern, marks=pytest.mark.exhaustive) for pattern in PATTERNS[1:])],
    ids="+".join,
)


def build(task=LANGUAGE, **changes):
    """A model with parameters as drawn, and a batch of its task."""
    config = runs.model(runs.model(task=task), **(SIZES | changes))
    model, batch = SequenceModel(config), runs.ragged(task)
    return model, jax.jit(model.init)(jax.random.key(0), batch["inputs"])["params"], batch


def read_by_hand(model, inputs, gone):
    """Outputs of a language model, branch by branch, without those that are gone."""
    state = model.initial_state(len(inputs))
    x, _ = model.kind.encode(model._ends, inputs, state["encoder"])
    for index, block in enumerate(model.block):
        if f"block_{index}/mixer" not in gone:
            y = block.norm(x)
            y = y if block.conv is None else jax.nn.silu(block.conv(y, None)[0])
            x = x + block.mixer(y, None)[0]
        if f"block_{index}/mlp" not in gone:
            x = x + block.mlp(block.mlp_norm(x))
    return model.kind.answer(model._ends, model.norm(x), inputs, state, jnp.ones(inputs.shape, bool), None)[0]


@EVERY
def test_what_is_left_computes_what_the_whole_model_does_without_the_part(pattern):
    model, params, batch = build(pattern=pattern)
    inputs = jnp.asarray(batch["inputs"])
    whole, _ = model.apply({"params": params}, inputs)
    for part in removal.list_parts(model.config):
        gone = removal._find_branches(model.config, [part])
        config, left = removal.remove(model.config, params, [part])
        outputs, _ = SequenceModel(config).apply({"params": left}, inputs)
        with removal.bypass(dict.fromkeys(gone, 0.0)):
            bypassed, _ = model.apply({"params": params}, inputs)
        np.testing.assert_array_equal(outputs, bypassed, err_msg=part)
        by_hand = model.apply({"params": params}, inputs, gone, method=read_by_hand)
        np.testing.assert_allclose(outputs, by_hand, atol=1e-6, err_msg=part)
        assert abs(outputs - whole).max() > 1e-3


@EVERY
def test_what_is_gone_is_in_no_array_and_the_rest_is_untouched(pattern):
    model, params, batch = build(pattern=pattern)
    config, left = removal.remove(model.config, params, ["block_0/mixer", "block_1", "block_2/mlp"])
    assert config.pattern == ("none", pattern[2]) and config.block_mlp_ratios == (1.0, 0.0)
    assert set(left["block_0"]) == {"mlp_norm", "mlp"} and set(left["block_1"]) == {"norm", "conv", "mixer"}
    jax.tree.map(np.testing.assert_array_equal, left["block_0"]["mlp"], params["block_0"]["mlp"])
    jax.tree.map(np.testing.assert_array_equal, left["block_1"]["mixer"], params["block_2"]["mixer"])
    fresh = jax.jit(SequenceModel(config).init)(jax.random.key(0), batch["inputs"])["params"]
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, left)
    before, after = (
        jax.eval_shape(
            lambda made=made: SequenceModel(made).init_with_output(jax.random.key(0), 1, method="initial_state")
        )[0]
        for made in (model.config, config)
    )
    assert after["blocks"][0] == {"conv": None, "mixer": None}
    assert tree_bytes(after["blocks"]) == tree_bytes(before["blocks"][2])


@EVERY
def test_a_step_at_a_time_is_the_whole_after_removal(pattern):
    model, params, batch = build(pattern=pattern)
    config, left = removal.remove(model.config, params, ["block_0/mixer", "block_1/mlp"])
    smaller, inputs = SequenceModel(config), jnp.asarray(batch["inputs"])
    whole, _ = jax.jit(smaller.apply)({"params": left}, inputs)
    step = jax.jit(lambda token, state: smaller.apply({"params": left}, token, state, method="step"))
    state, outputs = smaller.apply({"params": left}, len(inputs), method="initial_state"), []
    for token in inputs.T:
        answer, state = step(token, state)
        outputs.append(answer)
    np.testing.assert_allclose(np.stack(outputs, axis=1), whole, atol=2e-5)


@pytest.mark.parametrize("kind", ["classification", "forecasting"])
def test_parts_of_models_of_other_tasks_go_too(kind):
    model, params, batch = build(runs.TASKS[kind], pattern=("min_gru", "rnn"), conv=0)
    read = lambda model, params: model.apply(  # noqa: E731
        {"params": params}, jnp.asarray(batch["inputs"]), valid=jnp.asarray(batch["valid"])
    )[0]
    for part in removal.list_parts(model.config):
        config, left = removal.remove(model.config, params, [part])
        with removal.bypass(dict.fromkeys(removal._find_branches(model.config, [part]), 0.0)):
            bypassed = read(model, params)
        np.testing.assert_allclose(read(SequenceModel(config), left), bypassed, atol=1e-6, err_msg=part)


def test_convolutions_that_are_left_keep_their_dilations_and_sizes_their_blocks():
    model, params, _ = build(pattern=("tcn", "selective", "tcn"), tcn__kernel=2, block_states=(1, 6, 3))
    without = lambda *parts: removal.remove(model.config, params, parts)[0]  # noqa: E731
    assert without("block_0").tcn.dilations == (2,) and without("block_0").block_states == (6, 3)
    assert without("block_1").tcn.dilations == (1, 2) and without("block_1").block_states == (1, 3)
    assert without("block_0/mixer").tcn.dilations == (2,) and without("block_0/mixer").block_states == (1, 6, 3)
    assert without("block_0/mlp", "block_1/mlp", "block_2/mlp").mlp_ratio == 0


def test_settings_of_a_mixer_that_is_gone_fall_back_to_their_defaults():
    model, params, _ = build(pattern=("selective", "lru", "selective"), selective__process_noise=0.3)
    few, _ = removal.remove(model.config, params, ["block_0"])
    none, _ = removal.remove(model.config, params, ["block_0", "block_2/mixer"])
    assert few.selective == model.config.selective and none.selective == Model().selective
    assert none.pattern == ("lru", "none")


def test_parts_are_listed_once():
    model, *_ = build(pattern=("selective", "attention"), mlp_ratio=0.0)
    assert removal.list_parts(model.config) == ("block_0", "block_1")
    assert removal.list_parts(model.config, ["attention"]) == ("block_1/mixer",)
    model, *_ = build(pattern=("selective", "attention", "none"))
    assert removal.list_parts(model.config, ["recurrences", "mlps"]) == (
        *("block_0/mixer", "block_0/mlp"),
        *("block_1/mlp", "block_2/mlp"),
    )
    assert removal.list_parts(model.config, ["blocks"]) == ("block_0", "block_1", "block_2")


def test_the_loss_without_parts_is_that_of_the_model_without_them():
    model, params, batch = build(pattern=("selective", "rnn", "min_gru"))
    cost = removal.measure_costs(model, params, [batch, runs.ragged(LANGUAGE, seed=2)], "loss")
    for parts in ((), ("block_1",), ("block_0/mixer", "block_2")):
        config, left = removal.remove(model.config, params, parts)
        alone = removal.measure_costs(SequenceModel(config), left, [batch, runs.ragged(LANGUAGE, seed=2)], "loss")
        assert cost(parts) == pytest.approx(alone(()), rel=1e-6)
    assert cost.evaluations == 3


@pytest.mark.exhaustive
def test_the_expansion_has_the_slope_of_the_loss_and_the_curvature_of_the_outputs():
    """Of targets that the model itself would have the expected slope is 0, so that what is left is the divergence."""
    model, params, _ = build(pattern=("selective", "rnn"), d_model=6)
    batches = [runs.ragged(LANGUAGE, rows=64, seed=seed) for seed in range(4)]
    branches, small = removal._name_branches(model.config), 0.05
    found = removal.expand_loss(model, params, batches)
    cost = removal.BypassedLoss(model, params, batches)
    score = lambda mask: removal.pruning.average(cost._score(params, mask, batch) for batch in batches)  # noqa: E731
    weight = sum(batch["weights"].sum() for batch in batches)
    for index, branch in enumerate(branches):
        mask = jnp.ones(len(branches))
        slope = (score(mask.at[index].set(1 + 1e-2)) - score(mask.at[index].set(1 - 1e-2))) / 2e-2
        assert found.gradient[index] == pytest.approx(slope, abs=2e-4), branch
        divergence = 0.0
        for batch in batches:
            whole, _ = model.apply({"params": params}, jnp.asarray(batch["inputs"]), valid=jnp.asarray(batch["valid"]))
            with removal.bypass({branch: 1 - small}):
                moved, _ = model.apply(
                    {"params": params}, jnp.asarray(batch["inputs"]), valid=jnp.asarray(batch["valid"])
                )
            whole, moved = jax.nn.log_softmax(whole), jax.nn.log_softmax(moved)
            divergence += float((batch["weights"] * (jnp.exp(whole) * (whole - moved)).sum(axis=-1)).sum())
        expected = divergence / weight / small**2
        assert found.curvature[index, index] / 2 == pytest.approx(expected, rel=0.35), branch
    gone = dict.fromkeys(("block_0/mixer", "block_1/mlp"), np.zeros(0, int))
    cost = removal.measure_costs(model, params, batches, "information")
    assert cost(("block_0/mixer", "block_1/mlp")) == pytest.approx(found.divergence.cost(gone))


@pytest.mark.parametrize("how", ["information", "memory", "influence", "relevance"])
def test_a_block_that_does_nothing_is_worth_nothing_and_goes_first(how):
    model, params, batch = build(pattern=("selective", "rnn", "min_gru"))
    params = {**params, "block_1": jax.tree.map(jnp.zeros_like, params["block_1"])}
    batches = [batch, runs.ragged(LANGUAGE, rows=32, seed=3)]
    cost = removal.measure_costs(model, params, batches, how)
    assert cost(("block_1",)) == pytest.approx(0, abs=1e-6) and min(cost(("block_0",)), cost(("block_2",))) > 1e-3
    (step,) = removal.find_greedily(cost, model.config, ("block_0", "block_1", "block_2"), 1)
    assert step.part == "block_1"


def test_memory_is_of_earlier_inputs_alone():
    """Of inputs that are independent a mixer that sees one step holds nothing of others, and one that sees two of
    one.
    """
    model, params, _ = build(
        pattern=("local_attention", "tcn"), conv=0, mlp_ratio=0.0, local_attention__window=1, tcn__kernel=2
    )
    batches = [runs.ragged(LANGUAGE, rows=512, seed=seed) for seed in range(3)]
    cost = removal.measure_costs(model, params, batches, "memory")
    assert cost(("block_0",)) < 0.03 and cost(("block_1",)) > 0.3


def test_lags_of_which_there_are_too_few_samples_are_left_out_and_none_is_an_error(subject):
    model, params, batch = build(pattern=("tcn", "rnn"), conv=0, mlp_ratio=0.0)
    few = {name: value[:4] for name, value in batch.items()}
    assert removal.measure_costs(model, params, [few], "memory")(("block_0",)) >= 0
    with pytest.raises(ValueError, match="hold too few steps to look back from"):
        removal.measure_costs(model, params, [{name: value[:2] for name, value in batch.items()}], "memory")
    short = dataclasses.replace(subject.experiment.data, batch_size=1)
    tiny = asked(subject, remove_by="memory", calibration=1)
    tiny = dataclasses.replace(tiny, experiment=dataclasses.replace(tiny.experiment, data=short))
    with pytest.raises(InputError, match=r"remove_by='memory' cannot be measured on compress\.calibration=1 batches"):
        removal_search.remove_parts(tiny)


def test_influence_is_the_angle_that_a_branch_turns_by():
    model, params, batch = build(pattern=("rnn",))
    x = jnp.asarray(params["encoder"]["embedding"])[batch["inputs"]]
    y, _ = model.apply(
        {"params": params},
        x,
        method=lambda model, x: model.block[0].mixer(
            jax.nn.silu(model.block[0].conv(model.block[0].norm(x), None)[0]), None
        ),
    )
    cosine = (x * (x + y)).sum(-1) / jnp.linalg.norm(x, axis=-1) / jnp.linalg.norm(x + y, axis=-1)
    cost = removal.measure_costs(model, params, [batch], "influence")
    assert cost(("block_0/mixer",)) == pytest.approx(float((1 - cosine)[batch["valid"]].mean()), rel=1e-4)


def test_relevance_is_the_gradient_of_the_answers_with_gates_held_times_what_the_branch_adds():
    model, params, batch = build(pattern=("selective", "mamba"), mlp_ratio=0.0)
    given = attribution.gather_call(jnp.asarray(batch["inputs"]), valid=jnp.asarray(batch["valid"]))
    scored = lambda outputs: (outputs.max(axis=-1) * batch["weights"]).sum()  # noqa: E731
    question = attribution.Question(model, scored)
    _, stream = jax.jit(question.read)(params, given, {})
    with explaining(RULES):
        slopes = jax.jit(jax.grad(lambda shifts: question.say(question.read(params, given, shifts)[0])))(
            {name: jnp.zeros_like(value) for name, value in stream.items()}
        )
    sizes = [
        float(jnp.abs((slopes[after] * (stream[after] - stream[before])).sum(axis=-1))[batch["valid"]].sum())
        for before, after in itertools.pairwise(map(residual_name, range(3)))
    ]
    cost = removal.measure_costs(model, params, [batch], "relevance")
    shares = [cost((name,)) for name in ("block_0", "block_1")]
    np.testing.assert_allclose(shares, np.asarray(sizes) / sum(sizes), rtol=1e-4)
    assert cost(("block_0", "block_1")) == pytest.approx(1)


@pytest.mark.parametrize("kind", ["classification", "forecasting"])
def test_relevance_is_of_models_of_other_tasks_too(kind):
    model, params, batch = build(runs.TASKS[kind], pattern=("selective", "min_gru"))
    cost = removal.measure_costs(model, params, [batch], "relevance")
    assert 0 < cost(("block_0",)) < 1 and cost(("block_0", "block_1")) == pytest.approx(1)


def test_greedy_removal_is_the_best_of_every_size_where_costs_add_up_and_may_not_be_where_they_do_not():
    config = runs.model(pattern=("rnn",) * 5, task=LANGUAGE)
    parts = removal.list_parts(config, ["blocks"])
    scores = dict(zip(parts, (3.0, 1.0, 4.0, 1.5, 9.0), strict=True))
    cost = removal.sum_scores(config, scores)
    steps = list(removal.find_greedily(cost, config, parts, 3))
    assert [step.part for step in steps] == ["block_1", "block_3", "block_0"]
    assert [step.cost for step in steps] == [1.0, 2.5, 5.5]
    assert removal.find_exhaustively(cost, config, parts, 3) == (("block_0", "block_1", "block_3"), 5.5)
    together = lambda parts: cost(parts) - 5 * ({"block_0", "block_2"} <= set(parts))  # noqa: E731
    assert {step.part for step in removal.find_greedily(together, config, parts, 2)} == {"block_1", "block_3"}
    assert removal.find_exhaustively(together, config, parts, 2) == (("block_0", "block_2"), 2.0)


def test_a_cost_that_is_no_number_is_the_worst():
    config = runs.model(pattern=("rnn",) * 3, task=LANGUAGE)
    cost = lambda parts: float("nan") if "block_0" in parts else float(len(parts))  # noqa: E731
    assert [step.part for step in removal.find_greedily(cost, config, ("block_0", "block_1"), 1)] == ["block_1"]
    assert removal.find_exhaustively(cost, config, ("block_0", "block_2"), 1) == (("block_2",), 1.0)


def test_scores_of_branches_are_those_of_parts():
    config = runs.model(pattern=("rnn",) * 2, task=LANGUAGE)
    cost = removal.sum_scores(config, {"block_0/mixer": 1.0, "block_0/mlp": 2.0, "block_1": 5.0})
    assert cost(("block_0",)) == 3.0 and cost(("block_0/mlp", "block_1")) == 7.0
    with pytest.raises(ValueError, match="block_1/mlp has no score"):
        cost(("block_1/mlp",))


@pytest.mark.exhaustive
def test_greedy_removal_of_two_of_eight_trained_blocks_is_the_best_pair():
    """Of a model that was trained; what a block does is nearly done without two of them."""
    subject = train(steps=60)
    cost = removal.measure_costs(subject.model, subject.params, subject.draw_batches(), "loss")
    parts = removal.list_parts(subject.model.config, ["blocks"])
    steps = list(removal.find_greedily(cost, subject.model.config, parts, 2))
    assert cost.evaluations == 8 + 7
    pair, least = removal.find_exhaustively(cost, subject.model.config, parts, 2)
    assert sorted(step.part for step in steps) == list(pair) and steps[-1].cost == least
    every = [cost(both) for both in itertools.combinations(parts, 2)]
    assert least < np.median(every) and cost(()) < np.median(every)


def train(steps, **changes):
    """Eight blocks on the data of configs/smoke.py."""
    config = runs.experiment(
        model__pattern=("min_gru",) * 8, model__d_model=16, training__steps=steps, optimizer__peak_rate=1e-2, **changes
    )
    dataset = data.load(config.data)
    model = SequenceModel(config.model.of_task(dataset.task))
    batch = next(dataset.train(2, seed=0))
    params = jax.jit(model.init)(jax.random.key(0), batch["inputs"])["params"]
    tuned = dataclasses.replace(config, compress=Compress(steps=steps, peak_rate=1e-2))
    params = removal_search.finetune(tuned, model, params, dataset)
    return Subject(config, model, params, dataset)


@pytest.fixture(scope="module")
def subject():
    """Three blocks as drawn, on the data of configs/smoke.py."""
    config = runs.experiment(model__pattern=("rnn", "min_gru", "rnn"))
    dataset = data.load(config.data)
    model = SequenceModel(config.model.of_task(dataset.task))
    batch = next(dataset.train(2, seed=0))
    return Subject(config, model, jax.jit(model.init)(jax.random.key(0), batch["inputs"])["params"], dataset)


def asked(subject, **options):
    """The subject with other options of its compression."""
    compress = Compress(**({"packed": False, "remove": "blocks", "steps": 0, "calibration": 2} | options))
    return dataclasses.replace(subject, experiment=dataclasses.replace(subject.experiment, compress=compress))


class Stopped(BaseException):
    """A kill, at a moment of a test's choice."""


def test_a_stopped_removal_goes_on_and_ends_as_if_it_had_not_been(subject, tmp_path, monkeypatch):
    wanted = asked(subject, removed=0.6, steps=3)
    whole = removal_search.remove_parts(wanted)
    assert whole.evaluations == 3 + 2 and [len(one.gone) for one in whole.remainders] == [0, 1, 2]
    with monkeypatch.context() as patched, open_progress(tmp_path / "unfinished", "this") as progress:
        patched.setattr(removal_search, "_judge", stop_at_once)
        with pytest.raises(Stopped):
            removal_search.remove_parts(wanted, progress=progress)
    with open_progress(tmp_path / "unfinished", "this") as progress:
        again = removal_search.remove_parts(wanted, progress=progress)
    assert again.evaluations is None  # the choice was kept
    assert [one.gone for one in again.remainders] == [one.gone for one in whole.remainders]
    assert again.chosen.validation == whole.chosen.validation
    jax.tree.map(np.testing.assert_array_equal, again.chosen.params, whole.chosen.params)


def stop_at_once(*_):
    raise Stopped


@pytest.mark.exhaustive
def test_a_choice_that_was_stopped_goes_on_from_the_parts_that_went(subject, tmp_path):
    first = removal_search.remove_parts(asked(subject, removed=0.3))
    with open_progress(tmp_path / "unfinished", "this") as progress:
        removal_search.remove_parts(asked(subject, removed=0.3), progress=progress)
        both = removal_search.remove_parts(asked(subject, removed=0.6), progress=progress)
    assert both.evaluations == 2 and both.remainders[1].gone == first.chosen.gone
    straight = removal_search.remove_parts(asked(subject, removed=0.6))
    assert both.chosen.gone == straight.chosen.gone and both.chosen.cost == straight.chosen.cost


@pytest.mark.exhaustive
def test_tuning_recovers_and_what_made_it_worse_is_not_taken(subject):
    plain = removal_search.remove_parts(asked(subject))
    better = removal_search.remove_parts(asked(subject, steps=20, peak_rate=5e-3))
    worse = removal_search.remove_parts(asked(subject, steps=2, peak_rate=3.0))
    assert not plain.is_tuned and better.is_tuned and not worse.is_tuned
    assert better.chosen.validation["nats"] < plain.chosen.validation["nats"] == worse.chosen.validation["nats"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"remove": "attention"}, r"compress\.remove='attention'.*has none of attention to remove"),
        ({"removed": 0.99}, r"compress\.removed=0\.99: count=3 of 3 parts cannot be removed, 2 can: one mixer has to"),
    ],
)
def test_parts_that_cannot_go_are_refused_before_work_starts(subject, options, complaint):
    with pytest.raises(InputError, match=complaint):
        removal_search.check_removal(asked(subject, **options).experiment.compress, subject.model.config)


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda config: removal.remove(config, {}, ["block_9"]), "the model has no part 'block_9': did you mean"),
        (lambda config: removal.remove(config, {}, ["block_0/conv"]), "the model has no part 'block_0/conv'"),
        (lambda config: removal.remove(config, {}, ["block_0", "block_1/mixer"]), "no mixer is left"),
        (
            lambda config: removal.list_parts(config, ["heads"]),
            "names 'heads': known: attention, blocks, mlps, recurrences",
        ),
        (lambda config: removal.list_parts(config, ["attention"]), "has none of attention to remove"),
        (lambda config: removal.measure_costs(SequenceModel(config), {}, [], "bits"), "how='bits' is unknown"),
        (lambda config: removal.measure_costs(SequenceModel(config), {}, [], "loss")(()), "batches are none"),
        (lambda config: removal.measure_costs(SequenceModel(config), {}, [], "influence"), "batches are none"),
        (lambda config: removal.measure_costs(SequenceModel(config), {}, [], "memory"), "batches are none"),
        (lambda config: removal.measure_costs(SequenceModel(config), {}, [], "expansion"), "batches are none"),
        (
            lambda config: list(removal.find_greedily(lambda parts: 0.0, config, ("block_0", "block_1"), 2)),
            "count=2 of 2 parts cannot be removed, 1 can: one mixer has to stay",
        ),
        (
            lambda config: removal.find_exhaustively(lambda parts: 0.0, config, ("block_0", "block_1"), 2),
            "count=2 of 2 parts cannot be removed: one mixer has to stay",
        ),
    ],
)
def test_mistakes_are_named(call, complaint):
    with pytest.raises(ValueError, match=complaint):
        call(runs.model(pattern=("rnn",) * 2, task=LANGUAGE, **SIZES))


def test_blocks_of_an_imported_model_go_and_it_is_written_and_read_as_before(tmp_path):
    config = Model(pattern=("mamba",) * 3, d_model=8, d_state=3, mlp_ratio=0.0, tie_embeddings=True)
    config = dataclasses.replace(config, task=dataclasses.replace(LANGUAGE, vocab=256))
    model, tokens = SequenceModel(config), jnp.arange(24).reshape(2, 12) * 7 % 256
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    huggingface.save(tmp_path / "whole", config, params)
    loaded, there = huggingface.load(tmp_path / "whole")
    smaller, left = removal.remove(loaded, there, ["block_1"])
    huggingface.save(tmp_path / "smaller", smaller, left)
    again, back = huggingface.load(tmp_path / "smaller")
    outputs, _ = jax.jit(SequenceModel(again).apply)({"params": back}, tokens)
    with removal.bypass({"block_1/mixer": 0.0}):
        bypassed, _ = jax.jit(lambda: model.apply({"params": params}, tokens))()
    np.testing.assert_allclose(outputs, bypassed, atol=1e-6)
    assert again.pattern == ("mamba",) * 2
