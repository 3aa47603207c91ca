"""What is computed of a trained model, as values: scores, gates, costs, certificates, and the bits that its memory
holds.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
