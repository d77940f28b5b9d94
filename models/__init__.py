"""Models: linen modules that map a batch to named outputs."""

from models import face_vit
from models import vit

# Name in a config -> builder of the module from the config's other keys.
MODELS = {"vit": vit.build, "face_vit": face_vit.build}
