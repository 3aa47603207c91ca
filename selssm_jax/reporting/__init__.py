"""Reports: what a run scores, what its gates do, what it costs, for people and for programs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
