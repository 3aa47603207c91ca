"""A table of yours: the next 24 rows of every column, trained on the first 70 % and chosen on the next 10 %.

Command:        python train.py --config configs/my_table.py --config.data.file=my.csv --report
                (another horizon: --config.data.horizon=48; hourly rows less their mean day: --config.data.period=24)
Data:           a CSV of numbers, one row a time step, one column a channel; the last four horizons are looked back on,
                fewer where the table is short
Hardware:       2 CPU cores, or any accelerator
Time:           1 minute for a few columns, 10 for 321
Expected score: below that of repeating the last value, which the report gives beside it
"""

from ml_collections import ConfigDict

from selssm_jax.config import Data, Experiment, Model, Optimizer, Training


def get_config() -> ConfigDict:
    """Returns the recipe; every key can be overridden on the command line."""
    return Experiment(
        name="my_table",
        data=Data(source="csv", file="my.csv", length=0, horizon=24, batch_size=16, eval_batch_size=64),
        model=Model(
            pattern=("selective",),
            d_model=32,
            d_state=32,
            dropout=0.2,
            frame=24,
            stride=24,
            linear_skip=96,
            channel_independent=True,
        ),
        optimizer=Optimizer(peak_rate=6e-3, end_rate=1e-5, warmup_steps=50, weight_decay=0.1),
        training=Training(steps=600, eval_every=200, checkpoint_every=200, log_every=20),
    ).to_config_dict()
