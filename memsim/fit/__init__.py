"""A device model from measurements of one's own: reading them, fitting, and judging the fit.

measurements = read_measurements("cycles.csv")
fit = fit_device(measurements, FitOptions(order=10))
save_device(fit.model, "device.safetensors")
goodness = judge(fit, measurements)
"""

from memsim.fit.fit import Fit, FitOptions, fit_device
from memsim.fit.goodness import Goodness, judge
from memsim.fit.measurements import Measurements, read_measurements

__all__ = ["Fit", "FitOptions", "Goodness", "Measurements", "fit_device", "judge", "read_measurements"]
