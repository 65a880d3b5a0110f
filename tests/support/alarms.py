"""CloudWatch's rules for alarms, as far as the templates use them.

Sources: Amazon CloudWatch User Guide, "Alarm evaluation" (M out of N periods) and "Configuring how
CloudWatch alarms treat missing data": more periods are looked at than count; if enough of them have
data, the latest of those count, else what is missing is filled in. Its examples look at two more.
An alarm is evaluated every minute and sees what has arrived by then.
"""

import operator
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

MORE_PERIODS = 2
_EXCEEDS = {
    "GreaterThanThreshold": operator.gt,
    "GreaterThanOrEqualToThreshold": operator.ge,
}
_STATISTICS = {"Sum": sum, "Maximum": max}


class Metric(NamedTuple):
    """A metric's whole name."""

    namespace: str
    name: str
    dimensions: tuple[tuple[str, str], ...]


class Point(NamedTuple):
    """One value: its time stamp and when it arrives, both in seconds."""

    metric: Metric
    at: float
    value: float
    arrives: float


class Alarm:
    """An alarm with the resolved properties of its resource."""

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
        """What it watches."""
        return {metric for metric, _ in self._queries.values()}

    def fires(self, points: Iterable[Point], until: float) -> bool:
        """Whether it is in the state ALARM in any minute from 0 to `until` seconds."""
        seen = list(points)
        return any(self.state(seen, 60 * n) == "ALARM" for n in range(int(until // 60) + 1))

    def state(self, points: Iterable[Point], now: float) -> str:
        """ALARM or OK at one time; the templates have no other treatment of what is missing."""
        assert self._properties["TreatMissingData"] == "notBreaching"
        arrived = [point for point in points if point.arrives <= now]
        found = [self._value(arrived, now - n * self.period)
                 for n in range(self.periods + MORE_PERIODS)]  # fmt: skip
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
        except ZeroDivisionError:  # which CloudWatch leaves out
            return None


def metric_of(properties: Mapping[str, Any]) -> Metric:
    """The metric that a resource names."""
    dimensions = sorted((d["Name"], d["Value"]) for d in properties["Dimensions"])
    return Metric(properties["Namespace"], properties["MetricName"], tuple(dimensions))
