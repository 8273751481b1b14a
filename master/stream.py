"""The event stream: what has changed becomes numbered events, for as long as anybody follows.

Tasks are published at the end of the input that changed them. Slaves and frameworks carry sums over
their tasks, so those are gathered and published a little later, each once.
"""

from master.cluster import Cluster
from master.events import FollowersChanged, Publish, StreamEvent
from master.touched import Touched
from master.views import framework_view, node_view
from meseta.messages import (
    FrameworkChanged,
    FrameworkRemoved,
    NodeChanged,
    NodeRemoved,
    StreamPosition,
    TaskChanged,
    TaskRemoved,
)

POSITION_INTERVAL_S = 2.0  # A follower that lost the last event before a silence knows it after this.
SUMMARY_INTERVAL_S = 0.1  # Between two rounds of sums, for eyes; and so much more for each task that was summed,
SUMMARY_TASK_S = 20e-6  # which keeps them to some 5 % of the master's time, however many tasks there are.


class Stream:
    """Publishes what the cluster noted as touched."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._next_summary_s = cluster.init.started_s

    def followers_changed(self, event: FollowersChanged) -> None:
        """Begin or end; a new follower is told where the stream is, and that it hears it."""
        cluster = self._cluster
        if not event.is_followed:
            cluster.touched = None
            cluster.timers.cancel(("position", ""))
            cluster.timers.cancel(("summary", ""))
            return
        if cluster.touched is None:
            cluster.touched = Touched()
            # What changed while nobody was heard was not numbered: one who connects again must see a gap.
            cluster.sequence += 1
        self.position_due()

    def position_due(self) -> None:
        """Tell how far the stream has come."""
        cluster = self._cluster
        position = StreamPosition(sequence=cluster.sequence, interval_s=POSITION_INTERVAL_S)
        cluster.effects.append(Publish(events=(position,)))
        cluster.timers.set(("position", ""), cluster.now + POSITION_INTERVAL_S)

    def publish(self, touched: Touched) -> None:
        """Publish the tasks that were touched, and see to it that slaves and frameworks follow."""
        cluster = self._cluster
        if touched.tasks:
            events: list[StreamEvent] = []
            for framework_id, task_id in touched.tasks:
                cluster.sequence += 1
                framework = cluster.frameworks.get(framework_id)
                task = None if framework is None else framework.tasks.get(task_id)
                view = task.view() if task is not None else framework and framework.completed.get(task_id)
                if view:
                    events.append(TaskChanged(sequence=cluster.sequence, task=view))
                else:
                    events.append(TaskRemoved(sequence=cluster.sequence, framework_id=framework_id, task_id=task_id))
            touched.tasks.clear()
            cluster.effects.append(Publish(events=tuple(events)))
        if (touched.slaves or touched.frameworks) and ("summary", "") not in cluster.timers:
            cluster.timers.set(("summary", ""), max(cluster.now, self._next_summary_s))

    def summary_due(self) -> None:
        """Publish the slaves and frameworks that were touched."""
        cluster = self._cluster
        touched = cluster.touched
        if touched is None:
            return
        events: list[StreamEvent] = []
        task_count = 0
        for framework_id in touched.frameworks:
            cluster.sequence += 1
            framework = cluster.frameworks.get(framework_id)
            if framework is None:
                events.append(FrameworkRemoved(sequence=cluster.sequence, framework_id=framework_id))
            else:
                task_count += len(framework.tasks)
                events.append(FrameworkChanged(sequence=cluster.sequence, framework=framework_view(framework)))
        for slave_id in touched.slaves:
            cluster.sequence += 1
            slave = cluster.slaves.get(slave_id)
            if slave is None:
                events.append(NodeRemoved(sequence=cluster.sequence, slave_id=slave_id))
            else:
                task_count += 1 + len(slave.tasks)
                events.append(NodeChanged(sequence=cluster.sequence, node=node_view(cluster, slave)))
        touched.frameworks.clear()
        touched.slaves.clear()
        self._next_summary_s = cluster.now + SUMMARY_INTERVAL_S + SUMMARY_TASK_S * task_count
        if events:
            cluster.effects.append(Publish(events=tuple(events)))
