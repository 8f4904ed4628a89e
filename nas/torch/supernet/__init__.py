"""One set of weights for all networks of a space (Pham et al. 2018, Guo et al. 2019)."""

from nas.torch.supernet.path import Path
from nas.torch.supernet.store import Supernet

__all__ = ["Path", "Supernet"]
