"""What operators ask and order. Every question is answered in pages, every order by `Done` or `Error`."""

import heapq
from collections.abc import Iterable
from functools import partial

import msgspec

from master.cluster import Cluster
from master.frameworks import Frameworks
from master.state import FrameworkEntry, FrameworkState, Session, SlaveState, TaskEntry
from master.views import count_active, framework_view, node_view, sum_scalars
from meseta.acls import Action
from meseta.log import INFO
from meseta.messages import (
    Done,
    GetMaster,
    GetNodes,
    GetTasks,
    MasterStatus,
    Nodes,
    OperatorKillTask,
    Tasks,
    TeardownFramework,
)
from meseta.messages import Frameworks as FrameworkViews
from meseta.messages import GetFrameworks as AskFrameworks
from meseta.model import FrameworkView, Task


class Operators:
    """Answers and obeys, if the principal may."""

    def __init__(self, cluster: Cluster, frameworks: Frameworks) -> None:
        self._cluster = cluster
        self._frameworks = frameworks

    # --- Questions --------------------------------------------------------------------------------

    def get_master(self, session: Session, message: GetMaster) -> None:
        """Answer with numbers about all."""
        if self._is_refused(session, Action.VIEW, "master", message.request_id):
            return
        cluster = self._cluster
        slaves = list(cluster.slaves.values())
        counted = [slave for slave in slaves if slave.is_counted]
        frameworks = list(cluster.frameworks.values())
        answer = MasterStatus(
            request_id=message.request_id,
            epoch=cluster.epoch,
            version=cluster.config.version,
            uptime_s=max(0.0, cluster.now - cluster.init.started_s),
            slaves_active=sum(slave.state is SlaveState.ACTIVE for slave in slaves),
            slaves_unreachable=sum(slave.state is SlaveState.UNREACHABLE for slave in slaves),
            frameworks_active=sum(one.state is FrameworkState.ACTIVE for one in frameworks),
            frameworks_disconnected=sum(
                one.state in (FrameworkState.DISCONNECTED, FrameworkState.RECOVERED) for one in frameworks
            ),
            tasks_active=sum(count_active(slave) for slave in slaves),
            offers_outstanding=len(cluster.offers),
            resources_total=sum_scalars(slave.info.resources for slave in counted),
            resources_used=sum_scalars(cluster.used(slave) for slave in counted),
            resources_offered=sum_scalars(cluster.offered(slave) for slave in counted),
            events_endpoint=cluster.init.events_endpoint,
        )
        cluster.send(session, answer)

    def get_nodes(self, session: Session, message: GetNodes) -> None:
        """Answer with a page of slaves."""
        if self._is_refused(session, Action.VIEW, "nodes", message.request_id):
            return
        slaves = {str(slave_id): slave for slave_id, slave in self._cluster.slaves.items()}
        page, more = _page(slaves, message.after, message.limit)
        nodes = tuple(node_view(self._cluster, slaves[slave_id]) for slave_id in page)
        self._cluster.send(
            session, Nodes(request_id=message.request_id, nodes=nodes, next=more, sequence=self._cluster.sequence)
        )

    def get_frameworks(self, session: Session, message: AskFrameworks) -> None:
        """Answer with a page of frameworks."""
        if self._is_refused(session, Action.VIEW, "frameworks", message.request_id):
            return
        chosen = {
            str(framework_id): framework
            for framework_id, framework in self._cluster.frameworks.items()
            if (message.include_completed or framework.state is not FrameworkState.REMOVED)
            and message.name in (None, framework.info.name)
        }
        page, more = _page(chosen, message.after, message.limit)
        views = tuple(self._framework(chosen[framework_id]) for framework_id in page)
        answer = FrameworkViews(
            request_id=message.request_id, frameworks=views, next=more, sequence=self._cluster.sequence
        )
        self._cluster.send(session, answer)

    def get_tasks(self, session: Session, message: GetTasks) -> None:
        """Answer with a page of tasks."""
        if self._is_refused(session, Action.VIEW, "tasks", message.request_id):
            return
        chosen: dict[str, TaskEntry | Task] = {}
        for framework_id, framework in self._cluster.frameworks.items():
            if message.framework_id not in (None, framework_id):
                continue
            if message.include_completed:
                for done in framework.completed.values():
                    if message.slave_id in (None, done.slave_id):
                        chosen[f"{framework_id}/{done.task_id}"] = done
            for task in framework.tasks.values():
                if message.slave_id in (None, task.slave.slave_id):
                    chosen[f"{framework_id}/{task.task_id}"] = task
        page, more = _page(chosen, message.after, message.limit)
        tasks = tuple(one if isinstance(one := chosen[key], Task) else one.view() for key in page)
        answer = Tasks(request_id=message.request_id, tasks=tasks, next=more, sequence=self._cluster.sequence)
        self._cluster.send(session, answer)

    # --- Orders -----------------------------------------------------------------------------------

    def kill_task(self, session: Session, message: OperatorKillTask) -> None:
        """Kill anyone's task."""
        cluster = self._cluster
        framework = cluster.frameworks.get(message.framework_id)
        task = None if framework is None else framework.tasks.get(message.task_id)
        if task is None:
            # Whoever may kill nothing must not learn what there is.
            if not self._is_refused(session, Action.KILL_TASK, "", message.request_id):
                text = f"task {message.task_id} of framework {message.framework_id} is not there: it ended or never was"
                cluster.refuse(session, "not_found", text, message.request_id)
            return
        if self._is_refused(session, Action.KILL_TASK, task.user, message.request_id):
            return
        cluster.kill(task, message.grace_period_s)
        cluster.log(INFO, "task killed by operator", task_id=task.task_id, principal=session.principal)
        cluster.send(session, Done(request_id=message.request_id))

    def teardown_framework(self, session: Session, message: TeardownFramework) -> None:
        """End anyone's framework."""
        cluster = self._cluster
        if message.framework_id is None:
            text = "framework_id is missing: name the framework to tear down"
            cluster.refuse(session, "invalid", text, message.request_id)
            return
        framework = cluster.frameworks.get(message.framework_id)
        principal = "" if framework is None else framework.principal
        if self._is_refused(session, Action.TEARDOWN_FRAMEWORK, principal, message.request_id):
            return
        if framework is None or framework.is_over:
            text = f"framework {message.framework_id} is not there: it was removed or never was"
            cluster.refuse(session, "not_found", text, message.request_id)
            return
        then = None
        if message.request_id is not None:
            then = partial(cluster.send, session, Done(request_id=message.request_id))
        self._frameworks.remove(framework, f"torn down by {session.principal}", then)

    # --- Private ----------------------------------------------------------------------------------

    def _is_refused(self, session: Session, action: Action, subject: str, request_id: int | None) -> bool:
        refusal = self._cluster.authorize(session.principal, action, subject)
        if refusal is not None:
            self._cluster.refuse(session, "unauthorized", refusal, request_id)
        return refusal is not None

    def _framework(self, framework: FrameworkEntry) -> FrameworkView:
        view = framework_view(framework)
        if framework.session is None:
            return view
        waiting = self._cluster.allocator.waiting(framework.framework_id, self._cluster.now)
        return msgspec.structs.replace(view, waiting=waiting)


def _page(keys: Iterable[str], after: str, limit: int) -> tuple[list[str], str | None]:
    """Return the `limit` lowest keys over `after`, and the last of them if there are more."""
    lowest = heapq.nsmallest(limit + 1, (key for key in keys if key > after))
    return lowest[:limit], lowest[limit - 1] if len(lowest) > limit else None
