"""A table of what the blocks of a space take on a device, and the latency of whole networks that it predicts."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.device.settings import Settings
from nas.errors import ConfigError
from nas.ops import Shape
from nas.pricing import Price, leaves
from nas.store import write_atomically

if TYPE_CHECKING:
    from nas.architecture import Architecture
    from nas.blocks.base import Block

FORMAT = 1


@dataclass(frozen=True)
class Check:
    """Whole networks beside what the table says of them; the error is that of networks it was not fitted to.

    Attributes:
        fitted, held_out: pairs of the sum over the blocks and the measured latency (s).
        scale, offset: of the line through `fitted`: latency = scale * sum + offset.
    """

    fitted: Sequence[tuple[float, float]]
    held_out: Sequence[tuple[float, float]]
    scale: float
    offset: float

    @classmethod
    def of(cls, pairs: Sequence[tuple[float, float]]) -> Check:
        """Every other pair is fitted, the line being the one with the least squares of relative errors."""
        fitted, held_out = pairs[::2], pairs[1::2]
        sums, latencies = (np.array(column) for column in zip(*fitted, strict=True))
        rows = np.stack([sums, np.ones_like(sums)], axis=1) / latencies[:, None]
        line: Any = np.linalg.lstsq(rows, np.ones_like(sums), rcond=None)[0]
        scale, offset = line.tolist()
        return cls(fitted, held_out, scale, offset)

    @property
    def errors(self) -> list[float]:
        """Relative errors of the prediction, of the networks held out."""
        return [abs(self.scale * total + self.offset - latency) / latency for total, latency in self.held_out]

    @property
    def error(self) -> float:
        """Their median."""
        return float(np.median(self.errors))

    @property
    def spearman(self) -> float:
        """Rank correlation of prediction and measurement of the networks held out."""
        ranks = [np.argsort(np.argsort(column)) for column in zip(*self.held_out, strict=True)]  # times have no ties
        correlation: Any = np.corrcoef(ranks)
        return float(correlation[0, 1])

    def __str__(self) -> str:
        return (
            f"predicted against measured, {len(self.held_out)} networks held out: median error {self.error:.1%}, "
            f"largest {max(self.errors):.1%}, Spearman {self.spearman:.3f}"
        )


@dataclass
class Table:
    """What blocks take on a device.

    Attributes:
        settings: how they were run.
        device: what they ran on, and the versions.
        space: whose blocks they are: name, options, input shape, classes.
        blocks: by the key of the block's graph, which includes the shape it reads: medians of the seconds per run,
            measured some time apart, of which the smallest counts.
        check: whole networks beside it; None until they have been measured.
        path: where it came from.
    """

    settings: Settings
    device: Mapping[str, str | int]
    space: Mapping[str, Any]
    blocks: dict[str, list[float]] = field(default_factory=dict)
    check: Check | None = None
    path: Path | None = None

    @classmethod
    def read(cls, path: Path) -> Table:
        """Raises ConfigError for a file that is missing, damaged or none of ours."""
        try:
            data = json.loads(path.read_text())
            if data["format"] > FORMAT:
                raise ConfigError(f"table {path}: format {data['format']} is newer than {FORMAT}; upgrade nas")
            blocks = {str(key): [float(value) for value in values] for key, values in data["blocks"].items()}
            if not all(values and isfinite(sum(values)) and min(values) >= 0 for values in blocks.values()):
                raise ValueError("a block has no time that is a number")
            check = data["check"]
            if check is not None:
                pairs = {name: [(float(a), float(b)) for a, b in check[name]] for name in ("fitted", "held_out")}
                check = Check(**pairs, scale=float(check["scale"]), offset=float(check["offset"]))
            return cls(Settings(**data["settings"]), dict(data["device"]), dict(data["space"]), blocks, check, path)
        except FileNotFoundError:
            raise ConfigError(f"table {path} does not exist; `nas profile-device --out {path}` measures one") from None
        except OSError as error:
            raise ConfigError(f"table {path} cannot be read: {error.strerror}") from None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"table {path} is not what `nas profile-device` writes ({type(error).__name__}: {error}); measure it "
                "again with another --out"
            ) from None

    def write(self, path: Path) -> None:
        """As JSON, whole or not at all."""
        check: dict[str, Any] | None = None
        if self.check is not None:
            check = {"error": self.check.error, "spearman": self.check.spearman, **vars(self.check)}
        data = {"format": FORMAT, "settings": self.settings.to_json(), "device": self.device, "space": self.space,
                "check": check, "blocks": self.blocks}  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(data) + "\n")

    def seconds(self, block: Block, shape: Shape) -> float:
        """Seconds of a block that is not made of others one after the other. Raises ConfigError if it is not here."""
        graph = block.lower(shape)
        if not graph.output:  # an identity: nothing is run
            return 0.0
        found = self.blocks.get(graph.key())
        if found is None:
            about = repr(block) if len(repr(block)) < 200 else block.label
            raise ConfigError(
                f"table {self.path} has no {about} on {_size(shape)}: it holds the blocks of space "
                f"{self.space['name']} on {_size(self.space['input_shape'])} images; measure those of this space with "
                "`nas profile-device --space=NAME --out=FILE`, and the same --data and --set space.OPTION"
            )
        return min(found)

    def sum(self, architecture: Architecture) -> float:
        """Seconds of an architecture's blocks, added up. Raises ConfigError for one that is not here."""
        return sum(self.seconds(*placed) for placed in leaves(architecture.body, architecture.input_shape))

    @property
    def price(self) -> Price:
        """The latency that the table predicts, as an exact metric. Raises ConfigError for a table not finished."""
        if self.check is None:
            raise ConfigError(f"table {self.path} is not finished; the command that began it goes on with it")
        return Price("latency", self.check.offset, self._scaled)

    def _scaled(self, block: Block, shape: Shape) -> float:
        assert self.check is not None
        return self.check.scale * self.seconds(block, shape)

    def predict(self, architecture: Architecture) -> float:
        """Latency of an architecture in seconds. Raises ConfigError where the table is not complete."""
        price = self.price
        return price.whole([price.part(architecture.body, architecture.input_shape)])

    def __str__(self) -> str:
        error = "" if self.check is None else f", median error {self.check.error:.1%}"
        return f"{self.path}: {self.settings}, {self.device['name']}{error}"


def _size(shape: Shape) -> str:
    return "x".join(map(str, shape))
