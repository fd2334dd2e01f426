from __future__ import annotations

import asyncio
from email.utils import formatdate
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthesis.running import Hours

from st_llm_embed.api.pacing import Pacer, retry_after_seconds

LATENCIES = st.lists(st.floats(0, 90), min_size=1, max_size=5)


def departures(
    pacer: Pacer, hours: Hours, sizes: list[int], workers: int, latencies: list[float]
) -> list[tuple[float, int]]:
    """When requests of these sizes left; their real size is known when they are answered."""
    left: list[tuple[float, int]] = []
    waiting = iter(list(enumerate(sizes)))

    async def work() -> None:
        for number, size in waiting:
            departure = await pacer.admit(size)
            left.append((departure.at, size))
            await hours.sleep(latencies[number % len(latencies)])
            pacer.done()
            pacer.succeeded()

    async def run() -> None:
        await asyncio.gather(*(work() for _ in range(workers)))

    asyncio.run(run())
    return left


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 100), min_size=2, max_size=60),
    workers=st.integers(1, 9),
    requests=st.one_of(st.none(), st.integers(1, 30)),
    tokens=st.one_of(st.none(), st.integers(100, 400)),
    latencies=LATENCIES,
)
def test_no_window_of_a_minute_holds_more_than_the_limits(
    sizes: list[int], workers: int, requests: int | None, tokens: int | None, latencies: list[float]
) -> None:
    hours = Hours()
    left = departures(
        Pacer(workers, requests, tokens, clock=hours, sleep=hours.sleep), hours, sizes, workers, latencies
    )
    assert sorted(size for _, size in left) == sorted(sizes)
    for begin, _ in left:
        window = [size for at, size in left if begin <= at <= begin + 60]
        assert requests is None or len(window) <= requests
        assert tokens is None or sum(window) <= tokens


def test_a_request_above_the_limit_goes_alone() -> None:
    hours = Hours()
    left = departures(Pacer(4, None, 50, clock=hours, sleep=hours.sleep), hours, [10, 80, 10, 80], 4, [0.0])
    for begin, size in left:
        if size == 80:
            assert [at for at, _ in left if begin - 60 <= at <= begin + 60] == [begin]


def test_what_an_answer_cost_less_than_expected_is_given_back_to_the_minute() -> None:
    hours = Hours()
    pacer = Pacer(8, None, 100, clock=hours, sleep=hours.sleep)

    async def run() -> list[float]:
        first = await pacer.admit(90)
        pacer.spent(first, 20)
        return [first.at, (await pacer.admit(80)).at, (await pacer.admit(80)).at]

    first, second, third = asyncio.run(run())
    assert second == first
    assert third > first + 60


def test_a_pause_holds_for_all_and_refusals_of_one_burst_count_once() -> None:
    hours = Hours()
    pacer = Pacer(10, None, None, clock=hours, sleep=hours.sleep)

    async def run() -> float:
        burst = [await pacer.admit(1) for _ in range(10)]
        hours.now += 1
        for departure, wait in zip(burst, [3.0, 300.0, *[None] * 8], strict=True):
            pacer.refused(departure, wait)
            pacer.done()
        assert pacer.refusals == 1
        assert "paused for 300 s, the server asked for it" in pacer.waiting()
        return (await pacer.admit(1)).at

    assert asyncio.run(run()) == 1000 + 1 + 300
    assert pacer.waiting() == "7 of 10 in flight after refusals"


def test_pauses_grow_while_the_server_goes_on_refusing_whatever_it_asks_for() -> None:
    hours = Hours()
    pacer = Pacer(1, None, None, clock=hours, sleep=hours.sleep)

    async def run(retry_after: float | None) -> list[float]:
        times = []
        for _ in range(9):
            departure = await pacer.admit(1)
            times.append(departure.at)
            hours.now += 0.01
            pacer.refused(departure, retry_after)
            pacer.done()
        pacer.succeeded()
        return [round(after - before) for before, after in pairwise(times)]

    assert asyncio.run(run(None)) == [1, 2, 4, 8, 16, 32, 60, 60]
    hours.now += 1000
    assert asyncio.run(run(0.02)) == [0, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": formatdate(1_000_120, usegmt=True)}, 120.0),
        ({"retry-after": formatdate(999_000, usegmt=True)}, 0.0),
        ({"retry-after-ms": "1500", "retry-after": "7"}, 1.5),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after": "1e300"}, 7200.0),
        ({"retry-after": "inf"}, 7200.0),
        ({"retry-after": formatdate(9_000_000, usegmt=True)}, 7200.0),
        ({"retry-after": "Mon, 01 Jan 99999 00:00:00 GMT"}, None),
    ],
)
def test_retry_after_in_all_its_forms(headers: dict[str, str], seconds: float | None) -> None:
    assert retry_after_seconds(headers, now=1_000_000) == seconds
