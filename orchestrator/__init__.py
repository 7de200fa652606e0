"""Where and when things run; the only package that imports Ray and MLflow.

Both read the environment while they are imported, so the defaults stand here.
"""

import os

DEFAULTS = {
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing reports home
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "RAY_TRAIN_ENABLE_STATE_TRACKING": "1",  # the dashboard's Train tab
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # actors that ask for no GPU keep CUDA_VISIBLE_DEVICES as it is
    # A thread of Tune's that is left over when a command is stopped would start a cluster of its own.
    "RAY_ENABLE_AUTO_CONNECT": "0",
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own console; ours takes its place
    "RAY_worker_maximum_startup_concurrency": "8",  # default: the CPUs; a run starts actors that need none
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # 7 by default: minutes until a dead server is reported
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",  # seconds; 120 by default, twice at each call to one that hangs
}
for name, value in DEFAULTS.items():
    os.environ.setdefault(name, value)
if "RAY_ADDRESS" not in os.environ:
    # With 0 a local Ray binds to 127.0.0.1 on Linux too; else it takes the machine's address, which others can reach.
    # The name is that of the systems for which Ray made the switch.
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    # One machine is not taken away with notice, as nodes of a cloud are; the watcher costs each run a process.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
