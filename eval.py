"""Evaluates a run and writes a report on it: `python eval.py --help`. The command is selssm_jax/commands/eval.py."""

from selssm_jax.commands import eval

if __name__ == "__main__":
    eval.run()
