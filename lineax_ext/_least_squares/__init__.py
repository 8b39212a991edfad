"""What plugs into optimistix."""

from .descent import (
    DampedNewtonDescent as DampedNewtonDescent,
    IndirectDampedNewtonDescent as IndirectDampedNewtonDescent,
)
from .levenberg_marquardt import (
    IndirectLevenbergMarquardt as IndirectLevenbergMarquardt,
    LevenbergMarquardt as LevenbergMarquardt,
)
from .trust_region import (
    GainRatioTrustRegion as GainRatioTrustRegion,
    ScaledTrustRegionDescent as ScaledTrustRegionDescent,
)
