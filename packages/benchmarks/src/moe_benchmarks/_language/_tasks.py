"""All tasks of language, by name."""

from collections.abc import Mapping

from moe_benchmarks._language._glue_tasks import GLUE
from moe_benchmarks._language._squad import SQUAD
from moe_benchmarks._language._task import Task

TASKS: Mapping[str, Task] = {task.name: task for task in (*GLUE, SQUAD)}
