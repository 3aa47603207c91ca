"""A linear model on a linear-Gaussian channel: what its noisy state knows of its input has a closed form, and the
report must find it.

Command:        python train.py --config configs/channel.py && python eval.py --workdir runs/channel --measure
Data:           synthetic: z_t = 0.9 z_(t-1) + e_t of variance 1, seen as z_t plus noise of variance 0.1; 64 steps, the
                next 8 to be forecast
Hardware:       1 CPU core
Time:           1 minute, and 1 for the measurement
Expected score: test MSE 0.700 (Kalman filter 0.697), although the state is noisy; 4.9 bits of the past in the state,
exact and bracketed
"""

from ml_collections import ConfigDict

from selssm_jax.config import Data, Experiment, Model, Optimizer, SelectiveConfig, Training


def get_config() -> ConfigDict:
    """Returns the recipe; every key can be overridden on the command line."""
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
            pattern=("selective",),
            d_model=8,
            d_state=4,
            mlp_ratio=0.0,
            norm="none",
            normalize=False,
            selective=SelectiveConfig(gate="constant", process_noise=0.3),
        ),
        optimizer=Optimizer(peak_rate=1e-2, end_rate=1e-4, warmup_steps=100, weight_decay=0.0),
        training=Training(steps=3000, eval_every=500, checkpoint_every=1000, log_every=50),
    ).to_config_dict()
