"""Electricity transformer temperature, hourly: the next 96 hours of seven variates from the last 512.

Command:        python train.py --config configs/etth1.py --config.data.local_dir=FOLDER --report
                (with lookback 96: --config.data.length=96 --config.model.linear_skip=96; 336 hours from 336, by what is
                best on validation: --config.data.horizon=336 --config.data.length=336 --config.model.linear_skip=336
                --config.data.period=24 --config.training.forecast_loss=mae)
Data:           ETTh1, the literature's split and windows (2785 of test), MSE and MAE on standardised values
Hardware:       1 CPU core
Time:           a minute
Expected score: test MSE 0.362, and 0.377 with lookback 96, 0.423 336 hours ahead (benchmarks/records/etth1.json,
                etth1_lookback96.json, etth1_336.json); ridge regression 0.363 and, 336 hours ahead, 0.420
"""

from ml_collections import ConfigDict

from selssm_jax.config import Data, Experiment, Model, Optimizer, Training


def get_config() -> ConfigDict:
    """Returns the recipe; every key can be overridden on the command line."""
    return Experiment(
        name="etth1",
        data=Data(source="etth1", length=512, horizon=96, batch_size=32, eval_batch_size=128),
        model=Model(
            pattern=("selective",),
            d_model=32,
            d_state=64,
            dropout=0.2,
            frame=48,
            stride=24,
            linear_skip=512,
            normalize_scale=False,
            channel_independent=True,
        ),
        optimizer=Optimizer(peak_rate=6e-3, end_rate=1e-5, warmup_steps=100, weight_decay=0.1),
        training=Training(
            steps=1200, eval_every=100, checkpoint_every=400, log_every=20, forecast_loss="huber", average=0.99
        ),
    ).to_config_dict()
