"""benchmarks/explain_batches.py runs, and both of its ways give the same maps."""

from __future__ import annotations

from pathlib import Path


def test_batches_beside_single_calls(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import explain_batches

    entry = explain_batches.main(["--quick"])
    assert len(entry["rows"]) == 2
    assert all(found["apart"] < 1e-4 and found["alone"] > 0 for found in entry["numbers"].values())
    assert "times faster in batches" in capsys.readouterr().out
