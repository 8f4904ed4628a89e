"""Zero-cost proxies: numbers that rank architectures before any is trained.

    from nas.evaluators.proxies import ensemble, measure, scores

    measure(architecture, "nwot,synflow")                       # {"nwot": ..., "synflow": ...}
    table = scores(architectures, "default", images=x, labels=y)  # a column for each proxy
    ensemble(table)                                             # the log-rank ensemble within these architectures

Each proxy is a class in a small file, found under the entry point `nas.proxies`. All of it runs on
`device`; it has not been run on a GPU yet.
"""

from .measuring import BATCH, measure, noise, scores
from .names import SETS, named
from .ranking import Reference, ensemble

__all__ = ["BATCH", "SETS", "Reference", "ensemble", "measure", "named", "noise", "scores"]
