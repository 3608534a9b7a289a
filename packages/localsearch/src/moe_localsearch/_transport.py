"""The transportation problem with few columns, by successive shortest paths between them.

Rows choose the column with the lowest cost + price. A column that more rows want than it
has places for is relieved along the cheapest chain of moves, one row each from column to
column, that ends where there is room; the prices follow, so that every row stays where its cost +
price is lowest. Places that stay empty are held by blanks, which cost 0 anywhere.
"""

from itertools import pairwise

import numpy as np

from moe_localsearch._checks import FloatArray, IntArray

ROWS_PER_COLUMN = 8
"""Below this many rows a column, prices of a part of the rows are no help."""
TIE = 1e-13
"""Share of a cost and its price below which a difference is rounding."""


def solve_transport(costs: FloatArray, places: IntArray) -> tuple[IntArray, FloatArray]:
    """Return the column of each row, shape (N,), and the price of each column, shape (E,).

    `places`, shape (E,), are the capacities, N in all or more, none above N.
    """
    num_rows, num_columns = costs.shape
    order = np.random.default_rng(0).permutation(num_rows)
    prices = np.zeros(num_columns)
    sizes = [num_rows]
    while sizes[-1] // 2 >= ROWS_PER_COLUMN * num_columns:
        sizes.append(sizes[-1] // 2)
    for size in reversed(sizes):
        some = np.sort(order[:size])
        flow = _Flow(costs[some], -(-places * size // max(1, num_rows)), prices)
        flow.relieve_all()
        # Prices only fall, and are no more than differences: large ones would hide what is a tie.
        prices = flow.prices - flow.prices.min()
    return flow.columns, prices


class _Flow:
    """Where each row is, and what the next move from column to column would cost."""

    def __init__(self, costs: FloatArray, places: IntArray, prices: FloatArray) -> None:
        self._costs = costs
        self.prices = prices.copy()
        self.columns, self._blanks = self._choose(places)
        num_columns = len(places)
        load = np.bincount(self.columns, minlength=num_columns) + self._blanks
        self._excess = load - places
        self._members = [np.flatnonzero(self.columns == each) for each in range(num_columns)]
        # The cheapest row to move from column u to v, and its cost: [u, v].
        self._moves = np.full((num_columns, num_columns), np.inf)
        self._movers = np.full((num_columns, num_columns), -1)
        for column in range(num_columns):
            self._find_moves(column, np.arange(num_columns))

    def _choose(self, places: IntArray) -> tuple[IntArray, IntArray]:
        """Return each row's best column, ties where there is most room, and the blanks."""
        totals = self._costs + self.prices
        lowest = totals.min(axis=1, initial=np.inf)
        columns = totals.argmin(axis=1)
        tied = totals <= lowest[:, None] + TIE * (np.abs(self._costs) + np.abs(self.prices))
        undecided = tied.sum(axis=1) > 1
        room = places - np.bincount(columns[~undecided], minlength=len(places))
        for row in np.flatnonzero(undecided):
            options = np.flatnonzero(tied[row])
            columns[row] = options[np.argmax(room[options])]
            room[columns[row]] -= 1
        blanks = np.zeros_like(places)
        count = int(places.sum()) - len(columns)
        tie = TIE * np.abs(self.prices).max()
        cheapest = np.flatnonzero(self.prices <= self.prices.min() + tie)
        for column in cheapest[np.argsort(-room[cheapest], kind="stable")]:
            blanks[column] = min(count, max(0, room[column]))
            count -= blanks[column]
        blanks[cheapest[0]] += count
        return columns, blanks

    def relieve_all(self) -> None:
        """Move rows until no column holds more than it has places for."""
        while np.any(self._excess > 0):
            self._relieve()

    def _relieve(self) -> None:
        """Move one row, or blank, along each step of the shortest path out of an excess."""
        distance, parent, end = self._shortest_path()
        self.prices -= np.minimum(distance, distance[end])
        path = [end]
        while parent[path[-1]] >= 0:
            path.append(int(parent[path[-1]]))
        self._excess[path[-1]] -= 1
        self._excess[end] += 1
        for target, source in pairwise(path):
            self._move(source, target)

    def _shortest_path(self) -> tuple[FloatArray, IntArray, int]:
        """Return distances, predecessors (-1 at a start), and the first column with room."""
        lengths = np.where(self._blanks[:, None] > 0, np.minimum(self._moves, 0.0), self._moves)
        lengths = np.maximum(lengths + self.prices[None, :] - self.prices[:, None], 0.0)
        distance = np.where(self._excess > 0, 0.0, np.inf)
        parent = np.full(len(distance), -1)
        waiting = np.ones(len(distance), dtype=bool)
        while True:
            nearest = int(np.argmin(np.where(waiting, distance, np.inf)))
            if self._excess[nearest] < 0:
                return distance, parent, nearest
            waiting[nearest] = False
            through = distance[nearest] + lengths[nearest]
            closer = waiting & (through < distance)
            distance[closer] = through[closer]
            parent[closer] = nearest

    def _move(self, source: int, target: int) -> None:
        """Move the cheapest row, or a blank, from `source` to `target`."""
        if self._blanks[source] > 0 and self._moves[source, target] >= 0:
            self._blanks[source] -= 1
            self._blanks[target] += 1
            return
        row = int(self._movers[source, target])
        self.columns[row] = target
        self._members[source] = self._members[source][self._members[source] != row]
        self._members[target] = np.append(self._members[target], row)
        self._find_moves(source, np.flatnonzero(self._movers[source] == row))
        arrived = self._costs[row] - self._costs[row, target]
        better = arrived < self._moves[target]
        better[target] = False
        self._moves[target, better] = arrived[better]
        self._movers[target, better] = row

    def _find_moves(self, source: int, targets: IntArray) -> None:
        """Find the cheapest row to move from `source` to each of `targets`."""
        members = self._members[source]
        targets = targets[targets != source]
        if not len(members):
            self._moves[source, targets] = np.inf
            self._movers[source, targets] = -1
            return
        changes = self._costs[np.ix_(members, targets)] - self._costs[members, source, None]
        cheapest = changes.argmin(axis=0)
        self._moves[source, targets] = changes[cheapest, np.arange(len(targets))]
        self._movers[source, targets] = members[cheapest]
