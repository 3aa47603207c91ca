"""What people add from outside, without a line of the package changed: a file in a folder of theirs, named by
--extend.
"""

import json
import pathlib
import re
import shlex
import types

import numpy as np
import pytest

import runs
from selssm_jax import cli
from selssm_jax.compression import compress
from selssm_jax.config import Experiment, Model
from selssm_jax.config import mixers as rules
from selssm_jax.errors import InputError
from selssm_jax.layers import gates, mixers

OWN = """
from dataclasses import dataclass
from typing import Annotated

import flax.linen as nn
import jax.numpy as jnp

from selssm_jax.config import MixerConfig, Within
from selssm_jax.errors import InputError
from selssm_jax.layers import GateKind, SelectiveSSM, register_gate, register_mixer
from selssm_jax.ops import linear_scan


@dataclass(frozen=True)
class AverageConfig(MixerConfig):
    scale: Annotated[float, Within(0.0, 8.0)] = 1.0
    title: str = "ema"

    def check(self, d_model, d_state, say):
        if self.scale > d_state:
            raise InputError(f"{say('scale')}={self.scale} is larger than {say('d_state')}={d_state}")


class Average(nn.Module):
    d_model: int
    d_state: int = 4
    scale: float = AverageConfig.scale
    title: str = AverageConfig.title
    dtype: object = jnp.float32

    @nn.compact
    def __call__(self, x, state=None, *, reset=None):
        a = nn.sigmoid(self.param("decay_rate", nn.initializers.normal(), (self.d_state,)))
        drive = self.scale * (1 - a)[None, None] * nn.Dense(self.d_state, use_bias=False)(x)
        h, last = linear_scan(jnp.broadcast_to(a[None, None], drive.shape), drive, state, reset=reset)
        return nn.Dense(self.d_model)(h), last

    def initial_state(self, batch, steps=None):
        return jnp.zeros((batch, self.d_state))


register_mixer("average", Average, config=AverageConfig, undecayed=("decay_rate",))
register_gate(
    "softsign",
    GateKind(
        lambda z: (1 + z / (1 + jnp.abs(z))) / 2,
        lambda g: (2 * g - 1) / (1 - jnp.abs(2 * g - 1)),
        lambda z, xp: 0.5 / (1 + z) ** 2,
    ),
)
"""


@pytest.fixture
def registries():
    """What a test registers is gone after it."""
    tables = (mixers.LAYERS, rules.MIXERS, rules.GATES, gates.GATES)
    before = [dict(table) for table in tables]
    yield
    for table, items in zip(tables, before, strict=True):
        table.clear()
        table.update(items)


@pytest.fixture
def own(registries, tmp_path):
    """A file of one's own."""
    (tmp_path / "own.py").write_text(OWN)
    return tmp_path / "own.py"


def forget(name):
    """As a new process knows nothing of what an earlier one registered."""
    for table in (mixers.LAYERS, rules.MIXERS, rules.GATES, gates.GATES):
        table.pop(name, None)


def test_an_own_mixer_and_an_own_gate_train_and_report(own, tmp_path, capsys):
    run = tmp_path / "run"
    pattern = "--config.model.pattern=('average','selective')"
    short = [
        "--config.model.selective.gate=softsign",
        "--config.model.own.average.scale=2.0",
        "--config.training.steps=4",
        "--config.optimizer.warmup_steps=1",
        "--config.training.eval_every=4",
        "--config.training.checkpoint_every=4",
    ]
    assert (
        runs.command("train.py", "--config=configs/smoke.py", f"--extend={own}", f"--workdir={run}", pattern, *short)
        == 0
    ), capsys.readouterr().err
    assert json.loads((run / "config.json").read_text())["experiment"]["model"]["own"] == {
        "average": {"scale": 2.0, "title": "ema"}
    }
    for name in ("average", "softsign"):
        forget(name)
    assert runs.command("eval.py", f"--workdir={run}") == 2
    assert "--extend" in capsys.readouterr().err
    assert runs.command("eval.py", f"--workdir={run}", f"--extend={own}") == 0
    results = json.loads((run / "report" / "results.json").read_text())
    assert results["metrics"]["nats"] > 0 and set(results["gates"]) >= {"block_1"}


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("average", "scale=9.0"), "model.own.average.scale=9.0 is out of range: use a value from 0.0 to 8.0"),
        (("average", "scale=8.0", "model.d_state=4"), "model.own.average.scale=8.0 is larger than model.d_state=4"),
        (("average", "scal=2.0"), "config.model.own.average has no key 'scal': did you mean 'scale'?"),
        (
            ("selective", "scale=2.0"),
            "model.own.average.scale is read by the mixer 'average' alone, which model.pattern=('selective',) lacks",
        ),
    ],
)
def test_the_keys_of_an_own_mixer_are_checked_as_all_others(overrides, says, own, tmp_path, capsys):
    name, assignment, *more = overrides
    pattern = [
        f"--config.model.pattern=('{name}',)",
        f"--config.model.own.average.{assignment}",
        *(f"--config.{value}" for value in more),
    ]
    assert (
        runs.command(
            "train.py", "--config=configs/smoke.py", f"--extend={own}", f"--workdir={tmp_path / 'run'}", *pattern
        )
        == 2
    )
    assert says in capsys.readouterr().err


def test_what_an_own_mixer_is_set_to_is_part_of_a_model(own):
    cli.extend(str(own))
    kind = rules.MIXERS["average"].config
    one, same, other = (
        Model(("average", "gru"), own=value) for value in ({"average": {"scale": 2.0}}, {"average": kind(2.0)}, {})
    )
    assert one == same != other and hash(one) == hash(same) and other.own == {"average": kind()}
    assert one.blocks[0].arguments("average") == {"d_model": 128, "d_state": 256, "scale": 2.0, "title": "ema"}
    assert Model(("gru",)).own == {} and Experiment().to_config_dict().model.own.average.scale == 1.0
    experiment = Experiment(model=one)
    assert (
        Experiment.from_json(experiment.to_json())
        == experiment
        == Experiment.from_config_dict(experiment.to_config_dict())
    )
    with pytest.raises(InputError, match=r"model\.own has no mixer 'averag': did you mean 'average'"):
        Model(own={"averag": {}})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "own.py cannot be run (FileNotFoundError"),
        ("raise RuntimeError('broken')", "own.py cannot be run (RuntimeError: broken)"),
        ("from selssm_jax.layers import register_mixer\nregister_mixer('gru', int)", "'gru' is there already"),
        (
            "from selssm_jax.layers import register_mixer\nregister_mixer('new', int, keys=('d_stat',))",
            "asks for model.d_stat: did you mean 'd_state'?",
        ),
        (
            "from selssm_jax.layers import register_mixer\nfrom selssm_jax.config import MixerConfig\nclass "
            "Mine(MixerConfig):\n    x: int = 3\n"
            "register_mixer('new', int, config=Mine)",
            "'new' has the config Mine: make it a frozen dataclass",
        ),
    ],
)
def test_an_extension_that_fails_is_one_message(text, says, own, tmp_path, capsys):
    own.unlink()
    if text:
        own.write_text(text)
    assert (
        runs.command("train.py", "--config=configs/smoke.py", f"--extend={own}", f"--workdir={tmp_path / 'run'}") == 2
    )
    error = capsys.readouterr().err
    assert says in error and "Traceback" not in error


def test_weight_decay_spares_what_an_own_mixer_says(own):
    from selssm_jax.training.optimizer import is_decayed

    assert is_decayed(("block_0", "mixer", "decay_rate"))
    cli.extend(str(own))
    assert not is_decayed(("block_0", "mixer", "decay_rate")) and is_decayed(("block_0", "mixer", "kernel"))


def blocks(page, language):
    text = (pathlib.Path(__file__).resolve().parent.parent / "docs" / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@pytest.mark.usefixtures("registries")
@pytest.mark.parametrize(("page", "file"), [("adding_a_gate.md", "my_gate.py"), ("adding_a_mixer.md", "my_mixer.py")])
def test_a_page_on_adding_ones_own_is_true_to_the_letter(page, file, tmp_path, capsys):
    """Its first program is the file, the second uses what that registers, and the command trains with it. Reports of
    own parts are tested above.
    """
    program, use = blocks(page, "python")
    (tmp_path / file).write_text(program)
    (command,) = blocks(page, "sh")
    words = shlex.split(command.replace("runs/", f"{tmp_path}/").replace(file, str(tmp_path / file)))
    assert words[:2] == ["python", "train.py"] and words.pop() == "--report"
    short = [
        "--config.training.steps=2",
        "--config.optimizer.warmup_steps=1",
        "--config.training.eval_every=2",
        "--config.training.checkpoint_every=2",
    ]
    assert runs.command("train.py", *words[2:], *short) == 0, capsys.readouterr().err
    forget("probit")
    forget("average")
    exec(program + use, {"__name__": "page"})


def test_the_page_on_estimators_is_true_to_the_letter(capsys):
    exec("".join(blocks("adding_an_estimator.md", "python")), {})
    value, verdict = capsys.readouterr().out.splitlines()
    assert re.match(r"~ 2\.3\d* \+- ", value) and verdict == "inconclusive"


def test_the_page_on_compression_methods_registers_one(monkeypatch):
    monkeypatch.setattr(compress, "RULES", dict(compress.RULES))
    (program,) = blocks("adding_a_compression_method.md", "python")
    exec(program, {"__name__": "page"})
    samples = np.array([[0.0, 1.0], [2.0, 1.0]], np.float32)
    assert compress.RULES["bits by range"](types.SimpleNamespace(samples=samples)).tolist() == [4.0, 0.0]
