"""Training: recipes, data, trainers. Its modules need PEFT and TRL, which import bitsandbytes."""

from ..pretrained.four_bits import import_bitsandbytes

import_bitsandbytes()
