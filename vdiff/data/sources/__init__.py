"""What `vdiff prepare` reads: which pictures there are, in which order and of which class.

Archives are read member by member in memory and never extracted. So a name in them like
`../../.ssh/id` does no harm. `source` has the contract; the table of the kinds is `SOURCES` of
`vdiff.data`.
"""

from vdiff.data.sources.classes import Labels
from vdiff.data.sources.left_out import Group
from vdiff.data.sources.opening import open_source
from vdiff.data.sources.picture import File, Picture
from vdiff.data.sources.source import Source

__all__ = ["File", "Group", "Labels", "Picture", "Source", "open_source"]
