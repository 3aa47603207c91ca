"""Tables of levels that components share: counted in full, shared where they cost, and chosen by the true sum."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from runs import experiment
from selssm_jax.compression import compress, sharing
from selssm_jax.compression.compress import Calibration, Candidate, Subject, quantise
from selssm_jax.compression.quantization import allocate, fit
from selssm_jax.compression.streaming import PackedModel, flat_levels
from selssm_jax.config import Model, Task
from selssm_jax.model import SequenceModel
from selssm_jax.state_layout import StateLayout


def wide(size=120, kinds=5, rows=200):
    """Samples of many components of few laws, each with a scale and a mean of its own beside that of its kind."""
    rng = np.random.default_rng(0)
    kind = rng.integers(0, kinds, size)
    return (rng.standard_normal((rows, size)) * 0.5**kind * rng.uniform(0.9, 1.1, size) + 3 * kind).astype(np.float32)


class Layout(types.SimpleNamespace):
    """As much of `StateLayout` as packing asks for, of a state of one array."""

    def channels(self):
        return np.arange(self.size)

    def newest_most(self, values):
        return values

    def parts(self):
        yield types.SimpleNamespace(name="blocks/0/mixer"), slice(0, self.size)


def packed(sequences, nbytes, size=120, rule=compress.INFORMATION):
    samples = wide(size)
    known = Calibration(Layout(size=size, rows=1, kept_bytes=0), "all", samples, np.ones(size))
    subject = Subject(
        experiment(compress__sequences=sequences), SequenceModel(Model(task=Task("language", vocab=3))), {}, None
    )
    model, params = quantise(subject, known, nbytes, rule)
    quantizer = model.quantizer(params)
    error = (np.asarray(quantizer.dequantize(quantizer.quantize(samples)) - samples) ** 2).mean()
    return model, params, quantizer.nbytes, error


@pytest.mark.parametrize("sequences", [1, 1000])
@pytest.mark.parametrize("factor", [2, 8])
def test_what_is_carried_and_the_share_of_what_is_stored_for_it_keep_to_the_bytes_together(sequences, factor):
    size = 120
    model, params, carried, _ = packed(sequences, 4 * size / factor)
    # the levels, and for each component the number of its table
    stored = params["levels"].nbytes + -(-size * max(model.tables).bit_length() // 8)
    assert model.table_bytes(params) == stored
    assert carried + stored / sequences <= 4 * size / factor


def test_the_more_sequences_share_the_tables_the_more_of_them_and_the_smaller_the_error():
    tables, errors = [], []
    for sequences in (2, 32, 4096):
        model, params, _, error = packed(sequences, 4 * 120 / 6)
        tables.append(model.table_bytes(params))
        errors.append(error)
    assert tables == sorted(tables) and tables[0] < tables[-1] / 4
    assert errors == sorted(errors, reverse=True)


def test_a_component_of_its_own_kind_is_not_ruined_by_sharing():
    """Five laws three apart: sixteen tables err little more than 400 tables, and take a fourteenth."""
    samples, bits = wide(400), (3,) * 400
    groups = {len(np.unique(one)): one for one in sharing.groupings(samples, np.arange(400), np.ones(400))}
    assert list(groups) == [1, 4, 16, 64, 256, 400]
    errors = {
        count: sharing.squared_errors(fit(samples, bits, channels=one), samples).mean() for count, one in groups.items()
    }
    assert errors[16] < 1.3 * errors[400] < errors[1] / 5
    assert (
        sharing.table_bytes(sharing.number_tables(groups[16], bits), bits)
        < sharing.table_bytes(sharing.number_tables(groups[400], bits), bits) / 12
    )


def test_slots_of_a_window_stay_together():
    channels = np.tile(np.arange(20), 3)
    samples = np.random.default_rng(0).standard_normal((200, 60)) * (1 + channels)
    for groups in sharing.groupings(samples, channels, np.ones(60)):
        np.testing.assert_array_equal(groups[:20], groups[20:40])
        np.testing.assert_array_equal(groups[:20], groups[40:])


@pytest.fixture(scope="module")
def shared():
    """A packed model of three tables for eight components, and its parameters."""
    model = SequenceModel(Model(pattern=("selective",), d_model=4, d_state=8, task=Task("language", vocab=5)))
    tokens = jnp.arange(10, dtype=jnp.int32).reshape(2, 5) % 5
    params = jax.jit(model.init)(jax.random.key(0), tokens)["params"]
    samples, groups, bits = wide(8), np.array([0, 0, 1, 1, 1, 0, 0, 1]), (2, 2, 3, 3, 3, 2, 1, 3)
    tables = sharing.number_tables(groups, bits)
    quantizer = fit(samples, bits, channels=groups)
    assert StateLayout(model, params).size == 8
    packed = PackedModel(model, ("".join(map(str, bits)),), tables=tables)
    return packed, {**params, "levels": flat_levels(quantizer, tables)}, quantizer, tokens


def test_levels_of_tables_are_those_of_every_component(shared):
    packed, params, quantizer, _ = shared
    assert packed.tables == (1, 1, 2, 2, 2, 1, 0, 2) and params["levels"].shape == (2 + 4 + 8,)
    again = packed.quantizer(params)
    for index, count in enumerate(quantizer.bits):
        np.testing.assert_array_equal(again.levels[index, : 2**count], quantizer.levels[index, : 2**count])
    assert packed.config.memory_tables == packed.tables


def test_a_table_is_trained_by_all_that_read_it_and_settles_by_itself(shared):
    packed, params, _, tokens = shared
    moved = jax.jit(jax.grad(lambda params: (packed.apply({"params": params}, tokens)[0] ** 2).sum()))(params)["levels"]
    assert moved.shape == (14,) and np.isfinite(moved).all() and np.any(moved)
    mixed = {**params, "levels": params["levels"].at[jnp.array([2, 3])].set(params["levels"][jnp.array([3, 2])])}
    np.testing.assert_array_equal(packed.sort_levels(mixed), params["levels"])


def test_from_how_many_sequences_on_it_pays():
    reference = Candidate("float32", 100, None, {}, {})
    make = lambda nbytes, table: Candidate("", nbytes, None, {}, {}, table=table)  # noqa: E731
    # equal bytes do not pay yet
    assert make(20, 79).pays_from(reference) == 1 and make(20, 80).pays_from(reference) == 2
    assert make(20, 0).pays_from(reference) == 1 and make(100, 5).pays_from(reference) is None
    assert make(20, 320).share(32) == 30
    for table in range(0, 500, 7):
        count = make(20, table).pays_from(reference)
        assert 20 * count + table < 100 * count and (count == 1 or 20 * (count - 1) + table >= 100 * (count - 1))


def test_bits_and_tables_that_do_not_fit_are_refused():
    with pytest.raises(compress.InputError, match="memory_tables does not fit"):
        Model(memory_bits=("22",), memory_tables=(0,))
    with pytest.raises(compress.InputError, match="those of one table equal bits"):
        Model(memory_bits=("23",), memory_tables=(0, 0))
    assert allocate(np.ones(2), 4) == (2, 2) and dataclasses.replace(
        Model(), memory_bits=("22",), memory_tables=(0, 0)
    ).memory_tables == (0, 0)
