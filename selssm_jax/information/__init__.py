"""Measures of the information in a hidden state, in nats: exact values, bounds and estimates."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
