"""What a reload says has changed."""

from __future__ import annotations

from typing import Any

import pytest
from werkzeug.security import generate_password_hash

from clamproxy.config.differences import changes
from clamproxy.config.settings import Settings


def told(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    return [str(one) for one in changes(Settings.model_validate(before), Settings.model_validate(after))]


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        ({}, {}, []),
        ({}, {"cache": {"size_limit": "4GiB"}}, []),
        ({}, {"cache": {"size_limit": "8GiB"}}, ["cache.size_limit: 4GiB → 8GiB"]),
        (
            {"log": {"format": "json"}, "serving": {"databases": ["daily"]}},
            {"serving": {"databases": ["daily", "main"]}},
            ["serving.databases: [daily] → [daily, main]", "log.format: json → text"],
        ),
    ],
)
def test_written_as_people_write_it(before: Any, after: Any, lines: list[str]) -> None:
    assert sorted(told(before, after)) == sorted(lines)


def test_long_values_are_cut() -> None:
    """A log, and whoever reads it, has no use for a line of megabytes."""
    hosts = [f"{'a' * 50}{number}.example.com" for number in range(10_000)]
    (line,) = told({}, {"serving": {"pass_through": hosts}})
    assert line.startswith(f"serving.pass_through: [] → [{hosts[0]}, {hosts[1]}, ")
    assert line.endswith("… (678,890 characters)")
    assert len(line) < 3000


def test_secrets_are_masked() -> None:
    users = [f"{name}:{generate_password_hash(name)}" for name in ("alice", "bob")]
    before = {"access": {"users": users[:1]}, "upstream": {"proxy": "http://alice:s3cret@proxy:3128"}}
    after = {
        "access": {"users": users},
        "upstream": {"proxy": "http://alice:0ther@proxy:3128"},
        "status": {"token": "t" * 20},
    }
    lines = told(before, after)
    assert {line.partition(":")[0] for line in lines} == {"upstream.proxy", "access.users", "status.token"}
    for secret in ("s3cret", "0ther", "t" * 20, *(user.partition(":")[2] for user in users)):
        assert secret not in "\n".join(lines)
