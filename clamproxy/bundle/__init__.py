"""Bundles: a cache's contents in one file, for a gateway without a way to the origin.

A bundle is a plain tar. Its first member, ``manifest.json``, says what follows and which version
of each database it leads to; then come the objects under their names. Who imports one trusts
nothing in it but the vendor's signatures on the objects.
"""

from clamproxy.bundle.contents import BundleSelection, Since, select
from clamproxy.bundle.exporting import write_bundle, written_file
from clamproxy.bundle.importing import import_bundle
from clamproxy.bundle.manifest import BundleError, Manifest
from clamproxy.bundle.progress import Progress

__all__ = [
    "BundleError",
    "BundleSelection",
    "Manifest",
    "Progress",
    "Since",
    "import_bundle",
    "select",
    "write_bundle",
    "written_file",
]
