"""Bundles: a cache's contents in one file, for a gateway that can't reach the origin.

A bundle is a plain tar. Its first member, ``manifest.json``, says what follows and which version of each
database it leads to. Then come the objects under their names. An import trusts nothing in it except the
vendor's signatures on the objects.
"""

from clamproxy.bundle.contents import BundleSelection, Reporter, Since, select
from clamproxy.bundle.exporting import write_bundle, written_file
from clamproxy.bundle.importing import import_bundle, sweep_staging
from clamproxy.bundle.manifest import BundleError, Manifest

__all__ = [
    "BundleError",
    "BundleSelection",
    "Manifest",
    "Reporter",
    "Since",
    "import_bundle",
    "select",
    "sweep_staging",
    "write_bundle",
    "written_file",
]
