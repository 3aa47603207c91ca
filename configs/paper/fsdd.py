"""Spoken digits from the raw waveform.

Command:        python train.py --config configs/paper/fsdd.py --sweep --config.data.local_dir=FOLDER
Data:           Free Spoken Digit Dataset, official split: 300 test clips of at most one second at 8 kHz; validation:
                300 clips of training
Hardware:       1 CPU core
Time:           5 to 10 minutes a model, trials and seeds together
Expected score: docs/results.md
"""

from ml_collections import ConfigDict

from selssm_jax.config import AttentionConfig, Data, Experiment, Model, Optimizer, Sweep, Training


def get_config() -> ConfigDict:
    """Returns the task and its sweep; every key can be overridden on the command line."""
    return Experiment(
        name="fsdd",
        data=Data(source="fsdd", length=8000, batch_size=32, eval_batch_size=100, augment=True),
        model=Model(
            pattern=("selective",) * 2,
            d_model=64,
            d_state=64,
            conv=4,
            dropout=0.1,
            frame=200,
            stride=80,
            filterbank=48,
            attention=AttentionConfig(window=100),
        ),
        optimizer=Optimizer(peak_rate=4e-3, end_rate=2e-5, warmup_steps=50),
        training=Training(steps=600, eval_every=150, checkpoint_every=600, log_every=20, devices=1, select="last"),
        sweep=Sweep(parameters=90_000, trials=4, trial_steps=150, seeds=5, learning_rates=(3e-3, 8e-3)),
    ).to_config_dict()
