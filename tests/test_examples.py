"""The examples at small sizes: they check themselves, print their figures and write their pictures."""

import importlib

import pytest

PNG = b"\x89PNG\r\n\x1a\n"


def run_example(name, arguments, folder):
    """Run an example; the names of the pictures it wrote."""
    example = importlib.import_module(f"examples.{name}")
    example.main([*arguments, "--output", str(folder)])
    pictures = sorted(folder.iterdir())
    assert all(picture.read_bytes().startswith(PNG) for picture in pictures)
    return [picture.name for picture in pictures]


def test_sum_reduction(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert run_example("sum_reduction", ["--M", "70", "--N", "90"], tmp_path) == ["sum_reduction.png"]
    out = capsys.readouterr().out
    assert "sum over j" in out and "shape (70, 3)" in out
    assert "gradient in y" in out and "shape (90, 3)" in out


def test_digits(tmp_path, capsys):
    for library in ("matplotlib", "sklearn", "tqdm"):
        pytest.importorskip(library)
    sizes = ["--M", "1000", "--N", "1500", "--chunk", "400"]
    assert run_example("digits", sizes, tmp_path) == ["digits_cloud.png", "digits_typical.png"]
    out = capsys.readouterr().out
    assert "same answer as scikit-learn for 100.00%" in out
    assert "G pairs/s" in out


def test_gaussian_mixture(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    sizes = ["--M", "300", "--K", "9", "--steps", "15"]
    assert run_example("gaussian_mixture", sizes, tmp_path) == ["gaussian_mixture.png"]
    out = capsys.readouterr().out
    assert "gradients, relative to the largest entry, by" in out
    assert "of 9 Gaussians have a weight above 1 %" in out


def test_sinkhorn(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert run_example("sinkhorn", ["--M", "90", "--N", "110", "--steps", "4"], tmp_path) == ["sinkhorn.png"]
    out = capsys.readouterr().out
    assert "S = " in out and "by torch in float64" in out
    assert "at t = 0.5" in out


def test_block_sparse(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    assert run_example("block_sparse", ["--N", "1500"], tmp_path) == ["block_sparse.png"]
    out = capsys.readouterr().out
    assert "full sum   100.0 % of the pairs" in out and "6 sigma" in out


def test_compiled_model(tmp_path, capsys):
    """Without Inductor, whose compiler takes half a minute."""
    pytest.importorskip("matplotlib")
    sizes = ["--K", "20", "--steps", "12", "--backend", "aot_eager"]
    assert run_example("compiled_model", sizes, tmp_path) == ["compiled_model.png"]
    out = capsys.readouterr().out
    assert "graphs: 1, graph breaks: 0" in out
    assert "losses differ by at most" in out
