"""Write the reference part of docs/protocol.md from the message types themselves.

`python tests/tools/protocol_doc.py` rewrites what stands between the two markers; a test fails
when the file is behind the code.
"""

import json
import sys
from pathlib import Path
from typing import Any, get_args

import msgspec
from msgspec import inspect

from meseta import messages, model
from meseta.resources import parse_resources

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "protocol.md"
BEGIN = "<!-- reference: begin -->"
END = "<!-- reference: end -->"

# What a reader would find in a real message; for all other fields the type gives a value.
EXAMPLES: dict[str, Any] = {
    "arguments": ["sleep", "60"],
    "attributes": {"rack": "r1"},
    "capabilities": ["PARTITION_AWARE"],
    "code": "not_found",
    "field": "framework_info.name",
    "message": "no framework f-1f6e3c0b9a7d5e42",
    "container_id": "c-5b0fa2c1d3e49687",
    "data": b"\x01\x02",
    "endpoint": "tcp://192.0.2.7:40123",
    "environment": {"LANG": "C.UTF-8"},
    "executor_id": "wordcount",
    "framework_id": "f-1f6e3c0b9a7d5e42",
    "hostname": "rack1-7",
    "kind": "framework",
    "labels": {"tier": "web"},
    "method": "submit",
    "name": "sleeper",
    "offer_id": "o-90d1f7a2b3c4e586",
    "offer_ids": ["o-90d1f7a2b3c4e586"],
    "path": "stdout",
    "principal": "operator",
    "public_key": "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7",
    "role": "*",
    "roles": ["*"],
    "slave_id": "s-2c4f8e1a6b3d5970",
    "state": "active",
    "task_id": "sleeper-1",
    "user": "nobody",
    "uuid": "0af3c19bd8e2467f5a1c3e9b7d204f68",
    "version": "0.1.0",
}


def example(kind: Any, name: str = "", depth: int = 0) -> Any:
    """Return a plain value (as MessagePack carries it) that decodes as the type `kind`."""
    if isinstance(kind, inspect.Metadata):
        return example(kind.type, name, depth)
    if isinstance(kind, inspect.UnionType):
        return example(next(one for one in kind.types if not isinstance(one, inspect.NoneType)), name, depth)
    if isinstance(kind, inspect.StructType):
        return example_struct(kind, depth)
    if isinstance(kind, inspect.EnumType):
        return next(iter(kind.cls)).value if kind.cls is not model.TaskState else "TASK_RUNNING"
    if isinstance(kind, inspect.CollectionType | inspect.VarTupleType):
        return EXAMPLES[name] if name in EXAMPLES else [example(kind.item_type, "", depth + 1)]
    if isinstance(kind, inspect.RawType):
        return {}
    plain: dict[type, Any] = {
        inspect.StrType: "…",
        inspect.IntType: 1,
        inspect.FloatType: 1.5,
        inspect.BoolType: True,
        inspect.BytesType: b"\x01\x02",
        inspect.DictType: {},
    }
    found = EXAMPLES.get(name)
    return found if found is not None and fits(kind, found) else plain[type(kind)]


def fits(kind: Any, value: Any) -> bool:
    """Say if `value` is of the plain type `kind`."""
    pairs = ((inspect.StrType, str), (inspect.DictType, dict), (inspect.BytesType, bytes))
    return any(isinstance(kind, told) and isinstance(value, wanted) for told, wanted in pairs)


def example_struct(kind: inspect.StructType, depth: int) -> Any:
    """Return a map with every field at the top, deeper down only with those that must be there."""
    if kind.cls.__name__ == "Resources":
        return msgspec.to_builtins(parse_resources("cpus:0.5;mem:128MiB"))
    shown = [field for field in kind.fields if field.required or depth == 0]
    tag = {kind.tag_field: kind.tag} if kind.tag_field else {}
    return tag | {field.encode_name: example(field.type, field.encode_name, depth + 1) for field in shown}


def message_types() -> tuple[type[messages.Message], ...]:
    """Return all message types in the order of their definition."""
    return get_args(messages.Message)


def reference() -> str:
    """Return the reference: for each message what it means and an example."""
    parts: list[str] = []
    for message in message_types():
        kind = inspect.type_info(message)
        text = " ".join((message.__doc__ or "").split())
        shown = json.dumps(example(kind), ensure_ascii=False, default=lambda data: f"bin {data.hex()}")
        parts.append(f"### {message.__name__}\n\n{text}\n\n```json\n{shown}\n```\n")
    return "\n".join(parts)


def render(document: str) -> str:
    """Return `document` with its reference part made new."""
    head, _, rest = document.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{reference()}\n{END}{tail}"


def main() -> int:
    """Rewrite docs/protocol.md."""
    DOCUMENT.write_text(render(DOCUMENT.read_text()))
    print(f"{DOCUMENT.name}: {len(message_types())} messages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
