"""Any split sizes give the lines of the whole files, each once."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given, settings
from hypothesis import strategies as st

from frameworks.batch.records import Reader
from frameworks.batch.splits import InputFile, plan_splits

_BYTES = st.lists(
    st.sampled_from(
        [b"\n", b"\r\n", b"\r", b"a", b"bc", b"\x0c", b"\xff", b"\xe2\x82\xac", b"\xe2\x82", b"\xef\xbf\xbd", b"\t"]
    ),
    max_size=40,
).map(b"".join)


def whole_lines(data: bytes) -> list[str]:
    lines = data.decode(errors="replace").replace("\r\n", "\n").split("\n")
    return lines if lines[-1] else lines[:-1]


@settings(max_examples=300, deadline=None)
@given(
    contents=st.lists(_BYTES, min_size=1, max_size=5),
    split_bytes=st.integers(1, 30),
    block_bytes=st.integers(1, 12),
    groups=st.lists(st.integers(0, 1), min_size=5, max_size=5),
)
def test_splits_give_every_line_exactly_once(
    contents: list[bytes], split_bytes: int, block_bytes: int, groups: list[int]
) -> None:
    with TemporaryDirectory() as name:
        files = [Path(name) / str(index) for index in range(len(contents))]
        for file, data in zip(files, contents, strict=True):
            file.write_bytes(data)
        inputs = [InputFile(str(file), len(data)) for file, data in zip(files, contents, strict=True)]
        grouped = [[one for one, group in zip(inputs, groups, strict=False) if group == wanted] for wanted in (0, 1)]
        splits = plan_splits(grouped, split_bytes)
        lines: Counter[str] = Counter()
        replaced = 0
        for split in splits:
            pieces = [(one.path, one.start, one.end, one.size_bytes) for one in split.pieces]
            reader = Reader(pieces, block_bytes=block_bytes)
            for block in reader.line_blocks():
                lines.update(block)
            replaced += reader.replaced
        assert lines == Counter(line for data in contents for line in whole_lines(data))
        whole = sum(data.decode(errors="replace").count("\ufffd") - data.count(b"\xef\xbf\xbd") for data in contents)
        assert replaced == whole


@given(sizes=st.lists(st.integers(0, 100), max_size=20), split_bytes=st.integers(1, 60))
def test_splits_cover_every_byte_once_and_none_is_oversized(sizes: list[int], split_bytes: int) -> None:
    splits = plan_splits([[InputFile(str(index), size) for index, size in enumerate(sizes)]], split_bytes)
    covered: Counter[tuple[str, int]] = Counter()
    for split in splits:
        assert split.size_bytes == sum(piece.end - piece.start for piece in split.pieces) > 0
        assert split.size_bytes * 10 <= split_bytes * 11
        for piece in split.pieces:
            covered.update((piece.path, byte) for byte in range(piece.start, piece.end))
    assert covered == Counter((str(index), byte) for index, size in enumerate(sizes) for byte in range(size))
