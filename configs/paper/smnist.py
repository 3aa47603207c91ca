"""Sequential MNIST: a digit read one pixel at a time.

Command:        python train.py --config configs/paper/smnist.py --sweep --config.data.local_dir=FOLDER
Data:           MNIST, 60,000 / 10,000, 784 steps; validation is the last 10 % of training
Hardware:       1 CPU core
Time:           about 6 minutes a model, trials and seeds together
Expected score: docs/results.md
"""

from ml_collections import ConfigDict

from selssm_jax.config import AttentionConfig, Data, Experiment, Model, Optimizer, SelectiveConfig, Sweep, Training


def get_config() -> ConfigDict:
    """Returns the task and its sweep; every key can be overridden on the command line."""
    return Experiment(
        name="smnist",
        data=Data(source="smnist", length=0, batch_size=16, eval_batch_size=100),
        model=Model(
            pattern=("selective",) * 2,
            d_model=32,
            d_state=64,
            conv=4,
            selective=SelectiveConfig(transition="complex"),
            attention=AttentionConfig(window=784),
        ),
        optimizer=Optimizer(peak_rate=4e-3, end_rate=4e-5, warmup_steps=50),
        training=Training(steps=400, eval_every=400, checkpoint_every=400, log_every=20, devices=1, select="last"),
        sweep=Sweep(parameters=30_000, trials=2, trial_steps=100, learning_rates=(2.5e-3, 8e-3), sizes=(1.0,)),
    ).to_config_dict()
