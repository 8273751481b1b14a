"""What `from meseta import ...` gives."""

import meseta


def test_every_public_name_resolves() -> None:
    assert sorted(meseta._HOMES) == sorted(meseta.__all__)
    for name in meseta.__all__:
        assert getattr(meseta, name).__name__ == name


def test_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(meseta, "NoSuchThing")
