"""Induction heads: what followed this symbol the last time?

Command:        python train.py --config configs/induction_heads.py --report
Data:           synthetic (Olsson et al. 2022; Gu and Dao 2023): 16 symbols, 256 steps
Hardware:       1 CPU core
Time:           18 minutes
Expected score: test accuracy 100 % (benchmarks/records/induction_heads.json); Mamba needs short sequences first
                (docs/models.md)
"""

from ml_collections import ConfigDict

from selssm_jax.config import Data, Experiment, Model, Optimizer, Training


def get_config() -> ConfigDict:
    """Returns the recipe; every key can be overridden on the command line."""
    return Experiment(
        name="induction_heads",
        data=Data(source="induction_heads", length=256, vocab=16, batch_size=32, eval_batch_size=100),
        model=Model(pattern=("selective",) * 2, d_model=64, d_state=128, conv=2),
        optimizer=Optimizer(peak_rate=3e-3, end_rate=3e-5, warmup_steps=200),
        training=Training(steps=5000, eval_every=500, checkpoint_every=500, log_every=20),
    ).to_config_dict()
