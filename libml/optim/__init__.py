"""Optimizers: groups by name, and the transforms that bend a step."""

from libml.optim.groups import Groups as Groups
from libml.optim.optimizer import OPTIMIZERS as OPTIMIZERS
from libml.optim.optimizer import PROXIMAL as PROXIMAL
from libml.optim.optimizer import Optimizer as Optimizer
from libml.optim.optimizer import build as build
from libml.optim.optimizer import group_transform as group_transform
from libml.optim.reports import Reports as Reports
from libml.optim.reports import metrics as metrics
