"""Reading one's own data: every refusal names the column, the value and the mend."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import polars
import pytest

import bayesmoe as bm
from bayesmoe.data.frames import column_names
from bayesmoe.data.table import read_table, shipped_data_sets

ROWS = {"co2": 28, "ethanol": 88, "motorcycle": 133, "tone": 150}


def write(directory: Path, text: str) -> str:
    path = directory / "data.csv"
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    source = write(tmp_path, "a,y,b\n1,2,3\n4, 5 ,6.5\n-7,8,1e3\n")
    x, y = read_table(source, "y")
    assert list(x.columns) == ["a", "b"]
    assert x.to_numpy().tolist() == [[1, 3], [4, 6.5], [-7, 1000]]
    assert y.tolist() == [2, 5, 8]
    assert y.name == "y"
    assert list(read_table(source, "y", ["b"]).x.columns) == ["b"]


@pytest.mark.parametrize(("name", "rows"), ROWS.items())
def test_the_data_sets_ship(name: str, rows: int) -> None:
    assert set(shipped_data_sets()) == set(ROWS)
    response, covariate = {
        "co2": ("co2", "gnp"),
        "ethanol": ("nox", "equivalence_ratio"),
        "motorcycle": ("acceleration_g", "time_ms"),
        "tone": ("tuned", "stretch_ratio"),
    }[name]
    for source in (name, f"{name}.csv"):
        x, y = read_table(source, response, [covariate])
        assert x.shape == (rows, 1)
        assert np.isfinite(y).all()


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        ("x,y\n1,2\n3,4\n", ("z",), r"no column 'z'; name one of its columns: 'x', 'y'"),
        ("x,y\n1,2\n3,4\n", ("y", ["z"]), r"no column 'z'"),
        ("x,y\n1,2\n3,4\n", ("y", ["y"]), r"'y' is the response and a covariate"),
        ("x,y\n1,2\n3,4\n", ("y", ["x", "x"]), r"named twice: x, x"),
        ("y\n1\n2\n", ("y",), r"no column beside 'y'"),
        (",x,y\n1,1,2\n2,3,4\n", ("y",), r"a column without a name, row names perhaps.*name the"),
        ("x,x,y\n1,2,3\n4,5,6\n", ("y",), r"two columns named 'x'; rename"),
        ("x,y\n1,2\nred,4\n", ("y",), r"'x' is not numeric: row 2 is 'red'.*--covariate"),
        ("x,y\n1,2\n,4\n", ("y",), r"'x' has a value that is missing .* in row 2"),
        ("x,y\n1,nan\n2,4\n3,NA\n", ("y",), r"'y' has 2 values that are missing .* rows 1, 3"),
        ("x,y\n1,2\ninf,4\n", ("y",), r"'x' has a value .* infinite, in row 2"),
        ("x,y\n1,2\n1,4\n", ("y",), r"'x' has the one distinct value 1"),
        ("x,y\n1,2\n3,2\n", ("y",), r"'y' has the one distinct value 2"),
        (
            "x,y\n1700000000001,2\n1700000000002,3\n1700000000003,5\n",
            ("y",),
            r"'x' varies by 2 at values of 1.7e\+12, .*; subtract a constant",
        ),
        (
            "x,y\n1,1\n2,1\n3,1.000000000001\n",
            ("y",),
            r"'y' varies by 1.*e-12 .* subtract a constant",
        ),
        (
            f"x,y\n{2**60},1\n{2**60 + 1},2\n",
            ("y",),
            r"'x' has whole numbers near 1.15292e\+18 that float64 cannot tell apart; subtract",
        ),
        (f"x,y\n{2**60},1\n{2**60},2\n", ("y",), r"'x' has the one distinct value 1.15"),
        ("x,y\n", ("y",), r"has a header but no rows"),
        ("", ("y",), r"cannot be read as CSV: No columns to parse from file"),
        (
            "x,y\n1,2\n1,2,3,4\n",
            ("y",),
            r"CSV: line 3 has 4 values, but the lines before have 2; .*R",
        ),
        ('x,y\n"1,2\n3,4\n', ("y",), r"CSV: a quotation mark is never closed; close it"),
        ("x, y\n1,2\n3,4\n", ("y",), r"no column 'y'; name one of its columns: 'x', ' y'"),
        ("x;y\n1;2\n3;4\n", ("y",), r"no comma in its header, 'x;y'; write it with commas"),
        ("x;y\n0,1;0,2\n3;4\n", ("y",), r"no comma in its header, 'x;y'; .* with decimal points"),
        ("x\ty\n1\t2\n3\t4\n", ("y",), r"no comma in its header, 'x\\ty'; write it with commas"),
    ],
)
def test_bad_tables_are_refused(
    tmp_path: Path, text: str, arguments: tuple[object, ...], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path, text), *arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("encoding", ["latin-1", "utf-16"])
def test_other_encodings_are_refused(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes("größe,y\n1,2\n3,4\n".encode(encoding))
    with pytest.raises(ValueError, match=r"data\.csv is not encoded as UTF-8; save it as UTF-8$"):
        read_table(str(path), "y")


HOLES = "x,y,z,note\n1,2,,a\nNA,2,1,b\n3, ,2,c\n4,5,3,\n5,7,nan,d\n6,1,4,e\n"


def test_rows_that_lack_a_value_are_left_out_if_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text(HOLES)
    with pytest.raises(ValueError, match=r"'x' has a value .* in row 2; .*drop_missing=True"):
        read_table(str(path), "y", ["x"])
    x, y = read_table(str(path), "y", ["x", "z"], drop_missing=True)
    assert x.to_dict("list") == {"x": [4.0, 6.0], "z": [3.0, 4.0]}
    assert y.tolist() == [5.0, 1.0]
    x, y = read_table(str(path), "y", ["x"], drop_missing=True)  # z is not used
    assert x["x"].tolist() == [1.0, 4.0, 5.0, 6.0]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ("1,2\n,3\ninf,4\n", "'x' has a value that is missing or infinite, in row 3"),
        ("1,2\n,3\nblue,4\n", "'x' is not numeric: row 3 is 'blue'"),
        ("1,2\n1,3\n,4\n", "'x' has the one distinct value 1"),
        (",2\n1,\n", "every row lacks a value in one of x, y"),
    ],
)
def test_what_is_not_missing_is_never_left_out(tmp_path: Path, rows: str, words: str) -> None:
    path = tmp_path / "data.csv"
    path.write_text("x,y\n" + rows)
    with pytest.raises(ValueError, match=words):
        read_table(str(path), "y", drop_missing=True)


def test_a_missing_file_names_the_data_sets_there_are() -> None:
    with pytest.raises(ValueError, match=r"no file 'mtcars.csv'; shipped data sets: co2, ethanol"):
        read_table("mtcars.csv", "mpg")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_bytes(b"\xff\xfe\x00\x01" * 50)
    with pytest.raises(ValueError, match="is not encoded as UTF-8"):
        read_table(str(path), "y")


def test_a_directory_does_not_hide_a_shipped_data_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "co2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert len(read_table("co2", "co2", ["gnp"]).y) == 28


# --- polars and Parquet


def test_a_parquet_file_is_read_as_its_csv(tmp_path: Path) -> None:
    path = tmp_path / "ethanol.parquet"
    polars.read_csv(shipped_data_sets()["ethanol"]).write_parquet(path)
    ours, theirs = read_table(str(path), "nox"), read_table("ethanol", "nox")
    pd.testing.assert_frame_equal(ours.x, theirs.x)
    pd.testing.assert_series_equal(ours.y, theirs.y)


def test_numbers_of_a_parquet_file_lose_no_digit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=50) * 10.0 ** rng.integers(-300, 300, 50)
    half = rng.normal(size=50).astype(np.float32)
    path = tmp_path / "data.pq"
    polars.DataFrame({"x": values, "half": half, "whole": np.arange(50)}).write_parquet(path)
    x, y = read_table(str(path), "x")
    assert y.tolist() == values.tolist()
    assert x["half"].tolist() == half.astype(float).tolist()
    assert x["whole"].tolist() == list(range(50))


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": [1.0, None, 3.0], "y": [1, 2, 4]}, "'x' has a value that is missing .* in row 2"),
        ({"x": [1.0, 2.0, 3.0], "y": ["1", "b", None]}, "'y' is not numeric: row 2 is 'b'"),
        ({"x": [], "y": []}, "no rows"),
    ],
)
def test_a_parquet_file_is_refused_as_its_csv_would_be(
    tmp_path: Path, columns: dict[str, list[object]], message: str
) -> None:
    path = tmp_path / "data.parquet"
    polars.DataFrame(columns).write_parquet(path)
    with pytest.raises(ValueError, match=message):
        read_table(str(path), "y")


def test_a_damaged_parquet_file_and_missing_polars_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "data.parquet"
    path.write_bytes(b"x,y\n1,2\n")
    with pytest.raises(ValueError, match=r"data\.parquet cannot be read as Parquet"):
        read_table(str(path), "y")
    monkeypatch.setitem(sys.modules, "polars", None)
    with pytest.raises(ValueError, match=r'pip install "bayesmoe\[polars\]"'):
        read_table(str(path), "y")


def test_formulas_take_frames_of_polars() -> None:
    columns = {"u": [1.0, 2.0, 4.0, 8.0], "s": ["a", "b", "b", "a"], "y": [1, 2, 3, 5]}
    frame = polars.DataFrame(columns, schema_overrides={"s": polars.Categorical})
    ours = bm.design("y ~ u * s", frame)
    theirs = bm.design("y ~ u * s", pd.DataFrame(columns))
    pd.testing.assert_frame_equal(ours.x, theirs.x)
    pd.testing.assert_series_equal(ours.y, theirs.y)
    new = {"u": [3.0], "s": ["b"]}
    pd.testing.assert_frame_equal(ours.at(polars.DataFrame(new)), theirs.at(pd.DataFrame(new)))
    with pytest.raises(ValueError, match="'u' has a value that is missing"):
        bm.design("y ~ u", polars.DataFrame({"u": [1.0, None], "y": [1.0, 2.0]}))


def test_columns_of_either_kind_name_the_covariates() -> None:
    columns = {"u": [1.0, 2.0], "v": [0.0, 1.0]}
    for frame in (pd.DataFrame(columns), polars.DataFrame(columns)):
        assert column_names(frame) == ["u", "v"]
    assert column_names(np.eye(2)) is None
