"""Learning on a stream: predict, be told the truth later, learn from it in constant memory, and notice when the world
changes.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
