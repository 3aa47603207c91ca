"""What a hidden state knows, in nats: exact, bracketed and estimated."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
