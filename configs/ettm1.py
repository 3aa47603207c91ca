"""Electricity transformer temperature, every quarter of an hour: the next 96 steps of seven variates from the last 96.

Command:        python train.py --config configs/ettm1.py --config.data.local_dir=FOLDER --report
Data:           ETTm1, the literature's split and windows (11,425 of test), MSE and MAE on standardised values
Hardware:       1 CPU core
Time:           2 minutes, 36 s of a core
Choices:        on validation, one seed each: normalised by the level alone, and the absolute error as loss, MSE 0.3804;
                Huber's loss 0.3887; by level and scale, and squared error, 0.3895
Expected score: test MSE 0.309 (benchmarks/records/ettm1.json); ridge regression a channel 0.340
"""

from ml_collections import ConfigDict

from selssm_jax.config import Data, Experiment, Model, Optimizer, Training


def get_config() -> ConfigDict:
    """Returns the recipe; every key can be overridden on the command line."""
    return Experiment(
        name="ettm1",
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
    ).to_config_dict()
