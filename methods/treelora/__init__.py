"""TreeLoRA: the tree, the search, the sketches and the method."""

from methods.treelora.method import TreeLoRA, TreeLoRAConfig
from methods.treelora.search import SearchConfig, TreeSearch
from methods.treelora.service import TreeService
from methods.treelora.sketch import CountSketch
from methods.treelora.tree import TaskTree

__all__ = [
    "CountSketch",
    "SearchConfig",
    "TaskTree",
    "TreeLoRA",
    "TreeLoRAConfig",
    "TreeSearch",
    "TreeService",
]
