"""Characters of Shakespeare.

Command:        python train.py --config configs/paper/shakespeare.py --sweep --config.data.local_dir=FOLDER
Data:           tiny_shakespeare, 85/5/10; scored on the last 10 %, read as one stream with the state carried
Hardware:       1 CPU core
Time:           half an hour a model and more, trials and seeds together
Expected score: docs/results.md
"""

from ml_collections import ConfigDict

from selssm_jax.config import AttentionConfig, Data, Experiment, Model, Optimizer, SelectiveConfig, Sweep, Training


def get_config() -> ConfigDict:
    """Returns the task and its sweep; every key can be overridden on the command line."""
    return Experiment(
        name="shakespeare",
        data=Data(source="tiny_shakespeare", batch_size=2, length=1024, eval_batch_size=16),
        model=Model(
            pattern=("selective",) * 2,
            d_model=128,
            d_state=128,
            conv=4,
            selective=SelectiveConfig(transition="complex"),
            attention=AttentionConfig(window=1024),
        ),
        optimizer=Optimizer(peak_rate=4e-3, end_rate=6e-5, warmup_steps=50, weight_decay=0.1),
        training=Training(steps=2000, eval_every=2000, checkpoint_every=2000, log_every=20, devices=1, select="last"),
        sweep=Sweep(
            parameters=300_000, trials=4, trial_steps=500, seeds=10, learning_rates=(2e-3, 1.6e-2), sizes=(1.0,)
        ),
    ).to_config_dict()
