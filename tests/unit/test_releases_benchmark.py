"""The count of bytes per release, in every way to serve a site."""

from __future__ import annotations

import json
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import releases
from benchmarks.releases import CVD, RELEASES, SIGN, Day, Plan
from clamproxy.config.settings import Delta
from clamproxy.releases.delta import Renewal

PLAN = Plan(seed=1, new_clients=0.01, whole_file_clients=0)


def quiet_days(**counts: int) -> list[Day]:
    """Ninety releases of 10 kB each, with the same clients on every day."""
    wanted = {"new": 0, "patching": 0, "whole": 0} | counts
    return [Day(version, 10_000, **wanted) for version in range(1, RELEASES + 1)]


def run(*arguments: str) -> Any:
    result = CliRunner().invoke(releases.main, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    return json.loads(result.output)


def test_a_seed_draws_the_same_days_and_another_seed_others() -> None:
    days = releases.draw_days(100, PLAN)
    assert days == releases.draw_days(100, PLAN)
    assert days != releases.draw_days(100, Plan(2, 0.01, 0))


def test_sizes_are_real_and_the_same_for_every_fleet() -> None:
    small, large = (releases.draw_days(clients, PLAN) for clients in (1, 10_000))
    assert [day.cdiff for day in small] == [day.cdiff for day in large]
    assert [day.version for day in small] == list(range(1, RELEASES + 1))
    assert all(5_000 <= day.cdiff <= 100_000 for day in small)


@pytest.mark.parametrize("seed", range(10))
def test_a_single_client_is_installed_anew_at_least_once(seed: int) -> None:
    days = releases.draw_days(1, Plan(seed, 0.01, 0))
    assert sum(day.new for day in days) >= 1
    assert all(day.new + day.patching == 1 for day in days)


def test_every_client_does_one_thing_a_day() -> None:
    days = releases.draw_days(100, Plan(1, 0.01, 0.25))
    assert all(day.new + day.patching + day.whole == 100 for day in days)
    assert {day.whole for day in days} == {25}


@pytest.mark.parametrize(("renew_after", "whole_files"), [(7, 12), (30, 3), (90, 1)])
def test_a_base_is_renewed_after_so_many_patches(renew_after: int, whole_files: int) -> None:
    bill = releases.gateway(quiet_days(), Delta(renew_after=renew_after))
    assert bill.whole_files == whole_files
    assert bill.patches[: renew_after + 1] == [*range(1, renew_after + 1), 1][:RELEASES]
    small = RELEASES * (512 + 10_000 + SIGN)
    assert bill.total == small + whole_files * (CVD + SIGN)


@pytest.mark.parametrize("limits", [Delta(max_patches=4), Delta(max_share=40_000 / CVD)])
def test_over_a_limit_one_more_day_is_served_from_the_old_base(limits: Delta) -> None:
    bill = releases.gateway(quiet_days(new=1), limits)
    assert bill.patches[:6] == [1, 2, 3, 4, 5, 1]
    assert bill.whole_files == RELEASES // 5


def test_the_decision_is_the_products(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(releases, "renewal", lambda *_: Renewal.AT_ONCE)
    assert releases.gateway(quiet_days(), Delta()).whole_files == RELEASES
    monkeypatch.setattr(releases, "renewal", lambda *_: Renewal.NOT_NEEDED)
    assert releases.gateway(quiet_days(), Delta()).whole_files == 0


def test_without_delta_serving_only_a_new_client_costs_a_whole_file() -> None:
    bill = releases.gateway(quiet_days(patching=1), Delta(enabled=False))
    assert (bill.whole_files, max(bill.patches)) == (0, 0)
    bill = releases.gateway(quiet_days(new=3), Delta(enabled=False))
    assert (bill.whole_files, max(bill.patches)) == (RELEASES, 0)


def test_other_caches_fetch_what_they_are_asked_for() -> None:
    days = quiet_days(new=1, patching=7, whole=2)
    patch, whole = RELEASES * (10_000 + SIGN), RELEASES * (CVD + SIGN)
    assert releases.cvdupdate(days).total == patch + whole
    assert releases.plain_cache(days).total == patch + whole
    assert releases.plain_cache(quiet_days(new=1)).total == whole
    assert releases.plain_cache(quiet_days(patching=1)).total == patch
    alone = releases.no_cache(days, clients=10)
    assert (alone.total, alone.first_day) == (7 * patch + 3 * whole, 10 * (CVD + SIGN))


@pytest.mark.parametrize("seed", ["1", "2", "3"])
def test_the_bars_are_met(seed: str) -> None:
    results = run("--seed", seed)["results"]
    verdicts = {(r["clients"], r["way"]): r["passed"] for r in results if r["bar"] is not None}
    assert set(verdicts) == {
        (clients, f"gateway, renew_after {patches}") for clients in (1, 100, 10_000) for patches in (30, 90)
    }
    assert all(verdicts.values())


def test_whole_file_clients_cost_the_whole_file_of_each_release() -> None:
    results = run("--whole-file-clients", "10%")["results"]
    ours = [r for r in results if r["clients"] == 100 and r["way"].startswith("gateway")]
    assert {r["whole_files"] for r in ours} == {RELEASES}
    assert {r["passed"] for r in ours} == {False, None}


def test_the_table_has_every_way_and_the_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    output = CliRunner().invoke(releases.main).output
    for way in (
        "renew_after 7 ",
        "renew_after 30 ",
        "delta off ",
        "cvdupdate ",
        "pull-through ",
        "no cache ",
    ):
        assert sum(way in line for line in output.splitlines() if "MB" not in line) >= 3
    assert "…" not in output
    assert "6 of 6 bars passed" in output


@pytest.mark.parametrize("share", ["200%", "-1", "many", "nan"])
def test_an_impossible_share_is_refused(share: str) -> None:
    result = CliRunner().invoke(releases.main, ["--new-clients", share])
    assert result.exit_code == 2
    assert "--new-clients" in result.output
