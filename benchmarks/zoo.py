"""Every reference architecture: parameters and multiply-adds beside the published ones.

    python benchmarks/zoo.py

Prints a row per architecture: name, input resolution, parameters, multiply-adds (of convolutions and linear layers,
biases not counted), the published figures where there are any, and whether all is well: figures equal, graph
verified, block by block cost equal to the graph's, and JSON there and back the same network. Ends with 1 if not.
"""

from __future__ import annotations

import csv
import json
import sys
import time
from pathlib import Path

from nas.search_spaces import zoo

from nas.analysis import analyse
from nas.architecture import Architecture
from nas.errors import NasError

PUBLISHED = Path(__file__).parents[1] / "tests/search_spaces/zoo.csv"


def sound(architecture: Architecture) -> bool:
    """Whether the graph keeps its rules, both ways of counting agree, and JSON keeps the network."""
    graph = architecture.graph()
    try:
        graph.verify()
    except NasError as error:
        print(error, file=sys.stderr)
        return False
    again = Architecture.from_json(json.loads(json.dumps(architecture.to_json())))
    return architecture.analysis == analyse(graph) and again.key() == architecture.key()


def main() -> int:
    published: dict[str, list[dict[str, str]]] = {}
    for row in csv.DictReader(PUBLISHED.read_text().splitlines()):
        published.setdefault(row["zoo"], []).append(row)
    print(f"{'name':28} {'input':>5} {'params':>12} {'MACs':>15}  {'published params':>16} {'published MACs':>15}  ok")
    good = rows = compared = 0
    seconds = 0.0
    for name in zoo.names():
        default = zoo.get(name)
        cases = {(str(default.input_shape[1]), str(default.classes)): ("", "")}
        for row in published.get(name, []):
            cases[row["resolution"], row["classes"]] = (row["params"], row["macs"])
        for (size, classes), (params, macs) in cases.items():
            architecture = zoo.get(name, classes=int(classes), input_shape=(3, int(size), int(size)))
            start = time.perf_counter()
            architecture.graph()
            analysis = architecture.analysis
            seconds += time.perf_counter() - start
            ok = sound(architecture) and (not params or (analysis.params, analysis.flops) == (int(params), int(macs)))
            figures = f"{analysis.params:12,} {analysis.flops:15,}  {_grouped(params):>16} {_grouped(macs):>15}"
            print(f"{name:28} {size:>5} {figures}  {'yes' if ok else 'NO'}")
            good, rows, compared = good + ok, rows + 1, compared + bool(params)
    print(f"{good} of {rows} well, {compared} of them compared; lowering and counting all took {seconds:.2f} s")
    return 0 if good == rows else 1


def _grouped(figure: str) -> str:
    return f"{int(figure):,}" if figure else "-"


if __name__ == "__main__":
    sys.exit(main())
