"""Mistakes in the configuration, made with a secret at hand: messages name the place, but don't repeat it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from clamproxy.config.loading import ConfigurationError, load_settings

SECRET = "k4n4ryABCDEFGHIJKLmnop"
WRONG = [
    {"status": {"token": f"a {SECRET}"}},
    {"status": {"token": [SECRET]}},
    {"status": {"tokn": SECRET}},
    {"status": SECRET},
    {"status": [SECRET]},
    {"mail": {"password": f"{SECRET}\u00e9"}},
    {"mail": {"password": [SECRET]}},
    {"mail": {"passwd": SECRET}},
    {"mail": SECRET},
    {"mail": {"user": None, "password": SECRET}},
    {"mail": {"server": "h", "user": "u", "password": SECRET, "tls": "none"}},
    {"mail": {"server": f"smtp://u:{SECRET}@h"}},
    {"mail": {"server": f"u:{SECRET}@h"}},
    {"notify": {"webhooks": [{"url": f"ftp://h/{SECRET}", "form": "json"}]}},
    {"notify": {"webhooks": [{"url": f"https://u:{SECRET}@h/x", "form": "json"}]}},
    {"notify": {"webhooks": [f"https://h/{SECRET}"]}},
    {"notify": {"webhooks": f"https://h/{SECRET}"}},
    {"notify": {"webhooks": {"url": f"https://h/{SECRET}"}}},
    {"notify": {"webhook": [{"url": f"https://h/{SECRET}"}]}},
    {"notify": {"webhooks": [{"url": "https://h/", "form": "json", "token": f"{SECRET}!"}]}},
    {"notify": {"webhooks": [{"url": f"https://h/{SECRET}", "from": "json"}]}},
    {"notify": {"webhooks": [{"urls": f"https://h/{SECRET}", "form": "json"}]}},
    {"access": {"users": [f"name:{SECRET}"]}},
    {"access": {"users": f"name:{SECRET}"}},
    {"access": {"users": {"name": SECRET}}},
    {"access": {"users": [{"name": SECRET}]}},
    {"access": {"user": [SECRET]}},
    {"upstream": {"proxy": f"http://u:{SECRET}@h:x"}},
    {"upstream": {"proxy": f"http://u:{SECRET}/@h"}},
    {"upstream": {"proxy": f"u:{SECRET}"}},
    {"upstream": {"proxy": f"socks5://u:{SECRET}@h"}},
    {"upstream": {"proxy": [f"http://u:{SECRET}@h"]}},
    {"upstream": {"proxy": {"user": SECRET}}},
    {"upstream": {"proxi": f"http://u:{SECRET}@h"}},
    {"upstream": {"proxy": f"http://u:{SECRET}"}},
    {"upstream": {"proxy": f"http://h?password={SECRET}"}},
    {"upstream": {"url": f"http://u:{SECRET}@h"}},
    {"upstream": {"url": f"https://h/x?key={SECRET}"}},
    {"fleet": {"peers": [{"url": f"http://u:{SECRET}@h"}]}},
    {"fleet": {"peers": [{"url": "http://h", "token": f"{SECRET}!"}]}},
    {"fleet": {"peers": [f"http://h {SECRET}"]}},
    {"fleet": {"peers": [{"url": f"http://h/?token={SECRET}"}]}},
    {"fleet": {"peers": f"http://u:{SECRET}@h"}},
    {"feeds": {"hosts": [f"https://www.securiteinfo.com/get/signatures/{SECRET}/a.hdb"]}},
    {"feeds": {"hosts": f"https://www.securiteinfo.com/get/signatures/{SECRET}/a.hdb"}},
    {"feeds": {"hosts": [f"u:{SECRET}@h"]}},
    {"feeds": {"urls": [f"u:{SECRET}@h"]}},
    {"feeds": {"hosts": [f"www.securiteinfo.com/get/signatures/{SECRET}/a.hdb"]}},
    {"fleet_store": f"s3://k:{SECRET}@bucket"},
    {"fleet_store": f"az://cont/p?sig={SECRET}"},
    {"fleet_store": [SECRET]},
    {"fleet_store": {"url": SECRET}},
    {"versions": {"nameservers": [f"https://u:{SECRET}@h/dns-query"]}},
    {"versions": {"nameservers": [f"https://h/dns-query?key={SECRET}"]}},
    {"serving": {"pass_through": [f"http://u:{SECRET}@h/"]}},
    {"serving": {"pass_through": [f"http://h/?k={SECRET}"]}},
    {"serving": {"pass_through": [f"http://h/{SECRET}"]}},
]


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_in_the_file(wrong: dict[str, Any], tmp_path: Path) -> None:
    path = tmp_path / "proxy.yaml"
    path.write_text(yaml.safe_dump(wrong, allow_unicode=True))
    with pytest.raises(ConfigurationError) as caught:
        load_settings(path, {})
    assert SECRET.lower() not in str(caught.value).lower()


@pytest.mark.parametrize("wrong", WRONG, ids=repr)
def test_in_the_environment(wrong: dict[str, Any]) -> None:
    ((section, content),) = wrong.items()
    values = (
        {f"{section}__{key}": value for key, value in content.items()} if isinstance(content, dict) else {}
    )
    environment = {
        f"CLAMPROXY_{name}".upper(): yaml.safe_dump(value, allow_unicode=True, default_flow_style=True)
        for name, value in (values or {section: content}).items()
    }
    with pytest.raises(ConfigurationError) as caught:
        load_settings(None, environment)
    assert SECRET.lower() not in str(caught.value).lower()
