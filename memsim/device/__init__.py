"""One memristor: the parameters and current equations of its model, its cells, and random draws of a population."""

from memsim.device.cells import Cells, draw_cycling_volts, pulse_cells
from memsim.device.features import draw_states, fraction_below, state_means
from memsim.device.file import load_device, load_device_on, save_device
from memsim.device.model import UR, US, DeviceModel
from memsim.device.noise import read_noise_std_amperes

__all__ = [
    "UR",
    "US",
    "Cells",
    "DeviceModel",
    "draw_cycling_volts",
    "draw_states",
    "fraction_below",
    "load_device",
    "load_device_on",
    "pulse_cells",
    "read_noise_std_amperes",
    "save_device",
    "state_means",
]
