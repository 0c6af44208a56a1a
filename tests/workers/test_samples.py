"""Files of answers: fixed types, read back whole, shards as one."""

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dllm_sweep.errors import StoreError
from dllm_sweep.evaluation.sample import Sample
from dllm_sweep.workers import samples

ABOUT = {"trial_key": "k" * 64, "task": "tiny_math"}
NUMBERS = st.floats(allow_nan=False, allow_infinity=True)


def sample(doc_id=0, **more):
    values = {"task": "t", "prompt": "p", "target": "1", "answer": "1", "score": 1.0}
    values["log_likelihoods"] = ()
    return Sample(doc_id=doc_id, **(values | more))


some_samples = st.lists(
    st.builds(
        Sample,
        task=st.sampled_from(["a", "b"]),
        doc_id=st.integers(0, 2**40),
        prompt=st.text(),
        target=st.text(),
        output=st.text(),
        repeats=st.lists(st.text(), max_size=2).map(tuple),
        answer=st.text(),
        log_likelihoods=st.lists(NUMBERS, max_size=3).map(tuple),
        score=st.none() | NUMBERS,
        scores=st.dictionaries(st.text(), NUMBERS, max_size=2).map(lambda d: tuple(d.items())),
        forwards=st.integers(0, 2**40),
    ),
    max_size=4,
    unique_by=lambda one: (one.task, one.doc_id),
)


@given(some_samples)
@settings(max_examples=25, deadline=None)
def test_what_is_written_is_read_back(tmp_path_factory, found):
    path = tmp_path_factory.mktemp("samples") / "one.parquet"
    samples.write(found, path, ABOUT)
    assert samples.read([path]) == tuple(sorted(found, key=lambda one: (one.task, one.doc_id)))


def test_types_do_not_depend_on_what_the_columns_hold(tmp_path):
    full = sample(log_likelihoods=(-1.0,), repeats=("x",), scores=(("a", 1.0),))
    for name, found in (("none", []), ("bare", [sample(score=None)]), ("full", [full])):
        samples.write(found, tmp_path / name, ABOUT)
        assert pyarrow.parquet.read_schema(tmp_path / name).equals(samples.SCHEMA)


def test_the_same_answers_give_the_same_bytes_and_the_file_says_whose_they_are(tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    samples.write([sample()], one, ABOUT)
    samples.write([sample()], two, dict(reversed(ABOUT.items())))
    assert one.read_bytes() == two.read_bytes()
    assert samples.about(one) == ABOUT | {"format": samples.FORMAT}


def test_shards_are_read_as_one_task_in_the_order_of_its_items(tmp_path):
    paths = [tmp_path / "1", tmp_path / "0"]
    for path, numbers in zip(paths, ([2, 3], [0, 1]), strict=True):
        samples.write([sample(number) for number in numbers], path, ABOUT)
    assert [one.doc_id for one in samples.read(paths)] == [0, 1, 2, 3]


def test_answers_of_the_first_format_are_still_read(tmp_path):
    rows = [{"task": "t", "doc_id": 0, "prompt": "p", "target": "1", "answer": "whole text"}]
    rows[0] |= {"log_likelihoods": [], "score": 0.0}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "old.parquet")
    (old,) = samples.read([tmp_path / "old.parquet"])
    assert (old.output, old.answer, old.requests_sha256) == ("whole text", "whole text", "")


def test_a_file_that_is_none_is_refused_by_name(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 and nothing more")
    with pytest.raises(StoreError, match=r"broken\.parquet cannot be read as answers"):
        samples.read([tmp_path / "broken.parquet"])
