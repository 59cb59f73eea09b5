"""Addresses in texts: their users, passwords and queries are never shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from spectail.basics.addresses import message_without_secrets, without_secrets
from spectail.basics.files import check_writable, refuse_address, write_text
from spectail.errors import RunError


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ("https://me:word@host/m.pt?signature=word#word", "https://host/m.pt"),
        ("https://me:a@word@host:80/m", "https://host:80/m"),
        ("https://me:a/word@host/m", "https://host/m"),
        ("https://me:a?word@host:80/m?word", "https://host:80/m"),
        ("https://me:a#word@[::1]:80/a", "https://[::1]:80/a"),
        ("https://me:word@[::1]:80/a@b?word", "https://[::1]:80/a@b"),
        ("http:/me:word@host/m", "http:/host/m"),
        ("http:me:word@host/m", "http:host/m"),
        ("http:///me:word@host/m", "http:///host/m"),
        ("me:word@host/m", "host/m"),
        ("//me:word@host/m", "//host/m"),
        ("'https://me:word@host/m?word'", "'https://host/m'"),
        (" https://me:word@host/m?word", " https://host/m"),
        ("hf://me:word@org/name", "hf://org/name"),
        ("hf://org/name@main?word", "hf://org/name@main"),
        ("s3://me:word@bucket/key", "s3://bucket/key"),
    ],
)
def test_secrets_are_left_out_also_of_mistyped_addresses(typed: str, shown: str) -> None:
    assert without_secrets(typed) == shown
    # The same address within a message.
    message = message_without_secrets(f"there is no {typed.strip()}; give another")
    assert "word" not in message
    assert message.startswith(f"there is no {shown.strip()}")


@pytest.mark.parametrize(
    "text",
    [
        "hf://model@main",
        "hf://org/name@main/folder",
        "http://host:80/org/name@main",
        "http://[::1]:80/a@b",
        "s3://bucket/key",
        "gs://bucket",
        "C:\\models\\a@b.pt",
        "C:/models/a@b.pt",
        "runs/step@10",
        "package.module:function",
        "addresses are not read; expected hf://, s3://, gs:// or https://",
        "cannot be read: a:b, c@d",
    ],
)
def test_other_texts_stay(text: str) -> None:
    assert without_secrets(text) == text
    assert message_without_secrets(text) == text


@pytest.mark.parametrize("place", ["s3://bucket/run", "https://me:word@host/r?word", "gs:/bucket"])
def test_an_address_is_no_place_for_results(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for write in (refuse_address, check_writable, lambda path: write_text(path, "text")):
        with pytest.raises(
            RunError, match=r"written to this machine, and .*://.* is an add"
        ) as found:
            write(Path(place))
        assert "word" not in str(found.value)
    assert not list(tmp_path.iterdir())
