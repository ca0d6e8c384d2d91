"""The certificate authority for clients that use https.

Critical name constraints (RFC 5280 4.2.1.10) restrict it to ClamAV's hosts and those in the
configuration: somebody who steals its key can impersonate nothing else. Clients trust a root whose key no
longer exists. The key that is kept belongs to a certificate below the root, because not every verifier
checks the constraints of a root. Everything is in one file, so that it changes as a whole.
"""

from clamproxy.authority.authority import Authority, ForeignName
from clamproxy.authority.certificates import Leaf
from clamproxy.authority.changes import finish_rotation, found, rotate
from clamproxy.authority.constraints import PermittedNames, configured_names
from clamproxy.authority.keyfile import AuthorityError, Generation
from clamproxy.authority.live import CurrentAuthority

__all__ = [
    "Authority",
    "AuthorityError",
    "CurrentAuthority",
    "ForeignName",
    "Generation",
    "Leaf",
    "PermittedNames",
    "configured_names",
    "finish_rotation",
    "found",
    "rotate",
]
