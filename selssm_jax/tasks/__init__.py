"""Kinds of task as objects: what each asks of a model, of training, and of a report; `register_task` makes an own one known."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
