"""Electricity transformer temperature, every 15 minutes: the next 96 steps from the last 96.

Command:        python train.py --config configs/paper/ettm1_96.py --sweep --config.data.local_dir=FOLDER
Data:           ETTm1, the literature's split and windows, standardised; seven variates, one model for all of them
Recipe:         that of configs/ettm1.py, for every model
Hardware:       1 CPU core
Time:           about 4 minutes a model (Mamba: 12), trials and seeds together
Expected score: docs/results.md
"""

from ml_collections import ConfigDict

from selssm_jax.config import AttentionConfig, Data, Experiment, Model, Optimizer, Sweep, Training


def get_config() -> ConfigDict:
    """Returns the task and its sweep; every key can be overridden on the command line."""
    return Experiment(
        name="ettm1_96",
        data=Data(
            source="ettm1", length=96, horizon=96, period=96, course="learned", batch_size=64, eval_batch_size=256
        ),
        model=Model(
            pattern=("selective",),
            d_model=32,
            d_state=64,
            frame=16,
            stride=8,
            head_context=12,
            linear_skip=96,
            normalize_scale=False,
            channel_independent=True,
            channel_embedding=True,
            attention=AttentionConfig(window=12),
        ),
        optimizer=Optimizer(peak_rate=2e-3, end_rate=1e-5, warmup_steps=100, weight_decay=0.1),
        training=Training(
            steps=1600,
            eval_every=400,
            checkpoint_every=1600,
            log_every=20,
            forecast_loss="mae",
            average=0.99,
            devices=1,
        ),
        sweep=Sweep(trials=4, trial_steps=800, learning_rates=(1.5e-3, 1.2e-2), sizes=(1.0,)),
    ).to_config_dict()
