"""Selective state space models whose memory can be trained, measured, certified and compressed.

Each part is imported when it is first used: `selssm_jax.ops`, `selssm_jax.layers`, `selssm_jax.information` and the
rest.
"""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
