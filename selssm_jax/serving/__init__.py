"""A small HTTP server: many sessions, each with the memory of its own past, advanced together."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
