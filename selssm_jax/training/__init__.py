"""Training from a config: objectives, the optimiser, the step, the loop and its checkpoints."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
