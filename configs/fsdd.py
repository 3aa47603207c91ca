"""Spoken digits from the raw waveform: six speakers, ten classes, at most one second at 8 kHz.

Command:        python train.py --config configs/fsdd.py --config.data.local_dir=FOLDER --report
Data:           Free Spoken Digit Dataset, official split: 300 test clips; the recipe was chosen on 300 clips of
                training
Hardware:       1 CPU core
Time:           about 10 minutes
Expected score: test accuracy 98 % (benchmarks/records/fsdd.json)
"""

from ml_collections import ConfigDict

from selssm_jax.config import Data, Experiment, Model, Optimizer, Training


def get_config() -> ConfigDict:
    """Returns the recipe; every key can be overridden on the command line."""
    return Experiment(
        name="fsdd",
        data=Data(
            source="fsdd", train_on="train+validation", length=8000, batch_size=32, eval_batch_size=100, augment=True
        ),
        model=Model(
            pattern=("selective",) * 3,
            d_model=64,
            d_state=128,
            conv=4,
            dropout=0.1,
            frame=200,
            stride=80,
            filterbank=48,
            pool="mean",
        ),
        optimizer=Optimizer(peak_rate=2e-3, end_rate=2e-5, warmup_steps=100),
        training=Training(steps=2500, eval_every=500, checkpoint_every=500, log_every=20, select="last"),
    ).to_config_dict()
