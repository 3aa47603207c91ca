"""Signals of yours with a label each, whole: a small model, trained on 80 % of them and chosen on 10 %.

Command:        python train.py --config configs/my_signals.py --config.data.file=my.npz --report
                (sound: --config.model.filterbank=48 --config.data.augment=True)
Data:           an NPZ with `signal` (clips, samples[, channels]) and `label` (clips,); give `sample_rate` too: what is
                sampled as sound is, from
                4 kHz on, is read in frames of 25 ms every 10 ms, anything else in a hundred frames a clip
Hardware:       2 CPU cores, or any accelerator
Time:           2 minutes for clips of a second
Expected score: above that of the commonest class, which the report gives beside it
"""

from ml_collections import ConfigDict

from selssm_jax.config import Data, Experiment, Model, Optimizer, Training


def get_config() -> ConfigDict:
    """Returns the recipe; every key can be overridden on the command line."""
    return Experiment(
        name="my_signals",
        data=Data(source="npz", file="my.npz", length=0, batch_size=32, eval_batch_size=50),
        model=Model(pattern=("selective",) * 2, d_model=64, d_state=64, conv=4, dropout=0.1, frame=0, stride=0),
        optimizer=Optimizer(peak_rate=3e-3, end_rate=3e-5, warmup_steps=50),
        training=Training(steps=600, eval_every=100, checkpoint_every=200, log_every=20),
    ).to_config_dict()
