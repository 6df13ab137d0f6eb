"""Times as they are found in logs."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalign.data.events import microseconds

MOMENT = datetime(2014, 7, 23, 5, 6, 7, tzinfo=UTC)
SECONDS = int(MOMENT.timestamp())


def parsed(values: list[object] | pa.Array) -> list[int | None]:
    column = pa.chunked_array([values if isinstance(values, pa.Array) else pa.array(values)])
    times, unknown = microseconds(column)
    assert (times[unknown] == 0).all()
    return [None if wrong else int(time) for time, wrong in zip(times, unknown, strict=True)]


@pytest.mark.parametrize(
    "value",
    [
        SECONDS,
        SECONDS * 1000,
        SECONDS * 10**6,
        SECONDS * 10**9,
        float(SECONDS),
        str(SECONDS),
        f"{SECONDS}000",
        f" {SECONDS}.0 ",
        f"{SECONDS / 1e9}e9",
        "2014-07-23T05:06:07",
        "2014-07-23 05:06:07",
        "2014-07-23T05:06:07Z",
        "2014-07-23T07:06:07+02:00",
        "2014-07-23T05:06:07.000",
        MOMENT,
        MOMENT.astimezone(timezone(timedelta(hours=-5))),
        MOMENT.replace(tzinfo=None),
    ],
)
def test_one_moment_in_many_ways(value: object) -> None:
    assert parsed([value]) == [SECONDS * 10**6]


def test_dates_are_their_first_moment_in_utc() -> None:
    day = int(datetime(2014, 7, 23, tzinfo=UTC).timestamp()) * 10**6
    assert parsed(["2014-07-23"]) == parsed([date(2014, 7, 23)]) == [day]


def test_fractions_keep_the_order() -> None:
    assert parsed([1.25e9 + 0.5]) == [1_250_000_000_500_000]
    assert parsed(["2014-07-23T05:06:07.25"]) == [SECONDS * 10**6 + 250_000]


@pytest.mark.parametrize(
    "value", ["soon", "2014-13-01", "23/07/2014", "inf", "-inf", "1e300", "9999999999999999999999"]
)
def test_what_is_no_time(value: str) -> None:
    assert parsed([value, str(SECONDS)]) == [None, SECONDS * 10**6]


def test_missing_times_are_unknown() -> None:
    assert parsed([None, 5]) == parsed([float("nan"), 5.0]) == parsed([None, "5"]) == [None, 5_000_000]
    assert parsed(pa.array([None, MOMENT])) == [None, SECONDS * 10**6]
    assert parsed(pa.array([None], pa.string())) == [None]
    assert parsed(pa.array(["5", "5"]).dictionary_encode()) == [5_000_000] * 2


@given(st.datetimes(datetime(1900, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC)))
def test_iso_dates_come_back(moment: datetime) -> None:
    expected = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)
    assert parsed([moment.isoformat()]) == parsed([moment]) == [expected]


@given(st.lists(st.text(max_size=12), min_size=1, max_size=5))
def test_any_text_is_a_time_or_unknown(values: list[str]) -> None:
    assert len(parsed(pa.array(values, pa.large_string()))) == len(values)
