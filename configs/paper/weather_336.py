"""The weather of Jena, every ten minutes: the next 336 steps from the last 96.

Command:        python train.py --config configs/paper/weather_336.py --sweep --config.data.local_dir=FOLDER
Data:           Jena weather 2020, 70/10/20, standardised; 21 variates, one model for all of them
Recipe:         that of configs/weather.py, for every model, and which of its parts serve: a cycle that is learned, in
                place of the mean day taken off, which gained on validation and lost on test
Hardware:       1 CPU core
Time:           about 9 minutes a model (Mamba: 36), trials and seeds together
Expected score: docs/results.md
"""

from ml_collections import ConfigDict

from selssm_jax.config import AttentionConfig, Data, Experiment, Model, Optimizer, Sweep, Training


def get_config() -> ConfigDict:
    """Returns the task and its sweep; every key can be overridden on the command line."""
    return Experiment(
        name="weather_336",
        data=Data(
            source="weather", length=96, horizon=336, period=144, course="learned", batch_size=64, eval_batch_size=256
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
            channel_mixing=True,
            attention=AttentionConfig(window=12),
        ),
        optimizer=Optimizer(peak_rate=2e-3, end_rate=1e-5, warmup_steps=100, weight_decay=0.1),
        training=Training(
            steps=1720,
            eval_every=430,
            checkpoint_every=1720,
            log_every=20,
            forecast_loss="mae",
            average=0.99,
            devices=1,
        ),
        sweep=Sweep(trials=4, trial_steps=860, learning_rates=(1.5e-3, 1.2e-2), sizes=(1.0,)),
    ).to_config_dict()
