"""Why a model said so: relevance of inputs, hidden attention of recurrences, and whether either is faithful."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
