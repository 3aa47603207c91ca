"""The bottleneck of a gate: what a memory tells of the future, at a price for every nat that it holds of the past.

Command:        python train.py --config configs/bottleneck.py
Data:           synthetic: z_t = 0.9 z_(t-1) + e_t of variance 1, seen as z_t plus noise of variance 0.1 at 63 steps;
                nothing is read at the last one, so that the next value is forecast from memory alone
Hardware:       1 CPU core
Time:           half a minute
Expected score: test MSE 0.536 from 1.25 nats of memory (Kalman filter 0.491), which is on the bottleneck
"""

from ml_collections import ConfigDict

from selssm_jax.config import Data, Experiment, Model, Optimizer, SelectiveConfig, Training


def get_config() -> ConfigDict:
    """Returns the recipe; every key can be overridden on the command line."""
    return Experiment(
        name="bottleneck",
        data=Data(
            source="linear_gaussian",
            length=64,
            horizon=1,
            blank=1,
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
        training=Training(
            steps=1500,
            eval_every=500,
            checkpoint_every=1500,
            log_every=50,
            select="last",
            information_weight=0.1,
            information_steps="last",
            penalty_warmup=500,
        ),
    ).to_config_dict()
