"""The command line."""

from __future__ import annotations

import gc
import os
import sys

from nas.cli import finding, networks, studies  # noqa: F401  (what they hold is registered as they are imported)
from nas.cli.common import app

COLLECTIONS = (20_000, 10, 10)
"""Thresholds of the garbage collector: a search keeps much and leaves next to no cycles, and looking through all of it
as often as Python does takes a sixth of the driver's time (`benchmarks/scale.py`)."""


def main() -> None:
    """Entry point: errors that a user can mend are one line and exit code 2."""
    from nas.errors import NasError

    # Torch's threads wait for work by spinning; where another process has the other core, each wait then lasts until
    # the scheduler steps in, and two threads train 50 times slower than one. libgomp reads this when it is loaded.
    os.environ.setdefault("GOMP_SPINCOUNT", "2000")
    gc.set_threshold(*COLLECTIONS)
    try:
        app()
    except NasError as error:
        print(f"nas: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that cannot be written: never this program's fault
        print(f"nas: {error.filename or 'operating system'}: {error.strerror}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("nas: interrupted", file=sys.stderr)
        sys.exit(130)
