"""Published results as data, and what can be read from them: figures by key, values by language, and curves to lay over
one's own results."""

from ablations.published.curves import Agreement, agreement, curve, overlay
from ablations.published.tables import Cells, best, pairs

__all__ = ["Agreement", "Cells", "agreement", "best", "curve", "overlay", "pairs"]
