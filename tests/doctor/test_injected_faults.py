"""Part of the faults of scripts/fault_table.py: files or the probe show each, and a repair makes none worse."""

from __future__ import annotations

from pathlib import Path

from fault_table import TABLE
from inject_faults import inject, make_releases, shown, summary, vectors_of

from st_llm_embed import diagnose

CHOSEN = TABLE[::7]


def test_faults_are_found_and_named_and_no_repair_makes_them_worse(tmp_path: Path) -> None:
    releases = make_releases(tmp_path)
    vectors = {name: vectors_of(folder) for name, folder in releases.items()}
    assert {name for name, folder in releases.items() if shown(diagnose(str(folder)))} <= {"adapter", "dense"}
    results = []
    for number, fault in enumerate(CHOSEN):
        healthy = vectors[fault.release]
        assert healthy is not None
        (tmp_path / str(number)).mkdir()
        results.append(inject(fault, releases[fault.release], healthy, tmp_path / str(number)))
    told = [one for one in results if one.tells]
    unseen = [one.name for one in told if not one.static]
    assert [one.name for one in results if one.silent and not one.live] == [], summary(results)
    assert len(unseen) <= len(told) // 10, unseen
    assert [one for one in results if one.outcome == "worse"] == []
    assert [one.crash for one in results if one.crash] == []
    assert sum(one.outcome in ("fixed", "better") for one in results) >= 5
