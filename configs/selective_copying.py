"""Selective copying: sixteen tokens strewn over 256 blanks, to be repeated in order.

Command:        python train.py --config configs/selective_copying.py --report
                (the time-invariant ablation: --config.model.selective.gate=constant; gates that also read the state:
                --config.model.selective.gate_state=elementwise)
Data:           synthetic (Gu and Dao 2023): 16 symbols, 16 of them in 256 steps, then 16 steps to say them
Hardware:       1 CPU core
Time:           21 minutes
Expected score: test accuracy 100 %; 99.96 % with gates that also read the state; 42 % with
--config.model.selective.gate=constant
                (benchmarks/records/selective_copying.json, selective_copying_state_gates.json,
                selective_copying_constant.json)
"""

from ml_collections import ConfigDict

from selssm_jax.config import Data, Experiment, Model, Optimizer, Training


def get_config() -> ConfigDict:
    """Returns the recipe; every key can be overridden on the command line."""
    return Experiment(
        name="selective_copying",
        data=Data(source="selective_copying", length=256, vocab=16, tokens=16, batch_size=16, eval_batch_size=100),
        model=Model(pattern=("selective",) * 2, d_model=60, d_state=128),
        optimizer=Optimizer(peak_rate=3e-3, end_rate=3e-5, warmup_steps=200),
        training=Training(steps=12_000, eval_every=1000, checkpoint_every=1000, log_every=50),
    ).to_config_dict()
