"""Characters of Shakespeare by a Mamba: the field's own layer, measured, certified and compressed by the commands that
serve ours.

Command:        python train.py --config configs/shakespeare_mamba.py --config.data.local_dir=FOLDER --report
                (without local_dir the text is downloaded from its public origin)
Data:           tiny_shakespeare, 85/5/10: trained on the first 85 % of the characters, scored on the last 10 % of them,
                read as one stream with the state carried; the 5 % between are left for choices.
Hardware:       1 CPU core
Time:           10 minutes, the whole process
Expected score: test 1.70 nats a character; 1.71 with its memory in 16 times fewer bytes (eval.py --compress)
"""

from ml_collections import ConfigDict

from selssm_jax.config import Compress, Data, Experiment, Model, Optimizer, Training


def get_config() -> ConfigDict:
    """Returns the recipe; every key can be overridden on the command line."""
    return Experiment(
        name="shakespeare_mamba",
        data=Data(source="tiny_shakespeare", batch_size=16, length=128, eval_batch_size=16),
        model=Model(pattern=("mamba",) * 4, d_model=128, d_state=16, mlp_ratio=0.0),
        optimizer=Optimizer(peak_rate=3e-3, end_rate=6e-5, warmup_steps=100, weight_decay=0.1),
        training=Training(steps=1500, eval_every=500, checkpoint_every=500, log_every=20),
        compress=Compress(scope="mixers"),
    ).to_config_dict()
