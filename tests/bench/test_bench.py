"""The one run of all comparisons works, at its tiniest: every suite and curve, and a peer that is missing is named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
SUITES = {"oneshot", "decision", "ledger", "audit", "identity", "egress", "search", "streaming"}
CURVES = {"pods", "audit-curve", "clients", "tree"}
KINDS = {"ours", "floor", "peer"}


def started(out: Path, only: set[str]) -> subprocess.Popen[str]:
    environment = {**os.environ, "NUCLEUS_BENCH_INSTALL": "0", "NUCLEUS_BENCH_PEERS": str(out / "no peers")}
    words = [sys.executable, "-m", "bench", "--scale", "tiny", "--only", ",".join(sorted(only)), "--out", str(out)]
    return subprocess.Popen(words, cwd=REPOSITORY, env=environment, text=True, stdout=-1, stderr=-1)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ...]:
    """The directories of runs at once: the curves, and the comparisons in two."""
    if os.geteuid() != 0:
        pytest.skip("needs root, as the sites and worlds of the bench do")
    parts = (CURVES, {"egress", "search", "streaming"}, SUITES - {"egress", "search", "streaming"})
    made = tuple(tmp_path_factory.mktemp("bench") for _ in parts)
    runs = [started(out, only) for out, only in zip(made, parts, strict=True)]
    said = [run.communicate(timeout=100)[1] for run in runs]  # of all, before any is judged
    assert [run.returncode for run in runs] == [0, 0, 0], "\n".join(said)
    return made


def of(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "latest.json").read_text())
    return found


def test_every_comparison_gives_figures_of_ours(results: tuple[Path, ...]) -> None:
    rows = [row for out in results for row in of(out)["rows"]]
    assert {row["suite"] for row in rows} == SUITES
    for row in rows:
        assert any(way["kind"] == "ours" for way in row["ways"]), row["title"]
        for way in row["ways"]:
            assert way["kind"] in KINDS
            assert way["n"] > 0
            assert 0 < way["min"] <= way["p25"] <= way["median"] <= way["p75"] <= way["max"], (row["title"], way)


def test_a_peer_that_is_missing_is_named_with_the_reason(results: tuple[Path, ...]) -> None:
    rows = of(results[2])["rows"]
    shot, decision = (next(row for row in rows if row["suite"] == name) for name in ("oneshot", "decision"))
    assert {"sandlock", "nono-py"} <= set(shot["absent"])
    assert {"cedarpy", "casbin"} <= set(decision["absent"])
    text = (results[2] / "latest.md").read_text()
    assert "Not measured: sandlock" in text
    assert "`not installed (PyPI sandlock)`" in text


def test_every_curve_is_drawn(results: tuple[Path, ...]) -> None:
    curves = of(results[0])["curves"]
    assert len(curves) == 2 * len(CURVES)
    for curve in curves:
        assert curve["series"]
        drawn = ElementTree.parse(results[0] / f"{curve['name']}.svg").getroot()
        lines = drawn.findall("{http://www.w3.org/2000/svg}polyline")
        assert len(lines) == len(curve["series"])
