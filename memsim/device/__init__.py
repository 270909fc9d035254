"""One memristor: its current, its programming and what happens to it afterwards, for each kind of device."""

from memsim.device.cycles.cells import Cells, draw_cycling_volts, pulse_cells
from memsim.device.cycles.features import draw_states, fraction_below, state_means
from memsim.device.cycles.file import save_device
from memsim.device.cycles.model import UR, US, DeviceModel
from memsim.device.file import load_device, load_device_on
from memsim.device.interface import Device
from memsim.device.noise import read_noise_std_amperes

__all__ = [
    "UR",
    "US",
    "Cells",
    "Device",
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
