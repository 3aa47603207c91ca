"""The weather of Jena, every ten minutes: the next 96 steps of 21 variates from the last 96.

Command:        python train.py --config configs/weather.py --config.data.local_dir=FOLDER --report
Data:           Jena weather 2020, 70/10/20, standardised; 10,444 test windows, MSE and MAE on standardised values
Hardware:       1 CPU core
Time:           a minute
Expected score: docs
"""

from ml_collections import ConfigDict

from selssm_jax.config import Data, Experiment, Model, Optimizer, Training


def get_config() -> ConfigDict:
    """Returns the recipe; every key can be overridden on the command line."""
    return Experiment(
        name="weather",
        data=Data(
            source="weather", length=96, horizon=96, period=144, course="learned", batch_size=64, eval_batch_size=256
        ),
        model=Model(
            pattern=("selective",),
            d_model=32,
            d_state=64,
            frame=16,
            stride=8,
            head_context=12,
            linear_skip=96,
            channel_independent=True,
            channel_embedding=True,
        ),
        optimizer=Optimizer(peak_rate=2e-3, end_rate=1e-5, warmup_steps=100, weight_decay=0.1),
        training=Training(steps=1720, eval_every=430, checkpoint_every=1720, log_every=20, average=0.99, devices=1),
    ).to_config_dict()
