"""Device models fitted to measurements: reading the measurements, fitting a model, and checking it.

`memsim.fit_device` does all of it in one call. The steps are:

    measurements = read_measurements("cycles.csv")
    fit = fit_model(measurements, FitOptions(order=10))
    goodness = judge(fit, measurements)
    save_device(fit.model, "device.safetensors")
"""

from memsim.fit.fit import Fit, FitOptions, fit_model
from memsim.fit.goodness import Goodness, judge
from memsim.fit.measurements import Measurements, read_measurements

__all__ = ["Fit", "FitOptions", "Goodness", "Measurements", "fit_model", "judge", "read_measurements"]
