"""Two answers from one memory: two series that share one of three hidden states, which the report is to find.

Command:        python train.py --config configs/two_answers.py && python eval.py --workdir runs/two_answers --measure
Data:           synthetic: three states of variance 1 with decays 0.99, 0.95 and 0.8, each seen plus noise of variance
                1; 64 steps, the next 4 of the first plus the second and of the first plus the third to be forecast
Hardware:       1 CPU core
Time:           1 minute, and 2 for the measurement
Expected score: TODO
"""

from ml_collections import ConfigDict

from selssm_jax.config import Data, Experiment, Measure, Model, Optimizer, SelectiveConfig, Training


def get_config() -> ConfigDict:
    """Returns the recipe; every key can be overridden on the command line."""
    return Experiment(
        name="two_answers",
        data=Data(
            source="two_answers",
            length=64,
            horizon=4,
            noise=1.0,
            batch_size=64,
            eval_batch_size=500,
            eval_examples=4000,
        ),
        model=Model(
            pattern=("selective",),
            d_model=8,
            d_state=3,
            mlp_ratio=0.0,
            norm="none",
            normalize=False,
            channel_independent=False,
            selective=SelectiveConfig(gate="constant"),
        ),
        optimizer=Optimizer(peak_rate=1e-2, end_rate=1e-4, warmup_steps=100, weight_decay=0.0),
        training=Training(steps=3000, eval_every=500, checkpoint_every=1000, log_every=50),
        measure=Measure(samples=4000),
    ).to_config_dict()
