import pytest

from dllm_sweep.task_groups import TASK_GROUPS, by_group, degradation, group_of


def test_the_studys_tasks_have_groups():
    assert [group_of(task) for task in ("mmlu", "gsm8k", "mbpp", "lambada")] == [
        *("general", "math", "code"),
        None,
    ]


def test_no_task_is_in_two_groups():
    tasks = [task for group in TASK_GROUPS.values() for task in group]
    assert len(tasks) == len(set(tasks))


def test_tasks_are_sorted_into_groups_by_their_names_or_files():
    found = by_group(["own/gsm8k.yaml", "piqa", "arc_easy", "else"])
    assert found == {"general": ("arc_easy", "piqa"), "math": ("own/gsm8k.yaml",)}


@pytest.mark.parametrize(
    ("drop", "name"),
    [
        *((-3.0, "negligible"), (0.99, "negligible"), (1.0, "moderate"), (4.0, "moderate")),
        *((1.0 - 1e-12, "moderate"), (4.001, "significant")),
    ],
)
def test_classes_begin_and_end_at_one_and_four_percent(drop, name):
    assert degradation(drop) == name
