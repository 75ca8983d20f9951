"""The benchmark of the fused loss, on one tiny shape: what it writes, and how it goes on when something fails."""

from __future__ import annotations

import importlib
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

Document = dict[str, Any]
Bench = Callable[..., Document]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch, root: Path, tmp_path: Path) -> Bench:
    """Run the command in this process, on a shape of 128 tokens, and read what it wrote."""
    monkeypatch.syspath_prepend(str(root / "kernels"))
    shapes = importlib.import_module("bench.shapes")
    monkeypatch.setitem(shapes.HEADS, "tiny", shapes.Head("tiny", 64, 1024))
    main = importlib.import_module("bench.__main__").main
    out = tmp_path / "kernels.json"

    def run(*options: str) -> Document:
        defaults = {"--heads": "tiny", "--tokens": "128", "--shares": "0.5", "--dtypes": "fp32", "--repeats": "2"}
        given = [word for pair in defaults.items() if pair[0] not in options for word in pair]
        assert main(["--device", "cpu", "--out", str(out), *given, *options]) == 0
        document: Document = json.loads(out.read_text(encoding="utf-8"))
        return document

    return run


def record(document: Document, provider: str) -> dict[str, Any]:
    (found,) = [record for record in document["records"] if record["provider"] == provider]
    return dict(found)


def use(monkeypatch: pytest.MonkeyPatch, name: str, loss: Callable[[Any], torch.Tensor]) -> None:
    """Let `name` compute `loss`."""
    providers = importlib.import_module("bench.providers")
    monkeypatch.setitem(providers.PROVIDERS, name, providers.Provider(lambda: loss))


def test_a_run_has_plausible_figures_of_everyone(bench: Bench) -> None:
    document = bench("--providers", "ours", "ours_R", "eager", "torch_native", "--dtypes", "fp32", "bf16")
    assert document["versions"]["torch"] == torch.__version__
    assert document["device_type"] == "cpu"
    assert document["command"].startswith("python -m bench --device cpu --out")
    assert document["protocol"]["repeats"] == 2
    assert document["stopped"] is None
    assert len(document["records"]) == 2 * 5  # two dtypes; four providers and the three products
    for found in document["records"]:
        assert found["status"] == "ok", found
        assert (found["tokens"], found["supervised"], found["hidden"], found["vocab"]) == (128, 64, 64, 1024)
        for key in ("hot_ms", "cold_ms", "percent_of_gemms"):
            assert found[key] > 0
        assert found["percent_of_798_tflops"] is None  # a figure of the H100
        assert found["peak_mib"] > 0
        if found["provider"] == "three_gemms":
            assert found["percent_of_gemms"] == 100
            assert found["loss_error"] is found["exact"] is None
            continue
        bound = 1e-5 if found["dtype"] == "fp32" else 1e-2
        assert 0 <= found["dhidden_error"] < bound
        assert 0 <= found["dweight_error"] < bound
        if found["provider"].startswith("ours"):
            assert found["exact"]
            assert found["loss_error"] < 1e-5
            assert 0 < found["peak_mib"] <= 1.05 * found["planned_mib"]


def test_a_wrong_gradient_is_not_exact(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong answer wins nothing, however fast it comes."""
    use(monkeypatch, "trl", lambda batch: batch.hidden.sum() * 0 + batch.weight.sum() * 0 + 7)
    document = bench("--providers", "ours", "eager", "trl")
    assert record(document, "trl")["exact"] is False
    (comparison,) = document["comparisons"]
    assert (comparison["head"], comparison["tokens"], comparison["share"]) == ("tiny", 128, 0.5)
    for heat in ("hot", "cold"):
        assert comparison[f"fastest_exact_peer_{heat}"] == "eager"
        expected = record(document, "eager")[f"{heat}_ms"] / record(document, "ours")[f"{heat}_ms"]
        assert comparison[f"ratio_{heat}"] == pytest.approx(expected)


def test_the_comparison_is_with_the_fastest_exact_peer(bench: Bench) -> None:
    shapes, measure, results = (importlib.import_module(f"bench.{name}") for name in ("shapes", "measure", "results"))
    times = {"ours": (5.0, True), "ours_R": (1.0, True), "trl": (2.0, False), "eager": (8.0, True), "cce": (7.0, True)}
    found = [{"provider": name, "hot_ms": ms, "cold_ms": 15.0 - ms, "exact": ok} for name, (ms, ok) in times.items()]
    found += [{"provider": "three_gemms", "hot_ms": 0.5, "cold_ms": 0.5, "exact": None}]
    found += [{"provider": "quack", "hot_ms": None, "cold_ms": None, "exact": None}]
    shape = shapes.Shape(shapes.HEADS["tiny"], 128, 0.5, "fp32")
    comparison = results.comparison(shape, found, measure.Errors(0.0, 0.0, 0.0))
    assert (comparison["fastest_exact_peer_hot"], comparison["ratio_hot"]) == ("cce", 7 / 5)
    assert (comparison["fastest_exact_peer_cold"], comparison["ratio_cold"]) == ("eager", 7 / 10)


def test_absent_peers_are_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("trl", "trl.kernels"):
        monkeypatch.setitem(sys.modules, module, None)
    document = bench("--providers", "ours", "trl", "quack")
    assert set(document["absent"]) == {"trl", "quack"}
    assert "trl does not import" in document["absent"]["trl"]
    assert "GPU" in document["absent"]["quack"]
    assert {found["provider"] for found in document["records"]} == {"ours", "three_gemms"}


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 64.00 GiB."), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (NotImplementedError("V must be a multiple of 3"), "failed"),
    ],
    ids=["gpu", "cpu", "unsupported"],
)
def test_who_fails_is_recorded_and_the_others_go_on(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, error: Exception, status: str
) -> None:
    def loss(batch: Any) -> torch.Tensor:
        raise error

    use(monkeypatch, "eager", loss)
    document = bench("--providers", "eager", "ours")
    found = record(document, "eager")
    assert found["status"] == status
    assert str(error) in found["reason"]
    assert found["hot_ms"] is found["peak_mib"] is found["exact"] is None
    assert record(document, "ours")["exact"]
    assert document["comparisons"][0]["ratio_hot"] is None


def test_a_loss_that_is_not_finite_fails(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, "eager", lambda batch: (batch.hidden.sum() + batch.weight.sum()) * math.nan)
    assert "not finite" in record(bench("--providers", "eager", "ours"), "eager")["reason"]


def test_a_budget_stops_the_run_and_resume_goes_on(bench: Bench) -> None:
    grid = ("--providers", "ours", "--tokens", "64", "128", "--shares", "1", "0.5")
    document = bench(*grid, "--budget-seconds", "0")
    assert document["records"] == []
    assert "--budget-seconds 0" in document["stopped"]["reason"]
    assert len(document["stopped"]["left"]) == 4
    first = bench(*grid[:2], "--tokens", "64", "--shares", "1")
    document = bench(*grid, "--resume")
    assert document["stopped"] is None
    assert document["records"][:2] == first["records"]  # kept, not measured again
    assert len(document["records"]) == 2 * 4
    assert len(document["comparisons"]) == 4


def test_figures_of_another_machine_are_refused_and_kept(
    bench: Bench, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    document = bench("--providers", "ours")
    out = tmp_path / "kernels.json"
    out.write_text(json.dumps(document | {"device": "abacus"}), encoding="utf-8")
    main = sys.modules["bench.__main__"].main
    assert main(["--device", "cpu", "--resume", "--out", str(out)]) == 2
    assert main(["--plot-only", str(tmp_path / "absent.json")]) == 2
    assert "abacus" in caplog.text
    assert "absent.json" in caplog.text
    assert json.loads(out.read_text())["device"] == "abacus"


def test_a_plot_without_matplotlib_says_what_to_do(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for module in ("matplotlib", "matplotlib.figure", "matplotlib.backends.backend_agg"):
        monkeypatch.setitem(sys.modules, module, None)
    bench("--providers", "ours")
    assert "make peers" in caplog.text


def test_a_document_can_be_plotted_again(bench: Bench, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    document = bench("--providers", "ours", "eager", "--tokens", "64", "128")
    path = tmp_path / "again.json"
    path.write_text(json.dumps(document), encoding="utf-8")
    assert importlib.import_module("bench.__main__").main(["--plot-only", str(path)]) == 0
    assert (tmp_path / "again.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--shares", "1.5"), "above 0"),
        (("--tokens", "0"), "1 or more"),
        (("--heads", "gpt-9"), "invalid choice"),
        (("--providers", "nobody"), "invalid choice"),
    ],
)
def test_bad_options_are_refused_before_anything_runs(
    bench: Bench, capsys: pytest.CaptureFixture[str], options: tuple[str, ...], message: str
) -> None:
    with pytest.raises(SystemExit):
        bench(*options)
    assert message in capsys.readouterr().err
