"""An exported model is the model, bit for bit, in a process that has JAX and not this package."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import runs
from selssm_jax.errors import InputError
from selssm_jax.interop.export import export_model
from selssm_jax.predict import load

ALONE = """
import sys; sys.path.insert(0, {folder!r})
import numpy as np
from load import Exported
model, given = Exported({folder!r}), np.load({given!r})
outputs, state = model.call(given["inputs"], model.initial_state(len(given["inputs"])))
after, state = model.step(given["row"], state)
assert not [name for name in sys.modules if name.partition(".")[0] in ("selssm_jax", "flax", "safetensors")]
np.savez({found!r}, outputs=outputs, after=after, **{{f"state/{{name}}": value for name, value in state.items()}})
"""


@pytest.mark.parametrize("source", ["text", "csv", "npz"])
def test_it_equals_the_live_model_bit_for_bit_without_this_package(source, untrained, tmp_path):
    trained = load(untrained(source))
    folder = tmp_path / "exported"
    export_model(trained, folder)
    about = json.loads((folder / "model.json").read_text())
    shape, dtype = about["inputs"]["call"]["shape"], about["inputs"]["call"]["dtype"]
    rng = np.random.default_rng(0)
    inputs = rng.integers(0, 5, (3, *map(int, shape[1:]))).astype(dtype)
    row = inputs[:, 0]
    np.savez(tmp_path / "given.npz", inputs=inputs, row=row)
    script = ALONE.format(folder=str(folder), given=str(tmp_path / "given.npz"), found=str(tmp_path / "found.npz"))
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path)
    run = jax.jit(lambda params, inputs, state: trained.model.apply({"params": params}, inputs, state))
    step = jax.jit(lambda params, row, state: trained.model.apply({"params": params}, row, state, method="step"))
    outputs, state = run(trained.params, jnp.asarray(inputs), trained.initial_state(3))
    after, state = step(trained.params, jnp.asarray(row), state)
    found = np.load(tmp_path / "found.npz")
    np.testing.assert_array_equal(found["outputs"], outputs)
    np.testing.assert_array_equal(found["after"], after)
    leaves = [found[name] for name in found.files if name.startswith("state/")]
    assert sorted(map(np.ndarray.tobytes, leaves)) == sorted(
        np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(state)
    )


def test_nothing_is_written_over(untrained, tmp_path):
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").touch()
    trained = load(untrained("text"))
    with pytest.raises(InputError, match=r"^folder=.*there exists already"):
        export_model(trained, tmp_path / "there")
    with pytest.raises(InputError, match=r"^folder=.*new cannot be written \(Not a directory\): name another folder"):
        export_model(trained, tmp_path / "there" / "mine" / "new")


def test_the_command_exports(untrained, tmp_path, capsys):
    assert runs.command("eval.py", f"--workdir={untrained('text')}", f"--export={tmp_path / 'exported'}") == 0
    assert "load.py" in capsys.readouterr().out
    names = {path.name for path in (tmp_path / "exported").iterdir()}
    assert names == {"call.bin", "step.bin", "weights.safetensors", "state.npz", "model.json", "load.py"}
