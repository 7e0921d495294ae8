"""Medians, ranges and ratios, as Markdown."""

import statistics

from workloads import ROWS

MISSING = "–"


class Table:
    """`samples` are the runs of a workload, a list for each (workload, column, state)."""

    def __init__(self, samples, columns, builds, rows=tuple(ROWS)):
        self.samples, self.builds, self.rows = samples, list(builds), rows
        self.columns = list(columns)

    def markdown(self):
        head = ["workload", *self.columns, "goal", "ratio", "met"]
        if len(self.builds) == 2:
            head.append(" / ".join(reversed(self.builds)))
        lines = [head, ["---"] * len(head)]
        lines += [self._line(row) for row in self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def _line(self, row):
        values = {column: self._values(row, column) for column in self.columns}
        line = [f"{row.title}, {row.measure.unit}"]
        line += [cell(values[column], row.measure.digits) for column in self.columns]
        goals, ratios, verdicts = [], [], []
        for goal in row.goals:
            goals.append(goal_text(goal, row.measure))
            for build in self.builds:
                name = f"{build} {goal.method}" if len(self.builds) > 1 else goal.method
                ratio = against(goal, values[f"{build} {goal.method}"], values)
                ratios.append(f"{name} {MISSING if ratio is None else f'{ratio:.2f}'}")
                verdicts.append(verdict(goal, row.measure, ratio))
        line += ["<br>".join(part) for part in (goals, ratios, verdicts)]
        if len(self.builds) == 2:
            line.append("<br>".join(self._between_builds(values)))
        return line

    def _values(self, row, column):
        for state in (row.state, None):
            if runs := self.samples.get((row.workload, column, state)):
                return [row.measure.of(run) for run in runs]
        return []

    def _between_builds(self, values):
        first, second = self.builds
        for method in ("lz4", "zstd"):
            ratio = paired(values[f"{second} {method}"], values[f"{first} {method}"])
            if ratio is not None:
                yield f"{method} {ratio:.2f}"


def cell(values, digits):
    """The median, and the range."""
    if not values:
        return MISSING
    low, middle, high = min(values), statistics.median(values), max(values)
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"


def paired(ours, theirs):
    """The median of the ratios within one round: what the machine does to both cancels out."""
    ratios = [one / other for one, other in zip(ours, theirs) if other]
    return statistics.median(ratios) if ratios else None


def against(goal, ours, values):
    """What ours is to what the goal refers to."""
    if not goal.reference:
        return statistics.median(ours) / goal.factor if ours else None
    return paired(ours, values.get(goal.reference, []))


def goal_text(goal, measure):
    sign = "≥" if measure.more_is_better else "≤"
    if not goal.reference:
        return f"{goal.method} {sign} {goal.factor:g}"
    return f"{goal.method} {sign} {goal.factor:g} × {goal.reference}"


def verdict(goal, measure, ratio):
    if ratio is None:
        return MISSING
    factor = goal.factor if goal.reference else 1.0
    return "yes" if (ratio >= factor if measure.more_is_better else ratio <= factor) else "no"
