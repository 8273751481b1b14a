"""Key and cluster files: written whole, read strictly, errors that name file, field and remedy."""

import json
import stat
from pathlib import Path

import pytest

from meseta.errors import InvalidInput
from meseta.keys import (
    Cluster,
    KeyFile,
    PrincipalsFile,
    cluster_folder,
    create_cluster_keys,
    read_cluster,
    read_key_file,
    read_principals,
    write_cluster,
    write_key_file,
    write_principals,
)
from meseta.transport import generate_keypair, public_key_of


def test_created_keys_are_private_pairs_that_principals_json_knows(tmp_path: Path) -> None:
    create_cluster_keys(tmp_path)
    known = read_principals(tmp_path / "keys/principals.json")
    for principal in ("master", "operator", "slave", "batch"):
        path = tmp_path / f"keys/{principal}.json"
        key_file = read_key_file(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert known[key_file.public] == principal == key_file.principal
        assert public_key_of(key_file.secret) == key_file.public
    assert len(known) == 4
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o700


def test_creating_keys_again_keeps_those_that_exist(tmp_path: Path) -> None:
    create_cluster_keys(tmp_path, ("master",))
    first = read_key_file(tmp_path / "keys/master.json")
    create_cluster_keys(tmp_path, ("master", "slave"))
    assert read_key_file(tmp_path / "keys/master.json") == first
    assert sorted(read_principals(tmp_path / "keys/principals.json").values()) == ["master", "slave"]


def test_secret_is_in_no_repr() -> None:
    pair = generate_keypair()
    key_file = KeyFile(principal="p", public=pair.public, secret=pair.secret)
    assert pair.secret not in f"{key_file} {key_file!r} {pair} {pair!r} {key_file.pair}"


def test_cluster_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "cluster.json"
    for cluster in (
        Cluster(master="tcp://127.0.0.1:5055", master_public_key=generate_keypair().public),
        Cluster(master="tcp://127.0.0.1:5055"),
    ):
        write_cluster(path, cluster)
        assert read_cluster(path) == cluster
    assert list(tmp_path.iterdir()) == [path]


def test_cluster_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MESETA_DIR", str(tmp_path))
    assert cluster_folder() == tmp_path
    monkeypatch.delenv("MESETA_DIR")
    monkeypatch.setenv("HOME", "/home/ada")
    assert cluster_folder() == Path("/home/ada/.meseta")


def test_key_file_that_others_may_read_is_refused_with_the_remedy(tmp_path: Path) -> None:
    create_cluster_keys(tmp_path, ("slave",))
    path = tmp_path / "keys/slave.json"
    path.chmod(0o640)
    with pytest.raises(InvalidInput, match=f"others may read it; run: chmod 600 {path}"):
        read_key_file(path)


def test_halves_of_different_pairs_are_refused(tmp_path: Path) -> None:
    one, other = generate_keypair(), generate_keypair()
    path = tmp_path / "key.json"
    write_key_file(path, KeyFile(principal="p", public=one.public, secret=other.secret))
    with pytest.raises(InvalidInput, match="public: is not the public half of secret"):
        read_key_file(path)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "cluster.json"),
        ("{", "cluster.json"),
        ("[]", "cluster.json"),
        ('{"master": 5}', "master: Expected `str`, got `int`"),
        ("{}", "master"),
        ('{"master": "127.0.0.1:5055"}', "master: '127.0.0.1:5055' is no endpoint; write tcp://"),
        ('{"master": "tcp://h:1", "master_public_key": "short"}', "master_public_key: no key in Z85, 40 characters"),
        (
            '{"master": "tcp://h:1", "master_publik_key": "x"}',
            "no field master_publik_key .did you mean master_public_",
        ),
        ("\udcff", "cluster.json"),
        ("[" * 100_000, "cluster.json"),
    ],
)
def test_bad_cluster_file_is_refused_by_name(tmp_path: Path, text: str, named: str) -> None:
    path = tmp_path / "cluster.json"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InvalidInput, match=named) as caught:
        read_cluster(path)
    assert str(path) in str(caught.value)


def test_missing_file_names_the_command_that_makes_it(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"cluster.json does not exist; start a cluster with `dcos up`"):
        read_cluster(tmp_path / "cluster.json")
    with pytest.raises(InvalidInput, match="does not exist; make one with `dcos keygen`"):
        read_key_file(tmp_path / "key.json")


def test_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="cannot be read"):
        read_cluster(tmp_path)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"short": "slave"}, "'short' is no public key"),
        ({"a" * 40: "../x"}, "'../x' is no name of a principal"),
        ({"a" * 40: 5}, "Expected `str`"),
    ],
)
def test_bad_entry_of_principals_is_named(tmp_path: Path, content: object, named: str) -> None:
    path = tmp_path / "principals.json"
    path.write_text(json.dumps(content))
    with pytest.raises(InvalidInput, match=named):
        read_principals(path)


def test_principal_that_is_no_file_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match="'a/b' is no name of a principal"):
        create_cluster_keys(tmp_path, ("a/b",))


def test_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "principals.json"
    write_principals(path, {})
    with pytest.raises(TypeError):
        write_principals(path, {"k": object()})  # type: ignore[dict-item]
    assert read_principals(path) == {}
    assert list(tmp_path.iterdir()) == [path]


def test_added_principal_is_known_at_once_and_a_damaged_file_changes_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    create_cluster_keys(tmp_path)
    known = PrincipalsFile(tmp_path / "keys" / "principals.json")
    create_cluster_keys(tmp_path, ("ann",))
    added = read_key_file(tmp_path / "keys" / "ann.json").public
    assert (known.get(added), len(known), added in list(known)) == ("ann", 5, True)
    (tmp_path / "keys" / "principals.json").write_text("{")
    assert known.get(added) == "ann"
    assert "principals stay as they were" in caplog.text
    (tmp_path / "keys" / "principals.json").unlink()
    assert known.get(added) == "ann"
