"""What the commands share. Imports only typer at the top, as all modules here: `nas --help` must answer at once."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nas.architecture import Architecture

app = typer.Typer(
    help="Neural architecture search for PyTorch.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
RunPath = Annotated[Path, typer.Argument(help="A run folder.", show_default=False)]
Network = Annotated[
    str,
    typer.Argument(
        help="A run folder, one of nas train, a zoo name, or an architecture's JSON file.", show_default=False
    ),
]


def is_run(source: str) -> bool:
    """Whether a run folder is meant: it is one, or it is no file and no name in the zoo, nor like one."""
    from difflib import get_close_matches

    from nas.plugins import reference_names
    from nas.training import is_training

    path = Path(source)
    if path.is_dir():
        return not is_training(path)
    return path.suffix != ".json" and not get_close_matches(source, reference_names(), cutoff=0.8)


def architecture_of(source: str, which: str) -> Architecture:
    """From a zoo name, a run folder, one of `nas train`, or a JSON file. Raises NasError."""
    import json

    from nas.architecture import Architecture
    from nas.errors import SpaceError
    from nas.plugins import reference
    from nas.session import load
    from nas.training import Job, is_training

    path = Path(source)
    if is_training(path):
        return Architecture.from_json(Job.read(path).architecture)
    if path.is_dir():
        return load(path).select(which).architecture
    if path.suffix == ".json":
        try:
            return Architecture.from_json(json.loads(path.read_text()))
        except (OSError, ValueError) as error:
            raise SpaceError(f"architecture file {path} cannot be read: {error}") from None
    return reference(source)


def wrote(path: Path, json: bool) -> None:
    print(f"wrote  {path}", file=sys.stderr if json else sys.stdout)


def at_least(name: str, value: int, least: int) -> None:
    from nas.errors import ConfigError

    if not least <= value < 2**63:
        raise ConfigError(f"{name}: expected a whole number of at least {least}, got {value}")


def picture(option: str, path: Path | None) -> None:
    """Refuse the name of a picture that cannot be drawn, before anything is done."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from nas.errors import ConfigError

    known = FigureCanvasAgg.get_supported_filetypes()
    if path is not None and (path.suffix[1:].lower() not in known or path.is_dir()):
        raise ConfigError(f"{option} {path}: expected the name of a picture, ending in .png, .svg or .pdf")


def absolute(path: str | Path | None) -> str | None:
    """So that the same training is recognised from anywhere, and other processes find it."""
    return None if path is None else str(Path(path).resolve())
