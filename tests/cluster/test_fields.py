"""What scontrol prints as names and values; needs no cluster."""

from __future__ import annotations

from tests.cluster.jobs import fields


def test_fields_with_spaces_and_odd_names() -> None:
    line = "JobId=7 JobName=a b=c GroupId=root(0) CPUs/Task=1 NtasksPerN:B:S:C=0:0:*:* Power= Cmd=x"
    assert fields(line) == {
        "JobId": "7",
        "JobName": "a b=c",
        "GroupId": "root(0)",
        "CPUs/Task": "1",
        "NtasksPerN:B:S:C": "0:0:*:*",
        "Power": "",
        "Cmd": "x",
    }
