"""Certificates of contraction: whether a memory forgets and at which rate, or a witness that it does not."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
