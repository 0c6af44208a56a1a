import csv
import hashlib
import json
import subprocess
import sys

import pyarrow as pa
import pytest
from pyarrow import parquet

from dllm_sweep.calibration.sources import (
    calibration_digest,
    names,
    text_files,
    texts,
)
from dllm_sweep.errors import CalibrationError
from dllm_sweep.spec import CalibrationSpec

TEXTS = ["one, with a comma", 'two "quoted"\nand a second line', "drei äöü"]
RECORDS = [{"text": text, "id": number} for number, text in enumerate(TEXTS)]


def write_jsonl(path):
    path.write_text("\n".join(json.dumps(record) for record in RECORDS) + "\n\n")


def write_json(path):
    path.write_text(json.dumps(RECORDS))


def write_csv(path):
    with path.open("w", newline="", encoding="utf-8") as opened:
        writer = csv.DictWriter(opened, ["id", "text"])
        writer.writeheader()
        writer.writerows(RECORDS)


def write_parquet(path):
    parquet.write_table(pa.Table.from_pylist(RECORDS), path)


WRITERS = {"jsonl": write_jsonl, "json": write_json, "csv": write_csv, "parquet": write_parquet}


def spec(path, **fields):
    return CalibrationSpec(source=str(path), **fields)


@pytest.mark.parametrize("ending", WRITERS)
def test_every_format_gives_the_same_documents(ending, tmp_path):
    path = tmp_path / f"texts.{ending}"
    WRITERS[ending](path)
    assert list(texts(spec(path))) == TEXTS


def test_a_text_file_is_one_document_and_empty_documents_are_left_out(tmp_path):
    (tmp_path / "b.txt").write_text("second\n")
    (tmp_path / "a.txt").write_text("first\n")
    (tmp_path / "c.txt").write_text("  \n")
    (tmp_path / "picture.png").write_bytes(b"no text")
    assert list(texts(spec(tmp_path))) == ["first\n", "second\n"]


@pytest.mark.parametrize("ending", WRITERS)
def test_a_missing_column_is_an_error_with_the_columns_that_exist(ending, tmp_path):
    path = tmp_path / f"texts.{ending}"
    WRITERS[ending](path)
    with pytest.raises(CalibrationError, match=r"no column 'content'.*columns: .*text"):
        list(texts(spec(path, text_field="content")))


def test_a_column_that_holds_no_text_is_an_error(tmp_path):
    path = tmp_path / "texts.jsonl"
    write_jsonl(path)
    with pytest.raises(CalibrationError, match="'id' holds int, not text"):
        list(texts(spec(path, text_field="id")))


def test_a_broken_line_is_an_error_with_its_number(tmp_path):
    path = tmp_path / "texts.jsonl"
    path.write_text('{"text": "good"}\n{"text": "bad\n')
    with pytest.raises(CalibrationError, match=r"texts\.jsonl: line 2: ") as error:
        list(texts(spec(path)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["none.jsonl", "./nowhere", "/nowhere/at/all"])
def test_a_path_that_does_not_exist_is_an_error(name):
    with pytest.raises(CalibrationError, match="no such file or folder"):
        calibration_digest(CalibrationSpec(source=name))


def test_a_folder_without_text_is_an_error(tmp_path):
    with pytest.raises(CalibrationError, match=r"no file that can be read \(formats: \.csv"):
        text_files(tmp_path)


def test_a_hub_that_cannot_be_reached_is_one_clear_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CalibrationError, match="'somebody/texts' is no text set") as error:
        calibration_digest(CalibrationSpec(source="somebody/texts"))
    assert "\n" not in str(error.value)


def test_the_digest_is_that_of_the_content_and_not_of_the_place(tmp_path):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    write_jsonl(first)
    write_jsonl(second)
    expected = hashlib.sha256(first.read_bytes()).hexdigest()
    assert calibration_digest(spec(first)) == calibration_digest(spec(second)) == expected
    second.write_text(second.read_text().replace("drei", "vier"))
    assert calibration_digest(spec(second)) != expected


def test_the_digest_of_a_folder_changes_with_names_and_contents(tmp_path):
    write_jsonl(tmp_path / "a.jsonl")
    first = calibration_digest(spec(tmp_path))
    (tmp_path / "a.jsonl").rename(tmp_path / "b.jsonl")
    second = calibration_digest(spec(tmp_path))
    (tmp_path / "c.txt").write_text("more")
    assert len({first, second, calibration_digest(spec(tmp_path))}) == 3


def test_naming_texts_imports_nothing_heavy():
    code = (
        "import sys; from dllm_sweep.calibration import sources; sources.names();"
        "print([m for m in ('torch', 'datasets', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_names_are_the_files_of_the_data_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("dllm_sweep.calibration.sources.DATA", tmp_path)
    assert names() == ()
    write_jsonl(tmp_path / "my-text.jsonl")
    assert names() == ("my-text",)
    assert list(texts(CalibrationSpec(source="my-text"))) == TEXTS
