"""A model of a few hundred weights on selective copying, in seconds: for tests, and to see that an installation works.

Command:        python train.py --config configs/smoke.py
Data:           synthetic: 4 symbols, 2 of them in 16 steps, then 2 steps to say them
Hardware:       1 CPU core
Time:           10 seconds
Expected score: none; it is too small and too short to learn the task
"""

from ml_collections import ConfigDict

from selssm_jax.config import Data, Experiment, Model, Optimizer, Sweep, Training


def get_config() -> ConfigDict:
    """Returns the recipe; every key can be overridden on the command line."""
    return Experiment(
        name="smoke",
        data=Data(
            source="selective_copying",
            length=16,
            vocab=4,
            tokens=2,
            batch_size=8,
            train_examples=1000,
            eval_examples=24,
        ),
        model=Model(pattern=("selective",), d_model=8, d_state=8),
        optimizer=Optimizer(peak_rate=1e-2, end_rate=1e-4, warmup_steps=5),
        training=Training(steps=60, log_every=5, eval_every=20, checkpoint_every=10),
        sweep=Sweep(models=("selective", "gru"), trials=2, trial_steps=20, seeds=2, sizes=(1.0,), lengths=(32,)),
    ).to_config_dict()
