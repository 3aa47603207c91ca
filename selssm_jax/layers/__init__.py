"""Flax modules with one contract: (x, state=None, *, reset=None) -> (y, state).

Each is imported when it is first used: the config reads the layers' rules before JAX is there.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
