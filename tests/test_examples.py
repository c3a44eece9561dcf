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
