"""Reports of a run for people and for programs: its scores, its gates, its memory and its costs."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
