"""Sequential MNIST: a digit read one pixel at a time, 784 steps.

Command:        python train.py --config configs/smnist.py --config.data.local_dir=FOLDER --report
                (permuted pixels: --config.data.source=psmnist)
Data:           MNIST, 60,000 / 10,000; validation is the last 10 % of training
Hardware:       one GPU or TPU; on CPU cores it is a matter of many hours
Time:           not measured
Expected score: not measured
"""

from ml_collections import ConfigDict

from selssm_jax.config import Data, Experiment, Model, Optimizer, SelectiveConfig, Training


def get_config() -> ConfigDict:
    """Returns the recipe; every key can be overridden on the command line."""
    return Experiment(
        name="smnist",
        data=Data(source="smnist", length=0, batch_size=64, eval_batch_size=250),
        model=Model(
            pattern=("selective",) * 6,
            d_model=128,
            d_state=256,
            conv=4,
            dropout=0.1,
            pool="mean",
            selective=SelectiveConfig(transition="complex"),
        ),
        optimizer=Optimizer(peak_rate=2e-3, end_rate=1e-5, warmup_steps=1000, weight_decay=0.05),
        training=Training(steps=40_000, eval_every=1000, checkpoint_every=1000, log_every=50),
    ).to_config_dict()
