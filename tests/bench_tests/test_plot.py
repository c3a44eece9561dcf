"""The plot shows what was saved last, and nothing else."""

import json

import pytest

pytest.importorskip("matplotlib")

from bench import plot, report
from bench.cases import CASES, FAMILIES, PLOTTED
from bench.report import LABELS


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "RESULTS", tmp_path / "cpu.jsonl")
    monkeypatch.setattr(plot, "PICTURE", tmp_path / "dims.svg")

    def save(names, scale=1.0, **made_by):
        circumstances = {"cpu": "a CPU", "threads": 2, "compiler": "cc", "python": "3.11", "date": "2026-01-01T00:00"}
        circumstances |= {"versions": {"pykeops": "2.3"}, **made_by}
        with report.RESULTS.open("a") as file:
            for name in names:
                figures = {peer: scale / n for n, peer in enumerate(("tritonkeops", *CASES[name].peers), 1)}
                file.write(json.dumps({"case": name, "figures": figures, **circumstances}) + "\n")

    return save


def lines(axes):
    return {line.get_label(): dict(zip(*line.get_data(), strict=True)) for line in axes.lines}


def test_each_family_has_a_panel_with_a_line_for_each_peer(results):
    results(PLOTTED)
    for axes, (title, names) in zip(plot.figure(report.newest(PLOTTED)).axes, FAMILIES.items(), strict=False):
        dims = [CASES[name].dims["x"] for name in names]
        peers = ("tritonkeops", *CASES[names[0]].peers)
        assert axes.get_title() == title
        assert lines(axes) == {LABELS[peer]: dict.fromkeys(dims, 1 / n) for n, peer in enumerate(peers, 1)}


def test_the_newest_figures_of_the_same_circumstances_are_shown(results):
    results(["gaussian_d1"], scale=5, threads=64)
    results(["gaussian_d3", "gaussian_d10"], scale=2)
    results(["gaussian_d10"], scale=3)
    results(["overhead_m10"], threads=1)  # no case of the plot
    gaussian, *others, key = plot.figure(report.newest(PLOTTED)).axes
    assert lines(gaussian)["tritonkeops"] == {3: 2, 10: 3}
    assert not any(axes.lines for axes in others)
    assert "2 threads" in key.texts[0].get_text() and "PyKeOps 2.3" in key.texts[0].get_text()


def test_the_picture_is_small_and_the_same_each_time(results):
    results(PLOTTED)
    plot.draw()
    first = plot.PICTURE.read_bytes()
    plot.draw()
    assert first == plot.PICTURE.read_bytes()
    assert len(first) < 150_000
    assert b"scaled_dot_product_attention" in first and b"SumSoftMaxWeight" in first


def test_without_results_there_is_nothing_to_draw(results):
    with pytest.raises(SystemExit, match="nothing to draw"):
        plot.draw()
