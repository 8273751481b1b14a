"""Messages through real sockets between two processes: rate, CPU of both, round trip; with CURVE and without.

    python -P tests/bench/bench_transport.py

prints one JSON line. The server is this file in a process of its own. Batched: the client hands
`MESSAGES` status updates to its session as fast as the outbox takes them, the server counts them.
"""

import asyncio
import json
import os
import subprocess
import sys
import time

import msgspec
import psutil

from meseta.ids import ContainerId, FrameworkId, Principal, SessionId, SlaveId, StatusUuid, TaskId
from meseta.messages import Done, GetMaster, Hello, Message, Ping, StatusUpdate, Welcome
from meseta.model import TaskState, TaskStatus
from meseta.transport import Client, KeyPair, Server, generate_keypair

MESSAGES = 200_000
BURST = 2_000  # Handed over between two turns of the loop, as a busy core would.
ROUND_TRIPS = 3_000
WARM_UP = 300

UPDATE = StatusUpdate(
    status=TaskStatus(
        task_id=TaskId("wordcount-000123"),
        state=TaskState.RUNNING,
        slave_id=SlaveId("s-2c4f8e1a6b3d5970"),
        uuid=StatusUuid("0af3c19bd8e2467f5a1c3e9b7d204f68"),
        timestamp_unix_s=1_700_000_000.0,
        container_id=ContainerId("c-5b0fa2c1d3e49687"),
    ),
    framework_id=FrameworkId("f-1f6e3c0b9a7d5e42"),
)
PING = Ping(interval_s=15.0, missed_limit=5)


class Setup(msgspec.Struct):
    """What the two processes agree on."""

    server_keys: KeyPair | None
    client_keys: KeyPair | None


class Counter:
    """The serving end: counts updates, answers the rest."""

    def __init__(self, setup: Setup) -> None:
        client = setup.client_keys
        known = None if client is None else {client.public: Principal("bench")}.get
        self.server = Server("tcp://127.0.0.1:0", self, keys=setup.server_keys, principals=known)
        self.count = 0

    def session_opened(self, session: SessionId, principal: Principal, hello: Hello) -> str | None:
        return None

    def session_closed(self, session: SessionId, reason: str) -> None:
        pass

    def received(self, session: SessionId, message: Message) -> None:
        if isinstance(message, StatusUpdate):
            self.count += 1
        elif isinstance(message, GetMaster):
            self.server.send(session, Done(request_id=self.count))
        else:
            self.server.send(session, message)


class Asker:
    """The dialling end: one answer at a time."""

    def __init__(self, endpoint: str, setup: Setup) -> None:
        self.answer: asyncio.Future[Message | None] = asyncio.get_running_loop().create_future()
        self.client = Client(
            endpoint,
            self,
            hello=Hello(kind="slave"),
            keys=setup.client_keys,
            server_public_key=None if setup.server_keys is None else setup.server_keys.public,
        )

    def connected(self, welcome: Welcome, epoch: int | None) -> None:
        self.answer.set_result(None)

    def received(self, message: Message, epoch: int | None) -> None:
        self.answer.set_result(message)

    def disconnected(self, reason: str) -> None:
        self.answer.set_exception(RuntimeError(reason))

    def refused(self, error: Message) -> None:
        self.answer.set_exception(RuntimeError(str(error)))

    async def ask(self, message: Message) -> Message | None:
        self.answer = asyncio.get_running_loop().create_future()
        self.client.send(message)
        return await self.answer


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def measure(setup: Setup, endpoint: str, server: psutil.Process) -> dict[str, float]:
    me = psutil.Process()
    asker = Asker(endpoint, setup)
    await asker.answer
    for _ in range(WARM_UP):
        await asker.ask(PING)

    started, cpu = time.perf_counter(), cpu_s(me) + cpu_s(server)
    for sent in range(0, MESSAGES, BURST):
        for _ in range(BURST):
            if not asker.client.send(UPDATE):
                raise RuntimeError(f"the session ended after {sent} messages: {asker.client.last_failure}")
        await asyncio.sleep(0)
    answer = await asker.ask(GetMaster(request_id=1))
    elapsed_s, batched_cpu_s = time.perf_counter() - started, cpu_s(me) + cpu_s(server) - cpu
    assert answer == Done(request_id=MESSAGES)

    cpu = cpu_s(me) + cpu_s(server)
    trips = []
    for _ in range(ROUND_TRIPS):
        started = time.perf_counter()
        await asker.ask(PING)
        trips.append(time.perf_counter() - started)
    trip_cpu_s = cpu_s(me) + cpu_s(server) - cpu
    asker.client.close()
    trips.sort()
    return {
        "messages_per_s": round(MESSAGES / elapsed_s),
        "cpu_us_per_message": round(batched_cpu_s / MESSAGES * 1e6, 2),
        "round_trip_p50_us": round(trips[ROUND_TRIPS // 2] * 1e6),
        "round_trip_p99_us": round(trips[ROUND_TRIPS * 99 // 100] * 1e6),
        "round_trip_cpu_us": round(trip_cpu_s / ROUND_TRIPS * 1e6),
    }


def run_pair(setup: Setup) -> dict[str, float]:
    command = [sys.executable, "-P", __file__, "serve"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(msgspec.json.encode(setup) + b"\n")
        child.stdin.flush()
        endpoint = child.stdout.readline().decode().strip()
        try:
            return asyncio.run(measure(setup, endpoint, psutil.Process(child.pid)))
        finally:
            child.terminate()


async def serve(setup: Setup) -> None:
    counter = Counter(setup)
    print(counter.server.endpoint, flush=True)
    await asyncio.Event().wait()


def main() -> None:
    if sys.argv[1:] == ["serve"]:
        asyncio.run(serve(msgspec.json.decode(sys.stdin.readline(), type=Setup)))
        return
    load = os.getloadavg()[0]
    plain = run_pair(Setup(None, None))
    curve = run_pair(Setup(generate_keypair(), generate_keypair()))
    result = {"bench": "transport", "messages": MESSAGES, "load": round(load, 2), "plain": plain, "curve": curve}
    print(json.dumps(result))


if __name__ == "__main__":
    main()
