"""Making a memory smaller: what it holds in fewer bytes, and what that costs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
