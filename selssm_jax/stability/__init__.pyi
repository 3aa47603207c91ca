from .certificate import (
    Certificate as Certificate,
)
from .certificate import (
    certify as certify,
)
from .certificate import (
    certify_bounds as certify_bounds,
)
from .certificate import (
    certify_model as certify_model,
)
from .certificate import (
    certify_recurrence as certify_recurrence,
)
from .laws import MarkovGates as MarkovGates
from .lipschitz import spectral_norm_bound as spectral_norm_bound
from .maps import certify_map as certify_map
from .simulate import diverging_pair as diverging_pair
from .simulate import observed_rate as observed_rate
from .switching import growing_gates as growing_gates
from .switching import joint_spectral_radius as joint_spectral_radius
from .verdict import Verdict as Verdict
