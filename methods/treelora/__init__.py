"""TreeLoRA: the tree, the search, the sketches and the method.

``TaskTree``, ``TreeSearch`` and ``Sketcher`` work on their own; docs/library.md has an example.
"""

from methods.treelora.config import TreeLoRAConfig
from methods.treelora.method import TreeLoRA
from methods.treelora.search.bandit import TreeSearch
from methods.treelora.search.search import SearchConfig, Searches
from methods.treelora.service import TreeService
from methods.treelora.sketch import Sketch, SketchConfig, Sketcher
from methods.treelora.tree.metric import Metric
from methods.treelora.tree.tree import TaskTree, TreeConfig

__all__ = [
    "Metric",
    "SearchConfig",
    "Searches",
    "Sketch",
    "SketchConfig",
    "Sketcher",
    "TaskTree",
    "TreeConfig",
    "TreeLoRA",
    "TreeLoRAConfig",
    "TreeSearch",
    "TreeService",
]
