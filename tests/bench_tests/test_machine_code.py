"""From counts to pairs per second, and to a table."""

import json
from dataclasses import replace

import pytest

pytest.importorskip("triton")

from bench import keops_cuda, machine_code
from bench.cases import CASES
from bench.machine_code import Row, latest, limit, save, table
from tritonkeops.backends.triton.predict import DEVICES, bound
from tritonkeops.backends.triton.sass import PerPair, Usage

H200 = DEVICES["cuda:90"]
COUNTED = PerPair(
    kinds={"fp32": 6, "alu": 1.2, "branch": 0.3},
    lanes={"issue": 7.5, "fp32": 6, "alu": 1.2},
    skipped=60,
)
ROW = Row("argkmin10_d3", "cuda:90", COUNTED, Usage(registers=130, spilled=16, shared=1024))


@pytest.mark.parametrize(
    ("taken", "pipe", "T_pairs"),
    [
        ({"issue": 8, "fp32": 7, "mufu": 1}, "mufu", 4.18),
        ({"issue": 16, "fp32": 12, "mufu": 1}, "issue", 2.09),
        ({"issue": 10, "memory": 8}, "memory", 1.05),
        ({"issue": 10, "alu": 9}, "alu", 1.86),
    ],
)
def test_the_busiest_pipe_bounds_the_pairs_per_second(taken, pipe, T_pairs):
    pairs, found = bound(taken, H200)
    assert found == pipe
    assert pairs == pytest.approx(T_pairs * 1e12, rel=0.01)


@pytest.mark.parametrize(
    ("case", "target", "T_pairs"),
    [
        ("gaussian_d3", "cuda:90", 4.18),
        ("gaussian_grad_d3", "cuda:90", 3.72),
        ("argmin_d3", "cuda:90", 4.78),
        ("gaussian_d64", "cuda:90", 2.38),
        ("argmin_d3", "cuda:80", 1.62),  # an A100 has half as many lanes for float32
        ("argmin_d3", "cuda:100", 6.2),  # a B200 issues two float32 operations at once
    ],
)
def test_limits(case, target, T_pairs):
    assert limit(case, DEVICES[target]) == pytest.approx(T_pairs * 1e12, rel=0.01)


def test_the_table(monkeypatch):
    monkeypatch.setattr(machine_code, "saved", lambda case, target: PerPair({}, {"issue": 24.0, "memory": 3.0}, 0.25))
    head, _, line = table([ROW]).splitlines()
    assert head.count("|") == line.count("|")
    assert line == (
        "| argkmin10_d3 | H200 | 24 | 1.39 | 7.5 (+60) | 6 | 1.2 |  |  |  | 130 | 16 | 4.46 | issue | 93% |"
    )


def test_a_record_holds_what_the_table_shows(monkeypatch, tmp_path):
    monkeypatch.setattr(machine_code, "RESULTS", tmp_path / "machine_code.jsonl")
    monkeypatch.setattr(machine_code, "version_of", lambda tool: "13.0")
    save([ROW])
    record = json.loads((tmp_path / "machine_code.jsonl").read_text())
    assert record["lanes"]["issue"] == 7.5 and record["skipped"] == 60
    assert record["registers"] == 130 and record["spilled"] == 16
    assert record["versions"]["ptxas"] == "13.0"


def test_the_latest_rows_are_read_back(monkeypatch, tmp_path):
    monkeypatch.setattr(machine_code, "RESULTS", tmp_path / "machine_code.jsonl")
    monkeypatch.setattr(machine_code, "version_of", lambda tool: "13.0")
    save([replace(ROW, counted=replace(COUNTED, skipped=90))])
    save([replace(ROW, target="cuda:80"), ROW])
    assert latest() == [ROW, replace(ROW, target="cuda:80")]


def test_keops_is_counted_where_it_can_be_but_other_targets_are_not():
    for name, case in CASES.items():
        assert (keops_cuda.saved(name, "cuda:90") is not None) == keops_cuda.countable(case)
    assert keops_cuda.saved("gaussian_d3", "cuda:90").lanes["issue"] == 11.5
    assert keops_cuda.saved("gaussian_d3", "cuda:80") is None
