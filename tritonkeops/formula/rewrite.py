"""Bottom-up rewriting of formula DAGs: each distinct node is visited once."""

from __future__ import annotations

from collections.abc import Callable

from tritonkeops.formula.ir import Node, postorder, rebuild


def rewrite(root: Node, rule: Callable[[Node], Node]) -> Node:
    """Apply `rule` to every node, operands first; `rule` sees the node over its rewritten operands."""
    done: dict[Node, Node] = {}
    for node in postorder([root]):
        done[node] = rule(rebuild(node, [done[operand] for operand in node.operands]))
    return done[root]


def substitute(root: Node, replacement: dict[Node, Node]) -> Node:
    """Replace nodes by others, the outermost where one contains another."""
    done: dict[Node, Node] = {}
    for node in postorder([root]):
        done[node] = replacement.get(node) or rebuild(node, [done[operand] for operand in node.operands])
    return done[root]
