"""The configuration of an experiment: frozen values that are checked when they are built. All defaults are here; no
part of it imports JAX.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
