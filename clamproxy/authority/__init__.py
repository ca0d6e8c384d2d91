"""The certificate authority for clients that use https.

It may sign for ClamAV's hosts and those of the configuration only, by critical name constraints
(RFC 5280 4.2.1.10): whoever steals its key can impersonate nothing else. Clients trust a root whose key
is no more; the key that there is belongs to a certificate below it, because not every verifier looks at
the constraints of a root. All is in one file, so that each change of it happens as a whole.
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
