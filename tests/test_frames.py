from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sfuda_bench.errors import StoreSchemaError
from sfuda_bench.frames import frame_digest, read_parquet, write_parquet


def frame() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "image": ["b", "a", "c"],
            "seed": [1, 2, 3],
            "dice": [0.1 + 0.2, np.nan, 1.0],
            "empty": [True, False, False],
        }
    )


def test_parquet_reads_back_what_was_written(tmp_path: Path) -> None:
    write_parquet(frame(), tmp_path / "a.parquet")

    pd.testing.assert_frame_equal(frame(), read_parquet(tmp_path / "a.parquet"), check_dtype=False)


def test_parquet_bytes_are_deterministic_and_ignore_the_string_dtype(tmp_path: Path) -> None:
    first = frame()
    variants = [
        first,
        first.set_index(pd.Index([7, 8, 9])),
        first.astype({"image": object}),
        first.astype({"image": "category"}),
    ]
    written = []
    for number, variant in enumerate(variants):
        write_parquet(variant, tmp_path / f"{number}.parquet")
        written.append((tmp_path / f"{number}.parquet").read_bytes())

    assert [written[0]] * len(variants) == written


def test_parquet_names_no_library_and_no_version(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(frame(), path)

    data = path.read_bytes()
    for trace in (b"pandas", b"ARROW", b"arrow", pa.__version__.encode()):
        assert trace not in data
    assert pq.read_metadata(path).created_by == "sfuda-bench"


def test_an_empty_frame_and_an_all_missing_text_column_can_be_written(tmp_path: Path) -> None:
    empty = pd.DataFrame({"epoch": pd.Series(dtype="int64"), "name": pd.Series(dtype=object)})
    write_parquet(empty, tmp_path / "empty.parquet")

    assert ["epoch", "name"] == list(read_parquet(tmp_path / "empty.parquet").columns)


def test_a_parquet_is_replaced_as_a_whole_and_leaves_no_temporary_file(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write_parquet(frame(), path)
    write_parquet(frame().head(1), path)

    assert len(read_parquet(path)) == 1
    assert [path] == list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", [0, 10, -3])
def test_a_cut_parquet_is_named_with_what_helps(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cell" / "cases-standard.parquet"
    write_parquet(frame(), path)
    path.write_bytes(path.read_bytes()[:cut])

    with pytest.raises(StoreSchemaError) as caught:
        read_parquet(path)
    assert str(path) in caught.value.message
    assert str(path.parent) in (caught.value.hint or "")


def test_digest_ignores_row_order_column_order_index_and_string_dtype() -> None:
    first = frame()
    expected = frame_digest(first)

    assert expected == frame_digest(first.sample(frac=1.0, random_state=3))
    assert expected == frame_digest(first[["dice", "empty", "seed", "image"]])
    assert expected == frame_digest(first.astype({"image": object}))
    assert expected == frame_digest(first.astype({"image": "category"}))


def test_digest_survives_the_disk(tmp_path: Path) -> None:
    write_parquet(frame(), tmp_path / "a.parquet")

    assert frame_digest(frame()) == frame_digest(read_parquet(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("column", "value"),
    [("dice", 0.3), ("seed", 4), ("image", "d"), ("empty", False), ("dice", np.nan)],
)
def test_digest_sees_every_value(column: str, value: object) -> None:
    """0.3 differs from 0.1 + 0.2 in the last bit only."""
    changed = frame()
    changed[column] = [value, *changed[column].tolist()[1:]]

    assert frame_digest(frame()) != frame_digest(changed)


def test_digest_of_swapped_values_between_rows_differs() -> None:
    changed = frame()
    changed["seed"] = [2, 1, 3]

    assert frame_digest(frame()) != frame_digest(changed)
