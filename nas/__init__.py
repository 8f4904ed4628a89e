"""nas: neural architecture search for PyTorch.

A search space is an architecture with some choices left open; a strategy closes them; an evaluator scores the
result; the run folder remembers everything.
"""

from pathlib import Path

# In a checkout the plug-in folders stand beside this one (they are installed inside it): look for
# `nas.search_spaces`, `nas.strategies` and `nas.evaluators` there, whichever way this package was found.
if not (Path(__file__).parent / "search_spaces").is_dir():
    __path__.append(str(Path(__file__).parents[1]))
