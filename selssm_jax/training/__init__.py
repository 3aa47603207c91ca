"""From a config to a trained model: objectives, optimiser, steps, the loop and its checkpoints."""
