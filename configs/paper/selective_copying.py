"""Selective copying: eight symbols strewn over 64 blanks, to be repeated in order.

Command:        python train.py --config configs/paper/selective_copying.py --sweep --config.data.local_dir=FOLDER
Data:           synthetic (Gu and Dao 2023): 16 symbols, 8 of them in 64 steps, then 8 steps to say them
Hardware:       1 CPU core
Time:           about 10 minutes a model, trials and seeds together
Expected score: docs/results.md
"""

from ml_collections import ConfigDict

from selssm_jax.config import AttentionConfig, Data, Experiment, Model, Optimizer, Sweep, Training


def get_config() -> ConfigDict:
    """Returns the task and its sweep; every key can be overridden on the command line."""
    return Experiment(
        name="selective_copying",
        data=Data(source="selective_copying", length=64, vocab=16, tokens=8, batch_size=32, eval_batch_size=100),
        model=Model(pattern=("selective",) * 2, d_model=48, d_state=128, attention=AttentionConfig(window=72)),
        optimizer=Optimizer(peak_rate=5e-3, end_rate=5e-5, warmup_steps=100),
        training=Training(steps=3000, eval_every=500, checkpoint_every=3000, log_every=50, devices=1),
        sweep=Sweep(parameters=100_000, trials=2, trial_steps=1000, learning_rates=(2.5e-3, 8e-3), sizes=(1.0,)),
    ).to_config_dict()
