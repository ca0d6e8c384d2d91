"""Files of the site: local databases that machines get by ``DatabaseCustomURL``.

The administrator puts them into `files.directory`. Each is copied, checked with clamscan, and only then
published, below ``/files/``.
"""

from clamproxy.site_files.catalog import Catalog, Edition, SiteFile, State
from clamproxy.site_files.site_files import SiteFiles

__all__ = ["Catalog", "Edition", "SiteFile", "SiteFiles", "State"]
