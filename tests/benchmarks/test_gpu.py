"""benchmarks.gpu: every section runs on a CPU, and what did not run is counted; the figures are not tested."""

import json
import logging
import mmap
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import clock, crf, networks, plan, uploads
from benchmarks.gpu.plan import GpuSetting, Measurement, Report
from pipeline.refine import native
from pipeline.refine.presets import PRESETS

TINY = ["--device", "cpu", "--tiny", "--repeats", "1"]
ROOT = Path(__file__).parents[2]


def without(packages: list[str], *arguments: str) -> dict:
    """JSON line of the command in a process that lacks some packages."""
    code = (
        f"import sys\nsys.modules |= dict.fromkeys({packages!r})\n"
        f"from benchmarks.gpu.__main__ import main\nraise SystemExit(main({[*TINY, *arguments]!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict, str]:
    """JSON line and tables of a run on the CPU, with torch.compile that compiles nothing."""
    file, real, threads = tmp_path_factory.mktemp("gpu") / "tables.md", torch.compile, torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", lambda network, *, dynamic: real(network, dynamic=dynamic, backend="eager"))
        lines: list[str] = []
        patch.setattr("builtins.print", lines.append)
        assert gpu.main([*TINY, "--markdown", str(file)]) == 0
    torch.set_num_threads(threads)
    return json.loads(lines[-1]), file.read_text(encoding="utf-8")


def test_every_section_runs_on_a_cpu(report: tuple[dict, str]) -> None:
    figures, tables = report
    assert list(figures["sections"]) == list(plan.SECTIONS)
    assert figures["counts"] == {"ran": sum(map(len, figures["sections"].values())), "left_out": 0, "failed": 0}
    assert figures["missing_packages"] == []
    assert all(f"## {section}\n\n| |" in tables.replace("|  |", "| |") for section in plan.SECTIONS)


def test_the_cpu_agrees_with_itself_in_float32_and_not_to_the_bit_in_bf16(report: tuple[dict, str]) -> None:
    rows = report[0]["sections"]["agreement"]
    assert rows["farmland fp32"]["labels_agreeing"] == 1
    assert rows["farmland fp32"]["largest_logit_difference"] == 0
    assert 0 < rows["farmland bf16"]["largest_logit_difference"] < rows["farmland bf16"]["logit_deviation"]
    assert 0.9 < rows["farmland bf16"]["labels_agreeing"] <= 1
    for preset in crf.CHOSEN:
        row = report[0]["sections"]["crf"][f"{preset}, agreement"]
        assert row["largest_difference_from_cpu"] == 0
        assert row["same_bits_twice"]


def test_shares_of_the_matrix_rate_are_operations_over_it(report: tuple[dict, str]) -> None:
    rate = report[0]["machine"]["bf16_matmul_tflops"]
    for row in report[0]["sections"]["networks"].values():
        tflops = row["images_per_s"] * row["gflops_per_image"] / 1e3
        assert row["share_of_bf16_matrix_rate"] == pytest.approx(tflops / rate, rel=2e-3)
        assert row["overhead"] == pytest.approx(row["bare_loop_images_per_s"] / row["images_per_s"], rel=2e-3)


def test_cudnn_searches_for_the_side_alone() -> None:
    seen: list[bool] = []
    networks.with_cudnn_search(lambda: seen.append(torch.backends.cudnn.benchmark))()
    assert seen == [True]
    assert torch.backends.cudnn.benchmark is False


def test_an_output_stride_of_8_takes_more_operations_than_16() -> None:
    at_16, at_8 = (networks.gflops(networks.NetworkCase("farmland", stride), 64) for stride in (16, 8))
    assert at_16 < at_8 < 4 * at_16


def test_sections_that_lack_a_package_are_left_out_and_counted_and_the_others_run() -> None:
    figures = without(["pydantic", "tyro", "ray", "imagecodecs"], "--sections", "crf", "networks", "grid")
    assert figures["missing_packages"] == ["pydantic", "tyro", "imagecodecs"]
    assert list(figures["sections"]) == ["crf"]
    assert [entry["section"] for entry in figures["left_out"]] == ["networks", "grid"]
    assert all("package" in entry["because"] and "is missing" in entry["because"] for entry in figures["left_out"])
    assert figures["counts"]["left_out"] == 2
    assert all(row.get("reserved_bytes_per_pixel") is None for row in figures["sections"]["crf"].values())


def test_without_the_compiled_crf_its_figures_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "UNAVAILABLE_BECAUSE", "it was not built")
    setting, params = GpuSetting("cpu", repeats=1, tiny=True), PRESETS["deeplab-v2"]
    assert crf.speed(setting, params, 1)["native_per_core_s"] is None
    assert crf.agreement(setting, params)["labels_agreeing_with_native"] is None


def test_no_other_package_is_needed() -> None:
    others = ["ray", "pandas", "scipy", "matplotlib", "jinja2", "pydensecrf", "s3fs", "aiohttp", "rasterio"]
    figures = without(others, "--budget-s", "0")
    assert {entry["section"] for entry in figures["left_out"]} == set(plan.SECTIONS)
    assert all("--budget-s" in entry["because"] for entry in figures["left_out"])


def test_a_measurement_that_fails_is_counted_and_does_not_stop_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> dict:
        raise RuntimeError("out of memory\nand more")

    rows = [Measurement("first", fail), Measurement("second", lambda: {"rate": 1 / 3, "unknown": float("nan")})]
    monkeypatch.setattr(crf, "measurements", lambda _: rows)
    report = Report()
    plan.run_sections(report, ["crf"], GpuSetting("cpu"), deadline=float("inf"), log=logging.getLogger("test"))
    assert report.failed == [{"section": "crf", "name": "first", "because": "RuntimeError: out of memory"}]
    assert report.rows == {"crf": {"second": {"rate": 0.3333, "unknown": "nan"}}}
    assert report.plain()["counts"] == {"ran": 1, "left_out": 0, "failed": 1}
    assert "## Failed: 1\n\n- crf, first: RuntimeError: out of memory" in plan.markdown(report)


def test_a_measurement_that_needs_more_than_is_left_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Measurement("long", lambda: {"a": 1}, needs_s=100), Measurement("short", lambda: {"a": 1}, needs_s=1)]
    monkeypatch.setattr(crf, "measurements", lambda _: rows)
    monkeypatch.setattr(plan, "monotonic", lambda: 950.0)
    report = Report()
    plan.run_sections(report, ["crf"], GpuSetting("cpu"), deadline=1000, log=logging.getLogger("test"))
    assert list(report.rows["crf"]) == ["short"]
    because = "it needs about 100 s, 50 s of --budget-s are left"
    assert report.left_out == [{"section": "crf", "name": "long", "because": because}]


def test_a_machine_without_a_gpu_is_told_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "sees no GPU; --device cpu --tiny" in capsys.readouterr().err


@pytest.mark.parametrize(("own_stream", "hidden"), [(1.0, 1), (1.5, 0.5), (2.0, 0)])
def test_copies_are_hidden_as_far_as_the_loop_is_as_fast_as_without_them(own_stream: float, hidden: float) -> None:
    figures = uploads.copies({"resident": 1.0, "one_stream": 2.0, "own_stream": own_stream})
    assert figures == {"copies_over_computing": 1, "share_of_copies_hidden": hidden}


def test_copies_that_take_no_time_have_no_hidden_share() -> None:
    assert uploads.copies({"resident": 1.0, "one_stream": 1.0, "own_stream": 1.0})["share_of_copies_hidden"] is None


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="Linux alone has it")
def test_the_peak_of_a_process_is_that_of_the_work() -> None:
    def work() -> None:
        pages = mmap.mmap(-1, 2**26)  # new ones: malloc may have kept as much of earlier tests
        for first in range(0, 2**26, mmap.PAGESIZE):
            pages[first] = 1

    peak = clock.peak_memory(work, device="cpu")
    assert peak.device is None
    assert 0.9 < peak.host_added / 2**26 < 1.5
    assert peak.host > peak.host_added


def test_sides_take_turns_after_a_warm_up() -> None:
    calls: list[str] = []
    sides = {name: lambda name=name: calls.append(name) for name in ("a", "b")}
    times = clock.interleaved(sides, 2, device="cpu")
    assert calls == ["a", "b"] * 3
    assert [len(taken.wall) for taken in times.values()] == [2, 2]
