"""CloudWatch's evaluation of alarms, as far as the templates use it.

Sources: Amazon CloudWatch User Guide, "Alarm evaluation" (M out of N periods) and "Configuring how
CloudWatch alarms treat missing data": the evaluation range has more periods than the alarm. If
enough of them have data, the latest of these count; otherwise missing data is treated as set. The
examples there have two more periods. An alarm is evaluated every minute with the data available.
"""

import operator
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

EXTRA_PERIODS = 2
_EXCEEDS = {
    "GreaterThanThreshold": operator.gt,
    "GreaterThanOrEqualToThreshold": operator.ge,
}
_STATISTICS = {"Sum": sum, "Maximum": max}


class Metric(NamedTuple):
    """The identity of a metric."""

    namespace: str
    name: str
    dimensions: tuple[tuple[str, str], ...]


class Point(NamedTuple):
    """A value; its timestamp and arrival are in seconds."""

    metric: Metric
    at: float
    value: float
    arrives: float


class Alarm:
    """An alarm, from the resolved properties of its resource."""

    def __init__(self, properties: Mapping[str, Any]) -> None:
        self._properties = properties
        self.periods = int(properties["EvaluationPeriods"])
        self.needed = int(properties.get("DatapointsToAlarm", self.periods))
        self._expression = ""
        self._queries: dict[str, tuple[Metric, str]] = {}
        if "Metrics" in properties:
            for query in properties["Metrics"]:
                if "Expression" in query:
                    self._expression = query["Expression"]
                else:
                    stat = query["MetricStat"]
                    self._queries[query["Id"]] = (metric_of(stat["Metric"]), stat["Stat"])
                    self.period = int(stat["Period"])
        else:
            self._expression = "value"
            self._queries["value"] = (metric_of(properties), properties["Statistic"])
            self.period = int(properties["Period"])

    @property
    def metrics(self) -> set[Metric]:
        """The metrics of the alarm."""
        return {metric for metric, _ in self._queries.values()}

    def fires(self, points: Iterable[Point], until: float) -> bool:
        """Whether the state is ALARM in any minute from 0 to `until` seconds."""
        seen = list(points)
        return any(self.state(seen, 60 * n) == "ALARM" for n in range(int(until // 60) + 1))

    def state(self, points: Iterable[Point], now: float) -> str:
        """ALARM or OK at the time `now`. Missing data is not breaching in all templates."""
        assert self._properties["TreatMissingData"] == "notBreaching"
        arrived = [point for point in points if point.arrives <= now]
        found = [self._value(arrived, now - n * self.period)
                 for n in range(self.periods + EXTRA_PERIODS)]  # fmt: skip
        latest = [value for value in found if value is not None][: self.periods]
        exceeds = _EXCEEDS[self._properties["ComparisonOperator"]]
        breaching = sum(exceeds(value, float(self._properties["Threshold"])) for value in latest)
        return "ALARM" if breaching >= self.needed else "OK"

    def _value(self, points: list[Point], end: float) -> float | None:
        """The data point of the period that ends at `end`; None if there is none."""
        named = {}
        for name, (metric, statistic) in self._queries.items():
            values = [
                point.value
                for point in points
                if point.metric == metric and end - self.period < point.at <= end
            ]
            if not values:
                return None
            named[name] = float(_STATISTICS[statistic](values))
        try:
            return float(eval(self._expression, {"__builtins__": {}}, named))
        except ZeroDivisionError:  # no data point in CloudWatch
            return None


def metric_of(properties: Mapping[str, Any]) -> Metric:
    """The metric of a resource."""
    dimensions = sorted((d["Name"], d["Value"]) for d in properties["Dimensions"])
    return Metric(properties["Namespace"], properties["MetricName"], tuple(dimensions))
