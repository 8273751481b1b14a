"""Sandbox files over real sockets: ranges, windows, and no way out of a sandbox."""

import asyncio
import os
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

import pytest

import meseta.file_server
from meseta.errors import RequestRefused
from meseta.file_server import FileServer
from meseta.files import SlaveFiles
from meseta.ids import ContainerId, FrameworkId, Principal
from meseta.messages import FileCredit, FileData, ReadFile
from meseta.transport import generate_keypair
from tests.unit.transport_peers import never, run

F = FrameworkId("f-1")
C = ContainerId("c-1")
MIB = 1 << 20


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[FileServer, SlaveFiles]]:
    """A file server whose only sandbox is `folder`, and a reader of it."""

    def resolve(principal: Principal, framework_id: FrameworkId, container_id: ContainerId) -> Path | str:
        if framework_id != F:
            return f"{principal} may not see sandboxes of {framework_id}"
        return folder / container_id

    keys, reader_keys = generate_keypair(), generate_keypair()
    (folder / C).mkdir(exist_ok=True)
    server = FileServer("tcp://127.0.0.1:0", resolve, keys=keys, principals={reader_keys.public: Principal("ada")}.get)
    try:
        async with SlaveFiles(server.endpoint, keys=reader_keys, server_public_key=keys.public) as files:
            yield server, files
    finally:
        server.close()


def test_range_of_a_file_is_read(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, files):
            (tmp_path / C / "stdout").write_bytes(b"0123456789")
            assert await files.read(F, C, "stdout") == b"0123456789"
            assert await files.read(F, C, "stdout", 2, 3) == b"234"
            assert await files.read(F, C, "stdout", offset=-3) == b"789"
            assert await files.read(F, C, "stdout", offset=-100, length=2) == b"01"
            assert await files.read(F, C, "stdout", 8, 100) == b"89"
            assert await files.read(F, C, "stdout", 50, 5) == b""
            assert await files.read(F, C, "stdout", 1 << 62, 5) == b""
            assert await files.read(F, C, "stdout", 3, 0) == b""

    run(main())


def test_pieces_tell_offset_and_size_so_that_a_log_can_be_followed(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, files):
            log = tmp_path / C / "stdout"
            log.write_bytes(b"abc")
            (piece,) = [piece async for piece in files.pieces(F, C, "stdout", offset=-2)]
            assert (piece.offset, piece.data, piece.size_bytes, piece.is_last) == (1, b"bc", 3, True)
            with log.open("ab") as file:
                file.write(b"de")
            (piece,) = [piece async for piece in files.pieces(F, C, "stdout", offset=3)]
            assert (piece.offset, piece.data, piece.size_bytes) == (3, b"de", 5)

    run(main())


def test_large_file_arrives_whole_in_pieces_while_small_reads_go_on(tmp_path: Path) -> None:
    async def main() -> None:
        data = os.urandom(9 * MIB + 12345)
        async with serving(tmp_path) as (_, files):
            (tmp_path / C / "large").write_bytes(data)
            (tmp_path / C / "small").write_bytes(b"x")
            sizes: list[int] = []
            got = bytearray()
            async for chunk in files.stream(F, C, "large"):
                sizes.append(len(chunk))
                got += chunk
                assert await files.read(F, C, "small") == b"x"
            assert got == data
            assert max(sizes) == MIB
            many = await asyncio.gather(*(files.read(F, C, "large", index * MIB, MIB) for index in range(9)))
            assert b"".join(many) == data[: 9 * MIB]

    run(main())


def test_slave_sends_no_more_than_it_has_credit_for(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, files):
            (tmp_path / C / "large").write_bytes(bytes(20 * MIB))
            requester = files._requester
            request = ReadFile(request_id=99, framework_id=F, container_id=C, path="large", length=20 * MIB, credit=2)
            async with aclosing(requester.stream(request)) as answers:
                for _ in range(2):
                    await anext(answers)
                await never(anext(answers))
            async with aclosing(
                requester.stream(
                    ReadFile(request_id=100, framework_id=F, container_id=C, path="large", length=20 * MIB, credit=2)
                )
            ) as answers:
                for _ in range(2):
                    await anext(answers)
                requester.send(FileCredit(request_id=100, credit=3))
                offsets = [piece.offset for _ in range(3) if isinstance(piece := await anext(answers), FileData)]
                assert offsets == [2 * MIB, 3 * MIB, 4 * MIB]

    run(main())


def test_slow_reader_of_a_huge_file_costs_a_window_of_memory(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, files):
            with (tmp_path / C / "huge").open("wb") as file:
                file.truncate(1 << 30)
            tracemalloc.start()
            try:
                async with aclosing(files.stream(F, C, "huge")) as chunks:
                    for _ in range(20):
                        await anext(chunks)
                        await asyncio.sleep(0.005)
                _, peak_bytes = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert peak_bytes < 40 * MIB

    run(main())


def test_reader_of_many_streams_at_once_gets_them_all(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, files):
            streams = []
            for index in range(40):
                (tmp_path / C / f"spill-{index}").write_bytes(bytes([index]) * (5 * MIB))
                streams.append(files.stream(F, C, f"spill-{index}"))
            total = 0
            for _ in range(5):
                for index, stream in enumerate(streams):
                    chunk = await anext(stream)
                    assert chunk[0] == index
                    total += len(chunk)
            assert total == 40 * 5 * MIB
            for stream in streams:
                await stream.aclose()

    run(main())


@pytest.mark.parametrize(
    ("path", "code", "named"),
    [
        ("/etc/passwd", "invalid", "write a path relative to it"),
        ("../c-2/secret", "invalid", "leaves the sandbox"),
        ("folder/../../c-2/secret", "invalid", "leaves the sandbox"),
        ("a\0b", "invalid", "leaves the sandbox"),
        ("link-out", "invalid", "a link that leads out of the sandbox"),
        ("folder-out/secret", "invalid", "a link that leads out of the sandbox"),
        ("proc-link", "invalid", "a link that leads out of the sandbox"),
        ("link-sibling", "invalid", "a link that leads out of the sandbox"),
        ("fifo", "invalid", "no regular file"),
        ("socket", "invalid", "no regular file"),
        ("zero", "invalid", "a link that leads out of the sandbox"),
        ("folder", "invalid", "a folder: list it with ListFiles"),
        ("absent", "not_found", "there is no absent in the sandbox"),
        ("file/below", "not_found", "there is no file/below"),
        ("loop", "failed", "symbolic links"),
        ("x" * 300, "failed", "too long"),
    ],
)
def test_path_out_of_the_sandbox_or_to_no_file_is_refused(tmp_path: Path, path: str, code: str, named: str) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, files):
            sandbox = tmp_path / C
            for other in ("c-2", f"{C}-other"):
                (tmp_path / other).mkdir()
                (tmp_path / other / "secret").write_text("secret")
            (sandbox / "folder").mkdir()
            (sandbox / "file").write_text("file")
            (sandbox / "link-out").symlink_to("../c-2/secret")
            (sandbox / "link-sibling").symlink_to(f"../{C}-other/secret")
            (sandbox / "folder-out").symlink_to(tmp_path / "c-2")
            (sandbox / "proc-link").symlink_to("/proc/self/environ")
            (sandbox / "zero").symlink_to("/dev/zero")
            (sandbox / "loop").symlink_to("loop")
            os.mkfifo(sandbox / "fifo")
            with socket.socket(socket.AF_UNIX) as listener:
                here = os.getcwd()
                os.chdir(sandbox)  # A socket's path is short.
                listener.bind("socket")
                os.chdir(here)
                with pytest.raises(RequestRefused, match=named) as caught:
                    await files.read(F, C, path)
                assert caught.value.code == code
            assert await files.read(F, C, "file") == b"file"

    run(main())


def test_link_that_stays_in_the_sandbox_is_followed(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, files):
            (tmp_path / C / "folder").mkdir()
            (tmp_path / C / "folder/log.1").write_text("one")
            (tmp_path / C / "latest").symlink_to("folder/log.1")
            assert await files.read(F, C, "latest") == b"one"

    run(main())


def test_sandbox_that_is_not_ours_or_gone_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, files):
            with pytest.raises(RequestRefused, match="ada may not see sandboxes of f-2") as caught:
                await files.read(FrameworkId("f-2"), C, "stdout")
            assert caught.value.code == "unauthorized"
            with pytest.raises(RequestRefused, match="the sandbox is gone") as caught:
                await files.list_files(F, ContainerId("c-9"))
            assert caught.value.code == "not_found"

    run(main())


def test_folder_is_listed_in_the_order_of_names(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, files):
            sandbox = tmp_path / C
            (sandbox / "b").write_text("12345")
            (sandbox / "a").mkdir()
            (sandbox / "c").symlink_to("/etc")
            (sandbox / os.fsdecode(b"\xff")).write_text("")
            entries = await files.list_files(F, C)
            assert [(entry.name, entry.is_folder) for entry in entries] == [
                ("a", True),
                ("b", False),
                ("c", False),
                ("\ufffd", False),
            ]
            assert entries[1].size_bytes == 5
            assert await files.list_files(F, C, "a") == ()
            with pytest.raises(RequestRefused, match="b is no folder"):
                await files.list_files(F, C, "b")
            with pytest.raises(RequestRefused, match="leads out of the sandbox"):
                await files.list_files(F, C, "c")

    run(main())


def test_reads_that_are_too_many_or_doubled_are_refused_by_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(meseta.file_server, "JOBS_LIMIT", 2)

    async def main() -> None:
        async with serving(tmp_path) as (_, files):
            (tmp_path / C / "large").write_bytes(bytes(8 * MIB))
            pieces = [files.pieces(F, C, "large", window=1) for _ in range(3)]
            await anext(pieces[0])
            await anext(pieces[1])
            with pytest.raises(RequestRefused, match="2 reads are under way") as caught:
                await anext(pieces[2])
            assert caught.value.code == "overflow"
            for piece in pieces:
                await piece.aclose()

    run(main())


def test_principal_gets_no_more_reads_by_opening_more_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meseta.file_server, "PRINCIPAL_JOBS_LIMIT", 2)

    async def main() -> None:
        keys, reader_keys = generate_keypair(), generate_keypair()
        (tmp_path / "large").write_bytes(bytes(8 * MIB))
        known = {reader_keys.public: Principal("ada")}.get
        server = FileServer("tcp://127.0.0.1:0", lambda *_: tmp_path, keys=keys, principals=known)
        async with AsyncExitStack() as stack:
            stack.callback(server.close)
            sessions = [SlaveFiles(server.endpoint, keys=reader_keys, server_public_key=keys.public) for _ in range(3)]
            reads = [(await stack.enter_async_context(one)).pieces(F, C, "large", window=1) for one in sessions]
            for read in reads:
                stack.push_async_callback(read.aclose)
            await anext(reads[0])
            await anext(reads[1])
            with pytest.raises(RequestRefused, match="2 reads of ada are under way"):
                await anext(reads[2])

    run(main())


def test_read_whose_reader_stalls_is_ended_and_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meseta.file_server, "STALLED_S", 0.05)

    async def main() -> None:
        data = os.urandom(4 * MIB)
        async with serving(tmp_path) as (server, files):
            (tmp_path / C / "large").write_bytes(data)
            got = b""
            async for piece in files.pieces(F, C, "large", window=1):
                got += piece.data
                await asyncio.sleep(0.1)  # Longer than the server waits.
            assert got == data
            assert all(not reader.jobs for reader in server._readers.values())

    run(main())


def test_read_goes_on_after_the_slave_daemon_restarted(tmp_path: Path) -> None:
    async def main() -> None:
        data = os.urandom(6 * MIB)
        keys, reader_keys = generate_keypair(), generate_keypair()
        (tmp_path / "large").write_bytes(data)

        def resolve(principal: Principal, framework_id: FrameworkId, container_id: ContainerId) -> Path:
            return tmp_path

        known = {reader_keys.public: Principal("ada")}.get
        server = FileServer("tcp://127.0.0.1:0", resolve, keys=keys, principals=known)
        async with SlaveFiles(server.endpoint, keys=reader_keys, server_public_key=keys.public) as files:
            got = b""
            async for chunk in files.stream(F, C, "large", window=1):
                if len(got) == 2 * MIB:
                    endpoint = server.endpoint
                    server.close()
                    server = FileServer(endpoint, resolve, keys=keys, principals=known)
                got += chunk
            assert got == data
        server.close()

    run(main())


def test_reader_that_leaves_frees_its_files(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (server, files):
            (tmp_path / C / "large").write_bytes(bytes(8 * MIB))
            before = len(os.listdir("/proc/self/fd"))
            pieces = files.pieces(F, C, "large", window=1)
            await anext(pieces)
            assert len(os.listdir("/proc/self/fd")) == before + 1
            await pieces.aclose()
            await files._requester.__aexit__(None, None, None)
            async with asyncio.timeout(5):
                while server._readers:
                    await asyncio.sleep(0.01)

    run(main())


def test_other_messages_to_a_file_server_are_answered_with_words(tmp_path: Path) -> None:
    async def main() -> None:
        async with serving(tmp_path) as (_, files):
            with pytest.raises(RequestRefused, match="FileData is not for a slave's file server"):
                await files._requester.request(FileData(request_id=7, offset=0, data=b"", size_bytes=0))

    run(main())
