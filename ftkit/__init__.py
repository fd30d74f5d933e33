"""ftkit: learn LLM fine-tuning by measuring it, then really do it.

`import ftkit` is silent and loads nothing heavy; each room is imported when it is first named.

```python
import ftkit

config = ftkit.TrainConfig.for_hardware(ftkit.hardware.detect())
model, tokenizer = ftkit.models.load(ftkit.models.BUNDLED, config)
```
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# In the order in which data flows.
_ROOMS = (
    *("data", "cleaning", "chat", "models", "memory", "preflight", "training", "tuning", "evaluation", "decision"),
    *("publishing", "lessons"),
)
_GROUND = ("colab", "config", "errors", "figures", "hardware", "runs")
_NAMES = {"TrainConfig": "config", "Run": "runs", "FtkitError": "errors"}

if TYPE_CHECKING:
    from ftkit.config import TrainConfig
    from ftkit.errors import FtkitError
    from ftkit.runs import Run

__all__ = ["FtkitError", "Run", "TrainConfig", "__version__"]


def __getattr__(name: str) -> Any:
    if name in _ROOMS or name in _GROUND:
        return import_module(f"ftkit.{name}")
    if name in _NAMES:
        return getattr(import_module(f"ftkit.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'ftkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS, *_GROUND])
