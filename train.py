"""Trains the model that a config describes: `python train.py --help`. The command is selssm_jax/commands/train.py."""

from selssm_jax.commands import train

if __name__ == "__main__":
    train.run()
