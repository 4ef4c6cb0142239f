"""What a STOW's answer says that it stored (DICOM PS3.18 section 10.5.3 and annex I)."""

from __future__ import annotations

import re

from twistedproxy.dicom.address import InvalidUID, Scope

MAX_SCOPES = 100
"""Instances that are forgotten one by one; of more, their studies are."""

# Both forms of the answer, DICOM JSON and Native DICOM Model XML, hold the RetrieveURL (0008,1190) of each instance.
_RETRIEVE_URL = re.compile(rb"/studies/([0-9.]{1,64})/series/([0-9.]{1,64})/instances/([0-9.]{1,64})(?![0-9./])")
# ReferencedSOPInstanceUID (0008,1155) of every instance, stored or failed; FailureReason (0008,1197) of each that failed.
_REFERENCED = re.compile(rb"[\"']00081155[\"']")
_FAILED = re.compile(rb"[\"']00081197[\"']")
_OTHER_FAILURES = re.compile(rb"[\"']0008119[Aa][\"']")  # these have a reason too, and name no instance


def touched_by_store(answer: bytes, addressed: Scope) -> list[Scope]:
    """The scopes to forget after a STOW to *addressed* (a root or a study) that got this *answer*.

    Where the answer does not place every instance that it says is stored, all that was addressed is touched.
    """
    unescaped = answer.replace(b"\\/", b"/")
    found = [match.groups() for match in _RETRIEVE_URL.finditer(unescaped)]
    named = len(_REFERENCED.findall(unescaped))
    failed = 0 if _OTHER_FAILURES.search(unescaped) else len(_FAILED.findall(unescaped))
    if named == 0 or len(found) < named - failed:
        return [addressed]
    places = set(found)
    try:
        scopes = {Scope(addressed.origin, addressed.root, *(uid.decode("ascii") for uid in place)) for place in places}
    except InvalidUID:
        return [addressed]
    if len(scopes) > MAX_SCOPES:
        scopes = {Scope(scope.origin, scope.root, scope.study) for scope in scopes}
    return sorted(scopes, key=lambda scope: (scope.study or "", scope.series or "", scope.sop or ""))
