"""nas: neural architecture search for PyTorch.

A search space is an architecture with some choices left open; a strategy closes them; an evaluator scores the
result; the run folder remembers everything.

    >>> import nas
    >>> search = nas.start(nas.Config(space="mobile", strategy="evolution", trials=20))
    >>> search.run()
    >>> network = nas.load(search.store.path).best("accuracy").module(weights=True)
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nas.architecture import Architecture as Architecture
    from nas.blocks.base import Block as Block
    from nas.choices import OneOf as OneOf
    from nas.choices import Repeat as Repeat
    from nas.config import Config as Config
    from nas.evaluator import Evaluator as Evaluator
    from nas.evaluator import Task as Task
    from nas.session import load as load
    from nas.session import resume as resume
    from nas.session import start as start
    from nas.space import Space as Space
    from nas.strategy import Strategy as Strategy
    from nas.trial import Metric as Metric
    from nas.trial import Objective as Objective
    from nas.trial import Proposal as Proposal
    from nas.trial import Trial as Trial

# In a checkout the plug-in folders stand beside this one (they are installed inside it): look for
# `nas.search_spaces`, `nas.strategies` and `nas.evaluators` there, whichever way this package was found.
if not (Path(__file__).parent / "search_spaces").is_dir():
    __path__.append(str(Path(__file__).parents[1]))

# Name to module: imported when first used, so that `import nas` costs nothing.
_EXPORTS = {
    "Architecture": "architecture", "Block": "blocks.base", "OneOf": "choices", "Repeat": "choices",
    "Config": "config", "Evaluator": "evaluator", "Task": "evaluator", "load": "session", "resume": "session",
    "start": "session", "Space": "space", "Strategy": "strategy", "Metric": "trial", "Objective": "trial",
    "Proposal": "trial", "Trial": "trial",
}  # fmt: skip
__all__ = sorted(_EXPORTS)


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(f"nas.{_EXPORTS[name]}"), name)
    raise AttributeError(f"module 'nas' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *__all__]
