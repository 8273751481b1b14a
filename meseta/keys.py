"""The files that make a cluster: where its master is, and who has which key.

A cluster's folder (`$MESETA_DIR`, else `~/.meseta`) holds

- `cluster.json`: the master's endpoint and public key; not secret;
- `keys/PRINCIPAL.json`: a principal's key pair; mode 0600, others are refused;
- `keys/principals.json`: the public keys that the cluster knows, each with its principal; not secret.
"""

import difflib
import json
import logging
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import msgspec

from meseta.errors import InvalidInput
from meseta.ids import Principal
from meseta.transport import generate_keypair, public_key_of
from meseta.transport_keys import KeyPair

DEFAULT_PRINCIPALS: Final = ("master", "operator", "slave", "batch")
PRINCIPALS_NAME: Final = "principals.json"
_FILE_LIMIT_BYTES: Final = 16 << 20  # Some 200,000 principals; beyond it somebody names a wrong file.
_PRIVATE_MODE: Final = 0o600
_PUBLIC_MODE: Final = 0o644
_KEY_PATTERN: Final = r"^[0-9A-Za-z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}$"  # Z85 of 32 bytes
_KEY: Final = re.compile(_KEY_PATTERN)
_PRINCIPAL: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.:@+-]{0,254}\Z")
_UNKNOWN_FIELD: Final = re.compile(r"unknown field `([^`]*)`")
_AT: Final = re.compile(r" - at `\$\.?([^`]*)`")

PublicKey = Annotated[str, msgspec.Meta(pattern=_KEY_PATTERN)]


class KeyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `keys/PRINCIPAL.json` holds: whose key, and both its halves in Z85."""

    principal: str
    public: PublicKey
    secret: PublicKey

    @property
    def pair(self) -> KeyPair:
        """The two keys, as the transport takes them."""
        return KeyPair(public=self.public, secret=self.secret)

    def __repr__(self) -> str:  # The secret must not reach a log.
        return f"KeyFile(principal={self.principal!r}, public={self.public!r})"


class Cluster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """What `cluster.json` holds. `master_public_key` is None where the cluster runs with --insecure.

    `events` is where `dcos up` put the event stream, so that it stays there; followers ask the master (`GetMaster`).
    """

    master: str
    master_public_key: PublicKey | None = None
    events: str | None = None


def cluster_folder() -> Path:
    """Return `$MESETA_DIR`, else `~/.meseta`; it need not exist."""
    return Path(os.environ.get("MESETA_DIR") or Path.home() / ".meseta")


def create_cluster_keys(folder: Path, principals: Sequence[str] = DEFAULT_PRINCIPALS) -> None:
    """Make `folder/keys` with a key file for each principal, and `principals.json` of them all.

    Key files that exist are kept, and so are other entries of `principals.json`: a second call adds what is missing.

    Raises:
        InvalidInput: a file that exists is damaged, or a principal's name cannot be a file's.
    """
    keys_folder = folder / "keys"
    keys_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    known_path = keys_folder / PRINCIPALS_NAME
    known = dict(read_principals(known_path)) if known_path.exists() else {}
    for principal in principals:
        path = keys_folder / f"{_checked_principal(principal)}.json"
        if path.exists():
            key_file = read_key_file(path)
        else:
            pair = generate_keypair()
            key_file = KeyFile(principal=principal, public=pair.public, secret=pair.secret)
            write_key_file(path, key_file)
        known[key_file.public] = Principal(key_file.principal)
    write_principals(known_path, known)


def read_key_file(path: Path) -> KeyFile:
    """Read a key pair.

    Raises:
        InvalidInput: the file is missing, damaged, readable by others, or its keys are no pair.
    """
    key_file = _read(path, KeyFile, remedy="make one with `dcos keygen`", is_secret=True)
    _checked_principal(key_file.principal, f"{path}: principal: ")
    if public_key_of(key_file.secret) != key_file.public:
        raise InvalidInput(f"{path}: public: is not the public half of secret; make a new pair with `dcos keygen`")
    return key_file


def write_key_file(path: Path, key_file: KeyFile) -> None:
    """Write a key pair, mode 0600; whole or not at all."""
    _write(path, key_file, _PRIVATE_MODE)


def read_principals(path: Path) -> dict[str, Principal]:
    """Return the principal of each known public key.

    Raises:
        InvalidInput: the file is missing or damaged; names the bad key.
    """
    principal_by_key = _read(path, dict[str, str], remedy="`dcos keygen` adds to it")
    for public_key, principal in principal_by_key.items():
        if _KEY.match(public_key) is None:
            raise InvalidInput(
                f"{path}: {public_key!r} is no public key; write the `public` of a key file, 40 characters"
            )
        _checked_principal(principal, f"{path}: {public_key}: ")
    return {key: Principal(principal) for key, principal in principal_by_key.items()}


class PrincipalsFile(Mapping[str, Principal]):
    """The principals of a file as it is now: a key that is added is known at once, without a restart of the daemon.

    A file that has become unreadable changes nothing, and is logged once.

    Raises:
        InvalidInput: the file is missing or damaged at the start.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._version = _version(path)
        self._known = read_principals(path)

    def __getitem__(self, public_key: str) -> Principal:
        self._refresh()
        return self._known[public_key]

    def __iter__(self) -> Iterator[str]:
        self._refresh()
        return iter(self._known)

    def __len__(self) -> int:
        self._refresh()
        return len(self._known)

    def _refresh(self) -> None:
        version = _version(self._path)
        if version == self._version:
            return
        self._version = version
        try:
            self._known = read_principals(self._path)
        except InvalidInput as error:
            _log.warning("principals stay as they were: %s", error)


def _version(path: Path) -> tuple[int, int, int]:
    """Return what differs after each change of a file, zeros if there is none."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0, 0)
    return (status.st_ino, status.st_mtime_ns, status.st_size)


def write_principals(path: Path, principal_by_key: dict[str, Principal]) -> None:
    """Write the known public keys; whole or not at all."""
    _write(path, principal_by_key, _PUBLIC_MODE)


def read_cluster(path: Path) -> Cluster:
    """Read where the master is.

    Raises:
        InvalidInput: the file is missing or damaged; names field and remedy.
    """
    cluster = _read(path, Cluster, remedy="start a cluster with `dcos up`, or copy its cluster.json here")
    if not cluster.master.startswith(("tcp://", "ipc://")):
        raise InvalidInput(f"{path}: master: {cluster.master!r} is no endpoint; write tcp://ADDRESS:PORT")
    return cluster


def write_cluster(path: Path, cluster: Cluster) -> None:
    """Write where the master is; whole or not at all."""
    _write(path, cluster, _PUBLIC_MODE)


_log = logging.getLogger(__name__)
_Value = TypeVar("_Value")


def _read(path: Path, kind: type[_Value], *, remedy: str, is_secret: bool = False) -> _Value:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode
            data = file.read(_FILE_LIMIT_BYTES + 1)
    except FileNotFoundError as error:
        raise InvalidInput(f"{path} does not exist; {remedy}") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        whose = "a key file is its owner's alone: name your own with --key, or ask who runs the cluster for one"
        raise InvalidInput(f"{path} cannot be read: {why}; {whose if is_secret else remedy}") from error
    if is_secret and mode & 0o077:
        raise InvalidInput(f"{path} holds a secret and others may read it; run: chmod 600 {path}")
    if len(data) > _FILE_LIMIT_BYTES:
        raise InvalidInput(f"{path} has over {_FILE_LIMIT_BYTES} bytes and is no such file; {remedy}")
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{path}: {_explained(str(error), kind)}; {remedy}") from error


def _explained(text: str, kind: Any) -> str:
    """Return msgspec's sentence, with the field in front or the name that was probably meant."""
    unknown = _UNKNOWN_FIELD.search(text)
    if unknown is not None:
        fields = [field.encode_name for field in msgspec.structs.fields(kind)]
        close = difflib.get_close_matches(unknown.group(1), fields, n=1)
        meant = f"did you mean {close[0]}?" if close else f"there are {', '.join(fields)}"
        return f"there is no field {unknown.group(1)} ({meant})"
    at = _AT.search(text)
    if at is None:
        return text
    reason = "no key in Z85, 40 characters" if "matching regex" in text else text[: at.start()]
    return f"{at.group(1)}: {reason}" if at.group(1) else reason


def _checked_principal(principal: str, where: str = "") -> str:
    if _PRINCIPAL.match(principal) is None:
        raise InvalidInput(f"{where}{principal!r} is no name of a principal; take letters, digits and _.:@+-")
    return principal


def _write(path: Path, value: object, mode: int) -> None:
    text = json.dumps(msgspec.to_builtins(value), indent=2) + "\n"
    # Made with mode 0600 from the first byte, renamed when complete.
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(file.fileno(), mode)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
