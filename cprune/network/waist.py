"""Places where one value is all that the rest of a network reads, and the pieces between them.

A residual network has one after every block.  What lies before a change need not be computed again.
"""

from __future__ import annotations

from cprune.network.network import Network
from cprune.network.node import Node, Ref, alive


def waists(network: Network) -> list[tuple[int, str]]:
    """Return the waists from the first to the last: (number of nodes up to it, name of the value).

    Every node from that number on reads nothing before it but parameters and this one value, a tensor.  The first is
    (0, the input); a network with several inputs has no waists.
    """
    inputs = [node.name for node in network.nodes if node.op == "input"]
    if len(inputs) != 1:
        return []
    skipped = {node.name for node in network.nodes if node.op == "param"}
    several = {node.refs()[0] for node in network.nodes if node.op == "getitem"}
    read_until = {name: i for i, node in enumerate(network.nodes) for name in node.refs()}
    found = [(0, inputs[0])]
    live: set[str] = set(inputs)
    for i, node in enumerate(network.nodes[:-1]):
        live = {name for name in (live | {node.name}) - skipped if read_until.get(name, -1) > i}
        if len(live) == 1 and not live <= several:
            found.append((i + 1, min(live)))
    return found


def piece(network: Network, start: tuple[int, str], stop: str | None = None) -> Network:
    """Return the network from a waist on, with the waist's value as its one input; tensors are shared.

    It returns the value of the node `stop`, or what the whole network returns.
    """
    at, name = start
    rest = (n for i, n in enumerate(network.nodes) if n.op == "param" or (i >= at and n.op != "input"))
    nodes: list[Node] = [Node(name, "input"), *rest]
    if stop is not None:
        nodes[-1] = Node("output", "output", (Ref(stop),))
    nodes = alive(nodes)
    tensors = network.tensors()
    used = {str(node.args[0]) for node in nodes if node.op == "param"}
    constants = [constant for constant in network.constants() if constant in used]
    return Network(nodes, {key: tensor for key, tensor in tensors.items() if key in used}, constants).eval()
