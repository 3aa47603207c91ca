"""Characters of the Python reference that every CPython carries: nothing to download, a minute of training.

Command:        python train.py --config configs/quickstart.py --report
Data:           the text of pydoc_data.topics, cut in time: 85 % training, 5 % validation, 10 % test
Hardware:       2 CPU cores, or any accelerator
Time:           2 minutes: training, evaluation and report
Expected score: test 1.21 nats a character (benchmarks/records/quickstart.json)
"""

from ml_collections import ConfigDict

from selssm_jax.config import Data, Experiment, Model, Optimizer, Training


def get_config() -> ConfigDict:
    """Returns the recipe; every key can be overridden on the command line."""
    return Experiment(
        name="quickstart",
        data=Data(source="python_reference", batch_size=16, length=128),
        model=Model(pattern=("selective",) * 3, d_model=96, d_state=192, conv=4, dropout=0.1),
        optimizer=Optimizer(peak_rate=4e-3, end_rate=1e-4, warmup_steps=50),
        training=Training(steps=1000, eval_every=250, checkpoint_every=250, log_every=10),
    ).to_config_dict()
