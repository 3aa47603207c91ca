"""The weather of Jena, every ten minutes: the next 96 steps from the last 96.

Command:        python train.py --config configs/paper/weather_96.py --sweep --config.data.local_dir=FOLDER
Data:           Jena weather 2020, 70/10/20, standardised; 21 variates, one model for all of them
Windows:        less the mean day, which gains on validation (one seed: MSE of selective 0.457 to 0.422)
Loss:           Huber's, which gains on validation over squared error (one seed: MSE of selective 0.475 to 0.460)
Hardware:       1 CPU core
Time:           about 4 minutes a model, trials and seeds together
Expected score: docs/results.md
"""

from ml_collections import ConfigDict

from selssm_jax.config import AttentionConfig, Data, Experiment, Model, Optimizer, Sweep, Training


def get_config() -> ConfigDict:
    """Returns the task and its sweep; every key can be overridden on the command line."""
    return Experiment(
        name="weather_96",
        data=Data(source="weather", length=96, horizon=96, period=144, batch_size=16, eval_batch_size=128),
        model=Model(
            pattern=("selective",),
            d_model=32,
            d_state=64,
            dropout=0.2,
            frame=48,
            stride=24,
            linear_skip=96,
            channel_independent=True,
            attention=AttentionConfig(window=4),
        ),
        optimizer=Optimizer(peak_rate=6e-3, end_rate=1e-5, warmup_steps=100, weight_decay=0.1),
        training=Training(
            steps=600, eval_every=50, checkpoint_every=600, log_every=20, devices=1, forecast_loss="huber"
        ),
        sweep=Sweep(trials=8, trial_steps=150, learning_rates=(2e-3, 8e-3), gate_biases=(0.0, 1.0)),
    ).to_config_dict()
