"""Comparison of models: each is tuned by equally many trials, trained from several seeds, and written into a record."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
