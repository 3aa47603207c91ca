"""Characters of Shakespeare.

Command:        python train.py --config configs/paper/shakespeare.py --sweep --config.data.local_dir=FOLDER
Data:           tiny_shakespeare, 85/5/10; scored on the last 10 %, read as one stream with the state carried
Hardware:       1 CPU core
Time:           5 to 10 minutes a model, trials and seeds together
Expected score: docs/results.md
"""

from ml_collections import ConfigDict

from selssm_jax.config import AttentionConfig, Data, Experiment, Model, Optimizer, SelectiveConfig, Sweep, Training


def get_config() -> ConfigDict:
    """Returns the task and its sweep; every key can be overridden on the command line."""
    return Experiment(
        name="shakespeare",
        data=Data(source="tiny_shakespeare", batch_size=16, length=128, eval_batch_size=16),
        model=Model(
            pattern=("selective",) * 2,
            d_model=128,
            d_state=128,
            conv=4,
            selective=SelectiveConfig(transition="complex"),
            attention=AttentionConfig(window=128),
        ),
        optimizer=Optimizer(peak_rate=4e-3, end_rate=6e-5, warmup_steps=50, weight_decay=0.1),
        training=Training(steps=500, eval_every=500, checkpoint_every=500, log_every=20, devices=1, select="last"),
        sweep=Sweep(parameters=300_000, trials=4, trial_steps=125, seeds=5, learning_rates=(3e-3, 8e-3)),
    ).to_config_dict()
