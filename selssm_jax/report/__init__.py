"""Documents: tables, figures and the reports of a run and of a compression, from values alone."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
