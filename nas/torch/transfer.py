"""Starting from the weights of another training: which are taken over, which layers learn, when, and how fast."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from nas.errors import ConfigError
from nas.export.weights import fits, read

EXPECTED = "none, all, gradual, gradual:EPOCHS, or names of stages such as stem,stage1"


class Layers:
    """The layers of a module, and which of them learn in an epoch.

    Old parameters are those that came with weights; the others always learn.

    - Feature extraction: `freeze` "all", and old parameters never learn, but for the last layer.
    - Fine-tuning: "none"; old parameters learn at `old_rate` times the learning rate.
    - Some stages never: their names, as in `stem,stage1`.
    - Gradual unfreezing (Howard & Ruder 2018): "gradual", at first only the last stage; after each epoch (or so many,
      `gradual:3`) one more before it.

    Stages are the module's children. Norms of a frozen layer keep their statistics.

    Raises ConfigError for what `freeze` cannot be, or a rate that is not above 0.
    """

    def __init__(self, module: nn.Module, old: frozenset[str], freeze: str = "none", old_rate: float = 1.0) -> None:
        if not 0 < old_rate <= 1:
            raise ConfigError(f"old-rate: expected a number above 0, at most 1, got {old_rate}")
        self._module, self._old, self._rate = module, old, old_rate
        self.stages = [name for name, child in module.named_children() if any(True for _ in child.parameters())]
        self._last = last_layer(module)
        self._always, self._each = _parse(freeze, self.stages)
        if freeze != "none" and not old:
            raise ConfigError(f"freeze: {freeze!r} leaves layers at random weights; give trained ones with --init")

    def rate(self, name: str) -> float:
        """What the learning rate of a parameter is multiplied by."""
        return self._rate if name in self._old else 1.0

    def frozen_stages(self, epoch: int) -> tuple[str, ...]:
        """Those whose old parameters do not learn in epoch number `epoch`, counted from 0."""
        if self._each is None:
            return self._always
        thawed = 1 + epoch // self._each
        return tuple(self.stages[: max(0, len(self.stages) - thawed)])

    def settle(self, epoch: int) -> None:
        """Make the module ready for an epoch of training."""
        stages = self.frozen_stages(epoch)
        frozen = {
            name
            for name, _ in self._module.named_parameters()
            if name in self._old and name.split(".")[0] in stages and name.rpartition(".")[0] != self._last
        }
        for name, parameter in self._module.named_parameters():
            parameter.requires_grad_(name not in frozen)
        for path, layer in self._module.named_modules():
            own = {f"{path}.{name}" for name, _ in layer.named_parameters(recurse=False)}
            if own and own <= frozen:
                layer.eval()


def _parse(freeze: str, stages: Sequence[str]) -> tuple[tuple[str, ...], int | None]:
    """Stages that are frozen throughout, and after how many epochs one more thaws, if they do."""
    if freeze in ("none", "all"):
        return (tuple(stages) if freeze == "all" else ()), None
    match = re.fullmatch(r"gradual(?::([1-9]\d*))?", freeze)
    if match:
        return (), int(match[1] or 1)
    names = tuple(name.strip() for name in freeze.split(","))
    for name in names:
        if name not in stages:
            raise ConfigError(f"freeze: expected {EXPECTED}; there is no stage {name!r}, only {', '.join(stages)}")
    return names, None


def last_layer(module: nn.Module) -> str:
    """Path of the last layer with weights: the classifier."""
    layers = [path for path, layer in module.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    return layers[-1] if layers else ""


def take_over(module: nn.Module, path: Path) -> frozenset[str]:
    """Fill a module with the weights of a file; its classifier stays as it is where that is for other classes.

    Returns the names of the parameters that were taken over. Raises ExportError where anything else does not fit.
    """
    tensors, _ = read(path)
    state = module.state_dict()
    head = last_layer(module)
    kept = {
        name: own
        for name, own in state.items()
        if name.rpartition(".")[0] == head and name in tensors and tensors[name].shape != own.shape
    }
    merged = tensors | kept
    fits(merged, module, str(path))
    module.load_state_dict(merged)
    return frozenset(name for name, _ in module.named_parameters() if name not in kept)
