"""What ClamAV 1.5 and FIPS need, and how machines get on where a patch can't be had."""

from __future__ import annotations

import base64
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from clamproxy.cache.store import Store
from clamproxy.objects import ObjectId
from clamproxy.releases.stuck import ENOUGH_FAILURES, LEAST_TIME
from tests.support import faults
from tests.support.data import TESTDATA
from tests.support.freshclam import OK
from tests.support.scenes import BASE, NEWER_AGENT, NEWEST, ROOMY, explain, hold, settle, whole
from tests.support.site import Site, eventually, flipped, signed

from .conftest import MakeSite

CERTIFICATE = TESTDATA / "clamav-test.crt"


def assert_openssl_verifies(directory: Path, signature: bytes, content: bytes) -> None:
    """As freshclam 1.5 does (docs/protocol.md 6)."""
    der = base64.b64decode(signature.splitlines()[1].rpartition(b":")[2])
    (directory / "p7").write_bytes(der)
    (directory / "content").write_bytes(content)
    command = ["openssl", "smime", "-verify", "-inform", "DER", "-in", "p7", "-content", "content"]
    command += ["-binary", "-CAfile", str(CERTIFICATE), "-purpose", "any", "-no_check_time", "-out", "out"]
    result = subprocess.run(command, cwd=directory, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


class TestBaseWithoutSignature:
    @pytest.fixture
    def site(self, roomy: Site) -> Site:
        roomy.publish(BASE)
        roomy.origin.remove(f"test-{BASE}.cvd.sign")
        assert whole(roomy.gateway).body == signed(f"test-{BASE}.cvd")
        roomy.publish(NEWEST)
        for patch in range(BASE + 1, NEWEST + 1):
            whole(roomy.gateway, f"/test-{patch}.cdiff")
        settle(roomy.origin)
        return roomy

    def test_a_client_that_insists_on_a_signature(self, site: Site, tmp_path: Path) -> None:
        """Real 1.5.3 with FIPSCryptoHashLimits asks in this order, and verifies so."""
        body = whole(site.gateway, user_agent=NEWER_AGENT).body
        assert body == signed(f"test-{NEWEST}.cvd")
        signature = whole(site.gateway, f"/test-{NEWEST}.cvd.sign", user_agent=NEWER_AGENT).body
        if shutil.which("openssl"):
            assert_openssl_verifies(tmp_path, signature, body)
        assert eventually(lambda: site.gateway.stats()["databases"]["test"]["cached"] == NEWEST)

    def test_a_real_client_goes_on_with_the_base(self, site: Site) -> None:
        site.origin.forget()
        outcome = site.client("new").run()
        assert (outcome.code, outcome.databases) == (OK, {"test.cld": NEWEST}), explain(site, outcome)
        assert site.origin.count("W") == 0


def test_a_signature_of_another_file_reaches_nobody(roomy: Site) -> None:
    roomy.publish(NEWEST)
    roomy.origin.put(f"test-{NEWEST}.cvd.sign", signed("test-5.cvd.sign"))
    whole(roomy.gateway, user_agent=NEWER_AGENT)
    assert roomy.gateway.ask(f"/test-{NEWEST}.cvd.sign").status == 503
    roomy.origin.put(f"test-{NEWEST}.cvd.sign", signed(f"test-{NEWEST}.cvd.sign"))

    def mended() -> bool:
        answer = roomy.gateway.ask(f"/test-{NEWEST}.cvd.sign")
        return answer.status == 200 and answer.body == signed(f"test-{NEWEST}.cvd.sign")

    assert eventually(mended), roomy.gateway.log
    assert "it signs another file" in roomy.gateway.log


def test_verify_finds_a_signature_of_another_file(roomy: Site) -> None:
    """As an earlier version let it into the cache."""
    hold(roomy, BASE)
    roomy.gateway.stop()
    store = Store(roomy.gateway.cache)
    for name, other in (("test-2.cvd.sign", "test-3.cvd.sign"), ("test-4.cdiff.sign", "test-5.cdiff.sign")):
        published = store.open(ObjectId.parse(name))
        assert published is not None
        with published:
            path = store.partials / name
            path.write_bytes(signed(other))
            store.drop(published.object_id)
            store.publish(published.object_id, path, published.metadata)
    store.close()
    result = roomy.gateway.tool("verify")
    assert result.returncode == 1
    assert result.stderr.count("it signs another file") == 2
    assert roomy.gateway.tool("verify", "--repair").returncode == OK
    assert roomy.gateway.tool("verify").returncode == OK
    roomy.gateway.start()
    for name in ("test-2.cvd.sign", "test-4.cdiff.sign"):
        assert whole(roomy.gateway, f"/{name}").body == signed(name)


# Patches


def test_an_empty_patch_in_chunks_is_the_vendors_signal(roomy: Site) -> None:
    roomy.publish(NEWEST)
    roomy.origin.put(f"test-{NEWEST}.cdiff", b"")
    roomy.origin.rule(f"D{NEWEST}", faults.chunked())
    for name in ("first", "second"):
        outcome = roomy.client(name, local=NEWEST - 1).run()
        assert (outcome.code, outcome.databases) == (OK, {"test.cvd": NEWEST}), explain(roomy, outcome)
    assert roomy.origin.count(f"D{NEWEST}") == 1


def test_machines_that_are_one_behind_get_past_a_patch_that_stays_damaged(roomy: Site) -> None:
    """Four tries and a minute ago; a clock that runs is not waited for here."""
    hold(roomy, NEWEST, NEWEST)
    roomy.origin.rule("D6", faults.replaced(flipped(signed("test-6.cdiff"))))
    outcome = roomy.client("early", local=5).run()
    assert (outcome.code, outcome.version) == (OK, 5), explain(roomy, outcome)
    roomy.gateway.stop()
    store, since = Store(roomy.gateway.cache), time.time() - LEAST_TIME - 1
    store.set_note("stuck/test-6.cdiff", {"failures": ENOUGH_FAILURES, "since": since, "last": since})
    store.close()
    roomy.gateway.start()
    outcome = roomy.client("late", local=5).run()
    assert (outcome.code, outcome.databases) == (OK, {"test.cvd": NEWEST}), explain(roomy, outcome)
    assert "machines are told to take the whole CVD" in roomy.gateway.log
    assert "test-6.cdiff" in roomy.gateway.stats()["stuck_patches"]
    roomy.origin.heal()
    assert eventually(lambda: roomy.gateway.ask("/test-6.cdiff").body == signed("test-6.cdiff"))
    assert roomy.gateway.stats()["stuck_patches"] == {}


def test_old_machines_get_the_patches_that_the_cache_does_not_keep(make_site: MakeSite) -> None:
    site = make_site(delta=ROOMY, cache={"keep_cdiffs": 1})
    site.publish(NEWEST)
    for name in ("new", "old", "as old"):
        outcome = site.client(name, local=None if name == "new" else 1).run()
        assert (outcome.code, outcome.version) == (OK, NEWEST), explain(site, outcome)
    asked = [site.origin.count(f"D{patch}") for patch in range(2, NEWEST + 1)]
    assert asked == [1] * 5, site.origin.trace
    assert site.origin.count("W") == 1
