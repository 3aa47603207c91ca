"""A linear-Gaussian channel, whose least error is known.

Command:        python train.py --config configs/paper/channel.py --sweep --config.data.local_dir=FOLDER
Data:           synthetic: z_t = 0.9 z_(t-1) + e_t of variance 1, seen as z_t plus noise of variance 0.1; 64 steps, the
                next 8 to be forecast
Hardware:       1 CPU core
Time:           about 2 minutes a model, trials and seeds together
Expected score: docs/results.md
"""

from ml_collections import ConfigDict

from selssm_jax.config import AttentionConfig, Data, Experiment, Model, Optimizer, Sweep, Training


def get_config() -> ConfigDict:
    """Returns the task and its sweep; every key can be overridden on the command line."""
    return Experiment(
        name="channel",
        data=Data(
            source="linear_gaussian",
            length=64,
            horizon=8,
            noise=0.1,
            batch_size=64,
            eval_batch_size=500,
            eval_examples=4000,
        ),
        model=Model(
            pattern=("selective",), d_model=16, d_state=16, normalize=False, attention=AttentionConfig(window=64)
        ),
        optimizer=Optimizer(peak_rate=5e-3, end_rate=1e-4, warmup_steps=50),
        training=Training(steps=1000, eval_every=250, checkpoint_every=1000, log_every=50, devices=1),
        sweep=Sweep(
            parameters=5_000,
            trials=8,
            trial_steps=250,
            learning_rates=(3e-3, 1e-2),
            sizes=(1.0,),
            gate_biases=(0.0, 1.0),
            penalties=(0.0, 0.001),
        ),
    ).to_config_dict()
