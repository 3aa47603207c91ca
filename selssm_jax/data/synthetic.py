"""Tasks whose answer and entropy are known. Every example is a function of (data.seed, split, number) alone.

The "optimum" in the metadata is what a perfect model reaches; "answer_nats" is the entropy of all scored answers of an
example, which a model without memory has to pay: it is the information about the past that the task asks a state to
hold. "process", where the inputs are Gaussian: x_t = z_t + n_t with z_t = decay z_{t-1} + e_t, var z = 1, var n =
noise; of two_answers decays of several z, "read", which of the x each input is the sum of, and "mixing", which of the z
each answer is. "answers_known", where there are several: of each the error of the exact filter and what the past tells
of it in nats, and of all together.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from selssm_jax.config import Data, Task
from selssm_jax.data import counter_rng
from selssm_jax.data.pipeline import SPLITS, Batch, Dataset, in_order, shuffled_rows
from selssm_jax.errors import InputError

Key = tuple[int, ...]
Examples = tuple[np.ndarray, np.ndarray, np.ndarray]  # inputs, targets, weights
DECAY = 0.9  # of the hidden state of linear_gaussian
SLOW = 0.99  # of that of changing_drift in calm
FAST, TURN = 0.5, 1 / 32  # decay in a storm of changing_drift, and how often storm and calm follow one another
CLEAR, OFTEN = 0.001, 0.05  # variance of the noise of its clear readings, and how often a reading is one
PARTS = (0.99, 0.95, 0.8)  # decays of the hidden states of two_answers
MIXING = np.array([[1, 1, 0], [1, 0, 1]])  # which of them are in its first answer, and in its second
READ = np.array([*MIXING, [1, 0, 0]])  # and in what is read at each step: both sums, and the shared one by itself
GRID = 20_001  # variances between 0 and 1 at which means over all courses of noise or drift are computed


class Definition(NamedTuple):
    """A task, its examples as a function of (key, rows), metrics of known rivals and of the optimum, the answers'
    entropy, the inputs' law, and of several answers what is known of each.
    """

    task: Task
    examples: Callable[[Key, np.ndarray], Examples]
    rivals: Mapping[str, dict[str, float]]
    answer_nats: float | None = None
    process: Mapping[str, Any] | None = None
    answers_known: Mapping[str, Any] | None = None


def dataset(config: Data) -> Dataset:
    """Returns the synthetic task that data.source names. Raises InputError where its sizes do not fit together."""
    task, examples, rivals, answer_nats, process, answers_known = TASKS[config.source](config)
    source = _Drawn(config, examples)
    info: dict[str, Any] = {"source": config.source, "optimum": rivals["optimal"], "answer_nats": answer_nats}
    info |= {} if process is None else {"process": dict(process)}
    info |= {} if answers_known is None else {"answers_known": dict(answers_known)}
    vocabulary = tuple(str(index) for index in range(task.vocab))
    return Dataset(
        task,
        source.draw,
        source.cover,
        info,
        lambda split: dict(rivals),
        vocabulary=vocabulary,
        level="word" if task.vocab else "character",
    )


@dataclasses.dataclass(frozen=True)
class _Drawn:
    config: Data
    examples: Callable[[Key, np.ndarray], Examples]

    def draw(self, seed: int, numbers: np.ndarray) -> Batch:
        return self._take("train", shuffled_rows(seed, numbers, self.config.train_examples))

    def cover(self, split: str, batch_size: int) -> Iterator[Batch]:
        count = self.config.train_examples if split == "train" else self.config.eval_examples
        return in_order(count, batch_size, lambda rows: self._take(split, rows))

    def _take(self, split: str, rows: np.ndarray) -> Batch:
        inputs, targets, weights = self.examples((self.config.seed, SPLITS.index(split)), rows)
        return {"inputs": inputs, "targets": targets, "weights": weights, "valid": np.ones(inputs.shape[:2], bool)}


def _selective_copying(config: Data) -> Definition:
    """`tokens` symbols strewn over `length` steps of blanks, then as many marks, at which they are to be said in order
    (Gu and Dao 2023).

    Vocabulary: `vocab` symbols, a blank, a mark. The answers are independent and uniform.
    """
    if config.tokens > config.length:
        raise InputError(
            f"data.tokens={config.tokens} do not fit into data.length={config.length} steps: use fewer tokens or a "
            "longer sequence"
        )
    blank, mark, total = config.vocab, config.vocab + 1, config.length + config.tokens

    def examples(key: Key, rows: np.ndarray) -> Examples:
        symbols = counter_rng.integers((*key, 0), rows, config.tokens, config.vocab)
        order = counter_rng.uniform((*key, 1), rows, config.length)
        places = np.sort(np.argpartition(order, config.tokens - 1, axis=1)[:, : config.tokens], axis=1)
        inputs = np.full((len(rows), total), blank, np.int32)
        inputs[:, config.length :] = mark
        np.put_along_axis(inputs, places, symbols, axis=1)
        return _mask_targets(inputs, config.length, symbols)

    return Definition(
        Task("language", vocab=config.vocab + 2, length=total),
        examples,
        _answers(config.vocab),
        config.tokens * math.log(config.vocab),
    )


def _induction_heads(config: Data) -> Definition:
    """Random symbols; a mark occurs once inside and once at the end, where the symbol that followed it is to be said.

    Vocabulary: `vocab` symbols and the mark (Olsson et al. 2022; Gu and Dao 2023).
    """
    if config.length < 4:
        raise InputError(f"data.length={config.length} is too short for induction: use at least 4")
    mark = config.vocab

    def examples(key: Key, rows: np.ndarray) -> Examples:
        inputs = counter_rng.integers((*key, 0), rows, config.length, config.vocab)
        place = counter_rng.integers((*key, 1), rows, 1, config.length - 2)
        np.put_along_axis(inputs, place, mark, axis=1)
        inputs[:, -1] = mark
        return _mask_targets(inputs, config.length - 1, np.take_along_axis(inputs, place + 1, axis=1))

    return Definition(
        Task("language", vocab=config.vocab + 1, length=config.length),
        examples,
        _answers(config.vocab),
        math.log(config.vocab),
    )


def _associative_recall(config: Data) -> Definition:
    """`tokens` pairs of a key and a value, keys all different; then every key once more, in any order and at any places
    among blanks, where its value is to be said (multi-query associative recall, Arora et al. 2024).

    Vocabulary: `vocab` values, `vocab` keys, a blank. The answers are independent and uniform.
    """
    pairs, start, asked = config.tokens, 2 * config.tokens, config.length - 2 * config.tokens
    if pairs > config.vocab:
        raise InputError(
            f"data.tokens={pairs} keys must differ, but data.vocab={config.vocab} has fewer: use fewer tokens or a "
            "larger vocab"
        )
    if asked < pairs:
        raise InputError(
            f"data.length={config.length} is too short for data.tokens={pairs} pairs and as many questions: use at "
            f"least {3 * pairs}"
        )

    def examples(key: Key, rows: np.ndarray) -> Examples:
        keys = np.argsort(counter_rng.uniform((*key, 0), rows, config.vocab), axis=1)[:, :pairs]
        values = counter_rng.integers((*key, 1), rows, pairs, config.vocab)
        places = np.argsort(counter_rng.uniform((*key, 2), rows, asked), axis=1)[:, :pairs] + start
        inputs = np.full((len(rows), config.length), 2 * config.vocab, np.int32)
        inputs[:, 0:start:2], inputs[:, 1:start:2] = config.vocab + keys, values
        np.put_along_axis(inputs, places, config.vocab + keys, axis=1)
        targets, weights = np.zeros_like(inputs), np.zeros(inputs.shape, np.float32)
        np.put_along_axis(targets, places, values, axis=1)
        np.put_along_axis(weights, places, 1, axis=1)
        return inputs, targets, weights

    return Definition(
        Task("language", vocab=2 * config.vocab + 1, length=config.length),
        examples,
        _answers(config.vocab),
        pairs * math.log(config.vocab),
    )


def _delayed_recall(config: Data) -> Definition:
    """Random symbols; at every step that which was read `lag` steps before is to be said."""
    if config.lag >= config.length:
        raise InputError(
            f"data.lag={config.lag} reaches before the start of data.length={config.length} steps: use a smaller lag "
            "or a longer sequence"
        )
    scored = config.length - config.lag

    def examples(key: Key, rows: np.ndarray) -> Examples:
        inputs = counter_rng.integers((*key, 0), rows, config.length, config.vocab)
        return _mask_targets(inputs, config.lag, inputs[:, :scored])

    return Definition(
        Task("language", vocab=config.vocab, length=config.length),
        examples,
        _answers(config.vocab),
        scored * math.log(config.vocab),
    )


def _linear_gaussian(config: Data) -> Definition:
    """z_t = DECAY z_{t-1} + e_t with var z = 1, observed as x_t = z_t + n_t, var n = `noise`, but for the last `blank`
    steps, at which x_t = 0; the next `horizon` x are to be said.

    The least mean squared error is that of the Kalman filter after the observations; forecasting 0 costs 1 + noise.
    """
    if config.blank >= config.length:
        raise InputError(
            f"data.blank={config.blank} leaves no reading of data.length={config.length}: use a smaller blank, or a "
            "longer sequence"
        )

    def examples(key: Key, rows: np.ndarray) -> Examples:
        total = config.length + config.horizon
        hidden = _draw_states(key, rows, total, DECAY)
        seen = (hidden + math.sqrt(config.noise) * counter_rng.normal((*key, 1), rows, total)).astype(np.float32)[
            :, :, None
        ]
        seen[:, config.length - config.blank : config.length] = 0
        return seen[:, : config.length], seen[:, config.length :], np.ones(len(rows), np.float32)

    task = Task("forecasting", channels=1, length=config.length, horizon=config.horizon)
    rivals = {"optimal": {"mse": _kalman_error(config)}, "zero": {"mse": 1 + config.noise}}
    # what is blank is no reading of the process
    process = None if config.blank else {"decay": DECAY, "noise": config.noise}
    return Definition(task, examples, rivals, process=process)


def _draw_states(key: Key, rows: np.ndarray, steps: int, decay: float | np.ndarray) -> np.ndarray:
    """z_t = decay_t z_{t-1} + e_t with var z = 1; decays are a number, or (rows, steps)."""
    hidden = counter_rng.normal((*key, 0), rows, steps)
    decays = np.broadcast_to(decay, hidden.shape)
    hidden[:, 1:] *= np.sqrt(1 - decays[:, 1:] ** 2)
    for step in range(1, steps):
        hidden[:, step] += decays[:, step] * hidden[:, step - 1]
    return hidden


def _changing_noise(config: Data) -> Definition:
    """z_t = `decay` z_{t-1} + e_t with var z = 1, observed as x_t = z_t + n_t: var n = CLEAR at a share OFTEN of the
    steps, which a second input tells by a 1, and `noise` at the others; the next `horizon` clear readings are to be
    said.

    The best gate is not one of the input alone: what a noisy reading is worth depends on how long ago the last clear
    one was.
    """

    def examples(key: Key, rows: np.ndarray) -> Examples:
        total = config.length + config.horizon
        clear = counter_rng.uniform((*key, 2), rows, total) < OFTEN
        clear[:, config.length :] = True
        spread = np.sqrt(np.where(clear, CLEAR, config.noise))
        seen = _draw_states(key, rows, total, config.decay) + spread * counter_rng.normal((*key, 1), rows, total)
        both = np.stack([seen, clear], axis=-1).astype(np.float32)
        return both[:, : config.length], both[:, config.length :, :1], np.ones(len(rows), np.float32)

    task = Task("forecasting", channels=1, length=config.length, horizon=config.horizon, covariates=1)
    often = np.array([[OFTEN, 1 - OFTEN]] * 2)
    error = _mean_filter_error(config, np.full(2, config.decay), np.array([CLEAR, config.noise]), often, CLEAR)
    return Definition(task, examples, {"optimal": {"mse": error}, "zero": {"mse": 1 + CLEAR}})


def _changing_drift(config: Data) -> Definition:
    """z_t = a_t z_{t-1} + e_t with var z = 1, observed as x_t = z_t + n_t, var n = `noise`: a_t is SLOW in calm and
    FAST in storm, which a second input tells by a 1, and at a share TURN of the steps one follows the other; the next
    `horizon` x are to be said.

    The information rate of the readings is switched: in a storm there is much to learn at each step, in calm little.
    """

    def examples(key: Key, rows: np.ndarray) -> Examples:
        total = config.length + config.horizon
        turns = counter_rng.uniform((*key, 2), rows, total) < np.where(np.arange(total) == 0, 0.5, TURN)
        storm = np.cumsum(turns, axis=1) % 2 == 1
        hidden = _draw_states(key, rows, total, np.where(storm, FAST, SLOW))
        seen = hidden + math.sqrt(config.noise) * counter_rng.normal((*key, 1), rows, total)
        both = np.stack([seen, storm], axis=-1).astype(np.float32)
        return both[:, : config.length], both[:, config.length :, :1], np.ones(len(rows), np.float32)

    stays = np.array([[1 - TURN, TURN], [TURN, 1 - TURN]])
    error = _mean_filter_error(config, np.array([SLOW, FAST]), np.full(2, config.noise), stays, config.noise)
    task = Task("forecasting", channels=1, length=config.length, horizon=config.horizon, covariates=1)
    return Definition(task, examples, {"optimal": {"mse": error}, "zero": {"mse": 1 + config.noise}})


def _two_answers(config: Data) -> Definition:
    """Three z_t = a z_{t-1} + e_t with var z = 1 and a of PARTS, each observed as x_t = z_t + n_t, var n = `noise`.
    Read are x_1 + x_2, x_1 + x_3 and, behind them, x_1; the next `horizon` z_1 + z_2 and z_1 + z_3 are to be said.

    What is read is an invertible map of the three x, so that the exact filter is that of each by itself. z_1 is in both
    answers, z_2 and z_3 in one each.
    """

    def examples(key: Key, rows: np.ndarray) -> Examples:
        total = config.length + config.horizon
        shape = (len(PARTS), len(rows), total)
        hidden, noise = np.empty(shape), np.empty(shape)
        for part, decay in enumerate(PARTS):
            hidden[part] = _draw_states((*key, part), rows, total, decay)
            noise[part] = counter_rng.normal((*key, part, 1), rows, total)
        seen = hidden + math.sqrt(config.noise) * noise
        read = np.einsum("cp,prt->rtc", READ, seen)
        asked = np.einsum("cp,prt->rtc", MIXING, hidden[:, :, config.length :])
        return read[:, : config.length].astype(np.float32), asked.astype(np.float32), np.ones(len(rows), np.float32)

    task = Task("forecasting", channels=len(MIXING), length=config.length, horizon=config.horizon, covariates=1)
    known = _know_answers(config)
    rivals = {"optimal": {"mse": float(np.mean(known["mse"]))}, "zero": {"mse": float(MIXING.sum(axis=1).mean())}}
    process = {"decay": list(PARTS), "noise": config.noise, "mixing": MIXING.tolist(), "read": READ.tolist()}
    return Definition(task, examples, rivals, process=process, answers_known=known)


def _know_answers(config: Data) -> dict[str, Any]:
    """Of the answers of two_answers the "mse" of the exact filter, "nats" that the past tells of each, and
    "nats_of_all".

    With p the variance of z_T given the past, cov(z_{T+k}, z_{T+l}) = a^|k-l|, and a^|k-l| - a^{k+l} (1 - p) given the
    past. The z are independent, so the covariances S of all answers are the sums of these, and S given the past too: I
    = 1/2 log det S - 1/2 log det of S given the past.
    """
    k = np.arange(1, config.horizon + 1)
    answers, steps = len(MIXING), config.horizon
    before, after = np.zeros((2, answers, steps, answers, steps))
    for decay, mixed in zip(PARTS, MIXING.T, strict=True):
        both, apart = np.multiply.outer(mixed, mixed), decay ** np.abs(k[:, None] - k[None])
        told = decay ** (k[:, None] + k[None]) * (1 - _filter_variance(decay, config.noise, config.length))
        before += np.einsum("cd,kl->ckdl", both, apart)
        after += np.einsum("cd,kl->ckdl", both, apart - told)

    def tell(chosen: list[int]) -> float:
        size = len(chosen) * steps
        log_dets = [np.linalg.slogdet(cov[chosen][:, :, chosen].reshape(size, size))[1] for cov in (before, after)]
        return float(log_dets[0] - log_dets[1]) / 2

    errors = np.einsum("ckck->c", after) / steps
    single = [tell([answer]) for answer in range(answers)]
    return {"mse": errors.tolist(), "nats": single, "nats_of_all": tell(list(range(answers)))}


def _mean_filter_error(
    config: Data, decays: np.ndarray, noises: np.ndarray, turns: np.ndarray, target_noise: float
) -> float:
    """Mean squared error of the optimal forecast, in the mean over all courses of two regimes that the reader knows, of
    decays and noises of their own; `turns` are the shares (from, to) at which they follow one another.

    k steps ahead z is c_k z_T in the mean, c_k = E[a_{T+1} ... a_{T+k}] from the regime at T on, so that the error is 1
    - c_k^2 (1 - p), p the variance at T. V_s(p), the mean of that at the end where regime and variance are s and p now,
    is sum_s' turns_ss' V_s'(f_s'(p)) before a step, f the variance after a reading (`_read_once`); the first reading
    meets p = 1.
    """
    grid, ahead, squares = np.linspace(0, 1, GRID), np.ones(2), np.zeros(2)
    for _ in range(config.horizon):
        ahead = turns @ (decays * ahead)
        squares += ahead**2 / config.horizon
    mean = 1 + target_noise - squares[:, None] * (1 - grid)
    for _ in range(config.length):
        after = [_read_once(a**2 * grid + 1 - a**2, noise) for a, noise in zip(decays, noises, strict=True)]
        mean = turns @ np.stack([np.interp(p, grid, row) for p, row in zip(after, mean, strict=True)])
    return float(mean[:, -1].mean())


def _kalman_error(config: Data) -> float:
    """Mean squared error of the optimal forecast over the horizon: k steps after the last reading it is DECAY^2k p + 1
    - DECAY^2k + noise, p the variance of z there.
    """
    variance = _filter_variance(DECAY, config.noise, config.length - config.blank)
    powers = DECAY ** (2 * np.arange(config.blank + 1, config.blank + config.horizon + 1))
    return float((powers * variance + 1 - powers + config.noise).mean())


def _filter_variance(decay: float, noise: float, readings: int) -> float:
    """The variance p of z_t given x_1..x_t, t = `readings`, by the Riccati recursion: decay^2 p + 1 - decay^2 before
    the next reading, after it as `_read_once` says.
    """
    ahead = variance = 1.0
    for _ in range(readings):
        variance = _read_once(ahead, noise)
        ahead = decay**2 * variance + 1 - decay**2
    return float(variance)


def _read_once(variance: Any, noise: float) -> Any:
    """The variance q of z given a reading of it more, whose noise has the variance s: q s / (q + s)."""
    return variance * noise / (variance + noise)


TASKS: Mapping[str, Callable[[Data], Definition]] = {
    "selective_copying": _selective_copying,
    "induction_heads": _induction_heads,
    "associative_recall": _associative_recall,
    "delayed_recall": _delayed_recall,
    "linear_gaussian": _linear_gaussian,
    "changing_noise": _changing_noise,
    "changing_drift": _changing_drift,
    "two_answers": _two_answers,
}


def _answers(vocab: int) -> dict[str, dict[str, float]]:
    """The known ends of a task with one right answer out of `vocab`."""
    return {
        "optimal": {"nats": 0.0, "accuracy": 1.0},
        "uniform guess": {"nats": math.log(vocab), "accuracy": 1 / vocab},
    }


def _mask_targets(inputs: np.ndarray, start: int, answers: np.ndarray) -> Examples:
    """Targets that are scored from step `start` on, where they are `answers`."""
    targets, weights = np.zeros_like(inputs), np.zeros(inputs.shape, np.float32)
    last = start + answers.shape[1]
    targets[:, start:last], weights[:, start:last] = answers, 1
    return inputs, targets, weights
