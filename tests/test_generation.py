"""Text that a model writes: greedily as by reading everything again, at random as its filtered odds say, and from the
command line.
"""

import functools
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from runs import command
from selssm_jax import generation
from selssm_jax.compression.quantization import fit
from selssm_jax.compression.streaming import PackedModel, calibration
from selssm_jax.config import Data, Experiment, Model, Task
from selssm_jax.data import load, vocabulary
from selssm_jax.errors import InputError
from selssm_jax.generation import filter_logits, generate, generate_scored, stream
from selssm_jax.model import SequenceModel
from selssm_jax.state_layout import StateLayout
from selssm_jax.training.checkpoint import Workdir

LOGITS = jnp.log(jnp.array([[0.1, 0.4, 0.2, 0.3], [0.25, 0.25, 0.25, 0.25]]))
PROMPT = np.array([[1, 4, 2, 7], [0, 3, 3, 5]])
LETTERS = "the state of a model is what it keeps of the past and a gate says what to keep\n" * 40


@functools.cache
def made(kind):
    """A tiny language model of one kind of mixer, with parameters as drawn."""
    model = SequenceModel(
        runs.model(
            pattern=(kind,),
            d_model=8,
            d_state=6,
            **runs.HEADS,
            attention__window=5,
            mlp_ratio=0,
            task=Task("language", vocab=11),
        )
    )
    return model, jax.jit(model.init)(jax.random.key(3), jnp.zeros((1, 2), jnp.int32))["params"]


@functools.cache
def packed(kind):
    """The same with everything that is carried in four bits a component."""
    model, params = made(kind)
    batch = {"inputs": np.tile(PROMPT, 4), "valid": np.ones((2, 16), bool)}
    layout = StateLayout(model, params)
    levels = fit(calibration(model, params, [batch]), (4,) * layout.size, channels=layout.channels()).levels
    return PackedModel(model, tuple("4" * leaf.size for leaf in layout.leaves)), {**params, "levels": levels}


def reread(model, params, prompt, count):
    """The most probable next token of everything so far, read anew for every one of them; what is ahead of it is
    padding, which it cannot see.
    """
    read = jax.jit(lambda tokens: model.apply({"params": params}, tokens)[0])
    tokens = np.concatenate([prompt, np.zeros((len(prompt), count), int)], axis=1)
    for place in range(prompt.shape[1], tokens.shape[1]):
        tokens[:, place] = read(jnp.asarray(tokens, jnp.int32))[:, place - 1].argmax(-1)
    return tokens[:, prompt.shape[1] :]


# attention looks 5 steps back, its cache has to let go
@pytest.mark.parametrize("kind", ["selective", "attention", "mamba", "gru"])
def test_greedy_writing_is_reading_everything_again(kind):
    written = generate(*made(kind), PROMPT, 9)
    np.testing.assert_array_equal(written, reread(*made(kind), PROMPT, 9))
    assert written.dtype == jnp.int32 and len(np.unique(written)) > 1


@pytest.mark.parametrize("kind", ["selective", "attention"])
def test_a_packed_model_writes_what_it_reads(kind):
    np.testing.assert_array_equal(generate(*packed(kind), PROMPT, 6), reread(*packed(kind), PROMPT, 6))


def test_one_token_is_written_after_one_token():
    model, params = made("gru")
    assert generate(model, params, np.array([[2]]), 1).shape == (1, 1)


def test_a_model_is_compiled_once_for_equal_shapes():
    model, params = made("selective")
    drawn = functools.partial(generate, model, params, count=3, temperature=0.7, top_k=4)
    drawn(PROMPT, key=jax.random.key(0))
    before = generation._write._cache_size()
    drawn(PROMPT[::-1], key=jax.random.key(1))
    assert generation._write._cache_size() == before


def test_the_same_key_writes_the_same_and_another_something_else():
    model, params = made("selective")
    first, again, other = (
        generate(model, params, PROMPT, 20, temperature=1.0, key=jax.random.key(seed)) for seed in (1, 1, 2)
    )
    assert (first == again).all() and (first != other).any() and (first[0] != first[1]).any()
    assert first.min() >= 0 and first.max() < 11


def test_tokens_are_drawn_as_often_as_their_odds():
    model, params = made("selective")
    rows = np.repeat(PROMPT[:1], 4000, axis=0)
    logits = model.apply({"params": params}, jnp.asarray(PROMPT[:1], jnp.int32))[0][0, -1]
    odds = jax.nn.softmax(filter_logits(logits, 0.5, 5, 0.9))
    counts = np.bincount(
        generate(model, params, rows, 1, temperature=0.5, top_k=5, top_p=0.9, key=jax.random.key(0))[:, 0], minlength=11
    )
    assert 1 < (odds > 0).sum() <= 5 and (counts[odds == 0] == 0).all()
    # five standard errors of a share
    np.testing.assert_allclose(counts / len(rows), odds, atol=5 * np.sqrt(0.25 / len(rows)))


def close(state, other):
    """Whether two states are the same to 1e-5."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), state, other)


DRAWN = {"temperature": 0.8, "key": jax.random.key(4)}


def test_scores_are_of_the_model_itself_and_the_state_of_all_that_was_written():
    model, params = made("attention")
    written = generate_scored(model, params, PROMPT, 4, **DRAWN, top_k=5, repetition_penalty=1.5)
    whole = np.concatenate([PROMPT, written.tokens], axis=1)
    read = jax.jit(lambda tokens: model.apply({"params": params}, tokens, initial(model, params, 2)))
    logits, state = read(jnp.asarray(whole, jnp.int32))
    expected = np.take_along_axis(np.asarray(jax.nn.log_softmax(logits))[:, :-1], whole[:, 1:, None], axis=2)[:, -4:, 0]
    np.testing.assert_allclose(written.log_probs, expected, rtol=1e-5, atol=1e-5)
    close(written.state, state)


def initial(model, params, rows):
    return model.apply({"params": params}, rows, method="initial_state")


@pytest.mark.parametrize(("form", "kind"), [(made, "attention"), (packed, "selective")])
def test_writing_on_from_a_state_is_reading_all_of_it_at_once(form, kind):
    model, params = form(kind)
    begun = generation.read_rows(model, params, PROMPT)
    before = jax.tree.map(np.array, begun)
    together = generate_scored(model, params, [[6, 2, 8], [9]], 3, state=begun)  # of unequal length
    whole = generate_scored(model, params, [[*PROMPT[1], 9]], 3)
    np.testing.assert_array_equal(together.tokens[1:], whole.tokens)
    np.testing.assert_allclose(together.log_probs[1:], whole.log_probs, rtol=1e-5, atol=1e-5)
    close(jax.tree.map(lambda leaf: leaf[1:], together.state), whole.state)
    # a prefix that all go on from, as often as is wanted: what was read stays as it is
    prefix = jax.tree.map(lambda leaf: leaf[1:], begun)
    for _ in range(2):
        np.testing.assert_array_equal(generate(model, params, [[6, 2, 8], [9]], 3, state=prefix)[1:], whole.tokens)
    jax.tree.map(np.testing.assert_array_equal, before, begun)


def test_several_answers_are_those_of_a_prompt_that_is_repeated():
    model, params = made("selective")
    prompts = [[1, 4, 2], [3]]
    answers = generate_scored(model, params, prompts, 6, answers=3, **DRAWN)
    repeated = generate_scored(model, params, [prompts[0]] * 3 + [prompts[1]] * 3, 6, **DRAWN)
    np.testing.assert_array_equal(answers.tokens, repeated.tokens)
    np.testing.assert_allclose(answers.log_probs, repeated.log_probs, rtol=1e-5, atol=1e-6)
    close(answers.state, repeated.state)
    assert len(np.unique(answers.tokens, axis=0)) > 3
    steps = list(stream(model, params, prompts, 6, answers=3, **DRAWN))
    np.testing.assert_array_equal(np.stack(steps, axis=1), answers.tokens)


def test_a_row_that_has_ended_keeps_its_state_and_says_nothing():
    model, params = made("selective")
    free = np.asarray(generate(model, params, PROMPT, 9))
    token = int(free[0, 3])
    stopped = generate_scored(model, params, PROMPT, 9, stop=(token,))
    for row, tokens in enumerate(np.asarray(stopped.tokens)):
        said = tokens[tokens != generation.NOTHING]
        state = generation.read_rows(model, params, [[*PROMPT[row], *said]])
        close(jax.tree.map(lambda leaf, row=row: leaf[row : row + 1], stopped.state), state)
        assert (np.asarray(stopped.log_probs)[row, len(said) :] == 0).all() and (stopped.log_probs[row, 0] < 0)


def test_repeated_tokens_are_penalised_by_hand():
    logits = jnp.array([[2.0, -2.0, 1.0, -1.0]])
    seen = jnp.array([[True, True, False, False]])
    np.testing.assert_allclose(generation.penalise_repetition(logits, seen, 2.0), [[1.0, -4.0, 1.0, -1.0]])
    model, params = made("selective")
    read = jax.jit(lambda tokens: model.apply({"params": params}, tokens)[0])
    tokens = np.array([[3, 3, 5] + [0] * 8])
    for place in range(3, 11):
        logits = read(jnp.asarray(tokens, jnp.int32))[:, place - 1]
        seen = np.isin(np.arange(11), tokens[0, :place])[None]
        tokens[0, place] = generation.penalise_repetition(logits, jnp.asarray(seen), 3.0).argmax()
    # filled up on the left, by what must not count as there
    written = generate(model, params, [[3, 3, 5], [1, 2, 4, 6]], 8, repetition_penalty=3.0)
    np.testing.assert_array_equal(written[:1], tokens[:, 3:])
    assert len(np.unique(written[0])) > len(np.unique(generate(model, params, [[3, 3, 5]], 8)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda model, params: initial(model, params, 3), "state is of 3 sequences, but 2 prompts"),
        (lambda model, params: initial(*made("gru"), 2), "state is not of this model"),
        (
            lambda model, params: model.apply({"params": params}, 2, 3, method="initial_state"),
            r"has no room for more; give one of generate_scored",
        ),
    ],
)
def test_a_state_that_cannot_be_read_on_from_is_refused(change, words):
    model, params = made("attention")
    with pytest.raises(ValueError, match=words):
        generate(model, params, PROMPT, 2, state=change(model, params))


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "expected"),
    [
        (1.0, 0, 1.0, [[0.1, 0.4, 0.2, 0.3], [0.25] * 4]),
        (0.5, 0, 1.0, [[1 / 30, 16 / 30, 4 / 30, 9 / 30], [0.25] * 4]),  # squares
        (1.0, 2, 1.0, [[0, 4 / 7, 0, 3 / 7], [0.5, 0.5, 0, 0]]),
        (1.0, 9, 1.0, [[0.1, 0.4, 0.2, 0.3], [0.25] * 4]),
        (1.0, 0, 0.65, [[0, 4 / 7, 0, 3 / 7], [1 / 3, 1 / 3, 1 / 3, 0]]),
        (1.0, 0, 0.75, [[0, 4 / 9, 2 / 9, 3 / 9], [1 / 3, 1 / 3, 1 / 3, 0]]),
        (1.0, 2, 0.55, [[0, 1, 0, 0], [0.5, 0.5, 0, 0]]),  # of 4/7 and 3/7, the odds after top_k
        (1.0, 0, 1e-6, [[0, 1, 0, 0], [1, 0, 0, 0]]),
        (0.0, 0, 1.0, [[0, 1, 0, 0], [1, 0, 0, 0]]),
        (0.0, 3, 0.9, [[0, 1, 0, 0], [1, 0, 0, 0]]),
    ],
)
def test_filtered_odds_by_hand(temperature, top_k, top_p, expected):
    odds = jax.nn.softmax(filter_logits(LOGITS, temperature, top_k, top_p), axis=-1)
    np.testing.assert_allclose(odds, expected, atol=1e-6)
    assert ((odds == 0) == (np.array(expected) == 0)).all()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": -0.5}, "temperature=-0.5 must be a number of at least 0"),
        ({"temperature": float("nan")}, "temperature=nan must be"),
        ({"temperature": 1.0}, "key is None, but temperature=1.0"),
        ({"top_k": -1}, "top_k=-1 must be at least 0"),
        ({"top_p": 0.0}, "top_p=0.0 must be above 0"),
        ({"top_p": 1.5}, "top_p=1.5 must be above 0 and at most 1"),
        ({"repetition_penalty": 0.0}, "repetition_penalty=0.0 must be from 0.01 to 100"),
        ({"repetition_penalty": float("nan")}, "repetition_penalty=nan must be"),
        ({"repetition_penalty": "1"}, "repetition_penalty='1' is of type str"),
        ({"answers": 0}, "answers=0 must be at least 1"),
        ({"answers": 2.0}, "answers=2.0 is of type float, expected int"),
        ({"answers": 2}, "answers=2 of temperature=0.0 would all be the same"),
        ({"count": 0}, "count=0 must be at least 1"),
        ({"count": 2.5}, "count=2.5 is of type float, expected int"),
        ({"count": 10**9}, "count=1000000000 must be .* at most 10000000"),
        ({"prompt": np.array([[3.7]])}, "prompt is of type float64, expected tokens"),
        ({"prompt": [[1.0, 2.0], [3.0]]}, "prompt is of type float64, expected tokens"),
        ({"prompt": np.array([[True]])}, "prompt is of type bool"),
        ({"prompt": [[1, 2], []]}, r"shape \[\(2,\), \(0,\)\]"),
        ({"prompt": np.array([[0, -1]])}, "tokens from -1 to 0"),
        ({"prompt": np.array([1, 2])}, r"shape \(2,\)"),
        ({"stop": (11,)}, r"stop=\(11,\) holds what is no token"),
        ({"stop": ("a",)}, r"stop=\('a',\) holds what is no token"),
        ({"prompt": np.zeros((1, 0), int)}, r"shape \(1, 0\)"),
        ({"prompt": np.array([[0, 11]])}, "tokens from 0 to 11, but the model's are 0 to 10"),
    ],
)
def test_errors_name_the_setting(changes, words):
    model, params = made("gru")
    with pytest.raises(ValueError, match=words):
        # without the check of types that tests add
        inspect.unwrap(generate)(model, params, **({"prompt": PROMPT, "count": 2} | changes))


@pytest.mark.parametrize(("form", "kind"), [(made, "selective"), (made, "attention"), (packed, "selective")])
def test_prompts_of_unequal_length_are_written_on_as_each_is_alone(kind, form):
    prompts = [[1, 4, 2, 7], [3], [5, 5]]
    together = generate(*form(kind), prompts, 5)
    for prompt, row in zip(prompts, together, strict=True):
        np.testing.assert_array_equal(row, generate(*form(kind), [prompt], 5)[0])


def test_a_stop_token_is_the_last_of_its_row():
    model, params = made("selective")
    free = np.asarray(generate(model, params, PROMPT, 9))
    token = int(free[0, 3])
    stopped = np.asarray(generate(model, params, PROMPT, 9, stop=(token,)))
    for row, whole in zip(stopped, free, strict=True):
        ends = np.flatnonzero(whole == token)
        length = ends[0] + 1 if ends.size else 9
        np.testing.assert_array_equal(row, np.where(np.arange(9) < length, whole, generation.NOTHING))
    assert (stopped[0] == generation.NOTHING).any()


@pytest.mark.parametrize("how", [{}, {"temperature": 0.8, "top_p": 0.9, "key": jax.random.key(2)}])
def test_a_stream_is_the_same_tokens_one_step_at_a_time(how):
    model, params = made("gru")
    steps = list(stream(model, params, [[1, 2], [3]], 6, **how))
    np.testing.assert_array_equal(np.stack(steps, axis=1), generate(model, params, [[1, 2], [3]], 6, **how))
    assert len(list(stream(model, params, [[1, 2]], 6, stop=range(11), **how))) == 1  # every token ends it
    with pytest.raises(ValueError, match="count=0"):
        stream(model, params, PROMPT, 0)  # at once, before a token is asked for


@pytest.mark.parametrize("spoiled", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error_and_no_token(spoiled):
    model, params = made("gru")
    bad = {**params, "head": {"kernel": params["head"]["kernel"].at[0, 3].set(spoiled)}}
    for how in ({}, {"temperature": 1.0, "key": jax.random.key(0)}):
        with pytest.raises(ValueError, match="the logits of token 0 of row 0 are not finite"):
            generate(model, bad, PROMPT, 3, **how)
        with pytest.raises(ValueError, match="the logits of token 0 of row 0 are not finite"):
            next(stream(model, bad, PROMPT, 3, **how))


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-38, 1e-42, 1e-300])
def test_a_tiny_temperature_is_greedy(temperature):
    """Logits over it overflow, and odds of nan drew token 0."""
    odds = jax.nn.softmax(filter_logits(LOGITS[:1] * 1e3, temperature, 0, 1.0), axis=-1)
    np.testing.assert_array_equal(odds, [[0, 1, 0, 0]])
    model, params = made("gru")
    if temperature == 1e-38:
        np.testing.assert_array_equal(
            generate(model, params, PROMPT, 4, temperature=temperature, key=jax.random.key(0)),
            generate(model, params, PROMPT, 4),
        )


def test_what_init_returns_is_taken_as_parameters_are():
    model, params = made("gru")
    np.testing.assert_array_equal(generate(model, {"params": params}, PROMPT, 3), generate(model, params, PROMPT, 3))


@pytest.mark.parametrize(
    ("texts", "stop", "told"),
    [
        (["a", "ab", "abc"], (), ["a", "b", "c"]),
        (["a", "ab<", "ab<e", "ab<e>", "ab<e>f"], ("<e>",), ["a", "b"]),
        (["a", "ab<", "ab<x"], ("<e>",), ["a", "b", "<x"]),
        (["a", "a\ufffd", "aé"], (), ["a", "é"]),
        (["stop", "stop s", "stop st", "stop stop"], ("stop",), ["stop", " "]),  # the beginning is the user's own
        (["a", "ab"], ("b", "ab"), ["a"]),
    ],
)
def test_what_is_told_is_whole_characters_and_nothing_of_what_ends_it(texts, stop, told):
    assert [piece for piece in generation._cut(texts, texts[0], stop) if piece] == told


def test_a_tokenizers_own_beginning_is_read_and_not_shown():
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "a": 1, "</s>": 2}, unk_token="a"))
    made.add_special_tokens(["<s>", "</s>"])
    assert vocabulary.beginning("subword", made.to_str()).tolist() == []
    made.post_processor = tokenizers.processors.TemplateProcessing(
        "<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    assert vocabulary.beginning("subword", made.to_str()).tolist() == [0]
    assert vocabulary.beginning("byte").tolist() == []
    with pytest.raises(InputError, match="tokenizer cannot be read"):
        vocabulary.beginning("subword", "{}")


def test_a_model_of_another_task_writes_nothing():
    model = SequenceModel(
        Model(pattern=("gru",), d_model=8, d_state=6, task=Task("classification", channels=1, classes=2))
    )
    with pytest.raises(ValueError, match="task is classification"):
        generate(model, {}, PROMPT, 2)


@pytest.fixture
def run(tmp_path):
    """Makes the workdir of a run whose parameters are as drawn, on letters or on a table."""

    def make(source, text):
        path = tmp_path / "data.txt"
        path.write_text(text)
        small = Model(pattern=("gru",), d_model=8, d_state=4, mlp_ratio=0)
        experiment = Experiment("small", Data(source=source, file=str(path), batch_size=4, length=16, horizon=8), small)
        dataset = load(experiment.data)
        model = SequenceModel(Model(**{**vars(small), "task": dataset.task}))
        params = jax.jit(model.init)(jax.random.key(0), jnp.asarray(next(iter(dataset.evaluate("test", 2)))["inputs"]))[
            "params"
        ]
        workdir = Workdir(str(tmp_path / "run"), experiment)
        workdir.describe(dataset.metadata())
        workdir.save_best(1, params, {})
        workdir.close()
        return f"--workdir={tmp_path / 'run'}"

    return make


def test_the_command_writes_on_and_refuses_what_it_cannot_read(run, capsys):
    workdir = run("text", LETTERS)
    told = []
    for argv in (["--temperature=0"], ["--top_k=5", "--top_p=0.9", "--seed=1"]):
        assert command("eval.py", workdir, "--generate=the model", "--tokens=30", *argv) == 0
        told.append(capsys.readouterr().out)
    assert all(len(text) == len("the model") + 30 + 1 and text.startswith("the model") for text in told)
    assert len(set(told)) == 2
    end = told[0].removeprefix("the model")[9:12]
    assert command("eval.py", workdir, "--generate=the model", "--tokens=30", "--temperature=0", f"--stop={end}") == 0
    assert capsys.readouterr().out.strip("\n") == "the model" + told[0].removeprefix("the model").partition(end)[0]
    assert command("eval.py", workdir, "--generate=the model", "--generate=a", "--tokens=30", "--temperature=0") == 0
    first, second = capsys.readouterr().out.rstrip("\n").split("\n\n")
    assert first == told[0].rstrip("\n") and second.startswith("a") and len(second) == 31
    drawn = ["--generate=the model", "--generate=a", "--tokens=6", "--answers=2"]
    assert command("eval.py", workdir, *drawn) == 0
    answers = capsys.readouterr().out.rstrip("\n").split("\n\n")
    assert command("eval.py", workdir, *drawn, "--scores", "--repetition_penalty=1") == 0
    lines = list(map(json.loads, capsys.readouterr().out.splitlines()))
    assert [line["prompt"] + line["text"] for line in lines] == answers and len(answers) == 4
    for line in lines:
        assert "".join(line["tokens"]) == line["text"] and len(line["log_probs"]) == 6
        assert np.isclose(sum(line["log_probs"]), line["log_prob"], atol=1e-4) and line["log_prob"] < 0
    for argv, words in (
        (["--generate=a", "--answers=0"], ["--answers=0 must be at least 1"]),
        (["--generate=a", "--answers=2", "--temperature=0"], ["--answers=2 of temperature=0.0 would all be the same"]),
        (["--generate=a", "--repetition_penalty=0"], ["--repetition_penalty=0.0 must be from 0.01"]),
        (["--generate=Zoë"], ["'Z', 'ë'", "vocabulary"]),
        (["--generate="], ["no token to begin with"]),
        (["--generate=a", "--top_p=0"], ["--top_p=0.0 must be above 0"]),
        (["--generate=a", "--temperature=-1"], ["--temperature=-1.0 must be"]),
        (["--generate=a", "--tokens=0"], ["--tokens=0 must be at least 1"]),
        (["--generate=a", "--stop="], ["--stop is empty"]),
        (["--generate=a", f"--seed={2**63}"], ["--seed=9223372036854775808 is out of range"]),
    ):
        assert command("eval.py", workdir, *argv) == 2
        told = capsys.readouterr().err
        assert all(part in told for part in words)


def test_the_command_refuses_a_run_that_is_not_of_language(run, capsys):
    workdir = run("csv", "date,x\n" + "".join(f"day {index},{index % 7}\n" for index in range(200)))
    assert command("eval.py", workdir, "--generate=the") == 2
    told = capsys.readouterr().err
    assert "needs a run of language" in told and "is forecasting" in told
