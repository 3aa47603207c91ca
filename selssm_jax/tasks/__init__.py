"""Tasks as objects: the encoder, head, loss, metrics and report of language, classification, forecasting, and of your
own kinds.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
