"""What the suite measures the engine beside: the same steps with plain torch and bare Ray.

Ray reads its settings while it is imported. These are those of the project, for privacy and for a fair comparison.
"""

import os

for name, value in {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # binds to 127.0.0.1
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
    "RAY_worker_maximum_startup_concurrency": "8",
}.items():
    os.environ.setdefault(name, value)
