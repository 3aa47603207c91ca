"""Words of WikiText-2: 33,278 of them, test perplexity.

Command:        python train.py --config configs/wikitext2_words.py --config.data.local_dir=FOLDER --report
Data:           WikiText-2, word level, <eos> at line ends, official splits, read as one stream with the state carried
Hardware:       one GPU or TPU; on CPU cores it is a matter of hours
Time:           not measured
Expected score: not measured (AWD-LSTM reports a test perplexity of 65.6)
"""

from ml_collections import ConfigDict

from selssm_jax.config import Data, Experiment, Model, Optimizer, Training


def get_config() -> ConfigDict:
    """Returns the recipe; every key can be overridden on the command line."""
    return Experiment(
        name="wikitext2_words",
        data=Data(source="wikitext2", level="word", length=128, batch_size=32, eval_batch_size=16),
        model=Model(pattern=("selective",) * 4, d_model=256, d_state=512, conv=4, dropout=0.4, tie_embeddings=True),
        optimizer=Optimizer(peak_rate=2e-3, end_rate=2e-5, warmup_steps=500, weight_decay=0.2),
        training=Training(steps=20_000, eval_every=500, checkpoint_every=500, log_every=20),
    ).to_config_dict()
