"""Plans and answers of the planner from keywords: the number of users, and the fields of a request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from benchmark.privacy import planner
from benchmark.privacy.plan import PrivacyPlan, make_plan
from benchmark.privacy.request import PrivacyRequest
from benchmark.privacy.spending import Release


def plan_of(*, num_users: int, **request: Any) -> PrivacyPlan:
    """The plan for `PrivacyRequest(**request)`."""
    return make_plan(num_users, PrivacyRequest(**request))


def answer_to(*, num_users: int, spent_before: Sequence[Release] = (), **request: Any) -> dict[str, Any]:
    """The planner's answer to `PrivacyRequest(**request)`."""
    return planner.answer(num_users, PrivacyRequest(**request), None, spent_before)
