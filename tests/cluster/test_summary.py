"""The tables about a SLURM cluster at the end of a session, printed by a real inner pytest."""

from __future__ import annotations

import pytest

TESTS = """
    import pytest
    from tests.cluster import summary

    @pytest.mark.cluster
    def test_runs(request):
        row = {"interruption": "limit", "steps_lost": 0}
        request.node.user_properties.append((summary.ROW, row))
        request.node.user_properties.append((summary.FACTS, "slurm-wlm 1.2"))

    @pytest.mark.cluster
    def test_fails(): assert False

    @pytest.mark.cluster
    @pytest.mark.parametrize("number", [1, 2])
    def test_skips(number): pytest.skip("no munged: apt-get install munge")

    def test_of_something_else(): pass
"""


@pytest.mark.parametrize(
    "words",
    [
        pytest.param([], id="one process"),
        pytest.param(["-n2"], id="xdist", marks=pytest.mark.slow),
    ],
)
def test_what_ran_and_what_did_not_and_why(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, words: list[str]
) -> None:
    monkeypatch.delenv("ADAFILTER_CI", raising=False)
    pytester.makeini("[pytest]\nmarkers = cluster: on one")
    pytester.makepyfile(TESTS)
    result = pytester.runpytest_subprocess("-p", "tests.cluster.summary", *words)
    result.stdout.fnmatch_lines(
        [
            "*on a real SLURM cluster*",
            "slurm-wlm 1.2",
            "FAILED   * s  *::test_fails",
            "ran      * s  *::test_runs",
            "skipped  *::test_skips[[]1]",
            "skipped  *::test_skips[[]2]",
            "2 skipped: no munged: apt-get install munge",
            "*interruptions*",
            "interruption  steps lost",
            "limit         0",
        ],
        consecutive=True,
    )
    assert "something_else" not in result.stdout.str()
