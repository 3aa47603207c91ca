"""Induction heads: what followed this symbol the last time? Trained at 256 steps, tested at up to 4096.

Command:        python train.py --config configs/paper/induction_heads.py --sweep --config.data.local_dir=FOLDER
Data:           synthetic (Olsson et al. 2022; Gu and Dao 2023): 16 symbols and a mark
Hardware:       1 CPU core
Time:           about 15 minutes a model, trials and seeds together
Expected score: docs/results.md
"""

from ml_collections import ConfigDict

from selssm_jax.config import AttentionConfig, Data, Experiment, Model, Optimizer, SelectiveConfig, Sweep, Training


def get_config() -> ConfigDict:
    """Returns the task and its sweep; every key can be overridden on the command line."""
    return Experiment(
        name="induction_heads",
        data=Data(source="induction_heads", length=256, vocab=16, batch_size=16, eval_batch_size=50, eval_examples=500),
        model=Model(
            pattern=("selective",) * 2,
            d_model=32,
            d_state=64,
            conv=2,
            selective=SelectiveConfig(gate="hard_sigmoid"),
            attention=AttentionConfig(window=4096),
        ),
        optimizer=Optimizer(peak_rate=5e-3, end_rate=5e-5, warmup_steps=100),
        training=Training(steps=2500, eval_every=250, checkpoint_every=2500, log_every=50, devices=1),
        sweep=Sweep(
            parameters=30_000,
            trials=4,
            trial_steps=1500,
            learning_rates=(2.5e-3, 8e-3),
            sizes=(1.0,),
            lengths=(512, 1024, 2048, 4096),
        ),
    ).to_config_dict()
