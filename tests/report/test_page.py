"""The report page: what is in it, and in a browser that it draws, hovers and selects without an error."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import nas

import nas as package
from nas.errors import RunError
from nas.report.page import write_report

# Moves to the first point of the front, clicks, and leaves what is seen then in attributes of the body.
HOOK = """<script>
const seen = document.body.dataset;
window.addEventListener("error", (e) => { seen.error = e.message; });
const wait = (ms) => new Promise((done) => setTimeout(done, ms));
(async () => {
  await wait(500);
  const chart = document.getElementById("front"), area = chart.querySelector(".nsewdrag");
  const points = [...chart.querySelectorAll(".scatterlayer .point")];
  seen.points = points.length;
  seen.before = document.querySelector("#selected h3").textContent;
  const box = points[points.length - FRONT].getBoundingClientRect();
  const at = { clientX: box.x + box.width / 2, clientY: box.y + box.height / 2, bubbles: true, view: window };
  area.dispatchEvent(new MouseEvent("mousemove", at));
  await wait(400);
  seen.hover = chart.querySelector(".hoverlayer").textContent;
  for (const kind of ["mousedown", "mouseup"]) area.dispatchEvent(new MouseEvent(kind, at));
  await wait(400);
  seen.selected = document.querySelector("#selected h3").textContent;
  seen.blocks = document.querySelectorAll("#selected svg rect").length;
  const y = document.getElementById("y");
  y.value = "params";
  y.dispatchEvent(new Event("change"));
  await wait(300);
  seen.axis = chart.querySelector(".ytitle").textContent;
  seen.curves = document.querySelectorAll("#volume .scatterlayer .js-line").length;
})();
</script></body></html>"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished search on the table."""
    folder = tmp_path_factory.mktemp("page")
    search = ["search", "--space=nasbench-macro", "--evaluator=table", "--strategy=local-search", "--trials=25"]
    done = nas(*search, "--limit", "flops=60M", "--out=run", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "run"


def data_of(page: Path) -> dict[str, object]:
    """What the charts are drawn from."""
    text = re.search(r'<script id="data" type="application/json">(.*?)</script>', page.read_text())
    assert text is not None
    data: dict[str, object] = json.loads(text[1])
    return data


def test_the_page_is_whole_and_says_all(run: Path) -> None:
    done = nas("report", str(run))
    assert done.returncode == 0, done.stderr
    names = ["report.html", "report-front.png", "report-hypervolume.png", "report-decisions.png"]
    assert done.stdout.splitlines() == [f"wrote  {run / name}" for name in names]
    for name in names[1:]:
        assert (run / name).read_bytes().startswith(b"\x89PNG")
    text = (run / "report.html").read_text()
    body = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="(?!data:)[^"]*"', body), "the page must open offline"
    results = package.load(run)
    charts: dict = data_of(run / "report.html")  # type: ignore[type-arg]
    (charted,) = charts["runs"]
    assert [t["number"] for t in charted["trials"] if t["front"]] == sorted(t.number for t in results.front)
    assert all(t["drawing"].startswith("<svg") for t in charted["trials"])
    assert [curve["strategy"] for curve in charts["volumes"]] == ["local-search", "random"]
    assert all(len(curve["mean"]) == 25 for curve in charts["volumes"])
    assert charts["volumes"][0]["mean"][-1] == 1  # it is measured against its own front
    assert charts["volumes"][1]["mean"][-1] > 0
    assert max(charts["volumes"][1]["error"]) > 0
    for trial in results.front:
        assert f"<h3>trial {trial.number}</h3>" in body
    plain = html.unescape(body)
    assert "nas search --space nasbench-macro --strategy local-search --evaluator table" in plain
    assert "python " in plain
    assert "seed      0" in plain


def test_what_other_commands_left_is_shown(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    rows = [{"proxy": "nwot", "kendall": 0.61, "low": 0.4, "high": 0.7, "spearman": 0.8, "networks": 25},
            {"proxy": "flops", "kendall": 0.5, "low": None, "high": 0.6, "verdict": "a count"}]  # fmt: skip
    (copy / "proxies.json").write_text(json.dumps({"metric": "accuracy", "proxies": rows}))
    (copy / "train/3").mkdir(parents=True)
    result = {"name": "three", "epochs": 90, "test": {"accuracy": 0.987, "loss": 0.1}, "searched": {"accuracy": 0.9}}
    (copy / "train/3/result.json").write_text(json.dumps(result))
    (copy / "train/4").mkdir()
    (copy / "train/4/result.json").write_text("{torn")
    (page, *_) = write_report([copy])
    body = page.read_text()
    assert "Trained anew" in body
    assert "<td>three</td><td class=n>90</td><td class=n>0.9</td><td class=n>0.987</td>" in body
    assert "<td>nwot</td><td class=n>0.61</td><td class=n>0.4</td><td class=n>0.7</td><td class=n>0.8</td>" in body
    assert "<td>flops</td><td class=n>0.5</td><td class=n>–</td>" in body
    (page, *_) = write_report([run])
    assert "Trained anew" not in page.read_text()
    assert "nwot" not in page.read_text()
    assert "<td>params</td>" in page.read_text()  # what counting is worth is always said


def test_runs_of_the_same_name_and_the_folder_itself(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = shutil.copytree(run, tmp_path / "run")
    (page, *_) = write_report([run, twin], tmp_path / "both.html")
    assert [each["name"] for each in data_of(page)["runs"]] == [str(run), str(twin)]  # type: ignore[attr-defined]
    monkeypatch.chdir(twin)
    (page, *_) = write_report([Path()])
    assert "<h1>run</h1>" in page.read_text()


def test_errors_and_hostile_texts(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    lines = (copy / "trials.jsonl").read_text().splitlines()
    told = next(i for i, line in enumerate(lines) if '"event":"told"' in line and '"state":"ok"' in line)
    event = json.loads(lines[told])
    event |= {"state": "failed", "error": "</script><b>boom", "metrics": {}}
    lines[told] = json.dumps(event)
    (copy / "trials.jsonl").write_text("\n".join(lines) + "\n")
    (page, *_) = write_report([copy])
    assert "&lt;/script&gt;&lt;b&gt;boom" in page.read_text()
    assert "</script><b>boom" not in page.read_text()


def test_a_users_mistake_is_one_line(run: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    shutil.copy(run / "run.json", tmp_path / "empty")
    for arguments, message in (
        ([str(tmp_path)], "is not a run folder"),
        ([str(tmp_path / "empty")], "has no finished trial yet"),
        ([str(run), str(run)], "names a run twice"),
    ):
        done = nas("report", *arguments)
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_one_objective_and_no_success(tmp_path: Path) -> None:
    search = ["search", "--space=nasbench-macro", "--evaluator=table", "--strategy=random", "--trials=4"]
    assert nas(*search, "--objectives=accuracy", "--out=one", cwd=tmp_path).returncode == 0
    (page, *_) = write_report([tmp_path / "one"])
    assert data_of(page)["x"] == "trial"
    with pytest.raises(RunError, match="runs cannot be compared"):
        write_report([tmp_path / "one", _failed(tmp_path)])
    (page, *pictures) = write_report([tmp_path / "failed"])
    assert "No trial has succeeded" in page.read_text()
    assert pictures == []


def _failed(folder: Path) -> Path:
    """A run whose only trial failed."""
    done = nas("search", "--evaluator=toys:broken", "--trials=1", "--out=failed", "--strategy=random", cwd=folder)
    assert done.returncode == 2, done.stdout
    return folder / "failed"


def test_a_browser_draws_it_and_a_click_selects(run: Path, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Debian's chromium is not installed")
    other = ["search", "--space=nasbench-macro", "--evaluator=table", "--strategy=random", "--trials=20"]
    assert nas(*other, "--limit", "flops=60M", "--out=other", cwd=tmp_path).returncode == 0
    page = tmp_path / "both.html"
    write_report([run, tmp_path / "other"], page)
    trials = [trial for each in data_of(page)["runs"] for trial in each["trials"]]  # type: ignore[attr-defined]
    front = package.load(tmp_path / "other").front
    text = page.read_text().replace("</body></html>", HOOK.replace("FRONT", str(len(front))))
    page.write_text(text)
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=9000"]
    command += ["--window-size=1280,1200", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    body = re.search(r"<body([^>]*)>", done.stdout)
    assert body is not None
    seen = {name: html.unescape(value) for name, value in re.findall(r'data-(\w+)="([^"]*)"', body[1])}
    assert "error" not in seen
    assert int(seen["points"]) == len(trials)
    cheapest = min(front, key=lambda trial: trial.metrics["flops"])
    assert seen["hover"].startswith(f"trial {cheapest.number}accuracy")
    assert seen["before"] != seen["selected"] == f"other, trial {cheapest.number}"
    assert int(seen["blocks"]) > 3
    assert seen["axis"] == "params (parameters)"
    assert int(seen["curves"]) == 2


def test_a_report_needs_no_torch(run: Path) -> None:
    code = f"from pathlib import Path; from nas.report.page import write_report; write_report([Path({str(run)!r})])"
    script = f"{code}; import sys; assert 'torch' not in sys.modules and 'pandas' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
