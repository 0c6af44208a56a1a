"""Which tasks there are and how lm-eval gets them: the package's own have one YAML file each here.

Names are listed without lm-eval. Rows are read from local files straight into memory where a task
names its own or the user names a folder: no network, no cache folder, nothing that two processes
share.
"""

from dllm_sweep.evaluation.tasks.cutting import may_be_cut
from dllm_sweep.evaluation.tasks.data import data_files
from dllm_sweep.evaluation.tasks.definition import (
    FOLDER,
    Definition,
    find,
    known_tasks,
    task_file,
    task_names,
)
from dllm_sweep.evaluation.tasks.files import task_digest, task_files
from dllm_sweep.evaluation.tasks.loading import check_task_data, is_lm_eval_task, load_tasks

__all__ = [
    "Definition",
    "FOLDER",
    "check_task_data",
    "data_files",
    "find",
    "is_lm_eval_task",
    "known_tasks",
    "load_tasks",
    "may_be_cut",
    "task_digest",
    "task_file",
    "task_files",
    "task_names",
]
