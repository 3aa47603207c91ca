"""A stream whose world changes: learn on from each row, and see the change.

Command:        python train.py --config configs/stream_drift.py
                (before it, for the tables: python -m selssm_jax.streaming.synthetic drift; after it:
                python eval.py --workdir runs/stream_drift --stream drift/stream.csv)
Data:           synthetic: an autoregression of two lags; training reads 5,000 rows of its first world, the stream
                20,000 in which it switches to another and back, every 5,000 rows
Hardware:       1 CPU core
Time:           half a minute, and a minute for the stream
Expected score: at the end of the stream an error below half that of the model as it was trained
"""

from ml_collections import ConfigDict

from selssm_jax.config import Data, Experiment, Model, Optimizer, Streaming, Training


def get_config() -> ConfigDict:
    """Returns the recipe; every key can be overridden on the command line."""
    return Experiment(
        name="stream_drift",
        data=Data(source="csv", file="drift/before.csv", length=64, horizon=1, batch_size=32, eval_batch_size=256),
        model=Model(
            pattern=("selective",), d_model=8, d_state=8, mlp_ratio=0.0, dropout=0.0, normalize=False, linear_skip=2
        ),
        optimizer=Optimizer(peak_rate=1e-2, end_rate=1e-4, warmup_steps=20),
        training=Training(steps=400, eval_every=200, checkpoint_every=200, log_every=20, devices=1),
        stream=Streaming(
            rate=3e-3, rise_rate=10.0, rise_rows=300, lags=2, remembered=8192, changes=(5000, 10_000, 15_000)
        ),
    ).to_config_dict()
