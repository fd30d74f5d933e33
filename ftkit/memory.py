"""Will it fit? The one door to the estimate: shapes, line items, GPUs, what to change first, and the measurement beside it.

```python
shape = memory.find("meta-llama/Llama-3.1-8B")
needed = memory.estimate(shape, TrainConfig(max_length=2048))
memory.fits(needed)
memory.savings(shape, config, room_gib=14.6)
memory.beside(needed, history)
```
"""

from ftkit.estimates import TRL_LOSS_PATH, Beside, Item, MemoryEstimate, beside, estimate, of_way
from ftkit.footprint import FITTED, Constants, Way
from ftkit.gpus import GPU, Fits, fits, gpu, verdict
from ftkit.gpus import table as gpus
from ftkit.savings import Saving, Savings, advice, savings
from ftkit.shapes import ModelShape, find, names

__all__ = [
    "FITTED",
    "GPU",
    "TRL_LOSS_PATH",
    "Beside",
    "Constants",
    "Fits",
    "Item",
    "MemoryEstimate",
    "ModelShape",
    "Saving",
    "Savings",
    "Way",
    "advice",
    "beside",
    "estimate",
    "find",
    "fits",
    "gpu",
    "gpus",
    "names",
    "of_way",
    "savings",
    "verdict",
]
