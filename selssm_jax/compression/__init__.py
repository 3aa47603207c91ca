"""Make the memory of a trained model smaller: fewer bits, fewer components, and the loss that this costs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
