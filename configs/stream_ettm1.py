"""ETTm1 as a stream: seven columns every 15 minutes, the next 6 hours, learnt from when they have come.

Command:        python train.py --config configs/stream_ettm1.py
                (after it: python eval.py --workdir runs/stream_ettm1 --stream ETTm1.csv;
                another horizon: --config.data.horizon=1; a table of yours: --config.data.source=csv
                --config.data.file=my.csv)
Data:           ETTm1, standardised; training reads the first 12 months, and the stream whatever is given
Hardware:       1 CPU core
Time:           2 minutes, and 2 for a stream of 20,000 rows
Expected score: below the error of the model as it was trained (benchmarks/records/stream_ettm1.json)
"""

from ml_collections import ConfigDict

from selssm_jax.config import Data, Experiment, Model, Optimizer, Streaming, Training


def get_config() -> ConfigDict:
    """Returns the recipe; every key can be overridden on the command line."""
    return Experiment(
        name="stream_ettm1",
        data=Data(source="ettm1", length=192, horizon=24, batch_size=32, eval_batch_size=256),
        model=Model(
            pattern=("selective",), d_model=32, d_state=32, mlp_ratio=0.0, dropout=0.1, normalize=False, linear_skip=48
        ),
        optimizer=Optimizer(peak_rate=4e-3, end_rate=1e-5, warmup_steps=50, weight_decay=0.1),
        training=Training(steps=800, eval_every=200, checkpoint_every=200, log_every=20, devices=1),
        stream=Streaming(rate=3e-4, lags=16, history=192),
    ).to_config_dict()
