"""A text of yours, by its characters: a small model, trained on the first 85 % and chosen on the next 5 %.

Command:        python train.py --config configs/my_text.py --config.data.file=my.txt --report
                (words instead: --config.data.level=word; more patience: --config.training.steps=5000)
Data:           a text file in UTF-8, of any script; windows of 128 characters, fewer where the text is short
Hardware:       2 CPU cores, or any accelerator
Time:           2 minutes for a megabyte
Expected score: below the entropy of pairs, which the report gives beside it
"""

from ml_collections import ConfigDict

from selssm_jax.config import Data, Experiment, Model, Optimizer, Training


def get_config() -> ConfigDict:
    """Returns the recipe; every key can be overridden on the command line."""
    return Experiment(
        name="my_text",
        data=Data(source="text", file="my.txt", length=0, batch_size=16),
        model=Model(pattern=("selective",) * 3, d_model=96, d_state=192, conv=4, dropout=0.1),
        optimizer=Optimizer(peak_rate=4e-3, end_rate=1e-4, warmup_steps=50),
        training=Training(steps=1000, eval_every=250, checkpoint_every=250, log_every=10),
    ).to_config_dict()
