import pytest

from rl_warmup.tasks import Task, rows_hash
from rl_warmup.tasks.rows import take

ROW = {"id": "a", "prompt": "x", "target": "y"}


def task(train, **kwargs):
    return Task("mine", {"train": train, "validation": [], "test": []}, **{"metrics": ("exact_match",), **kwargs})


def test_a_good_task_keeps_its_rows():
    assert task([ROW]).splits["train"] == [ROW]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"id": "a", "prompt": "x", "target": " \n"},
            ["'train'", "row 1", "id 'a'", "'target'", "' \\n'", "drop the row"],
        ),
        ({"id": "a", "prompt": "x"}, ["row 1", "'target' is missing"]),
        ({"id": "a", "prompt": 3, "target": "y"}, ["row 1", "'prompt' is 3", "non-empty string"]),
        ({"id": "", "prompt": "x", "target": "y"}, ["row 1", "'id' is ''"]),
    ],
)
def test_a_bad_row_is_named(row, words):
    with pytest.raises(ValueError, match="task 'mine', split 'train'") as error:
        task([{"id": "first", "prompt": "x", "target": "y"}, row])
    assert all(word in str(error.value) for word in words), str(error.value)


def test_an_id_is_a_label_and_may_recur():
    other = {**ROW, "prompt": "z"}
    splits = {"train": [ROW, other], "validation": [ROW], "test": []}
    assert Task("mine", splits, ("exact_match",)).splits["train"] == [ROW, other]


def test_splits_and_metrics_are_checked():
    with pytest.raises(ValueError, match=r"\['train'\].*train, validation and test"):
        Task("mine", {"train": [ROW]}, ("exact_match",))
    with pytest.raises(ValueError, match="no rows in any split"):
        task([])
    for metrics in ((), "exact_match"):
        with pytest.raises(ValueError, match="metrics="):
            task([ROW], metrics=metrics)


def test_rows_hash_sees_id_prompt_target_and_order_only():
    other = {"id": "b", "prompt": "x", "target": "y"}
    reference = rows_hash([ROW, other])
    assert len(reference) == 64
    assert rows_hash([{**ROW, "page": 3}, other]) == reference
    assert rows_hash([other, ROW]) != reference
    for key in ROW:
        assert rows_hash([{**ROW, key: "z"}, other]) != reference
    assert rows_hash([{**ROW, "prompt": "x y", "target": "z"}]) != rows_hash([{**ROW, "prompt": "x", "target": "y z"}])


def test_take_is_nested_and_reproducible():
    rows = list(range(50))
    assert take(rows, None, 0, "train") == rows
    assert take(rows, 10, 0, "train") == take(rows, 30, 0, "train")[:10]
    assert take(rows, 10, 0, "train") != take(rows, 10, 1, "train")
    with pytest.raises(ValueError, match=r"test_size=51.*50 rows are available"):
        take(rows, 51, 0, "test")


def test_a_message_without_text_is_named():
    row = {**ROW, "prompt": [{"role": "user", "content": ["a"]}]}
    with pytest.raises(ValueError, match="row 0: message 0 of column 'prompt'.*give role and content as texts"):
        task([row])
    assert task([{**ROW, "prompt": [{"role": "user", "content": "a"}]}])
