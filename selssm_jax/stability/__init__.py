"""Does a memory contract, at which rate, and what shows it where it does not? Certificates that are true, and their witnesses."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
