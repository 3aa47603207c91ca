"""A stream: answers, truths that come late, one program, one tree of state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from selssm_jax.config import Model, SelectiveConfig, Task
from selssm_jax.model import SequenceModel
from selssm_jax.streaming import ADWIN, ExactGradient, Reaction, Stream, TruncatedGradient
from selssm_jax.streaming.stream import ADVANCE

SMALL = {"pattern": ("selective",), "d_model": 4, "d_state": 4, "mlp_ratio": 0.0, "normalize": False}
HORIZON = 3
STEPS = 40  # of every replay, so that all share a program
PLAIN, STILL, ADAM = optax.sgd(0.05), optax.sgd(0.0), optax.adam(0.01)  # programs are told apart by their optimiser

REACTING = {
    "optimizer": ADAM,
    "detector": ADWIN(clock=4),
    "reaction": Reaction(rate=3.0, reset_optimizer=True, memory=0.0, fork=6),
}


def build(task, **options):
    model = SequenceModel(Model(task=task, **SMALL | options))
    inputs = jnp.zeros((1, 1), jnp.int32) if task.vocab else jnp.zeros((1, 1, task.channels))
    return model, jax.jit(model.init)(jax.random.key(0), inputs)["params"]


def make_series(horizon=HORIZON, optimizer=None, rows=None, model=(), **options):
    made = build(Task("forecasting", channels=1, horizon=horizon), linear_skip=2, **dict(model))
    return Stream(*made, PLAIN if optimizer is None else optimizer, rows=rows, **options)


def draw_rows(steps, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).normal(size=(steps, 1))).astype(np.float32)


def assert_same(ours, truth):
    assert jax.tree.structure(ours) == jax.tree.structure(truth)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(truth), strict=True):
        np.testing.assert_array_equal(one, other)


def test_nothing_is_learnt_before_the_truth_is_there():
    stream = make_series()
    before = jax.device_get(stream.params)
    for row in draw_rows(HORIZON):
        assert stream.advance(row)[1] is None
        assert_same(jax.device_get(stream.params), before)
    _, lesson = stream.advance(draw_rows(1, seed=1)[0])
    assert bool(lesson.updated) and int(stream.state.steps) == 1
    assert not np.array_equal(stream.params["head"]["skip_kernel"], before["head"]["skip_kernel"])


def test_the_future_changes_nothing_before_it_arrives():
    rows, step = draw_rows(STEPS), 25
    other = rows.copy()
    other[step:] += 10
    first, second = (make_series().replay(values) for values in (rows, other))
    for one, changed in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        np.testing.assert_array_equal(one[:step], changed[:step])
    assert not np.array_equal(first.answers[step:], second.answers[step:])
    assert not np.array_equal(first.lessons.errors[step], second.lessons.errors[step])


def test_an_answer_is_scored_as_it_was_given():
    stream, rows = make_series(), draw_rows(STEPS)
    replay = stream.replay(rows)
    for step in range(HORIZON, STEPS):
        truth = rows[step - HORIZON + 1 : step + 1]
        error = np.square(replay.answers[step - HORIZON] - truth).mean()
        assert replay.lessons.errors[step] == pytest.approx(error, rel=1e-5)
    assert (replay.lessons.errors[:HORIZON] == 0).all()


def test_a_replay_is_the_stream_row_by_row():
    rows, stepped, replayed = draw_rows(STEPS), make_series(), make_series()
    answers = [stepped.advance(row)[0] for row in rows]
    np.testing.assert_allclose(replayed.replay(rows).answers, np.stack(answers), atol=1e-6)


@pytest.mark.exhaustive
def test_predict_and_learn_are_what_advance_does():
    rows, apart, together = draw_rows(10), make_series(), make_series()
    for step, row in enumerate(rows):
        if step >= HORIZON:
            apart.learn(rows[step - HORIZON + 1 : step + 1])
        np.testing.assert_allclose(apart.predict(row), together.advance(row)[0], atol=1e-6)


def test_one_program_for_each_method_however_long():
    stream = make_series(**REACTING)
    before = ADVANCE._cache_size()
    for row in draw_rows(30):
        stream.advance(row)
    assert ADVANCE._cache_size() <= before + 1


@pytest.mark.parametrize(
    "method",
    [ExactGradient(), pytest.param(TruncatedGradient(4), marks=pytest.mark.exhaustive)],
    ids=["exact", "truncated"],
)
def test_a_stream_that_was_killed_goes_on_bit_for_bit(method, tmp_path):
    options = {**REACTING, "gradient": method}
    rows = np.concatenate([draw_rows(20), draw_rows(60, 1, 20.0)])
    whole, killed, resumed = (make_series(**options) for _ in range(3))
    for stream, values in ((whole, rows), (killed, rows[:37])):
        for row in values:
            stream.advance(row)
    programs = ADVANCE._cache_size()
    killed.save(tmp_path / "stream")
    killed.save(tmp_path / "stream")
    resumed.restore(tmp_path / "stream")
    for row in rows[37:]:
        resumed.advance(row)
    assert ADVANCE._cache_size() == programs
    assert_same(jax.device_get(resumed.state), jax.device_get(whole.state))


def test_a_folder_without_a_state_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no state"):
        make_series().restore(tmp_path)


@pytest.mark.exhaustive
def test_a_language_model_learns_a_cycle():
    model, params = build(Task("language", vocab=5), mlp_ratio=1.0)
    stream = Stream(model, params, optax.adam(0.03), rows=2)
    errors = []
    for step in range(300):
        now = np.array([step, step + 2]) % 5
        logits = stream.predict(now)
        assert logits.shape == (2, 5)
        errors.append(stream.learn((now + 1) % 5).errors)
    assert np.mean(errors[:3]) > 1 and np.mean(errors[-20:]) < 0.3


@pytest.mark.exhaustive
def test_a_classifier_learns_from_the_labels_that_there_are():
    model, params = build(Task("classification", channels=2, classes=2), pool="last")
    stream, rng = Stream(model, params, optax.adam(0.03), waiting=4), np.random.default_rng(0)
    inputs = rng.normal(size=(400, 2)).astype(np.float32)
    errors = []
    for step, values in enumerate(inputs):
        if step >= 4:
            label = int(inputs[step - 4].sum() > 0)
            errors.append(float(stream.learn(label, weights=float(step % 3 > 0)).errors))
        stream.predict(values)
    assert [error == 0 for error in errors[:6]] == [step % 3 == 0 for step in range(4, 10)]
    assert np.sum(errors[:60]) > 1.5 * np.sum(errors[-60:])


def test_a_truth_that_is_missing_teaches_nothing():
    stream = make_series()
    stream.predict([1.0])
    before = jax.device_get(stream.params)
    lesson = stream.learn(np.full((HORIZON, 1), np.nan))
    assert not lesson.updated and lesson.errors == 0 and lesson.score == 0 and stream.waiting == 0
    assert_same(jax.device_get(stream.params), before)


@pytest.mark.exhaustive
def test_streams_of_a_batch_are_read_apart_and_learnt_from_together():
    rows = np.stack([draw_rows(STEPS), draw_rows(STEPS, 1)], axis=1)
    both, alone = make_series(rows=2, optimizer=STILL), make_series(optimizer=STILL)
    np.testing.assert_allclose(both.replay(rows).answers[:, 0], alone.replay(rows[:, 0]).answers, atol=1e-6)
    learning, twice = make_series(rows=2), make_series()
    same = np.repeat(draw_rows(STEPS)[:, None], 2, axis=1)
    np.testing.assert_allclose(learning.replay(same).answers[:, 1], twice.replay(same[:, 0]).answers, atol=1e-5)


def test_the_score_fades():
    replay = make_series(fade=0.5).replay(draw_rows(STEPS))
    errors = replay.lessons.errors[HORIZON:]
    weights = 0.5 ** np.arange(len(errors))[::-1]
    assert replay.lessons.score[-1] == pytest.approx((weights * errors).sum() / weights.sum(), rel=1e-5)


def test_without_an_optimizer_nothing_is_learnt_and_all_is_scored():
    model, params = build(Task("forecasting", channels=1, horizon=1))
    stream = Stream(model, params, None)
    replay = stream.replay(draw_rows(10))
    assert_same(jax.device_get(stream.params), jax.device_get(params))
    outputs, _ = model.apply({"params": params}, jnp.asarray(draw_rows(10)[None]))
    np.testing.assert_allclose(replay.answers[-1], outputs[0], atol=1e-5)
    assert (replay.lessons.errors[1:] > 0).all() and not replay.lessons.updated.any()


def test_a_history_sets_the_scale_and_fills_the_memory():
    stream, history = make_series(horizon=1, model={"normalize": True}), 5 + draw_rows(30)
    stream.read_history(history)
    mean = float(stream.state.leader.front["scale"]["mean"][0, 0, 0])
    assert mean == pytest.approx(history.mean(), rel=1e-5)
    assert abs(stream.predict([5.0]) - 5).max() < 3
    stream.learn([[5.0]])
    assert "a reset would take" in tell(stream.predict, [5.0], reset=True)
    assert "comes before the first" in tell(stream.read_history, history)


def test_a_reset_forgets_what_came_before():
    streams = [make_series(optimizer=STILL) for _ in range(2)]
    for stream, seed in zip(streams, (0, 1), strict=True):
        for row in draw_rows(HORIZON - 1, seed):
            stream.predict(row)
    first, second = (stream.predict([0.3], reset=True) for stream in streams)
    np.testing.assert_array_equal(first, second)


def tell(call, *arguments, **options):
    with pytest.raises(ValueError, match=r"[a-z]") as error:
        call(*arguments, **options)
    return str(error.value)


def test_what_does_not_fit_is_refused_and_changes_nothing():
    stream = make_series()
    assert "call predict first" in tell(stream.learn, np.zeros((HORIZON, 1)))
    assert "expected (1,)" in tell(stream.predict, [1.0, 2.0])
    assert "not finite" in tell(stream.predict, [np.nan])
    for _ in range(HORIZON):
        stream.predict([0.0])
    assert "wait for their truth" in tell(stream.predict, [0.0])
    assert "expected (3, 1)" in tell(stream.learn, [1.0])
    assert stream.waiting == HORIZON
    language = Stream(*build(Task("language", vocab=5)), None)
    assert "outside 0 to 4" in tell(language.predict, 5)
    assert "use predict and learn" in tell(language.advance, 1)


@pytest.mark.exhaustive
def test_models_that_no_stream_reads_are_refused():
    series = Task("forecasting", channels=1, horizon=1)
    for options, word in (
        ({"frame": 2, "stride": 2}, "model.stride=1"),
        ({"selective": SelectiveConfig(process_noise=0.1)}, "process_noise"),
        ({"selective": SelectiveConfig(transition="dense")}, "TruncatedGradient"),
        ({"selective": SelectiveConfig(gate="softmax")}, "touch one another, by G/"),
        ({"pattern": ("attention",), "d_model": 8}, "'attention', has no traces"),
    ):
        drawn = "selective" in options and options["selective"].process_noise
        made = (SequenceModel(Model(task=series, **SMALL | options)), {}) if drawn else build(series, **options)
        assert word in tell(Stream, *made, optax.sgd(0.1))
    assert "waiting=0" in tell(make_series, waiting=0)
    Stream(*build(series, selective=SelectiveConfig(transition="dense")), optax.sgd(0.1), gradient=TruncatedGradient(2))
