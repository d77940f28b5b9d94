"""Optimizers: parameter groups by name, and optax transforms."""

from libml.optim.groups import Groups as Groups
from libml.optim.metrics import Metrics as Metrics
from libml.optim.metrics import last_metrics as last_metrics
from libml.optim.optimizer import OPTIMIZERS as OPTIMIZERS
from libml.optim.optimizer import PROXIMAL as PROXIMAL
from libml.optim.optimizer import Optimizer as Optimizer
from libml.optim.optimizer import build as build
from libml.optim.optimizer import group_transform as group_transform
