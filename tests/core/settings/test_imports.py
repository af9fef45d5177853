"""No module of core imports itself in a circle."""

from __future__ import annotations

import grimp


def test_no_import_circles():
    graph = grimp.build_graph("plugserve", exclude_type_checking_imports=True)
    assert [sorted(cycle) for cycle in _circles(graph)] == []


def _circles(graph):
    """Strongly connected components of more than one module (Tarjan)."""
    index, low, stack, found = {}, {}, [], []

    def visit(module):
        index[module] = low[module] = len(index)
        stack.append(module)
        for imported in graph.find_modules_directly_imported_by(module):
            if imported not in index:
                visit(imported)
                low[module] = min(low[module], low[imported])
            elif imported in stack:
                low[module] = min(low[module], index[imported])
        if low[module] == index[module]:
            component = [stack.pop()]
            while component[-1] != module:
                component.append(stack.pop())
            if len(component) > 1:
                found.append(component)

    for module in sorted(graph.find_descendants("plugserve.core")):
        if module not in index:
            visit(module)
    return found
