"""Contract tests for authors of pretext tasks and protocols, here or in a package of their own.

Three lines test a pretext task::

    from catalign.testing import check_objective

    def test_contract():
        check_objective(MyTask)
"""

from catalign.testing.objectives import CHECKS, Case, check_objective
from catalign.testing.protocols import check_protocol
from catalign.testing.toys import ToyCatalogue, toy_batch, toy_catalogue, toy_context, toy_encoders, toy_vocabulary

__all__ = [
    "CHECKS",
    "Case",
    "ToyCatalogue",
    "check_objective",
    "check_protocol",
    "toy_batch",
    "toy_catalogue",
    "toy_context",
    "toy_encoders",
    "toy_vocabulary",
]
