"""README's way of a pretrained checkpoint, command by command, on a tiny one of random weights: imported, measured,
tuned, compressed, continued.
"""

import json
import re
import shlex

import jax
import jax.numpy as jnp

from runs import command
from selssm_jax.config import Model, Task
from selssm_jax.interop import huggingface
from selssm_jax.model import SequenceModel

# a tenth of it, the test split, is 131 sequences
TEXT = "the state keeps what the gates let in, and forgets the rest at the rate of its poles\n" * 500
# What makes each command quick; nothing of what it does is left out.
QUICK = {
    "huggingface": ["--length=32", "--batch_size=8"],
    "--measure": [
        "--override=measure.samples=100",
        "--override=measure.positions=2",
        "--override=measure.longest_lag=4",
        "--override=measure.decoder_steps=20",
    ],
    "--compress": ["--override=compress.steps=1", "--override=compress.calibration=1", "--override=compress.within=1"],
    "--generate": ["--tokens=12"],
    "training.start": [
        f"--config.{key}={value}"
        for key, value in {
            "training.steps": 2,
            "optimizer.warmup_steps": 1,
            "data.length": 32,
            "training.devices": 1,
        }.items()
    ],
}


def commands(readme):
    """The commands of the section on pretrained checkpoints, as lists of words."""
    block = re.search(
        r"^```sh\n(python -m selssm_jax\.interop\.huggingface.*?)^```$", readme, re.MULTILINE | re.DOTALL
    )[1]
    return [shlex.split(line) for line in block.strip().splitlines()]


def test_a_checkpoint_is_imported_measured_compressed_and_continued(repository, tmp_path, monkeypatch, capsys):
    lines = commands((repository / "README.md").read_text())
    assert [line[1] for line in lines] == ["-m", "eval.py", "train.py", "eval.py", "eval.py"]
    monkeypatch.chdir(tmp_path)
    config = Model(pattern=("mamba",), d_model=8, d_state=3, mlp_ratio=0.0, tie_embeddings=True, task=Task(vocab=256))
    huggingface.save(
        "FOLDER", config, jax.jit(SequenceModel(config).init)(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    )
    (tmp_path / "my_text.txt").write_text(TEXT)
    for line in lines:
        quick = next(words for name, words in QUICK.items() if any(name in word for word in line))
        if line[1] == "-m":
            huggingface.main([*line[3:], *quick])
        else:
            assert command(line[1], *line[2:], *quick) == 0
    assert "Once upon a time" in capsys.readouterr().out
    measured = json.loads((tmp_path / "runs" / "pretrained" / "report" / "results.json").read_text())
    assert (
        measured["memory"]["blocks"]["block_0"]["retention"]["lower"]
        and measured["stability"]["block_0"]["step"]["rate"] < 1
    )
    smaller = json.loads((tmp_path / "runs" / "pretrained-compressed" / "compression" / "compression.json").read_text())
    assert smaller["reference"]["bytes"] >= 16 * smaller["compressed"]["bytes"]
