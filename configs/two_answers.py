"""Two answers from one memory: two series that share one of three hidden states, which the report is to find.

The state has noise and its nats a small price, so that each component follows one hidden state and one that is not
needed falls silent; without a price components are mixtures of them that forecast as well (benchmarks/two_answers.py).

Command:        python train.py --config configs/two_answers.py && python eval.py --workdir runs/two_answers --measure
Data:           synthetic: three states of variance 1 with decays 0.99, 0.95 and 0.8, each seen plus noise of variance
                1; 64 steps, the next 4 of the first plus the second and of the first plus the third to be forecast
Hardware:       1 CPU core
Time:           half a minute, and 2 minutes for the measurement
Expected score: test MSE 0.768 (exact filters on the same sequences 0.759); 1.07 of 1.08 bits of the first answer and
0.78 of 0.79 of the second in the state, one component shared by both, one private to each, one silent
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
            d_state=4,
            mlp_ratio=0.0,
            norm="none",
            normalize=False,
            channel_independent=False,
            selective=SelectiveConfig(gate="constant", process_noise=0.3),
        ),
        optimizer=Optimizer(peak_rate=3e-2, end_rate=1e-4, warmup_steps=100, weight_decay=0.0),
        training=Training(
            steps=4000,
            eval_every=1000,
            checkpoint_every=1000,
            log_every=50,
            information_weight=0.001,
            penalty_warmup=500,
            select="last",
        ),
        measure=Measure(samples=4000),
    ).to_config_dict()
