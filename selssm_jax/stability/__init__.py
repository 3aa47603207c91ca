"""Does a memory contract, at which rate, and what shows it where it does not? Certificates that are true, and their witnesses."""

from selssm_jax.stability.certificate import Certificate, certify, certify_bounds, certify_model, certify_recurrence
from selssm_jax.stability.laws import MarkovGates
from selssm_jax.stability.verdict import Verdict

__all__ = ["Certificate", "MarkovGates", "Verdict", "certify", "certify_bounds", "certify_model", "certify_recurrence"]
