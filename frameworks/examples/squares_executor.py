"""A custom executor: one process on a slave that squares the number in each task's `data`, in threads."""

import sys
import threading

from meseta import Executor, ExecutorDriver, TaskId, TaskInfo, TaskState, TaskStatus, run_executor


class Squares(Executor):
    def __init__(self) -> None:
        self.killed: dict[TaskId, threading.Event] = {}

    def launch_task(self, driver: ExecutorDriver, task: TaskInfo) -> None:
        self.killed[task.task_id] = threading.Event()
        threading.Thread(target=self.work, args=(driver, task), daemon=True).start()

    def kill_task(self, driver: ExecutorDriver, task_id: TaskId, grace_period_s: float) -> None:
        self.killed[task_id].set()

    def shutdown(self, driver: ExecutorDriver) -> None:
        for killed in self.killed.values():
            killed.set()

    def work(self, driver: ExecutorDriver, task: TaskInfo) -> None:
        driver.send_status_update(TaskStatus(task_id=task.task_id, state=TaskState.RUNNING))
        if self.killed[task.task_id].wait(timeout=0.1):
            driver.send_status_update(TaskStatus(task_id=task.task_id, state=TaskState.KILLED))
            return
        square = int(task.data) ** 2
        driver.send_status_update(TaskStatus(task_id=task.task_id, state=TaskState.FINISHED, data=str(square).encode()))


if __name__ == "__main__":
    sys.exit(run_executor(Squares()))
